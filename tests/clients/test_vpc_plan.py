"""AWS' tutorial VPC (public subnet, private subnet behind a NAT gateway, bastion), as a plan that finds what is there by its
tags: applied twice it changes nothing, and it comes down in any order, with AWS' errors where something is in the way. Once
with boto3 and once with the AWS CLI. No guests: what packets do is tested with packets."""

import json
import random
import secrets

import pytest
from calls import CLIENTS
from driver import Refused
from waiting import until

# What AWS answers while something else must go first.
IN_THE_WAY = {"DependencyViolation", "InvalidIPAddress.InUse", "AuthFailure", "InvalidGroup.InUse"}


class Plan:
    """Everything carries the plan's tag and its own name in it."""

    def __init__(self, call):
        self.call, self.name = call, f"plan-{secrets.token_hex(4)}"

    def tags(self, kind, part):
        tags = [{"Key": "plan", "Value": self.name}, {"Key": "Name", "Value": part}]
        return [{"ResourceType": kind, "Tags": tags}]

    def filters(self, part=None):
        filters = [{"Name": "tag:plan", "Values": [self.name]}]
        return filters + ([{"Name": "tag:Name", "Values": [part]}] if part else [])

    def one(self, kind, part, describe, members, member, create, **parameters):
        """The id of what is there under this name, or of what is made."""
        named = "Filter" if describe == "describe_nat_gateways" else "Filters"
        found = self.call(describe, **{named: self.filters(part)})[members]
        found = [thing for thing in found if thing.get("State") not in ("deleting", "deleted")]
        assert len(found) <= 1, f"{part} is there twice"
        if found:
            return found[0][member]
        made = self.call(create, TagSpecifications=self.tags(kind, part), **parameters)
        return (made if member in made else next(v for v in made.values() if isinstance(v, dict) and member in v))[member]

    def ensure(self, done_already, operation, **parameters):
        """AWS says that it is so already."""
        try:
            self.call(operation, **parameters)
        except Refused as refused:
            assert refused.code in done_already, refused.code

    def apply(self):
        one, ensure = self.one, self.ensure
        vpc = one("vpc", "vpc", "describe_vpcs", "Vpcs", "VpcId", "create_vpc", CidrBlock="10.7.0.0/16")
        gateway = one("internet-gateway", "igw", "describe_internet_gateways", "InternetGateways", "InternetGatewayId", "create_internet_gateway")
        ensure({"Resource.AlreadyAssociated"}, "attach_internet_gateway", InternetGatewayId=gateway, VpcId=vpc)
        subnet = lambda part, cidr: one("subnet", part, "describe_subnets", "Subnets", "SubnetId", "create_subnet", VpcId=vpc, CidrBlock=cidr)
        public, private = subnet("public", "10.7.0.0/24"), subnet("private", "10.7.1.0/24")
        address = one("elastic-ip", "nat", "describe_addresses", "Addresses", "AllocationId", "allocate_address", Domain="vpc")
        nat = one(
            "natgateway", "nat", "describe_nat_gateways", "NatGateways", "NatGatewayId", "create_nat_gateway", SubnetId=public, AllocationId=address
        )
        self.settled(nat, "available")
        table = lambda part: one("route-table", part, "describe_route_tables", "RouteTables", "RouteTableId", "create_route_table", VpcId=vpc)
        tables = {"public": (table("public"), {"GatewayId": gateway}, public), "private": (table("private"), {"NatGatewayId": nat}, private)}
        for id, target, subnet_id in tables.values():
            ensure({"RouteAlreadyExists"}, "create_route", RouteTableId=id, DestinationCidrBlock="0.0.0.0/0", **target)
            if not self.is_associated(id):
                self.call("associate_route_table", RouteTableId=id, SubnetId=subnet_id)
        offices = one(
            "prefix-list", "offices", "describe_managed_prefix_lists", "PrefixLists", "PrefixListId", "create_managed_prefix_list",
            PrefixListName="offices", AddressFamily="IPv4", MaxEntries=2, Entries=[{"Cidr": "198.51.100.0/24"}],
        )  # fmt: skip
        group = lambda part: one(
            "security-group", part, "describe_security_groups", "SecurityGroups", "GroupId", "create_security_group",
            GroupName=f"{self.name}-{part}", Description=part, VpcId=vpc,
        )  # fmt: skip
        bastion, web = group("bastion"), group("web")
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
        for id, peer in ((bastion, {"PrefixListIds": [{"PrefixListId": offices}]}), (web, {"UserIdGroupPairs": [{"GroupId": bastion}]})):
            ensure({"InvalidPermission.Duplicate"}, "authorize_security_group_ingress", GroupId=id, IpPermissions=[{**ssh, **peer}])
        return {
            "vpc": vpc, "gateway": gateway, "public": public, "private": private, "address": address, "nat": nat, "offices": offices,
            "bastion": bastion, "web": web, "tables": [id for id, _, _ in tables.values()],
        }  # fmt: skip

    def is_associated(self, table):
        (found,) = self.call("describe_route_tables", RouteTableIds=[table])["RouteTables"]
        return bool(found["Associations"])

    def settled(self, nat, state):
        def is_so():
            (found,) = self.call("describe_nat_gateways", NatGatewayIds=[nat])["NatGateways"]
            return found["State"] == state

        until(f"{nat} is {state}", is_so)

    def picture(self):
        """All that the plan has, as it is described."""
        seen = {}
        for describe, members in (
            ("describe_vpcs", "Vpcs"), ("describe_internet_gateways", "InternetGateways"), ("describe_subnets", "Subnets"),
            ("describe_addresses", "Addresses"), ("describe_nat_gateways", "NatGateways"), ("describe_route_tables", "RouteTables"),
            ("describe_managed_prefix_lists", "PrefixLists"), ("describe_security_groups", "SecurityGroups"),
        ):  # fmt: skip
            named = "Filter" if describe == "describe_nat_gateways" else "Filters"
            seen[members] = self.call(describe, **{named: self.filters()})[members]
        return json.dumps(seen, sort_keys=True, default=str)

    def refused(self, code, operation, **parameters):
        with pytest.raises(Refused) as refused:
            self.call(operation, **parameters)
        assert refused.value.code == code, f"{operation}: {refused.value.code}"

    def down(self, have):
        """In any order, again and again: what AWS says is in the way may only be in the way."""
        steps = [
            ("delete_vpc", {"VpcId": have["vpc"]}),
            ("detach_internet_gateway", {"InternetGatewayId": have["gateway"], "VpcId": have["vpc"]}),
            ("delete_internet_gateway", {"InternetGatewayId": have["gateway"]}),
            ("delete_subnet", {"SubnetId": have["public"]}),
            ("delete_subnet", {"SubnetId": have["private"]}),
            ("release_address", {"AllocationId": have["address"]}),
            ("delete_nat_gateway", {"NatGatewayId": have["nat"]}),
            ("delete_managed_prefix_list", {"PrefixListId": have["offices"]}),
            ("delete_security_group", {"GroupId": have["bastion"]}),
            ("delete_security_group", {"GroupId": have["web"]}),
            *(("delete_route_table", {"RouteTableId": id}) for id in have["tables"]),
        ]
        random.Random(self.name).shuffle(steps)

        def another_round():
            nonlocal steps
            left = []
            for operation, parameters in steps:
                try:
                    self.call(operation, **parameters)
                except Refused as refused:
                    assert refused.code in IN_THE_WAY, f"{operation}: {refused.code}"
                    left.append((operation, parameters))
            steps = left
            return not steps

        until(f"{self.name} is down", another_round)


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
def test_a_vpc_of_three_tiers_is_applied_twice_and_comes_down_in_any_order(cloud, client):
    plan = Plan(client(cloud))
    have = plan.apply()
    try:
        before = plan.picture()
        assert plan.apply() == have and plan.picture() == before, "applied twice it changes nothing"
        plan.refused("DependencyViolation", "delete_vpc", VpcId=have["vpc"])
        plan.refused("DependencyViolation", "delete_subnet", SubnetId=have["public"])
        plan.refused("DependencyViolation", "detach_internet_gateway", InternetGatewayId=have["gateway"], VpcId=have["vpc"])
        plan.refused("DependencyViolation", "delete_internet_gateway", InternetGatewayId=have["gateway"])
        plan.refused("DependencyViolation", "delete_security_group", GroupId=have["bastion"])
        plan.refused("DependencyViolation", "delete_route_table", RouteTableId=have["tables"][0])
        plan.refused("DependencyViolation", "delete_managed_prefix_list", PrefixListId=have["offices"])
        plan.refused("InvalidSubnet.Conflict", "create_subnet", VpcId=have["vpc"], CidrBlock="10.7.1.128/25")
        assert plan.picture() == before, "what was refused changed nothing"
    finally:
        plan.down(have)
    left = json.loads(plan.picture())
    assert [nat["State"] for nat in left.pop("NatGateways")] in ([], ["deleted"])
    assert not any(left.values()), left
