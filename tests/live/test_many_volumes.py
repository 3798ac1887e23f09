"""Volumes on several machines: the storage-controller is on the first, and what it serves to a guest on another goes by TLS, to that
machine's node and to nobody else, also when that machine is lost and comes back."""

import os
import pathlib
import re
import secrets
import signal
import time

import pytest

from certificate import reissue
from conftest import MINI, cleared
from mallee_cloud import run
from test_many_guests import Guests
from test_volumes import Writer, files, make_file_system, stop_writer
from volume import Volumes
from waiting import until


@pytest.fixture(scope="module")
def guests(many, tmp_path_factory):
    guests = Guests(many, tmp_path_factory.mktemp("key"))
    yield guests
    guests.net.end()


def on(guests, name):
    (found,) = [guest for guest in guests.all if guest.machine().name == name]
    return found


@pytest.fixture(scope="module")
def near(guests):
    """The guest on the storage-controller's machine."""
    return on(guests, "a1")


@pytest.fixture(scope="module")
def far(guests):
    return on(guests, "a2")


@pytest.fixture
def volumes(guests, many):
    volumes = Volumes(guests.net.ec2, many.zones[0])
    yield volumes
    volumes.end()


def make_quiet_file_system(guest, volume):
    """One that is mounted and writes nothing by itself: what is under way when its disk is cut is waited for, for two minutes."""
    guest.run(f"mkfs.ext4 -q {volume.path} && mount {volume.path} /mnt && echo kept > /mnt/kept && mount -o remount,ro /mnt && sync", timeout=120)


def has(guest, volume):
    """Behind the guest's back: whether its machine gives it the disk."""
    return volume.id.replace("-", "", 1) in guest.machine().virsh("dumpxml", guest.id)


def export(many, volume):
    """The process that serves a volume, and the port it is served at for another machine."""
    told = many.first.run("ps", "-eww", "-o", "pid=,args=").stdout.splitlines()
    (words,) = [line for line in told if "qemu-storage-daemon" in line and f"/{volume.id}.qmp" in line]
    at = re.search(r'"port":"(\d+)"', words)
    return int(words.split()[0]), at and at[1]


def opened(many, machine, volume, name):
    """What comes of reading an export from a machine, with the certificate of its node."""
    address = f"driver=nbd,server.type=inet,server.host={many.first.address},server.port={export(many, volume)[1]},export={name}"
    credentials = f"tls-creds-x509,id=tls,endpoint=client,dir={machine.engines}/virt/nbd-tls"
    image = f"{address},tls-creds=tls,tls-hostname={many.zones[0]}.storage-controller.mallee.internal"
    return machine.run("qemu-io", "-r", "--object", credentials, "--image-opts", "-c", "read 0 4k", image, check=False)


def test_a_volume_moves_between_machines_with_all_that_was_written(near, far, many, volumes):
    """Also over the death of what serves it, while the guest on the other machine writes."""
    volume = volumes(1)
    volume.attach(far)
    make_file_system(far, volume)
    writer = Writer(far)
    writer.goes_on()
    before, _ = export(many, volume)
    os.kill(before, signal.SIGKILL)
    writer.goes_on()
    assert export(many, volume)[0] != before
    stop_writer(far, writer)
    volume.detach()
    volume.attach(near)
    assert export(many, volume)[1] is None, "beside the storage-controller there is no need for a network"
    assert files(near, volume)[0] >= writer.told
    near.run(f"mount {volume.path} /mnt && echo near > /mnt/near && umount /mnt")
    volume.detach()
    volume.attach(far)
    assert far.run(f"mount {volume.path} /mnt && cat /mnt/near && umount /mnt") == "near"
    volume.detach()


def test_only_the_machine_of_its_guest_opens_an_export(far, many, volumes):
    volume = volumes(1)
    volume.attach(far)
    source = far.machine().virsh("dumpxml", far.id)
    (name,) = re.findall(r"protocol='nbd' name='(\w+)' tls='yes'", source)
    allowed, other = (opened(many, many.machines[one], volume, name) for one in ("a2", "b2"))
    assert "read 4096/4096" in allowed.stdout, allowed.stdout + allowed.stderr
    assert other.returncode and "read 4096" not in other.stdout, other.stdout + other.stderr
    volume.detach()


def test_a_disk_stays_for_longer_than_the_certificate_it_came_with(far, many, volumes):
    """QEMU reads it when a disk is attached. When it has ended, and what serves the disk dies, the disk comes back all the same,
    because it was given the node's next one before."""
    machine = far.machine()
    tls, shown = machine.home / "node-controller/tls", machine.home / "node-controller/disk-certificate"
    authority = many.first.home / "cloud-controller/ca"
    kept = (tls / "cert.pem").read_text()
    volume = volumes(1)
    try:
        ended = reissue(tls, authority, 75)
        volume.attach(far)
        make_file_system(far, volume)
        writer = Writer(far)
        writer.goes_on()
        # As when it is renewed.
        next_one = reissue(tls, authority, 20 * 24 * 3600)
        machine.kill("node-controller")
        until("the disk has the next certificate", lambda: shown.read_text() == str(next_one), patience=120)
        writer.goes_on()
        until("the first has ended", lambda: time.time() > ended + 1, patience=240)
        before, _ = export(many, volume)
        os.kill(before, signal.SIGKILL)
        writer.goes_on()
        assert export(many, volume)[0] != before
        # libvirt finds what it knows: the disk grows, and goes.
        volumes.ec2.modify_volume(VolumeId=volume.id, Size=2)
        block = far.run(f"basename $(readlink {volume.path})")
        until("the guest sees 2 GiB", lambda: far.run(f"cat /sys/class/block/{block}/size") == str(2 << 21))
        writer.goes_on()
        stop_writer(far, writer)
        assert files(far, volume)[0] >= writer.told
        volume.detach()
        until("the disk is gone", lambda: not has(far, volume))
    finally:
        (tls / "cert.new").write_text(kept)
        (tls / "cert.new").rename(tls / "cert.pem")
        machine.kill("node-controller")


def test_an_instance_on_a_volume_starts_on_another_machine_with_all_that_was_written(guests, many):
    ec2, s3 = guests.net.ec2, many.client("s3", attempts=4)
    bucket = f"disks-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=bucket)
    image = snapshot = None
    try:
        s3.upload_file(str(MINI / "mini-disk.raw"), bucket, "disk")
        task = ec2.import_snapshot(DiskContainer={"Format": "raw", "UserBucket": {"S3Bucket": bucket, "S3Key": "disk"}})["ImportTaskId"]

        def imported():
            (found,) = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"]
            detail = found["SnapshotTaskDetail"]
            assert detail["Status"] != "deleted", detail
            return detail["Status"] == "completed" and detail["SnapshotId"]

        snapshot = until("the disk is imported", imported, patience=180)
        image = ec2.register_image(
            Name=f"on-{snapshot}", RootDeviceName="/dev/sda1", Architecture="x86_64", VirtualizationType="hvm",
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}],
        )["ImageId"]  # fmt: skip
        guest = guests.launch(image)
        # A disk that is fetched over the network, of a guest that is emulated.
        boot = guest.wait(patience=300)
        was = guest.machine()
        guest.run("echo kept > /root/kept && sync")
        ec2.stop_instances(InstanceIds=[guest.id])
        until(f"{guest.id} is stopped", lambda: guest.state() == "stopped", patience=120)
        assert not any(guest.id in machine.virsh("list", "--all", "--name").split() for machine in many.machines.values())
        many.mallee("node", "drain", was.name)
        try:
            ec2.start_instances(InstanceIds=[guest.id])
            guest.wait(other_than=boot, patience=300)
            assert guest.machine().name != was.name
            assert guest.run("cat /root/kept") == "kept"
        finally:
            many.mallee("node", "serve", was.name)
        ec2.terminate_instances(InstanceIds=[guest.id])
        until(f"{guest.id} is terminated", lambda: guest.state() == "terminated", patience=90)
    finally:
        if image:
            ec2.deregister_image(ImageId=image)
        if snapshot:
            ec2.delete_snapshot(SnapshotId=snapshot)
        cleared(s3, bucket)


def test_a_volume_is_taken_by_force_and_its_guest_goes_on(near, far, volumes):
    """The guest's machine does not wait for an export that will never be back."""
    for guest in (near, far):
        boot = guest.boot_id()
        volume = volumes(1)
        volume.attach(guest)
        make_quiet_file_system(guest, volume)
        volume.detach(Force=True)
        until(f"{guest.id} has let go", lambda: not has(guest, volume), patience=60)
        assert guest.boot_id() == boot
        guest.run("umount -l /mnt", check=False)


def test_a_lost_machine_is_cut_off_before_another_has_the_volume(near, far, many, volumes):
    """It comes back with a guest that still has the file system mounted, and nothing of that reaches the volume."""
    ec2 = volumes.ec2
    volume = volumes(1)
    volume.attach(far)
    make_quiet_file_system(far, volume)
    boot, machine = far.boot_id(), far.machine()
    run(["ip", "link", "set", machine.link, "down"])
    try:
        ec2.detach_volume(VolumeId=volume.id)
        with pytest.raises(ec2.exceptions.ClientError) as refused:
            ec2.attach_volume(VolumeId=volume.id, InstanceId=near.id, Device="/dev/sdf")
        assert refused.value.response["Error"]["Code"] == "VolumeInUse"
        assert volume.attachment() == "detaching", "the lost machine has not let go of it"
        served, _ = export(many, volume)
        volume.detach(Force=True)
        assert not pathlib.Path(f"/proc/{served}").exists(), "nobody else may have it while it is served"
        volume.attach(near)
        near.run(f"mount {volume.path} /mnt")
        assert near.run("cat /mnt/kept") == "kept"
        near.run("echo near > /mnt/near && umount /mnt")
    finally:
        run(["ip", "link", "set", machine.link, "up"])
    many.are_up(*many.machines)
    until("the guest that came back has let go", lambda: not has(far, volume), patience=60)
    assert far.boot_id() == boot
    far.run("umount -l /mnt", check=False)
    near.run(f"e2fsck -fn {volume.path} >/dev/null && mount {volume.path} /mnt")
    assert near.run("ls /mnt | grep -v lost+found").split() == ["kept", "near"]
    near.run("umount /mnt")
    volume.detach()
    volume.attach(far)
    assert far.run(f"mount {volume.path} /mnt && cat /mnt/near && umount /mnt") == "near"
    volume.detach()
