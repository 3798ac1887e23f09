"""A volume's life with real guests: attached while they run, written, snapshotted under the writer's hands, moved, restored, grown,
encrypted; and everything that serves it killed while a guest writes."""

import subprocess
import threading
import time

import pytest

from mallee_cloud import run
from volume import Volumes
from waiting import until

WRITER = "i=0; while :; do i=$((i+1)); echo $i | dd of=/mnt/$i conv=fsync 2>/dev/null && echo $i || exit 1; done"


@pytest.fixture
def volumes(cloud, ec2):
    volumes = Volumes(ec2, cloud.zone)
    yield volumes
    volumes.end()


@pytest.fixture(scope="module")
def two(cloud, ec2, image, key):
    """Two guests that nothing is attached to."""
    from conftest import Launcher

    launcher = Launcher(cloud, ec2, image, key)
    guests = [launcher(), launcher()]
    for guest in guests:
        guest.wait()
    yield guests
    launcher.end()


class Writer:
    """Writes files 1, 2, 3, … in the guest, each on the disk before it is told."""

    def __init__(self, guest):
        self.process = subprocess.Popen(guest.command(WRITER), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.told = 0
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            assert int(line) == self.told + 1, line
            self.told = int(line)

    def goes_on(self, by=5):
        seen = self.told
        until("the writer goes on", lambda: self.told >= seen + by, patience=120, every=0.02)
        assert self.process.poll() is None, "the writer ended"


def make_file_system(guest, volume):
    guest.run(f"mkfs.ext4 -q {volume.path} && mount {volume.path} /mnt", timeout=120)


def stop_writer(guest, writer):
    writer.process.terminate()
    writer.process.wait()
    writer.thread.join()
    # What ran in the session ends with it; the file system must be free before it goes.
    until("the writer's session is over", lambda: guest.run("umount /mnt && echo gone", check=False) == "gone")


def files(guest, volume):
    """How many of the writer's files a file system has, without a gap and each with its contents."""
    checked = guest.run(f"e2fsck -fn {volume.path} >/dev/null 2>&1; echo $?")
    guest.run(f"mount {volume.path} /mnt")
    try:
        count = "n=0; while [ \"$(cat /mnt/$((n+1)) 2>/dev/null)\" = $((n+1)) ]; do n=$((n+1)); done; echo $n"
        whole = int(guest.run(count, timeout=120))
        there = int(guest.run("ls /mnt | grep -c '^[0-9]'", check=False) or 0)
    finally:
        guest.run("umount /mnt")
    # The last file may have been made and not filled when the instant came.
    assert whole <= there <= whole + 1, f"{there} files, of which {whole} are whole and without a gap"
    return whole, checked


def test_a_volume_is_written_snapshotted_moved_restored_and_grown(cloud, ec2, volumes, two):
    first, second = two
    volume = volumes(1)
    volume.attach(first)
    make_file_system(first, volume)
    writer = Writer(first)
    writer.goes_on()
    before = writer.told
    snapshot = volumes.snapshot_of(volume)
    after = writer.told
    writer.goes_on()
    print(f"snapshot: {before} writes were acknowledged before it was asked for, {after} when it was answered")

    ec2.modify_volume(VolumeId=volume.id, Size=2)
    block = first.run(f"basename $(readlink {volume.path})")
    until("the guest sees 2 GiB", lambda: first.run(f"cat /sys/class/block/{block}/size") == str(2 << 21))
    writer.goes_on()
    (modification,) = ec2.describe_volumes_modifications(VolumeIds=[volume.id])["VolumesModifications"]
    assert (modification["ModificationState"], modification["TargetSize"]) == ("completed", 2)
    stop_writer(first, writer)
    written = writer.told
    first.run(f"e2fsck -fp {volume.path} >/dev/null; resize2fs {volume.path} 2>/dev/null && mount {volume.path} /mnt", timeout=120)
    assert int(first.run("stat -f -c %b /mnt")) * int(first.run("stat -f -c %S /mnt")) > 1800 << 20
    first.run("umount /mnt")
    volume.detach()

    volume.attach(second, "/dev/sdg")
    # Nobody asks the disk for anything while it grows: the guest hears of it all the same.
    ec2.modify_volume(VolumeId=volume.id, Size=3)
    block = second.run(f"basename $(readlink {volume.path})")
    until("the guest sees 3 GiB", lambda: second.run(f"cat /sys/class/block/{block}/size") == str(3 << 21))
    assert files(second, volume)[0] >= written
    volumes.completed(snapshot)
    restored = volumes(1, SnapshotId=snapshot)
    restored.attach(second, "/dev/sdh")
    there, _ = files(second, restored)
    assert before <= there <= after + 1, f"{before} ≤ {there} ≤ {after} + 1"
    print(f"the snapshot holds {there}")
    # It was mounted, so its journal was played: now it is as clean as a file system can be.
    assert files(second, restored) == (there, "0")
    volume.detach()
    restored.detach()


def test_an_encrypted_volume_leaves_no_word_on_the_disk(cloud, ec2, volumes, two):
    guest = two[0]
    marker = "a word that only the guest may know"
    volume = volumes(1, Encrypted=True)
    assert volume.described()["Encrypted"]
    volume.attach(guest)
    guest.run(f"yes '{marker}' | head -c 4194304 > /dev/shm/m 2>/dev/null || yes '{marker}' | head -c 4194304 > /tmp/m")
    guest.run(f"dd if=/tmp/m of={volume.path} bs=1M conv=fsync 2>/dev/null || dd if=/dev/shm/m of={volume.path} bs=1M conv=fsync")
    guest.run("rm -f /tmp/m /dev/shm/m")
    snapshot = volumes.snapshot_of(volume)
    volumes.completed(snapshot)
    searched = ["storage-controller", "walrus"]
    found = run(["grep", "-r", "-l", "-a", "-F", "--devices=skip", "-e", marker, *[cloud.state / tier for tier in searched]], check=False)
    assert found.stdout == ""
    plain = volumes(1)
    plain.attach(guest, "/dev/sdg")
    guest.run(f"dd if={volume.path} of={plain.path} bs=1M count=4 conv=fsync 2>/dev/null")
    found = run(["grep", "-r", "-l", "-a", "-F", "--devices=skip", "-e", marker, *[cloud.state / tier for tier in searched]], check=False)
    assert plain.id in found.stdout and volume.id not in found.stdout, "the search finds it where it is in the clear"
    restored = volumes(1, SnapshotId=snapshot)
    assert restored.described()["Encrypted"], "what began encrypted stays it"
    restored.attach(guest, "/dev/sdh")
    assert marker in guest.run(f"dd if={restored.path} bs=512 count=1 2>/dev/null")
    for one in (volume, plain, restored):
        one.detach()


@pytest.mark.parametrize("what", ["storage-controller", "export", "node-controller"])
def test_what_serves_a_volume_is_killed_while_a_guest_writes(what, cloud, ec2, volumes, two):
    guest, volume, other = two[0], volumes(1), volumes(1)
    volume.attach(guest)
    make_file_system(guest, volume)
    writer = Writer(guest)
    writer.goes_on()
    for _ in range(3):
        ec2.attach_volume(VolumeId=other.id, InstanceId=guest.id, Device="/dev/sdg")
        if what == "export":
            kill_exports(cloud)
        else:
            cloud.kill(what)
        writer.goes_on()
        until(f"{other.id} is attached", lambda: other.attachment() == "attached")
        until("the guest sees it", lambda: guest.run(f"test -e {other.path} && echo yes", check=False) == "yes")
        ec2.detach_volume(VolumeId=other.id)
        if what == "export":
            kill_exports(cloud)
        else:
            cloud.kill(what)
        other.is_in("available")
        writer.goes_on()
    stop_writer(guest, writer)
    assert files(guest, volume)[0] >= writer.told
    volume.detach()
    until("no export is left", lambda: not [p for p in exports(cloud) if volume.id in p[1] or other.id in p[1]])


@pytest.fixture
def small_disk(cloud, ec2, tmp_path):
    """The disk of volumes is one of 2 GiB while this test runs. What other tests left is deleted first."""
    folder = cloud.state / "storage-controller/volumes"
    left = ec2.describe_volumes(Filters=[{"Name": "status", "Values": ["available"]}])["Volumes"]
    for volume in left:
        ec2.delete_volume(VolumeId=volume["VolumeId"])
    until("no volume is left", lambda: not list(folder.iterdir()))
    disk = tmp_path / "disk"
    run(["truncate", "-s", "2G", disk])
    run(["mkfs.ext4", "-q", "-m", "0", disk])
    run(["mount", "-o", "loop", disk, folder])
    run(["rmdir", folder / "lost+found"])
    yield folder
    run(["umount", folder])


def test_a_full_disk_makes_guests_wait_and_says_so(cloud, ec2, two, small_disk):
    guest, neighbour = two
    volumes = Volumes(ec2, cloud.zone)
    try:
        volume, other = volumes(1), volumes(1)
        volume.attach(guest)
        other.attach(neighbour)
        neighbour.run(f"dd if=/dev/zero of={other.path} bs=1M count=8 conv=fsync 2>/dev/null", timeout=120)
        ballast = small_disk / "ballast"
        free = int(run(["stat", "-f", "-c", "%a", small_disk]).stdout) * 4096
        run(["fallocate", "-l", str(free - (16 << 20)), ballast])
        write = f"dd if=/dev/urandom of={volume.path} bs=1M count=48 conv=fsync 2>/dev/null && echo written"
        writer = subprocess.Popen(guest.command(write), stdout=subprocess.PIPE, text=True)
        until("the guest stands still", lambda: "paused" in cloud.virsh("domstate", guest.id))
        until("it is told why", lambda: "no room" in cloud.mallee("why", guest.id).stdout)
        cloud.kill("storage-controller")
        until("the volume's disk is said to be full", lambda: "is full" in cloud.mallee("why", volume.id).stdout)
        assert guest.described()["State"]["Name"] == "running"
        assert writer.poll() is None
        # Whoever needs no room goes on, and the cloud too.
        neighbour.run(f"dd if=/dev/zero of={other.path} bs=1M count=8 conv=fsync 2>/dev/null", timeout=120)
        ballast.unlink()
        assert writer.communicate(timeout=120)[0].strip() == "written"
        until("nobody complains", lambda: "no room" not in cloud.mallee("why", guest.id).stdout.split("observed")[-1])
    finally:
        (small_disk / "ballast").unlink(missing_ok=True)
        volumes.end()
        until("the volumes are gone", lambda: not list(small_disk.iterdir()))


def exports(cloud):
    """(pid, command line) of the daemons that serve this cloud's volumes."""
    listed = run(["ps", "-eo", "pid,args"]).stdout.splitlines()
    return [line.split(None, 1) for line in listed if "qemu-storage-daemon" in line and str(cloud.state) in line]


def kill_exports(cloud):
    for pid, _ in exports(cloud):
        run(["kill", "-9", pid], check=False)
    time.sleep(0.1)
