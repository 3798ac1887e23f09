//! VPC endpoints as clients use them.

use crate::ec2::rehearsal::{Rehearsal, all, first};

const SERVICE: &str = "com.amazonaws.mallee-1.s3";

#[tokio::test]
async fn an_endpoint_brings_its_routes_and_takes_them_along() {
    let a = Rehearsal::with(|config| config.s3_url = "http://172.29.0.1:8777/".into()).await;
    let vpc = a.all("DescribeVpcs", "vpcId").await.remove(0);
    let table = a.all("DescribeRouteTables", "routeTableId").await.remove(0);
    assert_eq!(a.all("DescribeVpcEndpointServices", "serviceName").await, [SERVICE]);
    let create = format!("CreateVpcEndpoint&VpcId={vpc}&ServiceName={SERVICE}&RouteTableId.1={table}&ClientToken=t");
    let made = a.ask(&create).await.unwrap();
    let id = first(&made, "vpcEndpointId");
    assert_eq!((first(&made, "vpcEndpointType"), first(&made, "state")), ("Gateway".into(), "available".into()));
    assert_eq!(first(&a.ask(&create).await.unwrap(), "vpcEndpointId"), id, "the same token makes no second one");
    let routes = a.ask("DescribeRouteTables").await.unwrap();
    assert!(all(&routes, "gatewayId").contains(&id), "{routes}");
    let list = first(&routes, "destinationPrefixListId");
    let remove = format!("DeleteRoute&RouteTableId={table}&DestinationPrefixListId={list}");
    assert_eq!(a.ask(&remove).await, Err("InvalidParameterValue".into()), "its routes are its own");
    let second = format!("CreateVpcEndpoint&VpcId={vpc}&ServiceName={SERVICE}&RouteTableId.1={table}");
    assert_eq!(a.ask(&second).await, Err("RouteAlreadyExists".into()));
    assert_eq!(a.ask(&format!("DeleteVpc&VpcId={vpc}")).await, Err("DependencyViolation".into()));
    let modify = |what: &str| format!("ModifyVpcEndpoint&VpcEndpointId={id}&{what}RouteTableId.1={table}");
    a.ask(&modify("Remove")).await.unwrap();
    assert!(!a.ask("DescribeRouteTables").await.unwrap().contains(&id));
    assert_eq!(a.ask(&modify("Remove")).await, Err("InvalidParameterValue".into()));
    a.ask(&modify("Add")).await.unwrap();
    let gone = a.ask(&format!("DeleteVpcEndpoints&VpcEndpointId.1={id}&VpcEndpointId.2=vpce-0123456789abcdef0")).await;
    let gone = gone.unwrap();
    assert_eq!(all(&gone, "resourceId"), ["vpce-0123456789abcdef0"], "what is not there is told, and the rest is done");
    assert!(!a.ask("DescribeRouteTables").await.unwrap().contains(&id));
}

#[tokio::test]
async fn what_is_no_gateway_for_s3_is_refused_by_name() {
    let a = Rehearsal::with(|config| config.s3_url = "http://172.29.0.1:8777".into()).await;
    let vpc = a.all("DescribeVpcs", "vpcId").await.remove(0);
    let create = |more: &str| format!("CreateVpcEndpoint&VpcId={vpc}&ServiceName={SERVICE}{more}");
    let policy = "&PolicyDocument={\"Statement\":[{\"Effect\":\"Deny\",\"Principal\":\"*\",\"Action\":\"*\",\"Resource\":\"*\"}]}";
    for (more, code) in [
        ("&VpcEndpointType=Interface", "Unsupported"),
        ("&VpcEndpointType=GatewayLoadBalancer", "Unsupported"),
        ("&VpcEndpointType=Door", "InvalidParameterValue"),
        ("&SubnetId.1=subnet-0123456789abcdef0", "Unsupported"),
        (policy, "Unsupported"),
        ("&PolicyDocument=no", "InvalidPolicyDocument"),
        ("&RouteTableId.1=rtb-0123456789abcdef0", "InvalidRouteTableID.NotFound"),
        ("2", "InvalidServiceName"),
    ] {
        assert_eq!(a.ask(&create(more)).await, Err(code.into()), "{more}");
    }
    let here = Rehearsal::with(|config| config.s3_url = "http://127.0.0.1:8777".into()).await;
    let vpc = here.all("DescribeVpcs", "vpcId").await.remove(0);
    let create = format!("CreateVpcEndpoint&VpcId={vpc}&ServiceName={SERVICE}");
    assert_eq!(here.ask(&create).await, Err("InvalidServiceName".into()), "S3 that instances do not reach");
}
