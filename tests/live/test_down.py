"""`mallee down` and `mallee down --all`, with a second cloud beside the first: guests go on, and nothing is left at the end.
"""

import json
import os
import pathlib

import pytest

from conftest import Launcher, mini
from guest import Session, write_key
from mallee_cloud import Cloud, run
from waiting import until, until_empty

#: Where daemons write. What others on the machine do there meanwhile is told apart by what is ignored below.
PLACES = ["/etc", "/run", "/var/lib", "/var/log", "/var/cache", "/var/tmp", "/dev/shm", "/usr/local"]
IGNORED = ["/var/tmp/mallee-test", "/var/lib/mallee/", "/run/lock/", "/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/apt/", "/var/log/apt/"]


@pytest.fixture(scope="module")
def second():
    return Cloud("/var/tmp/mallee-gone", name="gone-1", subnet="172.29.78", port=19773, suffix="gone")


class Host:
    """What a machine has, as far as a cloud could change it."""

    def __init__(self, others):
        """`others`: words of processes that are not this cloud's."""
        show = lambda *words: json.loads(run(["ip", "-j", *words]).stdout or "[]")
        self.links = sorted(link["ifname"] for link in show("link"))
        self.addresses = sorted((link["ifname"], each["local"]) for link in show("address") for each in link["addr_info"])
        self.routes = sorted(json.dumps(route, sort_keys=True) for table in ("-4", "-6") for route in show(table, "route", "show", "table", "all"))
        self.rules = [json.dumps(rule, sort_keys=True) for rule in show("rule")]
        self.namespaces = sorted(each["name"] for each in show("netns"))
        self.ruleset = run(["nft", "list", "ruleset"]).stdout
        self.mounts = sorted(line.split()[1] for line in open("/proc/self/mounts"))
        self.forwarding = pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text()
        self.files = sorted(path for place in PLACES for path in walk(place))
        self.processes = processes(others)

    def differences(self, before):
        """Everything that is here and was not, or was and is not."""
        found = {}
        for what, now in vars(self).items():
            then = getattr(before, what)
            if now != then:
                found[what] = (sorted(set(now) - set(then)), sorted(set(then) - set(now))) if isinstance(now, list) else (now, then)
        return found


def walk(place):
    for folder, names, files in os.walk(place):
        for name in names + files:
            path = os.path.join(folder, name)
            if not any(path.startswith(each.rstrip("/")) for each in IGNORED):
                yield path


def processes(others):
    """Command lines of daemons and guests. Builds and tests come and go beside us."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            ours = any(word in line for word in ("qemu", "ovs", "ovn", "libvirt", "virtlog", "mallee", "-controller", "walrus", "dnsmasq"))
            if ours and not any(word in line for word in others):
                found.append(line)
    return sorted(found)


def test_down_lets_guests_run_and_all_leaves_nothing(second, cloud, tmp_path):
    if second.exists():
        second.down(everything=True)
    # The first cloud, a developer's, and the programs of those who build and test here.
    others = [str(cloud.state), "/var/lib/mallee/", "cargo", "rustc", "pytest", "python", "bash"]
    before = Host(others)
    second.up()
    try:
        assert Host(others).differences(before).keys() >= {"links", "addresses", "namespaces", "files", "processes"}, "the search finds"
        ec2 = second.client("ec2")
        key = "k", write_key(tmp_path / "key", ec2.create_key_pair(KeyName="k")["KeyMaterial"])
        guest = Launcher(second, ec2, mini(second, ec2), key)()
        boot = guest.wait()
        volume = ec2.create_volume(Size=1, AvailabilityZone=second.zone)["VolumeId"]
        until("the volume is available", lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == "available")
        ec2.attach_volume(VolumeId=volume, InstanceId=guest.id, Device="/dev/sdf")
        disk = f"/dev/disk/by-id/virtio-{volume.replace('-', '')}"
        until("the guest sees the disk", lambda: guest.run(f"test -b {disk} && echo yes", check=False) == "yes")
        session = Session(guest)
        pid = second.qemu(guest.id)

        second.down()
        assert not any(second.pid(tier) for tier in ("cloud-controller", "walrus", "cluster-controller", "storage-controller", "node-controller"))
        session.goes_on()
        guest.run(f"dd if=/dev/urandom of={disk} bs=64k count=16 conv=fsync 2>/dev/null")
        # What its packets need is kept running even now.
        second.kill("ovs-vswitchd")
        session.goes_on()

        second.up()
        session.goes_on()
        guest.is_in("running")
        assert (guest.wait(), second.qemu(guest.id)) == (boot, pid), "it was adopted, not started again"
        guest.run(f"dd if={disk} of=/dev/null bs=64k count=16 2>/dev/null")

        # Its cloud-controller has forgotten everything: what runs is an orphan, which is shown and not ended.
        second.down()
        for store in (second.state / "cloud-controller").glob("*.db*"):
            store.unlink()
        second.up()
        until("the orphan is shown", lambda: guest.id in second.mallee("status", check=False).stdout)
        assert second.client("ec2").describe_instances()["Reservations"] == []
        session.goes_on()
        assert (guest.wait(), second.qemu(guest.id)) == (boot, pid)
        session.end()
    finally:
        second.down(everything=True)
    until_empty("the host is as it was", lambda: Host(others).differences(before), patience=20)
    assert not second.state.exists()
