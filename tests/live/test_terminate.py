"""After terminate nothing of the instance is left but its row and its last words."""

import sqlite3

from waiting import until, until_empty

SCRIPT = "#!/bin/sh\necho these are my last words > /dev/console\n"


def leftovers(cloud, instance, names):
    """Where any of the instance's names still stands, in what the product runs and keeps below the cloud-controller."""
    left = []
    if instance in cloud.domains():
        left.append("domain")
    if (cloud.state / "node-controller/instances" / instance).exists():
        left.append("folder with overlay and console")
    for table in ("Logical_Switch_Port", "NAT", "Port_Group", "Address_Set", "ACL", "DHCP_Options", "Logical_Router_Port"):
        text = cloud.northbound("--no-leader-only", "list", table)
        left += [f"{name} in OVN's {table}" for name in names if name in text]
    ports = cloud.switch("list", "Interface")
    left += [f"{name} in the switch" for name in names if name in ports]
    for tier in ("cluster-controller", "node-controller", "storage-controller"):
        left += [f"{tier}: {found}" for found in rows_with(cloud, tier, names)]
    return left


def rows_with(cloud, tier, names):
    """Tables of a tier's store that mention one of the names. Read only, by another connection than the tier's."""
    (path,) = [path for path in (cloud.state / tier).glob("*.db")]
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
        # What has happened is kept a while for `mallee why`.
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'event'")]
        for table in tables:
            for row in store.execute(f'SELECT * FROM "{table}"'):
                text = " ".join(cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell) for cell in row)
                yield from (f"{name} in {table}" for name in names if name in text)


def test_after_terminate_nothing_is_left(cloud, ec2, launch):
    guest = launch(user_data=SCRIPT)
    guest.wait()
    seen = guest.described()
    (interface,) = seen["NetworkInterfaces"]
    volume = ec2.create_volume(Size=1, AvailabilityZone=cloud.zone)["VolumeId"]
    until("the volume is available", lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == "available")
    ec2.attach_volume(VolumeId=volume, InstanceId=guest.id, Device="/dev/sdf")
    until("the volume is attached", lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == "in-use")
    names = [guest.id, interface["NetworkInterfaceId"], interface["MacAddress"]]
    found = leftovers(cloud, guest.id, names)
    assert any("domain" in one for one in found) and any("Logical_Switch_Port" in one for one in found), "the search finds"
    pid = cloud.qemu(guest.id)
    until("the console has the last words", lambda: "my last words" in ec2.get_console_output(InstanceId=guest.id).get("Output", ""))

    guest.terminate()
    until_empty("nothing is left", lambda: leftovers(cloud, guest.id, names), patience=30)
    with_pid = cloud.engines / "virt/run/qemu" / f"{guest.id}.pid"
    assert not with_pid.exists() or cloud.qemu(guest.id) != pid
    assert ec2.describe_network_interfaces(Filters=[{"Name": "attachment.instance-id", "Values": [guest.id]}])["NetworkInterfaces"] == []
    (address,) = ec2.describe_addresses(AllocationIds=[guest.allocation])["Addresses"]
    assert "InstanceId" not in address and "AssociationId" not in address
    free = lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == "available"
    until("the volume is free", free)
    sockets = cloud.state / "storage-controller/sockets"
    until("its export has ended", lambda: not list(sockets.glob(f"{volume}*")))
    ec2.delete_volume(VolumeId=volume)
    until("its bytes are gone", lambda: not (cloud.state / "storage-controller/volumes" / volume).exists())

    last = guest.described()
    assert last["State"] == {"Code": 48, "Name": "terminated"}
    assert last["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert "my last words" in ec2.get_console_output(InstanceId=guest.id)["Output"]


def test_who_powers_off_inside_is_stopped_and_starts_again(ec2, launch):
    guest = launch()
    boot = guest.wait()
    guest.run("poweroff", check=False)
    guest.is_in("stopped")
    ec2.start_instances(InstanceIds=[guest.id])
    guest.is_in("running")
    guest.wait(other_than=boot)
