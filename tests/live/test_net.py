"""`mallee net`: a tree of what there is, and what would become of a packet, from the compiled network itself."""

import json

import pytest
from waiting import until


@pytest.fixture
def pair(ec2):
    """Two interfaces of one subnet in a VPC of their own, nobody's yet; and what ends them."""
    vpc = ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    made = []
    try:
        subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.8.{n}.0/24")["Subnet"]["SubnetId"] for n in (0, 1)]
        made += [lambda id=id: ec2.delete_subnet(SubnetId=id) for id in subnets]
        interfaces = [ec2.create_network_interface(SubnetId=id)["NetworkInterface"] for id in subnets]
        made += [lambda id=one["NetworkInterfaceId"]: ec2.delete_network_interface(NetworkInterfaceId=id) for one in interfaces]
        yield vpc, subnets, interfaces
    finally:
        for end in reversed(made):
            end()
        ec2.delete_vpc(VpcId=vpc)


def trace(cloud, *words):
    """→ whether the packet arrives, and what was told."""
    done = cloud.mallee("net", "trace", *words, check=False)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode == 0, done.stdout


def test_a_packets_fate_is_told_by_the_rule_that_decides_it(cloud, ec2, pair):
    vpc, subnets, (a, b) = pair
    ids = [one["NetworkInterfaceId"] for one in (a, b)]
    arrives = lambda *words: trace(cloud, *words)[0]
    until("northd has compiled it", lambda: arrives(*ids, "tcp", "443"))
    group = a["Groups"][0]["GroupId"]
    told = trace(cloud, *ids, "tcp", "443")[1]
    assert f"of {group} lets it through: in everything from {group}" in told and f"arrives at {ids[1]}" in told, told

    (rule,) = [
        one for one in ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])["SecurityGroupRules"]
        if not one["IsEgress"]
    ]  # fmt: skip
    ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]])
    until("the rule is gone", lambda: not arrives(*ids, "tcp", "443"))
    assert "no rule of the receiver's security groups lets it in" in trace(cloud, *ids, "tcp", "443")[1]
    everything = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=everything)
    until("the rule is there", lambda: arrives(*ids, "icmp"))

    (acl,) = ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["NetworkAcls"]
    entry = {"NetworkAclId": acl["NetworkAclId"], "RuleNumber": 50, "Egress": False}
    ec2.create_network_acl_entry(**entry, Protocol="6", RuleAction="deny", CidrBlock="10.8.0.0/24", PortRange={"From": 443, "To": 443})
    until("the network ACL denies it", lambda: not arrives(*ids, "tcp", "443"))
    assert f"network ACL {acl['NetworkAclId']} of {subnets[1]} does not let it in" in trace(cloud, *ids, "tcp", "443")[1]
    assert arrives(*ids, "tcp", "444") and arrives(*reversed(ids), "tcp", "443")
    ec2.delete_network_acl_entry(**entry)
    died, told = trace(cloud, ids[0], "8.8.8.8", "udp", "53")
    assert not died and "no route leads there" in told, told


def test_by_ipv6_other_rules_decide(cloud, ec2, pair):
    """The same two interfaces, by the addresses of the other family."""
    vpc, subnets, interfaces = pair
    ids = [one["NetworkInterfaceId"] for one in interfaces]
    refused = cloud.mallee("net", "trace", *ids, "tcp", "443", "--ipv6", check=False)
    assert refused.returncode not in (0, 3) and "has no IPv6 address" in refused.stderr, refused.stderr
    block = ec2.associate_vpc_cidr_block(VpcId=vpc, AmazonProvidedIpv6CidrBlock=True)["Ipv6CidrBlockAssociation"]["Ipv6CidrBlock"]
    for n, (subnet, id) in enumerate(zip(subnets, ids, strict=True)):
        ec2.associate_subnet_cidr_block(SubnetId=subnet, Ipv6CidrBlock=block.replace("00::/56", f"{n:02x}::/64"))
        ec2.assign_ipv6_addresses(NetworkInterfaceId=id, Ipv6AddressCount=1)
    (found,) = ec2.describe_network_interfaces(NetworkInterfaceIds=ids[1:])["NetworkInterfaces"]
    address = found["Ipv6Addresses"][0]["Ipv6Address"]
    arrives = lambda *words: trace(cloud, *words)[0]
    until("northd has compiled it", lambda: arrives(*ids, "tcp", "443", "-6"))
    assert arrives(ids[0], address, "icmp") and arrives(ids[0], address, "udp", "53")
    assert f"arrives at {ids[1]}" in trace(cloud, ids[0], address, "tcp", "443")[1]
    (acl,) = ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["NetworkAcls"]
    entry = {"NetworkAclId": acl["NetworkAclId"], "RuleNumber": 50, "Egress": False}
    ec2.create_network_acl_entry(**entry, Protocol="6", RuleAction="deny", Ipv6CidrBlock="::/0", PortRange={"From": 443, "To": 443})
    until("the network ACL denies it", lambda: not arrives(*ids, "tcp", "443", "-6"))
    told = trace(cloud, ids[0], address, "tcp", "443")[1]
    assert f"network ACL {acl['NetworkAclId']} of {subnets[1]} does not let it in" in told, told
    assert arrives(*ids, "tcp", "443") and arrives(*ids, "tcp", "444", "-6"), "only that port, and only by IPv6"
    ec2.delete_network_acl_entry(**entry)
    died, told = trace(cloud, ids[0], "2001:db8::1", "tcp", "443")
    assert not died and "no route leads there" in told, told


def test_a_vpc_is_shown_with_all_that_is_in_it(cloud, ec2, pair):
    vpc, subnets, interfaces = pair
    drawn = cloud.mallee("net", "show", vpc).stdout
    assert drawn.startswith(vpc), drawn
    for id in [*subnets, *(one["NetworkInterfaceId"] for one in interfaces), interfaces[0]["Groups"][0]["GroupId"]]:
        assert id in drawn, drawn
    tree = json.loads(cloud.mallee("net", "show", vpc, "--json").stdout)
    assert [one["id"] for one in tree["vpcs"]] == [vpc]
    graph = cloud.mallee("net", "show", vpc, "--dot").stdout
    assert graph.startswith("digraph") and graph.count("{") == graph.count("}") and f'"{subnets[0]}" ->' in graph
    made = ec2.create_managed_prefix_list(PrefixListName="shown", AddressFamily="IPv4", MaxEntries=1, Entries=[{"Cidr": "10.99.0.0/16"}])
    listed = made["PrefixList"]["PrefixListId"]
    group = interfaces[0]["Groups"][0]["GroupId"]
    permission = [{"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": listed}]}]
    assert listed not in cloud.mallee("net", "show", vpc).stdout, "nothing of the VPC names it"
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=permission)
    try:
        drawn = cloud.mallee("net", "show", vpc).stdout
        options = ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"][0]["DhcpOptionsId"]
        assert f"{listed} " in drawn and "10.99.0.0/16" in drawn and options in drawn, drawn
    finally:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=permission)
        ec2.delete_managed_prefix_list(PrefixListId=listed)
    assert "no VPC vpc-0123456789abcdef0" in cloud.mallee("net", "show", "vpc-0123456789abcdef0", check=False).stderr
