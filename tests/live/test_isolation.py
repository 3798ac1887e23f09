"""A guest is who it is: it cannot use another's address, and metadata answers by who asks, not by what is said."""

import secrets
import subprocess
import sys

import pytest

from conftest import Launcher
from guest import write_key
from waiting import until

TOKEN = "X-aws-ec2-metadata-token"


def http(guest, request):
    """One raw HTTP/1.0 exchange with the metadata service; the whole answer, or nothing when nothing answered."""
    lines = request.replace("\n", "\\r\\n")
    return guest.run(f"printf '{lines}\\r\\n\\r\\n' | timeout 5 nc -w 3 169.254.169.254 80 | tr -d '\\r'", check=False)


@pytest.fixture(scope="module")
def guest(cloud, ec2, image, key):
    """One that needs no token, so that what is refused here is refused for another reason."""
    launcher = Launcher(cloud, ec2, image, key)
    guest = launcher(MetadataOptions={"HttpTokens": "optional", "HttpPutResponseHopLimit": 1})
    guest.wait()
    yield guest
    launcher.end()


def test_metadata_by_token_and_without(guest):
    assert guest.run("imds meta-data/instance-id") == guest.id
    plain = http(guest, "GET /latest/meta-data/instance-id HTTP/1.0")
    assert plain.splitlines()[0].split()[1] == "200" and plain.endswith(guest.id)
    wrong = http(guest, f"GET /latest/meta-data/instance-id HTTP/1.0\n{TOKEN}: AQAEwrong")
    assert wrong.splitlines()[0].split()[1] == "401"


def test_a_forwarded_request_gets_no_token(guest):
    put = "PUT /latest/api/token HTTP/1.0\nX-aws-ec2-metadata-token-ttl-seconds: 60\nContent-Length: 0"
    assert http(guest, put).splitlines()[0].split()[1] == "200"
    forwarded = http(guest, f"{put}\nX-Forwarded-For: 10.0.0.1")
    assert forwarded.splitlines()[0].split()[1] == "403"
    assert guest.run("imds meta-data/instance-id") == guest.id


def test_a_header_names_nobody(guest, launch):
    """What a header claims is not who asks."""
    other = launch()
    private = other.described()["PrivateIpAddress"]
    answer = http(guest, f"GET /latest/meta-data/instance-id HTTP/1.0\nX-Forwarded-For: {private}\nX-Instance-ID: {other.id}")
    assert other.id not in answer


def test_a_token_is_needed_unless_the_launch_says_otherwise(launch):
    guest = launch()
    guest.wait()
    plain = http(guest, "GET /latest/meta-data/instance-id HTTP/1.0")
    assert plain.splitlines()[0].split()[1] == "401"
    assert guest.run("imds meta-data/instance-id") == guest.id


def test_a_token_of_another_instance_is_worth_nothing(guest, launch):
    other = launch()
    other.wait()
    put = "PUT /latest/api/token HTTP/1.0\nX-aws-ec2-metadata-token-ttl-seconds: 60\nContent-Length: 0"
    stolen = http(other, put).splitlines()[-1]
    answer = http(guest, f"GET /latest/meta-data/instance-id HTTP/1.0\n{TOKEN}: {stolen}")
    assert answer.splitlines()[0].split()[1] == "401"


SNIFF = """
import socket, sys, time
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
link.bind((sys.argv[1], 0))
link.settimeout(20)
print("ready", flush=True)
end = time.monotonic() + 20
while time.monotonic() < end:
    frame = link.recv(2048)
    packet = frame[14:]
    if frame[12:14] == b"\\x08\\x00" and packet[9] == 6 and packet[12:16] == bytes([169, 254, 169, 254]):
        header = (packet[0] & 15) * 4
        data = packet[header + (packet[header + 12] >> 4) * 4 : int.from_bytes(packet[2:4], "big")]
        if data.startswith(b"HTTP/"):
            print(packet[8], flush=True)
            break
"""


@pytest.mark.parametrize("limit", [1, 2])
def test_the_answer_with_a_token_travels_as_many_hops_as_allowed(limit, cloud, guest, ec2):
    """A container behind the guest is one hop more. The packet's time to live is read where it enters the guest."""
    ec2.modify_instance_metadata_options(InstanceId=guest.id, HttpPutResponseHopLimit=limit)
    applied = lambda: guest.described()["MetadataOptions"]["HttpPutResponseHopLimit"] == limit
    until("the limit is set", applied)
    tap = cloud.virsh("domiflist", guest.id).split()[0]
    put = "PUT /latest/api/token HTTP/1.0\nX-aws-ec2-metadata-token-ttl-seconds: 60\nContent-Length: 0"

    def seen():
        command = ["ip", "netns", "exec", cloud.namespace, sys.executable, "-c", SNIFF, tap]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sniffer:
            assert sniffer.stdout.readline() == "ready\n"
            assert http(guest, put)
            return int(sniffer.stdout.readline())

    until(f"the time to live is {limit}", lambda: seen() == limit)


def test_a_guest_cannot_use_an_address_that_is_not_its_own(guest, launch):
    victim = launch()
    victim.wait()
    stolen, own = victim.described()["PrivateIpAddress"], guest.described()["PrivateIpAddress"]
    request = "GET /latest/meta-data/instance-id HTTP/1.0"
    gateway = guest.run("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")
    as_if = f"169.254.169.254/32 via {gateway} dev eth0 src"
    guest.run(f"ip addr add {stolen}/32 dev eth0")
    try:
        guest.run(f"ip route add {as_if} {own}")
        assert guest.id in http(guest, request), "by a route that says so it goes out as itself"
        guest.run(f"ip route del {as_if} {own} && ip route add {as_if} {stolen}")
        assert http(guest, request) == "", "as somebody else it is not heard"
        # Nor does anybody learn that the address lives here now.
        assert victim.run("imds meta-data/instance-id") == victim.id
    finally:
        guest.run(f"ip route del {as_if} {stolen} || ip route del {as_if} {own}; ip addr del {stolen}/32 dev eth0", check=False)
    assert victim.run("imds meta-data/instance-id") == victim.id


def test_a_guest_cannot_use_a_hardware_address_that_is_not_its_own(guest):
    """It goes away for some seconds, under its own address and under another, and comes back; what it heard is read then."""
    own = guest.run("cat /sys/class/net/eth0/address")
    assert guest.id in asked_as(guest, own, own), "the way there and back works"
    assert guest.id not in asked_as(guest, "02:00:00:00:00:99", own)


def asked_as(guest, address, own):
    """The metadata service's answer to the guest under a hardware address."""
    route = guest.run("ip route show default")
    under = lambda mac: f"ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up; ip route add {route}"
    request = "printf 'GET /latest/meta-data/instance-id HTTP/1.0\\r\\n\\r\\n' | timeout 4 nc -w 3 169.254.169.254 80"
    guest.run("rm -f /tmp/spoof")
    guest.start(f"exec >/tmp/spoof 2>&1; {under(address)}; sleep 1; {request}; {under(own)}; echo done")
    return until("the guest is back", lambda: guest.run("grep -q done /tmp/spoof && cat /tmp/spoof", check=False))


def test_two_accounts_with_the_same_private_address_are_two_networks(cloud, guest, ec2, other, image, tmp_path):
    """Each answers at its own elastic IP and reads its own metadata, and neither reaches the other's private side."""
    stranger = cloud.client("sts", account="stranger").get_caller_identity()["Account"]
    ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": stranger}]})
    name = f"theirs-{secrets.token_hex(4)}"
    key = name, write_key(tmp_path / "key", other.create_key_pair(KeyName=name)["KeyMaterial"])
    launcher = Launcher(cloud, other, image, key)
    try:
        subnet = guest.described()["SubnetId"]
        cidr = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["CidrBlock"]
        (theirs,) = [each for each in other.describe_subnets()["Subnets"] if each["CidrBlock"] == cidr]
        same = guest.described()["PrivateIpAddress"]
        twin = launcher(SubnetId=theirs["SubnetId"], PrivateIpAddress=same)
        twin.wait()
        assert twin.described()["PrivateIpAddress"] == same
        assert guest.run("imds meta-data/instance-id") == guest.id
        assert twin.run("imds meta-data/instance-id") == twin.id
        third = launcher()
        private = third.described()["PrivateIpAddress"]
        third.wait()
        reach = lambda of: of.run(f"nc -w 2 {private} 22 </dev/null | grep -q SSH && echo yes || echo no")
        other.authorize_security_group_ingress(
            GroupId=third.group,
            IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "172.16.0.0/12"}]}],
        )
        assert (reach(twin), reach(guest)) == ("yes", "no")
    finally:
        launcher.end()
        other.delete_key_pair(KeyName=name)
        ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Remove": [{"UserId": stranger}]})


def test_another_account_sees_nothing_and_can_do_nothing(guest, other, cloud):
    assert guest.id not in [one["InstanceId"] for each in other.describe_instances()["Reservations"] for one in each["Instances"]]
    calls = {
        "describe_instances": {"InstanceIds": [guest.id]},
        "terminate_instances": {"InstanceIds": [guest.id]},
        "stop_instances": {"InstanceIds": [guest.id]},
        "get_console_output": {"InstanceId": guest.id},
    }
    for operation, parameters in calls.items():
        with pytest.raises(other.exceptions.ClientError) as theirs:
            getattr(other, operation)(**parameters)
        nothing = {name: ([no_such(one) for one in value] if isinstance(value, list) else no_such(value)) for name, value in parameters.items()}
        with pytest.raises(other.exceptions.ClientError) as unknown:
            getattr(other, operation)(**nothing)
        theirs, unknown = theirs.value.response["Error"], unknown.value.response["Error"]
        assert theirs["Code"] == unknown["Code"] == "InvalidInstanceID.NotFound", operation
        assert theirs["Message"].replace(guest.id, "") == unknown["Message"].replace(no_such(guest.id), ""), operation


def no_such(id):
    return f"{id.split('-')[0]}-{'0' * 17}"
