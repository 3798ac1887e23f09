"""A guest whose root is a volume: booted from a snapshot, kept over stop and start, and made an image of."""

import contextlib
import secrets
import subprocess

import pytest

from conftest import MINI
from waiting import until


@pytest.fixture(scope="module")
def left(ec2):
    """What this file made, taken away in the opposite order."""
    todo = []
    yield todo
    for undo in reversed(todo):
        with contextlib.suppress(ec2.exceptions.ClientError):
            undo()


def disk(guest, volume):
    """The device that bears the volume's serial."""
    serial = volume.replace("-", "")
    find = f"for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {serial} ] && echo /dev/${{d##*/}}; done"
    return until(f"{volume} is in the guest", lambda: guest.run(find, check=False))


def completed(ec2, snapshot):
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    return snapshot


def available(ec2, image):
    ec2.get_waiter("image_available").wait(ImageIds=[image], WaiterConfig={"Delay": 1, "MaxAttempts": 180})
    return image


@pytest.fixture(scope="module")
def on_snapshot(cloud, ec2, guest, left):
    """An image on a snapshot of a volume that a guest wrote the mini guest's disk to."""
    volume = ec2.create_volume(Size=1, AvailabilityZone=cloud.zone, VolumeType="gp3")["VolumeId"]
    left.append(lambda: ec2.delete_volume(VolumeId=volume))
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
    ec2.attach_volume(VolumeId=volume, InstanceId=guest.id, Device="/dev/sdf")
    ec2.get_waiter("volume_in_use").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
    with open(MINI / "mini-disk.raw", "rb") as raw:
        write = f"dd of={disk(guest, volume)} bs=64k conv=fsync && sync"
        subprocess.run(guest.command(write), stdin=raw, check=True, capture_output=True, timeout=300)
    ec2.detach_volume(VolumeId=volume)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
    snapshot = completed(ec2, ec2.create_snapshot(VolumeId=volume)["SnapshotId"])
    left.append(lambda: ec2.delete_snapshot(SnapshotId=snapshot))
    image = ec2.register_image(
        Name=f"on-{snapshot}", RootDeviceName="/dev/sda1", Architecture="x86_64", VirtualizationType="hvm",
        BlockDeviceMappings=[
            {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}},
            {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": True}},
        ],
    )["ImageId"]  # fmt: skip
    left.append(lambda: ec2.deregister_image(ImageId=image))
    with pytest.raises(ec2.exceptions.ClientError) as refused:
        ec2.delete_snapshot(SnapshotId=snapshot)
    assert refused.value.response["Error"]["Code"] == "InvalidSnapshot.InUse"
    return available(ec2, image)


def volumes(described):
    return {one["DeviceName"]: one["Ebs"]["VolumeId"] for one in described["BlockDeviceMappings"]}


def test_a_guest_boots_from_a_volume_and_an_image_of_it_boots_another(cloud, ec2, launch, on_snapshot, left):
    guest = launch(image=on_snapshot, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 2}}])
    boot = guest.wait()
    described = guest.described()
    assert (described["RootDeviceType"], described["RootDeviceName"]) == ("ebs", "/dev/sda1")
    its = volumes(described)
    assert set(its) == {"/dev/sda1", "/dev/sdf"}
    # The root is the volume, grown to what the launch asked; beside it are an instance store and an empty volume.
    assert disk(guest, its["/dev/sda1"]) == "/dev/vda"
    assert guest.run("cat /sys/block/vda/size") == str((2 << 30) // 512)
    assert guest.run("grep -c vda /proc/mounts") != "0"
    assert len(guest.run("ls /sys/block | grep ^vd").split()) == 3
    files = {path.name for path in (cloud.state / "node-controller/instances" / guest.id).iterdir()}
    assert "root.qcow2" not in files and "ephemeral0.qcow2" in files

    marker = secrets.token_hex(8)
    data = disk(guest, its["/dev/sdf"])
    guest.run(f"mke2fs -q {data} && mkdir -p /data && mount {data} /data && echo {marker} > /data/mark && echo {marker} > /root/mark && sync")
    with pytest.raises(ec2.exceptions.ClientError) as refused:
        ec2.detach_volume(VolumeId=its["/dev/sda1"], Force=True)
    assert refused.value.response["Error"]["Code"] == "OperationNotPermitted"

    # Off, nothing of it is left on its node; on again, everything is where it was.
    ec2.stop_instances(InstanceIds=[guest.id])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[guest.id], WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    folder = cloud.state / "node-controller/instances" / guest.id
    until("its node has nothing of it", lambda: not folder.exists() and guest.id not in cloud.domains())
    ec2.start_instances(InstanceIds=[guest.id])
    boot = guest.wait(other_than=boot)
    assert guest.run("cat /root/mark") == marker

    # Without a reboot both volumes are of one instant; the guest goes on.
    data = disk(guest, its["/dev/sdf"])
    guest.run(f"mkdir -p /data && mount {data} /data && echo again > /data/again && echo again > /root/again && sync")
    running = ec2.create_image(InstanceId=guest.id, Name=f"running-{marker}", NoReboot=True)["ImageId"]
    left.append(lambda: ec2.deregister_image(ImageId=running))
    available(ec2, running)
    assert guest.boot_id() == boot, "it was not rebooted"
    # With one, the guest is off for a moment, and for its user it runs all the while.
    rebooted = ec2.create_image(InstanceId=guest.id, Name=f"rebooted-{marker}")["ImageId"]
    left.append(lambda: ec2.deregister_image(ImageId=rebooted))
    guest.wait(other_than=boot)
    assert guest.described()["State"]["Name"] == "running"
    (image,) = ec2.describe_images(ImageIds=[available(ec2, rebooted)])["Images"]
    mapped = {one["DeviceName"]: one for one in image["BlockDeviceMappings"]}
    assert (mapped["/dev/sdb"]["VirtualName"], mapped["/dev/sda1"]["Ebs"]["VolumeSize"]) == ("ephemeral0", 2)
    for found in ec2.describe_images(ImageIds=[running, rebooted])["Images"]:
        for one in found["BlockDeviceMappings"]:
            if "Ebs" in one:
                left.insert(0, lambda snapshot=one["Ebs"]["SnapshotId"]: ec2.delete_snapshot(SnapshotId=snapshot))

    copies = [launch(image=image) for image in (running, rebooted)]
    for copy in copies:
        copy.wait()
        data = disk(copy, volumes(copy.described())["/dev/sdf"])
        copy.run(f"mkdir -p /data && mount {data} /data")
        assert copy.run("cat /root/mark /root/again /data/mark /data/again").split() == [marker, "again"] * 2

    guest.terminate()
    gone = lambda: ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": list(its.values())}])["Volumes"] == []  # noqa: E731
    until("its volumes went with it", gone)


def test_an_imported_disk_boots(ec2, s3, bucket, launch, left):
    """The same bytes, through walrus instead of a guest."""
    s3.upload_file(str(MINI / "mini-disk.raw"), bucket, "mini.raw")
    container = {"Format": "RAW", "UserBucket": {"S3Bucket": bucket, "S3Key": "mini.raw"}}
    task = ec2.import_image(Description="mini", DiskContainers=[container])["ImportTaskId"]

    def imported():
        (found,) = ec2.describe_import_image_tasks(ImportTaskIds=[task])["ImportImageTasks"]
        assert found["Status"] in ("active", "completed"), found
        return found if found["Status"] == "completed" else None

    found = until("the image is imported", imported, patience=120)
    left.append(lambda: ec2.delete_snapshot(SnapshotId=found["SnapshotDetails"][0]["SnapshotId"]))
    left.append(lambda: ec2.deregister_image(ImageId=found["ImageId"]))
    guest = launch(image=found["ImageId"])
    guest.wait()
    assert guest.described()["RootDeviceType"] == "ebs"
