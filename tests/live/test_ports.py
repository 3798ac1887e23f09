"""What no rule opens does not answer; a rule opens it, and its revocation closes it."""

import secrets

import pytest

from guest import answers
from waiting import until

EVERYWHERE = "0.0.0.0/0"


def tcp(port, cidr=EVERYWHERE):
    return [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": cidr}]}]


def asks(address, port):
    """For the guest's shell: whether an HTTP server there answers, whatever it says."""
    return f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} {port} | grep -q HTTP && echo yes || echo no"


@pytest.fixture(scope="module")
def served(guest):
    """The guest listens on all of these, so that only the network decides who answers."""
    for port in (8080, 8081, 8082, 8083):
        guest.start(f"httpd -f -p {port} -h /etc")
    until("the guest's servers listen", lambda: guest.run("netstat -ltn 2>/dev/null | grep -c :808", check=False) == "4")
    return guest


def test_a_port_is_closed_until_a_rule_opens_it_and_closed_again_after(served, ec2):
    assert not answers(served.address, 8080)
    ec2.authorize_security_group_ingress(GroupId=served.group, IpPermissions=tcp(8080))
    until("the opened port answers", lambda: answers(served.address, 8080), every=0.05)
    assert not answers(served.address, 8081), "only that port was opened"
    ec2.revoke_security_group_ingress(GroupId=served.group, IpPermissions=tcp(8080))
    until("the closed port is silent", lambda: not answers(served.address, 8080), every=0.05)
    assert answers(served.address, 22)


def test_a_rule_for_other_addresses_opens_nothing(served, ec2, cloud):
    ec2.authorize_security_group_ingress(GroupId=served.group, IpPermissions=tcp(8081, "192.0.2.0/24"))
    # A later rule that works shows that the earlier one has been taken in.
    ec2.authorize_security_group_ingress(GroupId=served.group, IpPermissions=tcp(8082, f"{cloud.address}/32"))
    until("the rule for this host's address works", lambda: answers(served.address, 8082), every=0.05)
    assert not answers(served.address, 8081)


def test_a_reference_opens_to_the_members_of_the_group_only(served, ec2, launch):
    friends = ec2.create_security_group(GroupName=f"friends-{secrets.token_hex(4)}", Description="x")["GroupId"]
    rule = [{"IpProtocol": "tcp", "FromPort": 8083, "ToPort": 8083, "UserIdGroupPairs": [{"GroupId": friends}]}]
    ec2.authorize_security_group_ingress(GroupId=served.group, IpPermissions=rule)
    near = launch()
    near.wait()
    private = served.described()["PrivateIpAddress"]
    ask = asks(private, 8083)
    try:
        assert near.run(ask) == "no"
        ec2.modify_instance_attribute(InstanceId=near.id, Groups=[near.group, friends])
        until("a member gets through", lambda: near.run(ask) == "yes")
        assert not answers(served.address, 8083), "this host is no member"
        ec2.modify_instance_attribute(InstanceId=near.id, Groups=[near.group])
        until("who has left does not", lambda: near.run(ask) == "no")
    finally:
        ec2.revoke_security_group_ingress(GroupId=served.group, IpPermissions=rule)
        near.terminate()
        ec2.delete_security_group(GroupId=friends)


def test_egress_is_filtered_too(served, ec2, cloud):
    """The group's first rule lets everything out; without it nothing new leaves, and metadata still answers."""
    anything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": EVERYWHERE}]}]
    # Of what is outside, this host's end of the link is there on every machine: the cloud's own front.
    ask = asks(cloud.address, cloud.port)
    assert served.run(ask) == "yes"
    ec2.revoke_security_group_egress(GroupId=served.group, IpPermissions=anything)
    try:
        until("nothing new leaves", lambda: served.run(ask) == "no")
        assert served.run("imds meta-data/instance-id") == served.id
    finally:
        ec2.authorize_security_group_egress(GroupId=served.group, IpPermissions=anything)
    until("everything leaves again", lambda: served.run(ask) == "yes")
