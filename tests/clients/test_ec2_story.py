"""The life of an instance, told once, with every client: what a person does in their first hour."""

import secrets

import boto.ec2.connection
import pytest

from driver import Refused
from guest import Guest, write_key
from waiting import until
from with_awscli import AwsEc2
from with_boto2 import Boto2Ec2
from with_boto3 import Boto3Ec2

DRIVERS = {
    "awscli1": lambda cloud: AwsEc2(cloud, 1),
    "awscli2": lambda cloud: AwsEc2(cloud, 2),
    "boto3-http": lambda cloud: Boto3Ec2(cloud, "http"),
    "boto3-https": lambda cloud: Boto3Ec2(cloud, "https"),
    "boto2-sigv2-http": lambda cloud: Boto2Ec2(cloud, "http"),
    "boto2-sigv2-https": lambda cloud: Boto2Ec2(cloud, "https"),
}
EVERYWHERE = "0.0.0.0/0"


@pytest.mark.parametrize("name", DRIVERS)
def test_an_instance_lives_its_life(name, cloud, image, tmp_path):
    driver = DRIVERS[name](cloud)
    story = Story(driver, f"{name}-{secrets.token_hex(3)}", cloud.zone, image, tmp_path)
    try:
        story.begins()
        story.answers_at_an_elastic_ip()
        story.shows_its_console()
        story.is_found_by_its_tags()
        story.writes_to_a_volume()
        story.keeps_its_disk_through_stop_and_start()
        story.reboots()
        story.loses_its_address()
        story.ends()
    finally:
        story.clean_up()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_boto2_as_it_comes_signs_with_version_4_for_a_region_cut_out_of_the_host(scheme, cloud):
    """127.0.0.1 becomes the scope DATE/0/127: what a client says of itself is part of its signature, and no reason to refuse."""
    driver = Boto2Ec2(cloud, scheme, boto.ec2.connection.EC2Connection)
    name = f"boto2-{secrets.token_hex(4)}"
    group = driver.create_group(name, "a & b + c = d; {e}")
    assert [found.description for found in driver.call("get_all_security_groups", group_ids=[group])] == ["a & b + c = d; {e}"]
    driver.delete_group(group)


class Story:
    def __init__(self, driver, name, zone, image, folder):
        self.driver, self.name, self.zone, self.image, self.folder = driver, name, zone, image, folder
        self.instance = self.group = self.volume = self.allocation = self.association = None

    def seen(self):
        (one,) = self.driver.instances({"instance-id": [self.instance]})
        return one

    def becomes(self, state):
        until(f"{self.instance} is {state}", lambda: self.seen().state == state, every=0.5)

    def volume_becomes(self, state, attachments=None):
        def reached():
            seen = self.driver.volume(self.volume)
            return seen if seen.state == state and (attachments is None or seen.attachments == attachments) else None

        return until(f"{self.volume} is {state}, {attachments}", reached, every=0.5)

    def begins(self):
        pem = self.driver.create_key_pair(self.name)
        self.key = write_key(self.folder / "key", pem)
        with pytest.raises(Refused) as refused:
            self.driver.create_key_pair(self.name)
        assert refused.value.code == "InvalidKeyPair.Duplicate"
        self.group = self.driver.create_group(self.name, f"the story of {self.name}")
        self.driver.open_port(self.group, 22, EVERYWHERE)
        self.driver.open_port(self.group, 8080, "192.0.2.0/24")
        self.driver.close_port(self.group, 8080, "192.0.2.0/24")
        user_data = f"#!/bin/sh\necho {self.name} > /root/mark\n"
        self.instance = self.driver.run(self.image, "mini.nano", self.key_name, self.group, user_data)
        self.becomes("running")
        seen = self.seen()
        assert (seen.image, seen.type, seen.key) == (self.image, "mini.nano", self.key_name)
        assert (seen.zone, seen.groups) == (self.zone, {self.group})
        assert seen.private_ip

    @property
    def key_name(self):
        return self.name

    def answers_at_an_elastic_ip(self):
        self.allocation, address = self.driver.allocate_address()
        self.association = self.driver.associate_address(self.instance, self.allocation)
        assert self.seen().public_ip == address
        self.guest = Guest(address, self.key)
        self.boot = self.guest.wait()
        until("user data has left its mark", lambda: self.guest.run("cat /root/mark", check=False) == self.name)

    def shows_its_console(self):
        until("the console has the kernel's lines", lambda: "Linux version" in self.driver.console(self.instance), every=1.0)

    def is_found_by_its_tags(self):
        self.driver.tag(self.instance, "Name", self.name)
        self.driver.tag(self.instance, "Story", "is told & <retold>")
        found = self.driver.instances({"tag:Name": [f"{self.name[:-1]}?"], "instance-state-name": ["running", "pending"]})
        assert [one.id for one in found] == [self.instance]
        assert found[0].tags == {"Name": self.name, "Story": "is told & <retold>"}
        assert self.driver.instances({"tag:Name": [self.name], "instance-state-name": ["stopped"]}) == []
        with pytest.raises(Refused) as refused:
            self.driver.instances({"no-such-filter": ["x"]})
        assert refused.value.code == "InvalidParameterValue"

    def writes_to_a_volume(self):
        self.volume = self.driver.create_volume(1, self.zone)
        self.volume_becomes("available", {})
        self.driver.attach_volume(self.volume, self.instance, "/dev/sdf")
        self.volume_becomes("in-use", {self.instance: "attached"})
        assert self.volume in self.seen().volumes.values()
        disk = f"/dev/disk/by-id/virtio-{self.volume.replace('-', '')}"
        until("the guest sees the disk", lambda: self.guest.run(f"test -b {disk} && echo yes", check=False) == "yes")
        self.guest.run(
            f"mke2fs -q -t ext4 {disk} && mkdir -p /mnt/v && mount {disk} /mnt/v && echo {self.name} > /mnt/v/file && umount /mnt/v"
        )
        self.driver.detach_volume(self.volume)
        self.volume_becomes("available", {})
        until("the guest's disk is gone", lambda: self.guest.run(f"test -e {disk} || echo gone", check=False) == "gone")

    def keeps_its_disk_through_stop_and_start(self):
        """And a volume that is attached stays so, with what was written to it."""
        self.driver.attach_volume(self.volume, self.instance, "/dev/sdg")
        self.volume_becomes("in-use", {self.instance: "attached"})
        self.guest.run("echo kept > /root/kept")
        self.driver.stop(self.instance)
        self.becomes("stopped")
        self.driver.start(self.instance)
        self.becomes("running")
        self.boot = self.guest.wait(other_than=self.boot)
        disk = f"/dev/disk/by-id/virtio-{self.volume.replace('-', '')}"
        script = f"cat /root/kept; mkdir -p /mnt/v; mount {disk} /mnt/v; cat /mnt/v/file; umount /mnt/v"
        assert self.guest.run(script).split() == ["kept", self.name]

    def reboots(self):
        self.driver.reboot(self.instance)
        self.boot = self.guest.wait(other_than=self.boot)
        assert self.guest.run("cat /root/kept /root/mark").split() == ["kept", self.name]
        assert self.seen().state == "running"

    def loses_its_address(self):
        self.driver.disassociate_address(self.association)
        assert self.seen().public_ip != self.guest.address
        self.driver.release_address(self.allocation)
        with pytest.raises(Refused) as refused:
            self.driver.associate_address(self.instance, self.allocation)
        assert refused.value.code == "InvalidAllocationID.NotFound"
        self.allocation = None

    def ends(self):
        with pytest.raises(Refused) as refused:
            self.driver.delete_volume(self.volume)
        assert refused.value.code == "VolumeInUse"
        self.driver.terminate(self.instance)
        self.becomes("terminated")
        self.instance = None
        self.volume_becomes("available", {})
        self.driver.delete_volume(self.volume)

        def gone():
            try:
                self.driver.volume(self.volume)
            except Refused as refused:
                return refused.code == "InvalidVolume.NotFound"
            return False

        until("the volume is gone", gone, every=0.5)
        self.volume = None
        self.driver.delete_group(self.group)
        self.group = None
        self.driver.delete_key_pair(self.key_name)

    def clean_up(self):
        """Only what a failure left."""
        steps = [
            (self.instance, lambda: (self.driver.terminate(self.instance), self.becomes("terminated"))),
            (self.allocation, lambda: self.driver.release_address(self.allocation)),
            (self.volume, lambda: (self.volume_becomes("available"), self.driver.delete_volume(self.volume))),
            (self.group, lambda: self.driver.delete_group(self.group)),
        ]
        for what, step in steps:
            if what is not None:
                try:
                    step()
                except (Refused, AssertionError) as failure:
                    print(f"not cleaned up: {failure}")
