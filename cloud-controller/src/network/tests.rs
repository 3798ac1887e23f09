//! What every account is born with, as clients see it.

use crate::ec2::rehearsal::{Rehearsal, all, first};

#[tokio::test]
async fn an_account_is_born_with_a_whole_vpc() {
    let a = Rehearsal::new().await;
    let vpcs = a.ask("DescribeVpcs&Filter.1.Name=is-default&Filter.1.Value.1=true").await.unwrap();
    let vpc = first(&vpcs, "vpcId");
    assert_eq!(first(&vpcs, "cidrBlock"), "172.31.0.0/16");
    assert!(vpcs.contains("<cidrBlockState><state>associated</state></cidrBlockState>"), "{vpcs}");
    let of_vpc = |action: &str| format!("{action}&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}");
    let subnets = a.ask(&of_vpc("DescribeSubnets")).await.unwrap();
    let mut blocks = all(&subnets, "cidrBlock");
    blocks.sort();
    assert_eq!(blocks, ["172.31.0.0/20", "172.31.16.0/20"]);
    assert_eq!(all(&subnets, "mapPublicIpOnLaunch"), ["true", "true"]);
    assert_eq!(all(&subnets, "availableIpAddressCount"), ["4091", "4091"]);
    let group = a
        .ask(&format!("{}&Filter.2.Name=group-name&Filter.2.Value.1=default", of_vpc("DescribeSecurityGroups")))
        .await
        .unwrap();
    assert_eq!(all(&group, "userId"), [a.account.as_str()]);
    let main = format!("{}&Filter.2.Name=association.main&Filter.2.Value.1=true", of_vpc("DescribeRouteTables"));
    let routes = a.ask(&main).await.unwrap();
    assert_eq!(all(&routes, "destinationCidrBlock"), ["172.31.0.0/16", "0.0.0.0/0"]);
    let gateway = "DescribeInternetGateways&Filter.1.Name=attachment.vpc-id&Filter.1.Value.1=".to_owned() + &vpc;
    assert_eq!(all(&routes, "gatewayId"), ["local".to_owned(), a.all(&gateway, "internetGatewayId").await.remove(0)]);
    let acls =
        a.ask(&format!("{}&Filter.2.Name=default&Filter.2.Value.1=true", of_vpc("DescribeNetworkAcls"))).await.unwrap();
    assert_eq!(all(&acls, "subnetId").len(), 2);
    assert_eq!(all(&acls, "ruleNumber"), ["100", "32767", "100", "32767"]);
    let options = format!("DescribeDhcpOptions&DhcpOptionsId.1={}", first(&vpcs, "dhcpOptionsId"));
    assert_eq!(a.all(&options, "key").await, ["domain-name", "domain-name-servers"]);
    for (attribute, value) in
        [("enableDnsSupport", "true"), ("enableDnsHostnames", "false"), ("enableNetworkAddressUsageMetrics", "false")]
    {
        let answer = a.ask(&format!("DescribeVpcAttribute&VpcId={vpc}&Attribute={attribute}")).await.unwrap();
        assert!(answer.contains(&format!("<{attribute}><value>{value}</value></{attribute}>")), "{answer}");
    }
}

#[tokio::test]
async fn nothing_of_a_network_is_seen_from_another_account() {
    let a = Rehearsal::new().await;
    a.launch("").await;
    let stranger = a.another_account().await;
    let table = [
        ("DescribeVpcs", "vpcId", "VpcId.1", "InvalidVpcID.NotFound"),
        ("DescribeSubnets", "subnetId", "SubnetId.1", "InvalidSubnetID.NotFound"),
        (
            "DescribeNetworkInterfaces",
            "networkInterfaceId",
            "NetworkInterfaceId.1",
            "InvalidNetworkInterfaceID.NotFound",
        ),
        ("DescribeInternetGateways", "internetGatewayId", "InternetGatewayId.1", "InvalidInternetGatewayID.NotFound"),
        ("DescribeRouteTables", "routeTableId", "RouteTableId.1", "InvalidRouteTableID.NotFound"),
        ("DescribeNetworkAcls", "networkAclId", "NetworkAclId.1", "InvalidNetworkAclID.NotFound"),
        ("DescribeDhcpOptions", "dhcpOptionsId", "DhcpOptionsId.1", "InvalidDhcpOptionID.NotFound"),
    ];
    for (action, element, parameter, code) in table {
        let id = a.all(action, element).await.remove(0);
        assert!(a.ask(&format!("{action}&{parameter}={id}")).await.is_ok());
        assert_eq!(a.ask_as(&stranger, &format!("{action}&{parameter}={id}")).await, Err(code.into()));
        assert!(!a.ask_as(&stranger, action).await.unwrap().contains(&id));
        let malformed = a.ask(&format!("{action}&{parameter}=x-1")).await.unwrap_err();
        assert!(malformed.ends_with(".Malformed"), "{action}: {malformed}");
        assert_eq!(
            a.ask(&format!("{action}&{parameter}={id}&MaxResults=5")).await,
            Err("InvalidParameterCombination".into())
        );
        assert_eq!(
            a.ask(&format!("{action}&Filter.1.Name=colour&Filter.1.Value.1=x")).await,
            Err("InvalidParameterValue".into())
        );
        assert_eq!(a.ask(&format!("{action}&DryRun=true")).await, Err("DryRunOperation".into()));
    }
}
