"""Disks as their clients handle them, with boto3 and with the AWS CLI: everything that is done to a volume and a snapshot, what
a launch and an image may say of their disks, imports, and the errors that clients branch on. What is on the disks, and what
becomes of it when something dies, is tested live."""

import contextlib
import secrets

import pytest
import with_boto3
from calls import CLIENTS, Boto3
from conftest import MINI, cleared
from driver import Refused
from waiting import until

EVERY_CLIENT = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())


def answer(call, operation, **parameters):
    """The code of the refusal; None when it is none."""
    try:
        call(operation, **parameters)
    except Refused as refusal:
        return refusal.code


def refused(code, call, operation, **parameters):
    assert answer(call, operation, **parameters) == code, f"{operation} {parameters}"


def all_refused(call, table):
    """What is answered otherwise than the table of (code, (operation, parameters)) says is shown all at once."""
    told = [(expected, answer(call, operation, **parameters), operation, parameters) for expected, (operation, parameters) in table]
    assert not [line for line in told if line[0] != line[1]]


def named(kind, name):
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": name}]}]}


def only(answer, member):
    (one,) = answer[member]
    return one


@pytest.fixture
def left():
    """What a test made, taken away in the opposite order; what it has undone itself is gone already."""
    todo = []
    yield todo
    for call, operation, parameters in reversed(todo):
        with contextlib.suppress(Refused):
            call(operation, **parameters)


@pytest.fixture(scope="module")
def imported(cloud, s3, image):
    """A snapshot that a guest boots from: the mini guest's disk, imported."""
    call, bucket = Boto3(cloud), f"disks-{secrets.token_hex(4)}"
    s3.create_bucket(Bucket=bucket)
    s3.upload_file(str(MINI / "mini-disk.raw"), bucket, "mini.raw")
    disk = {"Format": "RAW", "UserBucket": {"S3Bucket": bucket, "S3Key": "mini.raw"}}
    task = call("import_snapshot", DiskContainer=disk, **named("import-snapshot-task", bucket))
    assert only(task, "Tags")["Value"] == bucket
    call.wait("snapshot_imported", ImportTaskIds=[task["ImportTaskId"]])
    done = only(call("describe_import_snapshot_tasks", ImportTaskIds=[task["ImportTaskId"]]), "ImportSnapshotTasks")
    snapshot = done["SnapshotTaskDetail"]["SnapshotId"]
    refused("IncorrectState", call, "cancel_import_task", ImportTaskId=task["ImportTaskId"])
    yield snapshot
    call("delete_snapshot", SnapshotId=snapshot)
    cleared(s3, bucket)


@EVERY_CLIENT
def test_disks_are_made_changed_copied_shared_and_deleted(cloud, client, left):
    call, name = client(cloud), f"disks-{secrets.token_hex(4)}"
    made = call("create_volume", AvailabilityZone=cloud.zone, Size=1, VolumeType="gp3", Throughput=150, **named("volume", name))
    volume = made["VolumeId"]
    left.append((call, "delete_volume", {"VolumeId": volume}))
    assert (made["State"], made["Encrypted"], made["MultiAttachEnabled"], made["Iops"]) == ("creating", False, False, 3000)
    call.wait("volume_available", VolumeIds=[volume])
    asked = {"tag:Name": name, "status": "available", "volume-type": "gp3", "availability-zone-id": made["AvailabilityZoneId"]}
    filters = [{"Name": key, "Values": [value]} for key, value in asked.items()]
    seen = only(call("describe_volumes", Filters=filters), "Volumes")
    assert (seen["VolumeId"], seen["Throughput"], seen["Tags"]) == (volume, 150, [{"Key": "Name", "Value": name}])
    status = only(call("describe_volume_status", VolumeIds=[volume]), "VolumeStatuses")
    assert (status["VolumeStatus"]["Status"], status["Actions"], status["Events"]) == ("ok", [], [])
    call("modify_volume_attribute", VolumeId=volume, AutoEnableIO={"Value": True})
    assert call("describe_volume_attribute", VolumeId=volume, Attribute="autoEnableIO")["AutoEnableIO"] == {"Value": True}
    assert call("describe_volume_attribute", VolumeId=volume, Attribute="productCodes")["ProductCodes"] == []
    call("enable_volume_io", VolumeId=volume)

    # It grows, and becomes another type.
    change = call("modify_volume", VolumeId=volume, Size=4, VolumeType="io2", Iops=200)["VolumeModification"]
    assert (change["OriginalSize"], change["TargetSize"], change["TargetVolumeType"]) == (1, 4, "io2")

    def is_changed():
        now = only(call("describe_volumes_modifications", VolumeIds=[volume]), "VolumesModifications")
        return now["ModificationState"] == "completed" and now["Progress"] == 100

    until(f"{volume} has grown", is_changed)
    refused("InvalidParameterValue", call, "modify_volume", VolumeId=volume, Size=3)
    seen = only(call("describe_volumes", VolumeIds=[volume]), "Volumes")
    assert (seen["Size"], seen["VolumeType"], seen["Iops"]) == (4, "io2", 200)

    # A snapshot, shown as far as it is; a copy under a key; a volume of that.
    taken = call("create_snapshot", VolumeId=volume, Description=name, **named("snapshot", name))
    snapshot = taken["SnapshotId"]
    left.append((call, "delete_snapshot", {"SnapshotId": snapshot}))
    assert (taken["State"], taken["VolumeSize"], taken["Encrypted"]) == ("pending", 4, False)
    call.wait("snapshot_completed", SnapshotIds=[snapshot])
    owned = [{"Name": "description", "Values": [name]}, {"Name": "volume-id", "Values": [volume]}]
    seen = only(call("describe_snapshots", OwnerIds=["self"], Filters=owned), "Snapshots")
    assert (seen["SnapshotId"], seen["Progress"], seen["StorageTier"]) == (snapshot, "100%", "standard")
    copied = call("copy_snapshot", SourceRegion=cloud.name, SourceSnapshotId=snapshot, Encrypted=True, **named("snapshot", name))
    sealed = copied["SnapshotId"]
    left.append((call, "delete_snapshot", {"SnapshotId": sealed}))
    call.wait("snapshot_completed", SnapshotIds=[sealed])
    seen = only(call("describe_snapshots", SnapshotIds=[sealed]), "Snapshots")
    assert seen["Encrypted"] and seen["KmsKeyId"].startswith("arn:aws:kms:") and snapshot in seen["Description"]
    smaller = {"AvailabilityZone": cloud.zone, "SnapshotId": sealed, "Size": 3}
    refused("InvalidParameterValue", call, "create_volume", **smaller)
    refused("InvalidParameterValue", call, "create_volume", **(smaller | {"Size": 4, "Encrypted": False}))
    restored = call("create_volume", AvailabilityZone=cloud.zone, SnapshotId=sealed)
    left.append((call, "delete_volume", {"VolumeId": restored["VolumeId"]}))
    assert (restored["Size"], restored["Encrypted"], restored["SnapshotId"]) == (4, True, sealed)

    # Who else may use it.
    permission = {"SnapshotId": snapshot, "Attribute": "createVolumePermission"}
    call("modify_snapshot_attribute", **permission, OperationType="add", UserIds=["999999999999"], GroupNames=["all"])
    shared = call("describe_snapshot_attribute", **permission)["CreateVolumePermissions"]
    assert sorted(next(iter(one.values())) for one in shared) == ["999999999999", "all"]
    call("modify_snapshot_attribute", SnapshotId=snapshot, CreateVolumePermission={"Remove": [{"Group": "all"}]})
    call("reset_snapshot_attribute", **permission)
    assert call("describe_snapshot_attribute", **permission)["CreateVolumePermissions"] == []
    sealed_too = permission | {"SnapshotId": sealed}
    refused("InvalidParameterValue", call, "modify_snapshot_attribute", **sealed_too, OperationType="add", UserIds=["999999999999"])

    # An image on it, and its encrypted copy; a snapshot stays while an image is on it.
    mapping = [{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}]
    image = call("register_image", Name=name, RootDeviceName="/dev/sda1", BlockDeviceMappings=mapping)["ImageId"]
    left.append((call, "deregister_image", {"ImageId": image}))
    refused("InvalidSnapshot.InUse", call, "delete_snapshot", SnapshotId=snapshot)
    copy = call("copy_image", SourceRegion=cloud.name, SourceImageId=image, Name=f"{name}-copy", Encrypted=True)["ImageId"]
    left.append((call, "deregister_image", {"ImageId": copy}))
    call.wait("image_exists", ImageIds=[copy])
    call.wait("image_available", ImageIds=[copy])
    encrypted = [{"Name": "block-device-mapping.encrypted", "Values": ["true"]}, {"Name": "name", "Values": [f"{name}*"]}]
    found = only(call("describe_images", Owners=["self"], Filters=encrypted), "Images")
    assert found["ImageId"] == copy
    call("deregister_image", ImageId=image)
    call("deregister_image", ImageId=copy)
    for one in (snapshot, sealed, found["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]):
        call("delete_snapshot", SnapshotId=one)
        refused("InvalidSnapshot.NotFound", call, "describe_snapshots", SnapshotIds=[one])
    for one in (volume, restored["VolumeId"]):
        call("delete_volume", VolumeId=one)
        call.wait("volume_deleted", VolumeIds=[one])


def devices(instance):
    return {one["DeviceName"]: one["Ebs"] for one in instance["BlockDeviceMappings"]}


@EVERY_CLIENT
def test_a_launch_says_which_disks_it_has_and_which_of_them_go_with_it(cloud, client, imported, left):
    call, name = client(cloud), f"disks-{secrets.token_hex(4)}"
    mapping = [
        {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": imported}},
        {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}},
        {"DeviceName": "/dev/sdg", "Ebs": {"SnapshotId": imported, "VolumeType": "gp3", "DeleteOnTermination": True}},
    ]
    image = call("register_image", Name=name, RootDeviceName="/dev/sda1", BlockDeviceMappings=mapping)["ImageId"]
    left.append((call, "deregister_image", {"ImageId": image}))
    call.wait("image_available", ImageIds=[image])
    shown = only(call("describe_images", ImageIds=[image]), "Images")
    root, store, empty, data = sorted(shown["BlockDeviceMappings"], key=lambda one: one["DeviceName"])
    assert (root["Ebs"]["DeleteOnTermination"], store["VirtualName"]) == (True, "ephemeral0")
    assert ("SnapshotId" in empty["Ebs"], data["Ebs"]["VolumeType"]) == (False, "gp3")

    # The root stays and is larger, the image's empty volume is left out, another comes along and goes with the instance.
    over = [
        {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 2, "DeleteOnTermination": False}},
        {"DeviceName": "/dev/sdf", "NoDevice": ""},
        {"DeviceName": "/dev/sdh", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": True, "Encrypted": True}},
    ]
    run = {"ImageId": image, "InstanceType": "mini.nano", "MinCount": 1, "MaxCount": 1, "BlockDeviceMappings": over}
    instance = only(call("run_instances", **run, **named("volume", name)), "Instances")["InstanceId"]
    left.append((call, "terminate_instances", {"InstanceIds": [instance]}))
    call.wait("instance_exists", InstanceIds=[instance])
    call.wait("instance_running", InstanceIds=[instance])
    call.wait("instance_status_ok", InstanceIds=[instance])
    described = call("describe_instances", InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    its = devices(described)
    assert (described["RootDeviceType"], set(its)) == ("ebs", {"/dev/sda1", "/dev/sdg", "/dev/sdh"})
    volumes = {device: ebs["VolumeId"] for device, ebs in its.items()}
    left.append((call, "delete_volume", {"VolumeId": volumes["/dev/sda1"]}))
    found = call("describe_volumes", Filters=[{"Name": "attachment.instance-id", "Values": [instance]}])["Volumes"]
    told = {one["Attachments"][0]["Device"]: (one["Size"], one["SnapshotId"], one["Encrypted"], one["Attachments"][0]["DeleteOnTermination"])
            for one in found}  # fmt: skip
    assert told == {"/dev/sda1": (2, imported, False, False), "/dev/sdg": (1, imported, False, True), "/dev/sdh": (1, "", True, True)}
    assert all(one["Tags"] == [{"Key": "Name", "Value": name}] for one in found)

    # One more is attached, and is in the way until it is not.
    extra = call("create_volume", AvailabilityZone=cloud.zone, Size=1)["VolumeId"]
    left.append((call, "delete_volume", {"VolumeId": extra}))
    call.wait("volume_available", VolumeIds=[extra])
    refused("IncorrectState", call, "detach_volume", VolumeId=extra)
    taken = {"VolumeId": extra, "InstanceId": instance, "Device": "/dev/sdg"}
    refused("InvalidParameterValue", call, "attach_volume", **taken)
    attached = call("attach_volume", VolumeId=extra, InstanceId=instance, Device="/dev/sdi")
    assert (attached["State"], attached["Device"]) == ("attaching", "/dev/sdi")
    call.wait("volume_in_use", VolumeIds=[extra])
    refused("VolumeInUse", call, "attach_volume", VolumeId=extra, InstanceId=instance, Device="/dev/sdj")
    refused("VolumeInUse", call, "delete_volume", VolumeId=extra)
    refused("OperationNotPermitted", call, "detach_volume", VolumeId=volumes["/dev/sda1"])
    refused("InvalidAttachment.NotFound", call, "detach_volume", VolumeId=extra, Device="/dev/sdj")
    until(f"{extra} is attached", lambda: only(call("describe_volumes", VolumeIds=[extra]), "Volumes")["Attachments"][0]["State"] == "attached")
    call(
        "modify_instance_attribute", InstanceId=instance,
        BlockDeviceMappings=[{"DeviceName": "/dev/sdi", "Ebs": {"DeleteOnTermination": True}}],
    )  # fmt: skip
    told = call("describe_instance_attribute", InstanceId=instance, Attribute="blockDeviceMapping")
    assert devices(told)["/dev/sdi"]["DeleteOnTermination"] is True

    # All of them at one instant, but the root.
    of = {"InstanceId": instance, "ExcludeBootVolume": True, "ExcludeDataVolumeIds": [extra]}
    together = call("create_snapshots", InstanceSpecification=of, Description=name, CopyTagsFromSource="volume")["Snapshots"]
    left.extend((call, "delete_snapshot", {"SnapshotId": one["SnapshotId"]}) for one in together)
    assert {one["VolumeId"] for one in together} == {volumes["/dev/sdg"], volumes["/dev/sdh"]}
    assert all(one["Tags"] == [{"Key": "Name", "Value": name}] for one in together)
    call.wait("snapshot_completed", SnapshotIds=[one["SnapshotId"] for one in together])

    call("detach_volume", VolumeId=extra, InstanceId=instance)
    call.wait("volume_available", VolumeIds=[extra])
    call("stop_instances", InstanceIds=[instance], Force=True)
    call.wait("instance_stopped", InstanceIds=[instance])
    picture = call("create_image", InstanceId=instance, Name=f"{name}-picture", NoReboot=True, BlockDeviceMappings=[
        {"DeviceName": "/dev/sdg", "NoDevice": ""}, {"DeviceName": "/dev/sdh", "NoDevice": ""},
    ])["ImageId"]  # fmt: skip
    left.append((call, "deregister_image", {"ImageId": picture}))
    call.wait("image_available", ImageIds=[picture])
    disks = devices({"BlockDeviceMappings": [m for m in only(call("describe_images", ImageIds=[picture]), "Images")["BlockDeviceMappings"] if "Ebs" in m]})
    assert (set(disks), disks["/dev/sda1"]["VolumeSize"]) == ({"/dev/sda1"}, 2)
    call("deregister_image", ImageId=picture)
    call("delete_snapshot", SnapshotId=disks["/dev/sda1"]["SnapshotId"])

    call("terminate_instances", InstanceIds=[instance])
    call.wait("instance_terminated", InstanceIds=[instance])
    call.wait("volume_available", VolumeIds=[volumes["/dev/sda1"]])
    for device in ("/dev/sdg", "/dev/sdh"):
        call.wait("volume_deleted", VolumeIds=[volumes[device]])


def test_what_no_disk_can_be_is_refused_as_aws_refuses_it(cloud, imported, left):
    call = Boto3(cloud)
    volume = call("create_volume", AvailabilityZone=cloud.zone, Size=1)["VolumeId"]
    left.append((call, "delete_volume", {"VolumeId": volume}))
    call.wait("volume_available", VolumeIds=[volume])
    nothing, no_instance, no_snapshot = "vol-0123456789abcdef0", "i-0123456789abcdef0", "snap-0123456789abcdef0"
    new = {"AvailabilityZone": cloud.zone}
    table = [
        ("InvalidVolumeID.Malformed", "describe_volumes", {"VolumeIds": ["vol-1-2"]}),
        ("InvalidVolume.NotFound", "describe_volumes", {"VolumeIds": [volume, nothing]}),
        ("InvalidVolume.NotFound", "delete_volume", {"VolumeId": nothing}),
        ("InvalidVolume.NotFound", "attach_volume", {"VolumeId": nothing, "InstanceId": no_instance, "Device": "/dev/sdf"}),
        ("InvalidInstanceID.NotFound", "attach_volume", {"VolumeId": volume, "InstanceId": no_instance, "Device": "/dev/sdf"}),
        ("InvalidParameterValue", "attach_volume", {"VolumeId": volume, "InstanceId": no_instance, "Device": "disk 1"}),
        ("InvalidVolume.NotFound", "modify_volume", {"VolumeId": nothing, "Size": 2}),
        ("InvalidVolume.NotFound", "describe_volumes_modifications", {"VolumeIds": [nothing]}),
        ("InvalidVolumeModification.NotFound", "describe_volumes_modifications", {"VolumeIds": [volume]}),
        ("InvalidVolume.NotFound", "create_snapshot", {"VolumeId": nothing}),
        ("InvalidVolume.NotFound", "describe_volume_attribute", {"VolumeId": nothing, "Attribute": "autoEnableIO"}),
        ("InvalidVolume.NotFound", "describe_volume_status", {"VolumeIds": [nothing]}),
        ("InvalidParameterValue", "describe_volumes", {"Filters": [{"Name": "colour", "Values": ["red"]}]}),
        ("InvalidParameterValue", "describe_volumes", {"MaxResults": 4}),
        ("InvalidParameterCombination", "describe_volumes", {"MaxResults": 5, "VolumeIds": [volume]}),
        ("InvalidParameterValue", "describe_volumes", {"NextToken": "nonsense"}),
        ("InvalidZone.NotFound", "create_volume", {"AvailabilityZone": "us-east-1a", "Size": 1}),
        ("MissingParameter", "create_volume", new),
        ("InvalidParameterValue", "create_volume", {**new, "Size": 99_999}),
        ("UnknownVolumeType", "create_volume", {**new, "Size": 1, "VolumeType": "gp9"}),
        ("InvalidParameterCombination", "create_volume", {**new, "Size": 1, "Iops": 500}),
        ("MissingParameter", "create_volume", {**new, "Size": 4, "VolumeType": "io1"}),
        ("InvalidParameterValue", "create_volume", {**new, "Size": 4, "VolumeType": "io1", "Iops": 99_999}),
        ("InvalidParameterDependency", "create_volume", {**new, "Size": 1, "KmsKeyId": "alias/aws/ebs"}),
        ("InvalidSnapshot.NotFound", "create_volume", {**new, "SnapshotId": no_snapshot}),
        ("Unsupported", "create_volume", {**new, "Size": 4, "VolumeType": "io2", "Iops": 200, "MultiAttachEnabled": True}),
        ("Unsupported", "modify_volume", {"VolumeId": volume, "MultiAttachEnabled": True}),
        ("DryRunOperation", "create_volume", {**new, "Size": 1, "DryRun": True}),
        ("DryRunOperation", "delete_volume", {"VolumeId": volume, "DryRun": True}),
        ("InvalidSnapshotID.Malformed", "describe_snapshots", {"SnapshotIds": ["snap-x"]}),
        ("InvalidSnapshot.NotFound", "delete_snapshot", {"SnapshotId": no_snapshot}),
        ("InvalidSnapshot.NotFound", "copy_snapshot", {"SourceRegion": cloud.name, "SourceSnapshotId": no_snapshot}),
        ("InvalidParameterValue", "describe_snapshot_attribute", {"SnapshotId": imported, "Attribute": "kernel"}),
        ("InvalidConversionTaskId", "describe_import_snapshot_tasks", {"ImportTaskIds": ["import-snap-0123456789abcdef0"]}),
        # What this cloud does not have is refused by its name, and is never an empty success.
        ("InvalidAction", "describe_fast_snapshot_restores", {}),
        ("InvalidAction", "list_snapshots_in_recycle_bin", {}),
        ("InvalidAction", "describe_locked_snapshots", {}),
        ("InvalidAction", "lock_snapshot", {"SnapshotId": imported, "LockMode": "governance"}),
        ("InvalidAction", "describe_snapshot_tier_status", {}),
        ("InvalidAction", "modify_snapshot_tier", {"SnapshotId": imported, "StorageTier": "archive"}),
    ]  # fmt: skip
    all_refused(call, [(code, (operation, parameters)) for code, operation, parameters in table])


def test_what_no_launch_and_no_image_can_have_is_refused_as_aws_refuses_it(cloud, imported, left):
    call, name, no_snapshot = Boto3(cloud), f"disks-{secrets.token_hex(4)}", "snap-0123456789abcdef0"
    root = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": imported}}
    image = call("register_image", Name=name, RootDeviceName="/dev/sda1", BlockDeviceMappings=[root])["ImageId"]
    left.append((call, "deregister_image", {"ImageId": image}))
    register = lambda *mappings: ("register_image", {"Name": f"{name}-2", "RootDeviceName": "/dev/sda1", "BlockDeviceMappings": list(mappings)})
    run = {"ImageId": image, "InstanceType": "mini.nano", "MinCount": 1, "MaxCount": 1, "DryRun": True}
    launch = lambda *mappings: ("run_instances", {**run, "BlockDeviceMappings": list(mappings)})
    disk = lambda device, **ebs: {"DeviceName": f"/dev/sd{device}", "Ebs": ebs}
    table = [
        ("DryRunOperation", launch(disk("f", VolumeSize=1))),
        ("InvalidBlockDeviceMapping", launch(disk("a1", VolumeSize=1, SnapshotId=no_snapshot))),
        ("InvalidBlockDeviceMapping", launch({"DeviceName": "/dev/sda1", "NoDevice": ""})),
        ("InvalidBlockDeviceMapping", launch(disk("f", VolumeSize=1), disk("f", VolumeSize=2))),
        ("InvalidBlockDeviceMapping", launch({"DeviceName": "/dev/disk", "Ebs": {"VolumeSize": 1}})),
        ("InvalidBlockDeviceMapping", launch({"DeviceName": "/dev/sdf", "VirtualName": "memory0"})),
        ("MissingParameter", launch(disk("f", DeleteOnTermination=True))),
        ("InvalidSnapshot.NotFound", launch(disk("f", SnapshotId=no_snapshot))),
        ("InvalidParameterCombination", launch(disk("f", VolumeSize=1, VolumeType="gp2", Iops=100))),
        ("UnknownVolumeType", launch(disk("f", VolumeSize=1, VolumeType="gp9"))),
        ("AttachmentLimitExceeded", launch(*(disk(chr(ord("f") + n), VolumeSize=1) for n in range(13)))),
        ("MissingParameter", register()),
        ("InvalidBlockDeviceMapping", register(disk("f", SnapshotId=imported))),
        ("InvalidBlockDeviceMapping", register(disk("a1", VolumeSize=1))),
        ("InvalidSnapshot.NotFound", register(disk("a1", SnapshotId=no_snapshot))),
    ]
    all_refused(call, table)
    # Smaller than its snapshot.
    volume = call("create_volume", AvailabilityZone=cloud.zone, Size=2)["VolumeId"]
    left.append((call, "delete_volume", {"VolumeId": volume}))
    call.wait("volume_available", VolumeIds=[volume])
    larger = call("create_snapshot", VolumeId=volume)["SnapshotId"]
    left.append((call, "delete_snapshot", {"SnapshotId": larger}))
    call.wait("snapshot_completed", SnapshotIds=[larger])
    small = [launch(disk("f", SnapshotId=larger, VolumeSize=1)), register(disk("a1", SnapshotId=larger, VolumeSize=1))]
    all_refused(call, [("InvalidBlockDeviceMapping", request) for request in small])


def test_imports_are_encrypted_filtered_and_come_in_pages(cloud, s3, bucket, left):
    call = Boto3(cloud)
    s3.put_object(Bucket=bucket, Key="tiny.raw", Body=b"m" * 4096)
    disk = {"Format": "raw", "Url": f"s3://{bucket}/tiny.raw"}
    tasks = []
    for number in range(6):
        made = call("import_snapshot", DiskContainer=disk, Encrypted=number == 0, **named("import-snapshot-task", bucket))
        tasks.append(made["ImportTaskId"])
    again = {"DiskContainers": [disk], "ClientToken": bucket, "Encrypted": True, "TagSpecifications": named("import-image-task", bucket)["TagSpecifications"]}
    whole = call("import_image", **again)["ImportTaskId"]
    assert call("import_image", **again)["ImportTaskId"] == whole
    call.wait("snapshot_imported", ImportTaskIds=tasks)
    mine = [{"Name": "tag:Name", "Values": [bucket]}, {"Name": "task-state", "Values": ["completed"]}]
    pages = call.ec2.get_paginator("describe_import_snapshot_tasks").paginate(Filters=mine, PaginationConfig={"PageSize": 5})
    found = [page["ImportSnapshotTasks"] for page in pages]
    assert [len(page) for page in found] == [5, 1]
    done = {one["ImportTaskId"]: one["SnapshotTaskDetail"] for page in found for one in page}
    left.extend((call, "delete_snapshot", {"SnapshotId": one["SnapshotId"]}) for one in done.values())
    assert set(done) == set(tasks) and [task for task in tasks if done[task]["Encrypted"]] == tasks[:1]
    assert only(call("describe_snapshots", SnapshotIds=[done[tasks[0]]["SnapshotId"]]), "Snapshots")["Encrypted"]

    def image():
        seen = only(call("describe_import_image_tasks", Filters=mine[:1]), "ImportImageTasks")
        return seen.get("ImageId") if seen["Status"] == "completed" else None

    made = until(f"{whole} is completed", image)
    left.append((call, "deregister_image", {"ImageId": made}))
    root = only(call("describe_images", ImageIds=[made]), "Images")["BlockDeviceMappings"][0]["Ebs"]
    left.insert(0, (call, "delete_snapshot", {"SnapshotId": root["SnapshotId"]}))
    assert root["Encrypted"]
    refused("InvalidConversionTaskId", call, "cancel_import_task", ImportTaskId="import-snap-0123456789abcdef0")


def test_what_an_account_makes_is_encrypted_when_it_says_so(cloud, other):
    """Another account's, so that nobody else's tests see it."""
    try:
        assert other.enable_ebs_encryption_by_default()["EbsEncryptionByDefault"] is True
        assert other.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is True
        assert other.get_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"
        assert other.reset_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"
        made = other.create_volume(AvailabilityZone=cloud.zone, Size=1)
        assert made["Encrypted"] is True
        key = made["KmsKeyId"]
        assert other.modify_ebs_default_kms_key_id(KmsKeyId=key)["KmsKeyId"] == "alias/aws/ebs"
        other.get_waiter("volume_available").wait(VolumeIds=[made["VolumeId"]], WaiterConfig={"Delay": 1})
        with_boto3.refused("InvalidParameterValue", other.modify_ebs_default_kms_key_id, KmsKeyId="alias/mine")
        other.delete_volume(VolumeId=made["VolumeId"])
    finally:
        assert other.disable_ebs_encryption_by_default()["EbsEncryptionByDefault"] is False
