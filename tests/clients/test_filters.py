"""Each network action that describes something takes every filter that AWS documents for it: the reference is the one that the
SDK carries. A filter that nobody has heard of is refused, so that this can fail."""

import re

import pytest

ACTIONS = [
    "describe_addresses", "describe_availability_zones", "describe_dhcp_options", "describe_egress_only_internet_gateways",
    "describe_internet_gateways", "describe_managed_prefix_lists", "describe_nat_gateways", "describe_network_acls",
    "describe_network_interfaces", "describe_prefix_lists", "describe_regions", "describe_route_tables",
    "describe_security_group_rules", "describe_security_groups", "describe_subnets", "describe_tags",
    "describe_vpc_endpoint_services", "describe_vpc_endpoints", "describe_vpc_peering_connections", "describe_vpcs",
    "get_security_groups_for_vpc",
]  # fmt: skip


def documented(ec2, action):
    """The filters' names, and what the action calls the parameter."""
    model = ec2.meta.service_model.operation_model(ec2.meta.method_to_api_mapping[action])
    members = model.input_shape.members
    parameter = "Filters" if "Filters" in members else "Filter"
    items = re.findall(r"<li>\s*<p>(.*?)</p>", members[parameter].documentation, re.DOTALL)
    # Only what comes before the explanation: that names values, too.
    heads = [re.split(r" - |–|\. |: ", item, maxsplit=1)[0] for item in items]
    names = [name for head in heads for name in re.findall(r"<code>([^<]+)</code>", head)]
    return parameter, ["tag:x" if name == "tag" else name for name in names]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_documented_filter_is_taken(ec2, action):
    parameter, names = documented(ec2, action)
    assert names, "the reference lists some"
    more = {}
    if action == "get_security_groups_for_vpc":
        more["VpcId"] = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]

    def refusal(name):
        try:
            getattr(ec2, action)(**{parameter: [{"Name": name, "Values": ["x"]}]}, **more)
        except ec2.exceptions.ClientError as error:
            return error.response["Error"]["Code"]
        return None

    assert refusal("no-such-filter") == "InvalidParameterValue"
    refused = {name: code for name in names if (code := refusal(name))}
    assert not refused
