"""IPv6 over several machines, with packets: addresses that are leased, ways that are advertised, and the same filters as IPv4's.
Every claim that something does not pass shows in the same breath that it does where it should."""

import pytest

from test_many_networks import EVERYWHERE, SERVED, Net, are_not_told, are_silent, everything, hears, is_silent, is_told, rule
from waiting import until

ALL6 = "::/0"


class Dual:
    """A VPC of both families with a subnet in each zone; two probes in the first, on two machines, and one in the second."""

    def __init__(self, net):
        self.net, ec2 = net, net.ec2
        self.vpc = net.vpc("10.11.0.0/16")
        associated = ec2.associate_vpc_cidr_block(VpcId=self.vpc, AmazonProvidedIpv6CidrBlock=True)["Ipv6CidrBlockAssociation"]
        self.block = associated["Ipv6CidrBlock"]
        self.near, self.far = self.subnet(1, zone=0), self.subnet(2, zone=1)
        self.open = net.group(self.vpc, everything(), everything(ALL6))
        self.one, self.two = self.probe("a1", self.near, self.open), self.probe("a2", self.near, self.open)
        self.three = self.probe("b1", self.far, self.open)
        self.worn = {probe.id: probe.wear_ipv6() for probe in (self.one, self.two, self.three)}
        net.many.effective()

    def subnet(self, n, zone):
        made = self.net.subnet(self.vpc, f"10.11.{n}.0/24", zone)
        block = self.block.replace("00::/56", f"{n:02x}::/64")
        self.net.ec2.associate_subnet_cidr_block(SubnetId=made["SubnetId"], Ipv6CidrBlock=block)
        return dict(made, Ipv6CidrBlock=block)

    def probe(self, machine, subnet, *groups):
        probe = self.net.probe(machine, subnet, *groups, Ipv6AddressCount=1).serve(SERVED)
        return probe.bound()


@pytest.fixture(scope="module")
def dual(many):
    net = Net(many)
    yield Dual(net)
    net.end()


@pytest.fixture
def net(many):
    net = Net(many)
    yield net
    net.end()


def hears6(probe, target, port=SERVED, **how):
    until(f"{target.ipv6} answers {probe.ipv6}", lambda: probe.asks(target.ipv6, port, **how).startswith(target.name))


def test_an_address_is_leased_and_the_way_is_advertised_on_every_machine(dual):
    for probe in (dual.one, dual.two, dual.three):
        assert dual.worn[probe.id] == probe.ipv6, "the address that the cloud's API tells"
        (way,) = set(probe.ways())
        assert way.startswith("fe80::"), way
    assert dual.one.ways() == dual.two.ways() != dual.three.ways()


def test_neighbours_and_other_zones_are_reached(dual):
    for probe, target in ((dual.one, dual.two), (dual.one, dual.three), (dual.three, dual.two)):
        for kind in ("tcp", "udp"):
            is_told(probe, target.ipv6, SERVED, f"{target.name} hears {probe.ipv6}", kind=kind)
        until("it is pinged", lambda probe=probe, target=target: probe.pings(target.ipv6))


def test_groups_filter_by_address_by_member_by_prefix_list_and_by_kind(dual, net):
    """Rules of one family say nothing about the other; a group's members are let in by both."""
    ec2, vpc = net.ec2, dual.vpc
    friends, club = net.group(vpc, everything(ALL6)), net.group(vpc)
    listed = net.prefixes("IPv6", f"{dual.one.ipv6}/128")
    rules = [
        rule("tcp", (7001, 7001), cidr=f"{dual.two.ipv6}/128"),
        rule("tcp", (7002, 7002), group=friends),
        rule("tcp", (7003, 7003), prefixes=listed),
        rule("udp", (7001, 7001), cidr=ALL6),
        rule("tcp", (7004, 7004), cidr=EVERYWHERE),
    ]
    ec2.authorize_security_group_ingress(GroupId=club, IpPermissions=rules)
    server = net.probe("b2", dual.far, club, Ipv6AddressCount=1).serve(7001, 7002, 7003, 7004).bound()
    friend = net.probe("a2", dual.near, friends, Ipv6AddressCount=1).bound()
    server.wear_ipv6(), friend.wear_ipv6()
    one, two = dual.one, dual.two
    allowed = {(two, 7001, "tcp"), (friend, 7002, "tcp"), (one, 7003, "tcp"), (one, 7001, "udp"), (two, 7001, "udp"), (friend, 7001, "udp")}
    for probe, port, kind in sorted(allowed, key=str):
        hears6(probe, server, port, kind=kind)
    ways = [(probe, port, kind) for probe in (one, two, friend) for port in (7001, 7002, 7003, 7004) for kind in ("tcp", "udp")]
    are_silent([(probe, server.ipv6, port, kind) for probe, port, kind in ways if (probe, port, kind) not in allowed])
    hears(one, server, 7004), hears(friend, server, 7002)
    are_silent([(two, server.address, 7001, "tcp"), (one, server.address, 7003, "tcp")])
    assert not two.pings(server.ipv6), "no rule speaks of ICMPv6"
    ec2.authorize_security_group_ingress(GroupId=club, IpPermissions=[rule("icmpv6", (128, -1), cidr=f"{two.ipv6}/128")])
    until("it is pinged when a rule allows that", lambda: two.pings(server.ipv6))
    assert not friend.pings(server.ipv6)
    # The list is read for what it says now.
    ec2.modify_managed_prefix_list(
        PrefixListId=listed, CurrentVersion=1, AddEntries=[{"Cidr": f"{two.ipv6}/128"}], RemoveEntries=[{"Cidr": f"{one.ipv6}/128"}]
    )
    hears6(two, server, 7003)
    until("what is no longer listed is shut out", lambda: one.asks(server.ipv6, 7003) == "")


def test_what_leaves_is_what_rules_for_ipv6_say(dual, net):
    group = net.group(dual.vpc, everything(ALL6))
    held = net.probe("a2", dual.near, group, Ipv6AddressCount=1).serve(SERVED).bound()
    held.wear_ipv6()
    net.ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything(ALL6)])
    net.ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[rule("tcp", (SERVED, SERVED), cidr=f"{dual.three.ipv6}/128")])
    hears6(held, dual.three)
    are_silent([(held, dual.one.ipv6, SERVED, "tcp"), (held, dual.three.ipv6, SERVED, "udp")])
    hears6(dual.one, held), "an answer is no new connection"


def test_network_acls_deny_ipv6_in_both_directions_and_not_within_the_subnet(dual, net):
    ec2 = net.ec2
    subnet = dual.subnet(3, zone=0)
    inside, neighbour = (net.probe(machine, subnet, dual.open, Ipv6AddressCount=1).serve(SERVED).bound() for machine in ("a1", "a2"))
    inside.wear_ipv6(), neighbour.wear_ipv6()
    hears6(dual.three, inside), hears6(dual.two, inside)
    acl = net.acl(dual.vpc, subnet)

    def entry(number, egress, action, cidr, protocol="-1", **more):
        ec2.create_network_acl_entry(
            NetworkAclId=acl, RuleNumber=number, Protocol=protocol, RuleAction=action, Egress=egress, Ipv6CidrBlock=cidr, **more
        )

    until("a list without entries lets nothing in", lambda: dual.three.asks(inside.ipv6, SERVED) == "")
    entry(100, True, "allow", ALL6)
    entry(50, False, "deny", f"{dual.two.ipv6}/128")
    entry(100, False, "allow", ALL6, "6", PortRange={"From": SERVED, "To": SERVED})
    hears6(dual.three, inside)
    net.many.effective()
    are_silent([(dual.two, inside.ipv6, SERVED, "tcp"), (dual.three, inside.ipv6, SERVED, "udp"), (dual.three, inside.address, SERVED, "tcp")])
    assert not dual.three.pings(inside.ipv6), "no entry speaks of ICMPv6"
    entry(60, False, "allow", ALL6, "58", IcmpTypeCode={"Type": 128, "Code": -1})
    until("it is pinged when an entry allows that", lambda: dual.three.pings(inside.ipv6))
    entry(10, True, "deny", f"{dual.three.ipv6}/128")
    until("an entry for what goes out closes it too", lambda: dual.three.asks(inside.ipv6, SERVED) == "")
    hears6(dual.one, inside), hears6(neighbour, inside)


def test_nobody_sends_as_somebody_else(dual, net):
    """Neither in IPv6 nor in neighbour discovery, to a neighbour on this machine, to one on another, or to a router."""
    hears6(dual.one, dual.three)
    foreign = dual.near["Ipv6CidrBlock"].replace("::/64", "::77")
    dual.one.ip("addr", "add", f"{foreign}/128", "dev", "eth0", "nodad")
    try:
        for target in (dual.two, dual.three):
            is_silent(dual.one, target.ipv6, source=foreign)
            hears6(dual.one, target, source=dual.one.ipv6)
    finally:
        dual.one.ip("addr", "del", f"{foreign}/128", "dev", "eth0", check=False)
    near, far = (net.probe(machine, dual.near, dual.open, Ipv6AddressCount=1).bound() for machine in ("a1", "b2"))
    for listener in (near, far):
        ears = listener.listen_for_claims()
        dual.one.claims(dual.two.ipv6, listener)

        def its_own_is_heard(ears=ears, listener=listener):
            dual.one.claims(dual.one.ipv6, listener)
            return f"{dual.one.ipv6} is at {dual.one.mac}" in ears.lines()

        until("its own address is believed, so the claims have been delivered", its_own_is_heard)
        assert f"{dual.two.ipv6} is at {dual.one.mac}" not in ears.lines()
        ears.end()


def test_nobody_but_the_subnet_itself_gives_addresses(dual, net):
    near = net.probe("a1", dual.near, dual.open, Ipv6AddressCount=1).bound()
    near.wear_ipv6()
    ways = [(address, 547, 546, 548) for address in ("ff02::1", near.ipv6, dual.two.ipv6)]
    are_not_told(dual.one, (near, dual.two), ways)


def test_a_guest_that_advertises_itself_by_mistake_leads_nobody_away(dual):
    """OVN lets all of neighbour discovery pass, so it is heard; the subnet's own router is of a higher preference."""
    rogue, listener = dual.one, dual.two
    (router,) = set(listener.ways())
    chosen = lambda: listener.ip("-6", "route", "get", "2001:db8::1").split()
    assert router in chosen()
    ears = listener.listen_for_claims()

    def heard():
        rogue.advertises()
        return f"way by {rogue.mac}" in ears.lines() and len(set(listener.ways())) == 2

    until("both are known as routers", heard)
    ears.end()
    try:
        assert router in chosen(), "and the way out is the same"
    finally:
        for way in set(listener.ways()) - {router}:
            listener.ip("-6", "route", "del", "default", "via", way, "dev", "eth0")
