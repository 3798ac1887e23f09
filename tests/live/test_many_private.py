"""Private L2 over several machines, and IPv6 between VPCs, with packets. Every claim that something passes in a private L2 subnet
shows that the same does not pass in a routed one."""

import subprocess

import pytest

from test_many_ipv6 import ALL6, hears6
from test_many_networks import SERVED, Net, everything, hears, is_silent, is_told
from waiting import until

KIND = "mallee:kind"
# Of a range for experiments, for Ethernet and for IP: nothing else sends such.
ETHERTYPE, PROTOCOL = 0x88B5, 253
FOREIGN = "02:00:00:00:77:77"

# Sends a frame: HARDWARE ADDRESS, what it is (ethertype or IP's protocol), WORD.
SHOUT = """
import socket, struct, sys
source, ethertype, protocol, word = bytes.fromhex(sys.argv[1].replace(":", "")), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
body = word.ljust(64, b".")
if ethertype == 0x0800:
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0, bytes([203, 0, 113, 7]), b"\\xff" * 4)
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:] + body
link.send(b"\\xff" * 6 + source + struct.pack("!H", ethertype) + body)
"""

# Tells whose frames of these kinds come, and the word in them.
LISTEN = """
import socket, struct, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
link.bind(("eth0", 0))
print("ready", flush=True)
while True:
    frame = link.recv(2048)
    (ethertype,) = struct.unpack("!H", frame[12:14])
    if ethertype == int(sys.argv[1]) or (ethertype == 0x0800 and frame[23] == int(sys.argv[2])):
        body = frame[34:] if ethertype == 0x0800 else frame[14:]
        print(frame[6:12].hex(":"), f"{ethertype:04x}", body.split(b".")[0].decode(), flush=True)
"""


class Listener:
    def __init__(self, probe):
        self.path = f"/tmp/mallee-listen-{probe.name}"
        with open(self.path, "w") as out:
            command = probe.machine.command("ip", "netns", "exec", probe.name, "python3", "-c", LISTEN, str(ETHERTYPE), str(PROTOCOL))
            self.process = subprocess.Popen(command, stdout=out)
        until("it listens", lambda: self.lines()[:1] == ["ready"], every=0.05)

    def lines(self):
        with open(self.path) as told:
            return told.read().splitlines()

    def end(self):
        self.process.kill()
        self.process.wait()
        subprocess.run(["rm", "-f", self.path], check=True)


def shout(probe, source, word, ethertype=ETHERTYPE):
    probe.exec("python3", "-c", SHOUT, source, ethertype, PROTOCOL, word)


@pytest.fixture
def net(many):
    net = Net(many)
    yield net
    net.end()


def private_subnet(net, vpc, cidr):
    tags = [{"ResourceType": "subnet", "Tags": [{"Key": KIND, "Value": "private-l2"}]}]
    made = net.ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=net.many.zones[0], TagSpecifications=tags)["Subnet"]
    net.later(net.ec2.delete_subnet, SubnetId=made["SubnetId"])
    return made


def test_a_private_l2_subnet_is_a_wire_between_machines(net, many):
    """Frames of any kind and of anybody, in both directions; and nothing else: no router, no metadata, no way elsewhere."""
    ec2 = net.ec2
    vpc = net.vpc("10.12.0.0/16")
    many.mallee("account", "forbid", "admin", "private-l2")
    with pytest.raises(ec2.exceptions.ClientError) as refused:
        private_subnet(net, vpc, "10.12.9.0/24")
    assert refused.value.response["Error"]["Code"] == "OperationNotPermitted"
    many.mallee("account", "allow", "admin", "private-l2")
    private, routed = private_subnet(net, vpc, "10.12.9.0/24"), net.subnet(vpc, "10.12.1.0/24")
    one, two = (net.probe(machine, private).serve(SERVED) for machine in ("a1", "a2"))
    anything = net.group(vpc, everything())
    guarded, other = net.probe("a1", routed, anything).serve(SERVED), net.probe("a2", routed, anything).serve(SERVED)
    for probe in (one, two, guarded, other):
        probe.bound()
    many.effective()
    hears(one, two), hears(two, one), hears(other, guarded)
    # As an address that is not its own, which is none of the subnet's either.
    for probe, target, neighbours in ((one, two, True), (guarded, other, False)):
        for end in (probe, target):
            end.ip("addr", "add", f"192.0.2.{1 if end is probe else 2}/24", "dev", "eth0")
        if neighbours:
            is_told(probe, "192.0.2.2", SERVED, f"{target.name} hears 192.0.2.1")
        else:
            is_silent(probe, "192.0.2.2")
    # Frames that are not IP, IP that is no protocol anybody knows (of an address that is nobody's), and both with a hardware address
    # of nobody's.
    frames = [(source, ethertype) for source in (FOREIGN, None) for ethertype in (ETHERTYPE, 0x0800)]

    def send(probe):
        for source, ethertype in frames:
            shout(probe, source or probe.mac, f"from-{probe.name}", ethertype)

    def expected(probe):
        return {f"{source or probe.mac} {ethertype:04x} from-{probe.name}" for source, ethertype in frames}

    for probe, target in ((one, two), (two, one)):
        ears = Listener(target)
        until("all of them come", lambda probe=probe, ears=ears: send(probe) or expected(probe) <= set(ears.lines()))
        ears.end()
    ears = Listener(other)
    for _ in range(3):
        send(guarded)
        hears(guarded, other)
    assert ears.lines() == ["ready"]
    ears.end()
    assert guarded.pings("10.12.1.1"), "the routed one has its router"
    is_silent(one, "169.254.169.254", 80)
    assert not one.pings("10.12.9.1")
    is_silent(one, guarded.address)
    # What the machines learn of who is where does not keep them from what comes next.
    third = net.probe("a2", private).serve(SERVED).bound()
    hears(one, third)
    hears(third, two)


def test_peers_reach_each_other_by_ipv6(net):
    """Both families by one connection; what has no route to the other is not reached, and a peer is no way to a third."""
    ec2, ends = net.ec2, []
    for n, (machine, zone) in enumerate((("a1", 0), ("b2", 1)), 13):
        vpc = net.vpc(f"10.{n}.0.0/16")
        block = ec2.associate_vpc_cidr_block(VpcId=vpc, AmazonProvidedIpv6CidrBlock=True)["Ipv6CidrBlockAssociation"]["Ipv6CidrBlock"]
        subnet = net.subnet(vpc, f"10.{n}.1.0/24", zone)
        ec2.associate_subnet_cidr_block(SubnetId=subnet["SubnetId"], Ipv6CidrBlock=block.replace("00::/56", "01::/64"))
        probe = net.probe(machine, subnet, net.group(vpc, everything(), everything(ALL6)), Ipv6AddressCount=1).serve(SERVED).bound()
        probe.wear_ipv6()
        ends.append((vpc, block, subnet, probe))
    (vpc, block, subnet, one), (peer, peer_block, peer_subnet, two) = ends
    connection = ec2.create_vpc_peering_connection(VpcId=vpc, PeerVpcId=peer)["VpcPeeringConnection"]["VpcPeeringConnectionId"]
    net.later(ec2.delete_vpc_peering_connection, VpcPeeringConnectionId=connection)
    shown = ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=connection)["VpcPeeringConnection"]
    assert shown["AccepterVpcInfo"]["Ipv6CidrBlockSet"] == [{"Ipv6CidrBlock": peer_block}]
    table = net.table(vpc, subnet)
    ec2.create_route(RouteTableId=table, DestinationIpv6CidrBlock=peer_block, VpcPeeringConnectionId=connection)
    back = net.table(peer, peer_subnet)
    is_silent(one, two.ipv6)
    ec2.create_route(RouteTableId=back, DestinationIpv6CidrBlock=block, VpcPeeringConnectionId=connection)
    hears6(one, two), hears6(two, one)
    is_told(one, two.ipv6, SERVED, f"{two.name} hears {one.ipv6}", kind="udp")
    is_silent(one, two.address), "no route speaks of IPv4"
    # The way to the outside is the peer's own.
    net.ec2.create_route(RouteTableId=back, DestinationIpv6CidrBlock=ALL6, GatewayId=net.internet(peer))
    net.many.effective()
    assert not one.pings("fd6d:616c:6e65:74::2") and two.pings("fd6d:616c:6e65:74::2")
    hears6(one, two)
    ec2.delete_route(RouteTableId=table, DestinationIpv6CidrBlock=peer_block)
    until("without its route it is not reached", lambda: one.asks(two.ipv6, SERVED) == "")
