"""Networks over several machines: what AWS promises of packets holds wherever the two ends are. Most ends are probes: a network
namespace bound to an interface of the cloud's, which is filtered and routed exactly as a guest there is. Each claim that
something does not pass shows in the same breath that it does where it should."""

import concurrent.futures
import contextlib
import itertools
import secrets

import pytest

from many import Probe, Server, gateway
from waiting import until

EVERYWHERE = "0.0.0.0/0"
SERVED = 7000


class Net:
    """VPCs of one test file, and what is in them; all of it goes at the end, the last thing first."""

    def __init__(self, many):
        self.many, self.ec2 = many, many.client("ec2", attempts=4)
        self.left = []

    def later(self, call, **parameters):
        self.left.append((call, parameters))

    def vpc(self, cidr):
        id = self.ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        self.later(self.ec2.delete_vpc, VpcId=id)
        return id

    def subnet(self, vpc, cidr, zone=0):
        made = self.ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=self.many.zones[zone])["Subnet"]
        self.later(self.ec2.delete_subnet, SubnetId=made["SubnetId"])
        return made

    def group(self, vpc, *rules):
        id = self.ec2.create_security_group(GroupName=f"g-{secrets.token_hex(4)}", Description="of a test", VpcId=vpc)["GroupId"]
        self.later(self.ec2.delete_security_group, GroupId=id)
        if rules:
            self.ec2.authorize_security_group_ingress(GroupId=id, IpPermissions=list(rules))
        return id

    def table(self, vpc, subnet):
        """A route table of the subnet's own."""
        id = self.ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        self.later(self.ec2.delete_route_table, RouteTableId=id)
        association = self.ec2.associate_route_table(RouteTableId=id, SubnetId=subnet["SubnetId"])["AssociationId"]
        self.later(self.ec2.disassociate_route_table, AssociationId=association)
        return id

    def internet(self, vpc):
        id = self.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        self.later(self.ec2.delete_internet_gateway, InternetGatewayId=id)
        self.ec2.attach_internet_gateway(InternetGatewayId=id, VpcId=vpc)
        self.later(self.ec2.detach_internet_gateway, InternetGatewayId=id, VpcId=vpc)
        return id

    def acl(self, vpc, subnet):
        """A network ACL of the subnet's own, without entries."""
        ec2 = self.ec2
        id = ec2.create_network_acl(VpcId=vpc)["NetworkAcl"]["NetworkAclId"]
        self.later(ec2.delete_network_acl, NetworkAclId=id)
        found = ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["NetworkAcls"]
        (default,) = [one for one in found if one["IsDefault"]]
        (association,) = [one for each in found for one in each["Associations"] if one["SubnetId"] == subnet["SubnetId"]]
        replaced = ec2.replace_network_acl_association(AssociationId=association["NetworkAclAssociationId"], NetworkAclId=id)
        self.later(
            ec2.replace_network_acl_association, AssociationId=replaced["NewAssociationId"], NetworkAclId=default["NetworkAclId"]
        )
        return id

    def prefixes(self, family, *cidrs):
        made = self.ec2.create_managed_prefix_list(
            PrefixListName=f"l-{secrets.token_hex(4)}", AddressFamily=family, MaxEntries=5, Entries=[{"Cidr": cidr} for cidr in cidrs]
        )
        id = made["PrefixList"]["PrefixListId"]
        self.later(self.ec2.delete_managed_prefix_list, PrefixListId=id)
        return id

    def probe(self, machine, subnet, *groups, address=None, check=True, **more):
        more |= {"PrivateIpAddress": address} if address else {}
        made = self.ec2.create_network_interface(SubnetId=subnet["SubnetId"], Groups=list(groups), **more)["NetworkInterface"]
        self.later(self.ec2.delete_network_interface, NetworkInterfaceId=made["NetworkInterfaceId"])
        if not check:
            self.ec2.modify_network_interface_attribute(NetworkInterfaceId=made["NetworkInterfaceId"], SourceDestCheck={"Value": False})
        probe = Probe(self.many, self.many.machines[machine], made, gateway(subnet["CidrBlock"]))
        self.left.append((probe.end, {}))
        return probe

    def address(self):
        made = self.ec2.allocate_address(Domain="vpc")
        self.later(self.ec2.release_address, AllocationId=made["AllocationId"])
        return made

    def end(self):
        while self.left:
            call, parameters = self.left.pop()
            with contextlib.suppress(self.ec2.exceptions.ClientError):
                call(**parameters)


def rule(protocol, ports=(-1, -1), cidr=None, group=None, prefixes=None):
    given = {"IpProtocol": protocol, "FromPort": ports[0], "ToPort": ports[1]}
    if cidr:
        given.update(ranges(cidr))
    if group:
        given["UserIdGroupPairs"] = [{"GroupId": group}]
    if prefixes:
        given["PrefixListIds"] = [{"PrefixListId": prefixes}]
    return given


def ranges(cidr):
    return {"Ipv6Ranges": [{"CidrIpv6": cidr}]} if ":" in cidr else {"IpRanges": [{"CidrIp": cidr}]}


def everything(cidr=EVERYWHERE):
    return {"IpProtocol": "-1", **ranges(cidr)}


@pytest.fixture
def net(many):
    net = Net(many)
    yield net
    net.end()


class Plain:
    """A VPC with a subnet in each zone, and probes on three machines whose group lets everything in."""

    def __init__(self, net):
        self.vpc = net.vpc("10.7.0.0/16")
        self.near, self.far = net.subnet(self.vpc, "10.7.1.0/24"), net.subnet(self.vpc, "10.7.2.0/24", zone=1)
        self.open = net.group(self.vpc, everything())
        self.one = net.probe("a1", self.near, self.open, address="10.7.1.11").serve(SERVED)
        self.two = net.probe("a2", self.near, self.open, address="10.7.1.12").serve(SERVED)
        self.three = net.probe("b1", self.far, self.open, address="10.7.2.13").serve(SERVED)
        self.all = (self.one, self.two, self.three)
        for probe in self.all:
            probe.bound()
        net.many.effective()


@pytest.fixture(scope="module")
def plain(many):
    net = Net(many)
    yield Plain(net)
    net.end()


def hears(probe, target, port=SERVED, **how):
    """Until the target answers, itself and no other."""
    until(f"{target.address} answers {probe.address}", lambda: probe.asks(target.address, port, **how).startswith(target.name))


def is_told(probe, address, port, expected, **how):
    """Until exactly this is the answer. A first packet may be lost to the question who has the address."""
    until(f"{address}:{port} tells {probe.address}: {expected}", lambda: probe.asks(address, port, **how) == expected)


def are_silent(asked):
    """None of these (probe, address, port, kind) answers; all are asked at the same time."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda one: one[0].asks(one[1], one[2], kind=one[3]), asked)
        wrong = [(probe.address, *rest, answer) for (probe, *rest), answer in zip(asked, answers, strict=True) if answer]
    assert not wrong, wrong


def is_silent(probe, address, port=SERVED, **how):
    answer = probe.asks(address, port, **how)
    assert answer == "", f"{address}:{port} answered {probe.address}: {answer}"


def test_each_machine_is_a_chassis_that_can_change_nothing_of_another(many, plain):
    """Port bindings are where they were made; and a node's own certificate does not open what is another's."""
    hosts = set(many.southbound("--bare", "--columns=hostname", "list", "chassis").split())
    assert hosts == set(many.machines)
    b1 = many.machines["b1"]
    tls = b1.home / "node-controller/tls"
    database = ["ovn-sbctl", f"--db=ssl:{many.first.address}:8778", f"--private-key={tls}/key.pem", f"--certificate={tls}/cert.pem",
                f"--ca-cert={tls}/ca.pem", "--timeout=20"]  # fmt: skip
    own, other = "b1.node-controller.mallee.internal", "a2.node-controller.mallee.internal"
    b1.run(*database, "set", "chassis", own, "other_config:told-by-a-test=1")
    b1.run(*database, "remove", "chassis", own, "other_config", "told-by-a-test")
    for forbidden in (["set", "chassis", other, "hostname=b1"], ["chassis-del", other], ["destroy", "logical_flow", "--all"]):
        done = b1.run(*database, *forbidden, check=False)
        assert done.returncode != 0, f"{forbidden} was allowed"
    assert set(many.southbound("--bare", "--columns=hostname", "list", "chassis").split()) == set(many.machines)
    without = b1.run("ovn-sbctl", f"--db=ssl:{many.first.address}:8778", f"--ca-cert={tls}/ca.pem", "--timeout=5", "show", check=False)
    assert without.returncode != 0, "nobody without a certificate gets in"


def test_the_same_subnet_on_two_machines(plain):
    hears(plain.one, plain.two)
    is_told(plain.two, plain.one.address, SERVED, f"{plain.one.name} hears {plain.two.address}")
    until("it is pinged", lambda: plain.one.pings(plain.two.address))


def test_routed_between_subnets_and_zones(plain):
    hears(plain.one, plain.three)
    is_told(plain.three, plain.two.address, SERVED, f"{plain.two.name} hears {plain.three.address}")
    for kind in ("tcp", "udp"):
        hears(plain.two, plain.three, kind=kind)


def test_large_packets_pass_between_machines(plain):
    """The tunnel's own header has its room: a full packet of the guests' size passes without being cut."""
    until("a full packet passes", lambda: plain.one.pings(plain.three.address, size=1442 - 28))


def test_vpcs_with_the_same_addresses_do_not_meet(plain, net):
    vpc = net.vpc("10.7.0.0/16")
    subnet = net.subnet(vpc, "10.7.1.0/24")
    group = net.group(vpc, everything())
    twin = net.probe("a1", subnet, group, address="10.7.1.12").serve(SERVED)
    asker = net.probe("a2", subnet, group, address="10.7.1.40")
    twin.bound(), asker.bound()
    hears(asker, twin)
    hears(plain.one, plain.two)
    is_silent(asker, plain.one.address)
    is_silent(asker, plain.three.address)
    is_silent(plain.one, asker.address)


def test_groups_by_address_by_member_and_by_themselves(plain, net):
    """Four ports of one probe, each opened to others in another way."""
    ec2, vpc = net.ec2, plain.vpc
    friends, club = net.group(vpc), net.group(vpc)
    ec2.authorize_security_group_ingress(
        GroupId=club,
        IpPermissions=[
            rule("tcp", (7001, 7001), cidr=f"{plain.two.address}/32"),
            rule("tcp", (7002, 7002), group=friends),
            rule("tcp", (7003, 7003), group=club),
            rule("udp", (7004, 7004), cidr=EVERYWHERE),
        ],
    )
    server = net.probe("b1", plain.far, club).serve(7001, 7002, 7003, 7004)
    friend = net.probe("a1", plain.near, friends)
    member = net.probe("a2", plain.near, club)
    for probe in (server, friend, member):
        probe.bound()
    allowed = {
        (plain.two, 7001, "tcp"), (friend, 7002, "tcp"), (member, 7003, "tcp"),
        (plain.two, 7004, "udp"), (friend, 7004, "udp"), (member, 7004, "udp"),
    }  # fmt: skip
    for probe, port, kind in sorted(allowed, key=str):
        hears(probe, server, port, kind=kind)
    ways = itertools.product((plain.two, friend, member), (7001, 7002, 7003, 7004), ("tcp", "udp"))
    are_silent([(probe, server.address, port, kind) for probe, port, kind in ways if (probe, port, kind) not in allowed])
    assert not plain.two.pings(server.address), "no rule speaks of ICMP"
    ec2.authorize_security_group_ingress(GroupId=club, IpPermissions=[rule("icmp", (-1, -1), cidr=f"{plain.two.address}/32")])
    until("it is pinged when a rule allows that", lambda: plain.two.pings(server.address))
    assert not friend.pings(server.address)
    # A reference is to whoever is a member at the moment.
    ec2.modify_network_interface_attribute(NetworkInterfaceId=friend.id, Groups=[club])
    until("the new member gets in", lambda: friend.asks(server.address, 7003) != "")
    until("and is no friend any more", lambda: friend.asks(server.address, 7002) == "")


def test_a_rule_with_a_prefix_list_lets_in_and_out_what_the_list_says_now(plain, net):
    ec2 = net.ec2
    listed = net.prefixes("IPv4", f"{plain.one.address}/32")
    group = net.group(plain.vpc, rule("tcp", (SERVED, SERVED), prefixes=listed))
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything()])
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[rule("udp", (SERVED, SERVED), prefixes=listed)])
    held = net.probe("b2", plain.far, group).serve(SERVED).bound()
    hears(plain.one, held), hears(held, plain.one, kind="udp")
    are_silent([(plain.two, held.address, SERVED, "tcp"), (plain.one, held.address, SERVED, "udp")])
    are_silent([(held, plain.two.address, SERVED, "udp"), (held, plain.one.address, SERVED, "tcp")])
    ec2.modify_managed_prefix_list(
        PrefixListId=listed, CurrentVersion=1,
        AddEntries=[{"Cidr": f"{plain.two.address}/32"}], RemoveEntries=[{"Cidr": f"{plain.one.address}/32"}],
    )  # fmt: skip
    hears(plain.two, held), hears(held, plain.two, kind="udp")
    until("what is no longer listed is shut out", lambda: plain.one.asks(held.address, SERVED) == "")
    until("nor is it reached", lambda: held.asks(plain.one.address, SERVED, kind="udp") == "")


def test_egress_is_what_its_rules_say(plain, net):
    group = net.group(plain.vpc)
    net.ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything()])
    net.ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[rule("tcp", (SERVED, SERVED), cidr=f"{plain.three.address}/32")])
    net.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[everything()])
    held = net.probe("a2", plain.near, group).serve(SERVED).bound()
    hears(held, plain.three)
    is_silent(held, plain.one.address)
    is_silent(held, plain.three.address, kind="udp")
    hears(plain.one, held), "an answer is no new connection"


def test_network_acls_deny_by_number_in_both_directions_and_not_within_the_subnet(plain, net):
    ec2 = net.ec2
    subnet = net.subnet(plain.vpc, "10.7.3.0/24")
    inside = net.probe("a1", subnet, plain.open).serve(7001, 7002)
    neighbour = net.probe("a2", subnet, plain.open).serve(7001)
    inside.bound(), neighbour.bound()
    hears(plain.three, inside, 7001)
    acl = net.acl(plain.vpc, subnet)

    def entry(number, egress, action, protocol="-1", ports=None, cidr=EVERYWHERE):
        more = {"PortRange": {"From": ports[0], "To": ports[1]}} if ports else {}
        ec2.create_network_acl_entry(
            NetworkAclId=acl, RuleNumber=number, Protocol=protocol, RuleAction=action, Egress=egress, CidrBlock=cidr, **more
        )

    until("a list without entries lets nothing in", lambda: plain.three.asks(inside.address, 7001) == "")
    hears(neighbour, inside, 7001), "what stays in the subnet is not asked"
    # The lower number decides; what goes out is asked as well, with no memory of what came in.
    entry(100, False, "allow", "6", (7001, 7002))
    entry(90, False, "deny", "6", (7002, 7002))
    entry(50, False, "deny", cidr=f"{plain.two.address}/32")
    is_silent(plain.three, inside.address, 7001)
    entry(100, True, "allow", "6", (1024, 65535))
    hears(plain.three, inside, 7001)
    # What comes in is asked on the sender's machine, which need not have heard of it yet.
    net.many.effective()
    are_silent([(plain.three, inside.address, 7002, "tcp"), (plain.two, inside.address, 7001, "tcp")])
    hears(plain.one, inside, 7001)
    entry(10, True, "deny", cidr=f"{plain.three.address}/32")
    until("an entry for what goes out closes it too", lambda: plain.three.asks(inside.address, 7001) == "")
    hears(plain.one, inside, 7001)


@pytest.fixture
def outside(many):
    """A server beyond the cloud: on the first machine's end of the link to the outside."""
    server = Server(many.first, 7100, "outside")
    yield many.outside
    server.end()


def asks_from_outside(many, address, port=SERVED, kind="tcp"):
    from many import CLIENT

    return many.first.run("python3", "-c", CLIENT, address, port, kind, 1, "", check=False).stdout.strip()


def test_an_elastic_ip_works_both_ways_on_any_machine_and_moves(plain, net, many, outside):
    gateway = net.internet(plain.vpc)
    for subnet in (plain.near, plain.far):
        net.ec2.create_route(RouteTableId=net.table(plain.vpc, subnet), DestinationCidrBlock=EVERYWHERE, GatewayId=gateway)
    address = net.address()
    public, allocation = address["PublicIp"], address["AllocationId"]
    is_silent(plain.three, outside, 7100)
    net.ec2.associate_address(AllocationId=allocation, NetworkInterfaceId=plain.three.id)
    until("in", lambda: asks_from_outside(many, public).startswith(plain.three.name))
    is_told(plain.three, outside, 7100, f"outside hears {public}")
    is_silent(plain.two, outside, 7100)
    net.ec2.associate_address(AllocationId=allocation, NetworkInterfaceId=plain.two.id, AllowReassociation=True)
    until("moved", lambda: asks_from_outside(many, public).startswith(plain.two.name))
    is_told(plain.two, outside, 7100, f"outside hears {public}")
    until("and taken from the other", lambda: plain.three.asks(outside, 7100) == "")
    association = net.ec2.describe_addresses(AllocationIds=[allocation])["Addresses"][0]["AssociationId"]
    net.ec2.disassociate_address(AssociationId=association)
    until("gone", lambda: asks_from_outside(many, public) == "")


def test_a_nat_gateway_lets_out_and_nobody_in(plain, net, many, outside):
    gateway = net.internet(plain.vpc)
    public = net.subnet(plain.vpc, "10.7.8.0/24")
    net.ec2.create_route(RouteTableId=net.table(plain.vpc, public), DestinationCidrBlock=EVERYWHERE, GatewayId=gateway)
    address = net.address()
    nat = net.ec2.create_nat_gateway(SubnetId=public["SubnetId"], AllocationId=address["AllocationId"])["NatGateway"]["NatGatewayId"]

    def state():
        return net.ec2.describe_nat_gateways(NatGatewayIds=[nat])["NatGateways"][0]["State"]

    def end_nat():
        net.ec2.delete_nat_gateway(NatGatewayId=nat)
        until("the NAT gateway is deleted", lambda: state() == "deleted")

    net.left.append((end_nat, {}))
    until("the NAT gateway is available", lambda: state() == "available")
    private = net.subnet(plain.vpc, "10.7.9.0/24", zone=1)
    table = net.table(plain.vpc, private)
    hidden = net.probe("b2", private, plain.open).serve(SERVED).bound()
    is_silent(hidden, outside, 7100)
    net.ec2.create_route(RouteTableId=table, DestinationCidrBlock=EVERYWHERE, NatGatewayId=nat)
    until("out", lambda: hidden.asks(outside, 7100) == f"outside hears {address['PublicIp']}")
    is_told(hidden, outside, 7100, f"outside hears {address['PublicIp']}", kind="udp")
    assert asks_from_outside(many, address["PublicIp"]) == "", "nobody comes in by it"
    hears(plain.one, hidden)


def test_peered_vpcs_reach_each_other_by_their_routes(plain, net):
    ec2 = net.ec2
    other = net.vpc("10.8.0.0/16")
    subnet = net.subnet(other, "10.8.1.0/24", zone=1)
    away = net.probe("b2", subnet, net.group(other, everything("10.7.0.0/16"))).serve(SERVED).bound()
    peering = ec2.create_vpc_peering_connection(VpcId=plain.vpc, PeerVpcId=other)["VpcPeeringConnection"]["VpcPeeringConnectionId"]
    net.later(ec2.delete_vpc_peering_connection, VpcPeeringConnectionId=peering)
    ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=peering)
    is_silent(plain.two, away.address)
    ec2.create_route(
        RouteTableId=net.table(plain.vpc, plain.near), DestinationCidrBlock="10.8.0.0/16", VpcPeeringConnectionId=peering
    )
    is_silent(plain.two, away.address)
    ec2.create_route(RouteTableId=net.table(other, subnet), DestinationCidrBlock="10.7.0.0/16", VpcPeeringConnectionId=peering)
    hears(plain.two, away)
    is_told(away, plain.two.address, SERVED, f"{plain.two.name} hears {away.address}")
    is_silent(plain.three, away.address), "its subnet has no such route"


def test_nobody_sends_as_somebody_else(plain, net):
    """Neither in IP nor in ARP, also to another machine; without the source check an interface may forward for others."""
    hears(plain.one, plain.three)
    foreign = "10.7.1.77"
    plain.one.ip("addr", "add", f"{foreign}/32", "dev", "eth0")
    try:
        is_silent(plain.one, plain.three.address, source=foreign)
        is_silent(plain.one, plain.two.address, source=foreign)
        hears(plain.one, plain.three)
    finally:
        plain.one.ip("addr", "del", f"{foreign}/32", "dev", "eth0", check=False)
    # A claim to be the neighbour, to everybody and as an answer to one: neither arrives, on this machine or on another.
    near = net.probe("a1", plain.near, plain.open).bound()
    far = net.probe("b2", plain.near, plain.open).bound()
    for listener in (near, far):
        hears(listener, plain.two)
        assert plain.two.mac in listener.ip("neigh", "show", plain.two.address)
        ears = listener.listen_for_claims()
        for source, heard in ((plain.two.address, False), (plain.one.address, True)):
            plain.one.claims(source, listener)
            until_heard = lambda: f"{source} is at {plain.one.mac}" in ears.lines()
            if heard:
                until("its own address is believed, so the claims have been delivered", until_heard)
        assert f"{plain.two.address} is at {plain.one.mac}" not in ears.lines()
        ears.end()
        assert plain.two.mac in listener.ip("neigh", "show", plain.two.address)


def are_not_told(prober, listeners, ways):
    """What is sent from the first port to the second does not arrive; to the third it does. Each way: an address, three ports."""
    ears = {listener.address: listener.listen_for_claims() for listener in listeners}
    named = {address: listener.address for listener in listeners for address in (listener.address, listener.ipv6)}
    for address, source, forbidden, allowed in ways:
        # What is for nobody by name is for all.
        hearing = [ears[named[address]]] if address in named else ears.values()
        prober.tells(address, (source, forbidden))

        def is_heard(address=address, source=source, allowed=allowed, hearing=hearing):
            prober.tells(address, (source, allowed))
            return all(f"{source} to {allowed} of {prober.mac}" in one.lines() for one in hearing)

        until(f"what is sent to {address} is heard", is_heard)
        for one in ears.values():
            assert f"{source} to {forbidden} of {prober.mac}" not in one.lines(), f"{address} was told at {forbidden}"
    for one in ears.values():
        one.end()


def test_nobody_but_the_subnet_itself_gives_addresses(plain, net):
    """A guest that plays DHCP server is heard by nobody, on its machine or another."""
    near = net.probe("a1", plain.near, plain.open).bound()
    hears(near, plain.one), hears(plain.one, plain.two)
    ways = [(address, 67, 68, 69) for address in ("255.255.255.255", near.address, plain.two.address)]
    are_not_told(plain.one, (near, plain.two), ways)


def test_with_a_way_to_the_internet_the_machines_stay_shut(plain, net, many):
    """`mallee up --internet`: what is beyond the first machine is reached, by its address; the cloud's other machines are not."""
    gateway = net.internet(plain.vpc)
    net.ec2.create_route(RouteTableId=net.table(plain.vpc, plain.far), DestinationCidrBlock=EVERYWHERE, GatewayId=gateway)
    net.ec2.associate_address(AllocationId=net.address()["AllocationId"], NetworkInterfaceId=plain.three.id)
    beyond, b2 = f"{many.underlay}.254", many.machines["b2"]
    servers = [Server(many.here, 7100, "beyond"), Server(b2, 7100, "b2")]
    ports = (7100, 8774, 8775, 8776)
    try:
        is_silent(plain.three, beyond, 7100)
        many.mallee("up", "--internet")
        is_told(plain.three, beyond, 7100, f"beyond hears {many.first.address}")
        assert asks_from_outside(many, b2.address, 7100) == f"b2 hears {many.first.address}"
        others = [machine.address for name, machine in many.machines.items() if name != "a1"]
        are_silent([(plain.three, address, port, "tcp") for address in others for port in ports])
        are_silent([(plain.three, many.first.address, port, "tcp") for port in ports])
        is_silent(plain.three, b2.address, 7100, kind="udp")
    finally:
        many.mallee("up", "--internet", "no")
        for server in servers:
            server.end()
    until("the way is shut again", lambda: plain.three.asks(beyond, 7100) == "")
