"""Guests on several machines: an interface that comes and goes while they run, an address that moves between them, and what
none of them may reach."""

import ast
import contextlib

import pytest

from conftest import mini
from guest import write_key
from many import FarGuest, gateway, place
from test_many_networks import SERVED, Net, everything, rule
from waiting import until


class Placed(FarGuest):
    """A running instance, its machine, and the elastic IP it is reached by."""

    def __init__(self, net, id, address, key):
        super().__init__(net.many, address["PublicIp"], key)
        self.net, self.id, self.allocation = net, id, address["AllocationId"]

    def described(self):
        (reservation,) = self.net.ec2.describe_instances(InstanceIds=[self.id])["Reservations"]
        return reservation["Instances"][0]

    def state(self):
        return self.described()["State"]["Name"]

    def machine(self):
        return place(self.many, self.id)


class Guests:
    """A VPC with two guests, on two machines of the first zone, if nothing else is said."""

    def __init__(self, many, tmp, zone=0, count=2):
        self.net = net = Net(many)
        ec2 = net.ec2
        self.vpc = net.vpc("10.9.0.0/16")
        self.subnet = net.subnet(self.vpc, "10.9.1.0/24", zone)
        gateway = net.internet(self.vpc)
        ec2.create_route(RouteTableId=net.table(self.vpc, self.subnet), DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
        self.group = net.group(self.vpc, rule("tcp", (22, 22), cidr="0.0.0.0/0"), rule("icmp", cidr="0.0.0.0/0"))
        self.name = "many"
        with contextlib.suppress(ec2.exceptions.ClientError):
            ec2.delete_key_pair(KeyName=self.name)
        self.key = write_key(tmp / "id", ec2.create_key_pair(KeyName=self.name)["KeyMaterial"])
        self.image = mini(many, ec2)
        self.all = [self.launch() for _ in range(count)]
        for guest in self.all:
            until(f"{guest.id} runs", lambda guest=guest: guest.state() == "running", patience=120)
        for guest in self.all:
            guest.wait()

    def launch(self, image=None):
        ec2 = self.net.ec2
        (started,) = ec2.run_instances(
            ImageId=image or self.image, InstanceType="mini.nano", KeyName=self.name, SubnetId=self.subnet["SubnetId"],
            SecurityGroupIds=[self.group], MinCount=1, MaxCount=1,
        )["Instances"]  # fmt: skip
        address = self.net.address()
        guest = Placed(self.net, started["InstanceId"], address, self.key)

        def terminate():
            ec2.terminate_instances(InstanceIds=[guest.id])
            until(f"{guest.id} is terminated", lambda: guest.state() == "terminated", patience=90)

        self.net.left.append((terminate, {}))
        ec2.associate_address(InstanceId=guest.id, AllocationId=guest.allocation)
        return guest


@pytest.fixture(scope="module")
def guests(many, tmp_path_factory):
    guests = Guests(many, tmp_path_factory.mktemp("key"))
    yield guests
    guests.net.end()


def test_two_guests_are_on_two_machines_and_reach_each_other(guests):
    one, two = guests.all
    assert {one.machine().name, two.machine().name} == {"a1", "a2"}
    assert one.run(f"ping -c 3 -w 10 {two.described()['PrivateIpAddress']} >/dev/null && echo yes") == "yes"


def test_an_interface_comes_and_goes_while_the_guest_runs(guests, many):
    """On the machine that joined; the guest sees a card, gets its address by DHCP, and is reached by it."""
    net, ec2 = guests.net, guests.net.ec2
    guest = next(guest for guest in guests.all if guest.machine().name == "a2")
    boot = guest.boot_id()
    other = net.subnet(guests.vpc, "10.9.2.0/24")
    open = net.group(guests.vpc, everything())
    made = ec2.create_network_interface(SubnetId=other["SubnetId"], Groups=[open])["NetworkInterface"]
    id, mac = made["NetworkInterfaceId"], made["MacAddress"]
    net.later(ec2.delete_network_interface, NetworkInterfaceId=id)
    near = net.probe("b2", other, open).bound()

    def shown():
        (found,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[id])["NetworkInterfaces"]
        return found["Status"], found.get("Attachment", {}).get("Status")

    def cards():
        return guest.run("cat /sys/class/net/*/address").split()

    for round in (1, 2):
        attachment = ec2.attach_network_interface(NetworkInterfaceId=id, InstanceId=guest.id, DeviceIndex=1)["AttachmentId"]
        assert shown()[0] == "in-use" and shown()[1] in ("attaching", "attached")
        until("it is attached", lambda: shown() == ("in-use", "attached"))
        assert mac in cards(), "attached is said only when the guest has it"
        assert len(guest.described()["NetworkInterfaces"]) == 2
        address = made["PrivateIpAddress"]
        until("the guest has its address", lambda: address in guest.run("ip -4 addr"))
        assert guest.run(f"imds meta-data/network/interfaces/macs/{mac}/interface-id") == id
        until("it is reached by it", lambda: near.pings(address))
        with pytest.raises(ec2.exceptions.ClientError) as refused:
            ec2.delete_network_interface(NetworkInterfaceId=id)
        assert refused.value.response["Error"]["Code"] == "InvalidNetworkInterface.InUse"
        ec2.detach_network_interface(AttachmentId=attachment)
        assert shown() in [("in-use", "detaching"), ("available", None)]
        until("it is free", lambda: shown() == ("available", None))
        assert mac not in cards(), "free is said only when the guest has let go"
        until("nobody answers", lambda: not near.pings(address))
    assert guest.boot_id() == boot
    taps = guest.machine().virsh("domiflist", guest.id).splitlines()
    assert len([line for line in taps if line.strip()]) == 1
    # One that is there when its instance ends, and was not made with it, stays.
    ec2.attach_network_interface(NetworkInterfaceId=id, InstanceId=guest.id, DeviceIndex=1)
    until("it is attached", lambda: shown() == ("in-use", "attached"))
    ec2.stop_instances(InstanceIds=[guest.id])
    until("it is stopped", lambda: guest.state() == "stopped", patience=120)
    assert shown() == ("in-use", "attached")
    ec2.start_instances(InstanceIds=[guest.id])
    guest.wait(other_than=boot)
    until("both cards are there again", lambda: mac in cards())
    attachment = ec2.describe_network_interfaces(NetworkInterfaceIds=[id])["NetworkInterfaces"][0]["Attachment"]["AttachmentId"]
    ec2.detach_network_interface(AttachmentId=attachment)
    until("a card that was there from the start is let go as well", lambda: shown() == ("available", None))
    # Whoever has the address next is not the guest that had it.
    ec2.delete_network_interface(NetworkInterfaceId=id)
    heir = net.probe("a2", other, open, address=address).bound()
    told = until("the metadata service answers it", lambda: metadata_of(heir, address)[0])
    assert is_nobody(told) and guest.id not in told, told


def test_an_elastic_ip_moves_between_running_guests(guests):
    ec2 = guests.net.ec2
    one, two = guests.all
    moving = guests.net.address()
    seen = FarGuest(guests.net.many, moving["PublicIp"], guests.key)

    def is_at(guest):
        try:
            return seen.run("imds meta-data/instance-id", check=False, timeout=20) == guest.id
        except Exception:
            return False

    before = [guest.boot_id() for guest in guests.all]
    for guest in (one, two, one):
        # An address of an interface has one elastic IP: the guest's own comes back in the end.
        ec2.associate_address(InstanceId=guest.id, AllocationId=moving["AllocationId"], AllowReassociation=True)
        until(f"{moving['PublicIp']} is {guest.id}", lambda guest=guest: is_at(guest), every=0.2)
    for guest in guests.all:
        ec2.associate_address(InstanceId=guest.id, AllocationId=guest.allocation, AllowReassociation=True)
        guest.wait()
    assert [guest.boot_id() for guest in guests.all] == before


ASK_METADATA = """
import socket, sys
claims, *sources = sys.argv[1:]
for source in sources:
    answer = b""
    try:
        with socket.socket() as peer:
            peer.settimeout(1)
            peer.bind((source, 0))
            peer.connect(("169.254.169.254", 80))
            peer.sendall(f"GET /latest/meta-data/instance-id HTTP/1.0{claims}\\r\\n\\r\\n".encode())
            while (part := peer.recv(2048)):
                answer += part
    except OSError:
        pass
    print(repr(answer.decode()))
"""


def metadata_of(probe, *sources, claims=()):
    """What the metadata service says to somebody who is no instance, asked from each of these addresses."""
    said = "".join(f"\r\n{header}" for header in claims)
    lines = probe.exec("python3", "-c", ASK_METADATA, said, *sources).stdout.splitlines()
    return [ast.literal_eval(line) for line in lines]


def is_nobody(answer):
    return answer.split("\r\n")[0].split()[1:2] == ["404"]


def test_a_guest_reaches_neither_the_machines_nor_the_tiers(guests, many):
    """Only the two fronts that are there for users answer it, at the address that is there for guests."""
    guest = next(guest for guest in guests.all if guest.machine().name == "a2")
    ask = "for at in {}; do (timeout 4 nc -w 2 ${{at%:*}} ${{at#*:}} </dev/null >/dev/null 2>&1 && echo $at) & done; wait"
    machines = [machine.address for machine in many.machines.values()] + [machine.tunnel.split(":")[1][:-3] for machine in many.machines.values()]
    ports = (22, 8774, 8775, 8776, 8778)
    closed = [f"{address}:{port}" for address in [*machines, many.outside, "169.254.169.254"] for port in ports]
    closed += [f"{address}:{port}" for address in machines for port in (8773, 8777)]
    answered = guest.run(ask.format(" ".join(closed)), timeout=60, check=False).split()
    assert answered == [], answered
    fronts = [f"{many.outside}:8773", f"{many.outside}:8777", "169.254.169.254:80"]
    until("the fronts and the metadata answer", lambda: sorted(guest.run(ask.format(" ".join(fronts))).split()) == sorted(fronts))


def test_metadata_is_that_of_who_asks_on_every_machine(guests):
    for guest in guests.all:
        assert guest.run("imds meta-data/instance-id") == guest.id
        assert guest.run("imds meta-data/local-ipv4") == guest.described()["PrivateIpAddress"]
    one, two = guests.all
    there = two.described()["PrivateIpAddress"]
    asked = f"printf 'GET /latest/meta-data/instance-id HTTP/1.0\\r\\n\\r\\n' | timeout 5 nc -w 3 {there} 80"
    assert two.id not in one.run(asked, check=False), "a guest's address serves no metadata to others"


def test_nobody_gets_the_metadata_of_a_guest_by_its_name_or_address_or_card(guests):
    """Beside it, on its machine and on another, and in another VPC where the same address is somebody else's."""
    net, guest = guests.net, guests.all[0]
    own = guest.described()["PrivateIpAddress"]
    mac = guest.run("cat /sys/class/net/eth0/address")
    open = net.group(guests.vpc, everything())
    claims = (f"X-Forwarded-For: {own}", f"X-Instance-ID: {guest.id}", f"Host: {own}")
    way = f"route replace default via {gateway(guests.subnet['CidrBlock'])}".split()
    for machine in ("a1", "a2"):
        beside = net.probe(machine, guests.subnet, open).bound()
        beside.ip("addr", "add", f"{own}/32", "dev", "eth0")
        as_itself = lambda beside=beside: metadata_of(beside, beside.address, claims=claims)[0]
        until("it is nobody, whatever it claims", lambda: is_nobody(as_itself()))
        assert metadata_of(beside, own) == [""], "as another address it is not heard"
        beside.ip("link", "set", "eth0", "address", mac)
        beside.ip(*way)
        assert metadata_of(beside, own, beside.address) == ["", ""], "nor with the guest's card"
        beside.ip("link", "set", "eth0", "address", beside.mac)
        beside.ip(*way)
        until("as itself it is", lambda: is_nobody(as_itself()))
    vpc = net.vpc("10.9.0.0/16")
    twin = net.probe(guest.machine().name, net.subnet(vpc, "10.9.1.0/24"), net.group(vpc, everything()), address=own).bound()
    assert guest.id not in metadata_of(twin, own, claims=claims)[0]
    assert guest.run("imds meta-data/instance-id") == guest.id


def test_a_guest_and_a_probe_of_another_zone_meet(guests, many):
    net = guests.net
    far = net.subnet(guests.vpc, "10.9.5.0/24", zone=1)
    probe = net.probe("b1", far, net.group(guests.vpc, everything())).serve(SERVED).bound()
    ask = f"timeout 5 nc -w 3 {probe.address} {SERVED} </dev/null"
    guest = guests.all[1]
    own = guest.described()["PrivateIpAddress"]
    until("the probe hears the guest", lambda: guest.run(ask, check=False) == f"{probe.name} hears {own}")
