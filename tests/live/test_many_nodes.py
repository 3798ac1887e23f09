"""Several machines when something dies, and when machines come and go, with traffic flowing all the time: what flows goes on, and
what is wanted comes back by itself."""

import pytest

from many import Machine, Traffic, place
from test_many_guests import Guests
from test_many_networks import SERVED, Net, Plain, are_silent, hears, rule
from waiting import until


@pytest.fixture(scope="module")
def plain(many):
    net = Net(many)
    plain = Plain(net)
    plain.net = net
    yield plain
    net.end()


@pytest.fixture(scope="module")
def traffic(plain):
    """Between machines and zones: one connection within a subnet and one that is routed, both through tunnels."""
    near, far = Traffic(plain.one, plain.two.address, SERVED), Traffic(plain.two, plain.three.address, SERVED)
    yield near, far
    near.end(), far.end()


@pytest.fixture
def flows(plain, traffic):
    """Around each test: the same connections go on; afterwards a new one is made each way, and a change takes effect."""
    yield traffic
    for one in traffic:
        one.goes_on()
    hears(plain.one, plain.three), hears(plain.three, plain.two)
    group = plain.net.group(plain.vpc)
    port = 7200
    late = plain.net.probe("b2", plain.far, group).serve(port).bound()
    are_silent([(plain.one, late.address, port, "tcp")])
    plain.net.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule("tcp", (port, port), cidr="10.7.0.0/16")])
    hears(plain.one, late, port)


@pytest.mark.parametrize("engine", ["ovn-northd", "ovn-nb", "ovn-sb"])
def test_one_of_ovns_own_is_killed(engine, many, flows):
    many.first.kill(engine)
    for one in flows:
        one.goes_on()


@pytest.mark.parametrize("engine", ["ovn-controller", "ovsdb", "ovs-vswitchd"])
def test_a_part_of_a_joined_machines_switch_is_killed(engine, many, flows):
    """Also the one that both connections end at, and with it the address of its tunnels."""
    machine = many.machines["a2"]
    machine.kill(engine)
    for one in flows:
        one.goes_on()
    assert machine.tunnel.split(":")[1] in machine.run("ip", "-n", many.namespace, "-4", "addr").stdout


def test_tiers_are_killed(many, plain, flows):
    """While nobody decides, somebody else's hand is in the northbound database, and what was asked for is not done yet."""
    group = plain.net.group(plain.vpc)
    shut = plain.net.probe("b1", plain.far, group).serve(7300).bound()
    many.machines["b1"].kill("cluster-controller", "node-controller")
    plain.net.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule("tcp", (7300, 7300), cidr="10.7.0.0/16")])
    many.northbound("lsp-set-addresses", many.port_of(plain.two.id), f"{plain.two.mac} 10.7.1.99")
    many.first.kill("cloud-controller", "cluster-controller")
    for one in flows:
        one.goes_on()
    many.are_up(*many.machines)
    hears(plain.one, shut, 7300)
    wanted = lambda: plain.two.address in many.northbound("get", "logical_switch_port", many.port_of(plain.two.id), "addresses")
    until("the northbound database is as wanted", wanted)


def test_what_somebody_changes_by_hand_is_mended_and_told(many, plain, flows):
    """Each in another table: a port that is gone, an address that is wrong, a rule that opens what should be shut."""
    port = many.port_of(plain.two.id)
    many.northbound("lsp-set-addresses", port, f"{plain.two.mac} 10.7.1.99")
    many.northbound("lsp-del", many.port_of(plain.three.id))
    group = many.northbound("--bare", "--columns=name", "list", "port_group").split()[0]
    many.northbound("--type=port-group", "acl-add", group, "to-lport", "32000", "ip4", "allow")

    def mended():
        addresses = many.northbound("get", "logical_switch_port", port, "addresses")
        third = many.northbound("--bare", "--columns=name", "find", "logical_switch_port", f"external_ids:interface={plain.three.id}")
        return plain.two.address in addresses and third.strip() and "32000" not in many.northbound("--bare", "--columns=priority", "list", "acl")

    until("the northbound database is as wanted", mended)

    def told():
        (cloud,) = [row["status"] for row in many.status()["tiers"] if row["role"] == "cloud-controller"]
        return [fault for fault in cloud["faults"] if "changed by somebody else" in fault["what"]]

    until("`mallee status` tells it", told)


def test_a_machine_joins_and_leaves_while_traffic_flows(many, plain, flows):
    """A fifth one; it carries a probe's traffic, is drained, refuses to leave while it runs, and leaves."""
    zone = many.zones[1]
    machine = Machine(many, "b3", 5)
    machine.make()
    net = Net(many)
    try:
        machine.join(many.token("b3", zone, "node-controller"))
        many.machines["b3"] = machine
        many.are_up("b3")
        probe = net.probe("b3", plain.far, plain.open).serve(SERVED).bound()
        hears(plain.one, probe)
        refused = many.mallee("node", "remove", "b3", check=False)
        assert refused.returncode != 0 and "drain it first" in refused.stderr, refused.stderr
        many.mallee("node", "drain", "b3")
        assert many.nodes()["b3"] == "draining"
        many.mallee("node", "serve", "b3")
        assert many.nodes()["b3"] == "up"
        many.mallee("node", "drain", "b3")
        # A restart of the zone's controller forgets nothing of it.
        many.machines["b1"].kill("cluster-controller")
        until("it still drains", lambda: many.nodes().get("b3") == "draining", every=0.5)
        hears(plain.one, probe)
        net.end()
        refused = many.mallee("node", "remove", "b3", check=False)
        assert refused.returncode != 0 and "mallee down --all" in refused.stderr, refused.stderr
        machine.end()
        until("it is silent", lambda: many.nodes().get("b3") == "silent", every=0.5)
        many.mallee("node", "remove", "b3")
        assert "b3" not in many.nodes()
        assert "b3" not in many.southbound("--bare", "--columns=hostname", "list", "chassis").split()
        many.effective()
        # Under a new token it may come back.
        machine.make()
        machine.join(many.token("b3", zone, "node-controller"))
        many.are_up("b3")
        again = net.probe("b3", plain.far, plain.open).serve(SERVED).bound()
        hears(plain.one, again), "its tunnels are where they were"
        net.end()
        # And one that will never come back is declared lost, but not while it answers.
        refused = many.mallee("node", "remove", "b3", "--lost", check=False)
        assert refused.returncode != 0 and "it is not lost" in refused.stderr, refused.stderr
        machine.end()
        until("it is silent", lambda: many.nodes().get("b3") == "silent", every=0.5)
        many.mallee("node", "remove", "b3", "--lost")
        assert "b3" not in many.nodes()
        many.effective()
    finally:
        net.end()
        machine.end()
        many.machines.pop("b3", None)


def test_an_instance_outlives_a_drain_and_begins_anew_when_its_machine_is_lost(many, tmp_path):
    """On a machine that is given it because the others of its zone drain. What is told at each step is what is so."""
    machine = Machine(many, "b3", 5)
    machine.make()
    guests = None
    try:
        machine.join(many.token("b3", many.zones[1], "node-controller"))
        many.machines["b3"] = machine
        many.are_up("b3")
        for name in ("b1", "b2"):
            many.mallee("node", "drain", name)
        guests = Guests(many, tmp_path, zone=1, count=1)
        (guest,), ec2 = guests.all, guests.net.ec2
        assert guest.machine() is machine
        for name in ("b1", "b2"):
            many.mallee("node", "serve", name)
        boot, private = guest.boot_id(), guest.described()["PrivateIpAddress"]
        guest.run("echo there > /root/marker && sync")

        def system():
            (found,) = ec2.describe_instance_status(InstanceIds=[guest.id])["InstanceStatuses"]
            return found["InstanceState"]["Name"], found["SystemStatus"]["Status"]

        many.mallee("node", "drain", "b3")
        refused = many.mallee("node", "remove", "b3", check=False)
        assert refused.returncode != 0 and f"1 instance is on node b3: {guest.id}" in refused.stderr, refused.stderr
        late = guests.launch()
        until("a later one runs", lambda: late.state() == "running", patience=120)
        assert late.machine().name in ("b1", "b2"), "a machine that drains is given nothing new"
        assert guest.boot_id() == boot and system() == ("running", "ok"), "and keeps what it has"
        ec2.terminate_instances(InstanceIds=[late.id])

        del many.machines["b3"]
        machine.lose_power()
        until("it is told that nothing is known of it", lambda: system() == ("running", "impaired"))
        told = many.mallee("why", guest.id).stdout
        assert "b3" in told and "unreachable" in told.lower(), told
        assert place(many, guest.id) is None, "it is on no other machine before somebody says that this one is lost"
        many.mallee("node", "remove", "b3", "--lost")
        guest.wait(other_than=boot)
        assert guest.machine().name in ("b1", "b2")
        until("it is well", lambda: system() == ("running", "ok"))
        assert guest.described()["PrivateIpAddress"] == private and guest.run("imds meta-data/instance-id") == guest.id
        assert guest.run("cat /root/marker", check=False) == "", "its disk was that machine's"
        assert "b3 was declared lost, and its disk with it" in many.mallee("why", guest.id).stdout
    finally:
        for name in ("b1", "b2"):
            many.mallee("node", "serve", name)
        if guests:
            guests.net.end()
        machine.end()
        many.machines.pop("b3", None)
