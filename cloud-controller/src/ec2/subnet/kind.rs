//! Kinds of subnets. AWS has one, which is routed. The other is this cloud's own: a private L2 subnet is a switch and nothing
//! else, for guests that speak something of their own (another router, a cluster with floating addresses, protocols that are
//! not IP). It has no router, DHCP, router advertisements, metadata or names; its interfaces may send as anybody and are
//! filtered by nothing, so they are in no security group. Its addresses are what the guests make of them; the ones EC2 shows
//! are a proposal that no two interfaces get.
//!
//! The tag [`TAG`] at the subnet's creation says the kind, and stays as it is; the operator must have allowed it to the
//! account (`mallee account allow`).

use mallee_aws::{
    AwsError,
    id::{SecurityGroupId, SubnetId},
};
use mallee_store::{FromValue, ToValue, Tx, Value, params};

use super::{SubnetRow, not_found};
use crate::{
    Outcome, Refusal,
    allowance::{self, Allowance},
    ec2::{security_group, tag::Tag},
};

pub const COLUMN: &str = "ALTER TABLE subnet ADD COLUMN kind TEXT NOT NULL DEFAULT 'routed';";

/// The tag that says a subnet's kind.
pub const TAG: &str = "mallee:kind";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Routed,
    PrivateL2,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Routed => "routed",
            Kind::PrivateL2 => "private-l2",
        }
    }

    fn read(text: &str) -> Option<Self> {
        [Kind::Routed, Kind::PrivateL2].into_iter().find(|kind| kind.as_str() == text)
    }

    /// What the tags of a subnet that is to be ask for.
    pub fn asked(tags: &[Tag]) -> Outcome<Self> {
        let Some(tag) = tags.iter().find(|tag| tag.key == TAG) else { return Ok(Kind::Routed) };
        Self::read(&tag.value).ok_or_else(|| {
            let message =
                format!("Value ({}) for tag {TAG} is invalid. Valid values are routed and private-l2.", tag.value);
            AwsError::invalid_parameter_value(message).into()
        })
    }
}

impl FromValue for Kind {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        Self::read(&text).ok_or_else(|| format!("{text:?} is no kind of a subnet"))
    }
}

impl ToValue for Kind {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self.as_str().into())
    }
}

/// Whether the account may make such subnets.
pub fn require_allowed(tx: &mut Tx<'_>, account: &str, kind: Kind) -> Outcome<()> {
    if kind == Kind::Routed || allowance::has(tx, account, Allowance::PrivateL2)? {
        return Ok(());
    }
    let message = format!(
        "Subnets of kind private-l2 ({TAG}) are not allowed to account {account}: the cloud's operator allows them by \
         `mallee account allow NAME private-l2`."
    );
    Err(Refusal::new("OperationNotPermitted", message))
}

impl SubnetRow {
    /// `what`: something that only a routed subnet has, as in "has no route table".
    pub fn require_routed(&self, what: &str) -> Outcome<()> {
        match self.kind {
            Kind::Routed => Ok(()),
            Kind::PrivateL2 => {
                let message =
                    format!("The subnet '{}' is a private L2 subnet ({TAG}=private-l2): it has no {what}.", self.id);
                Err(Refusal::new("UnsupportedOperation", message))
            }
        }
    }
}

/// The same of the subnet an interface is in.
pub fn require_routed(tx: &mut Tx<'_>, id: &SubnetId, what: &str) -> Outcome<()> {
    let sql = format!("SELECT {} FROM subnet WHERE id = ?1", super::COLUMNS);
    let found = tx.query_opt(&sql, params![id.as_str()], super::read)?;
    found.ok_or_else(|| not_found(id.as_str()))?.require_routed(what)
}

/// The groups of a new interface: those that are named, else the VPC's default one. In a private L2 subnet it has none, and
/// to name one is refused, as it would filter nothing.
pub fn groups(
    tx: &mut Tx<'_>,
    subnet: &SubnetRow,
    ids: &[SecurityGroupId],
    names: &[String],
) -> Outcome<Vec<SecurityGroupId>> {
    if !(ids.is_empty() && names.is_empty()) {
        subnet.require_routed("security groups")?;
    }
    match subnet.kind {
        Kind::Routed => security_group::for_launch(tx, &subnet.account, &subnet.vpc, ids, names),
        Kind::PrivateL2 => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2::rehearsal::{Rehearsal, first};

    async fn allow(a: &Rehearsal, allowed: bool) {
        let account = a.account.clone();
        let set = move |tx: &mut Tx<'_>| allowance::set(tx, &account, Allowance::PrivateL2, allowed);
        a.cloud.store.write("allow", set).await.unwrap();
    }

    fn tagged(vpc: &str, cidr: &str, kind: &str) -> String {
        format!(
            "CreateSubnet&VpcId={vpc}&CidrBlock={cidr}&TagSpecification.1.ResourceType=subnet\
             &TagSpecification.1.Tag.1.Key=mallee:kind&TagSpecification.1.Tag.1.Value={kind}"
        )
    }

    #[tokio::test]
    async fn the_operator_allows_the_kind_and_the_tag_stays_what_it_was() {
        let a = Rehearsal::new().await;
        let vpc = first(&a.ask("CreateVpc&CidrBlock=10.0.0.0/16").await.unwrap(), "vpcId");
        let create = tagged(&vpc, "10.0.0.0/24", "private-l2");
        assert_eq!(a.ask(&create).await, Err("OperationNotPermitted".into()));
        assert_eq!(a.ask(&tagged(&vpc, "10.0.0.0/24", "l3")).await, Err("InvalidParameterValue".into()));
        allow(&a, true).await;
        let subnet = first(&a.ask(&create).await.unwrap(), "subnetId");
        allow(&a, false).await;
        let another = tagged(&vpc, "10.0.1.0/24", "private-l2");
        assert_eq!(a.ask(&another).await, Err("OperationNotPermitted".into()), "not any more");
        let other = first(&a.ask(&tagged(&vpc, "10.0.2.0/24", "routed")).await.unwrap(), "subnetId");
        for subnet in [&subnet, &other] {
            let of = format!("&ResourceId.1={subnet}&Tag.1.Key=mallee:kind");
            for refused in [format!("CreateTags{of}&Tag.1.Value=private-l2"), format!("DeleteTags{of}")] {
                assert_eq!(a.ask(&refused).await, Err("InvalidParameterValue".into()), "{refused}");
            }
            a.ask(&format!("CreateTags&ResourceId.1={subnet}&Tag.1.Key=mallee&Tag.1.Value=x")).await.unwrap();
            a.ask(&format!("DeleteTags&ResourceId.1={subnet}")).await.unwrap();
            let left = a.all(&format!("DescribeTags&Filter.1.Name=resource-id&Filter.1.Value.1={subnet}"), "key").await;
            assert_eq!(left, ["mallee:kind"], "all of them are the account's own");
        }
        let vpc_tag = "CreateVpc&CidrBlock=10.1.0.0/16&TagSpecification.1.ResourceType=vpc\
                       &TagSpecification.1.Tag.1.Key=mallee:kind&TagSpecification.1.Tag.1.Value=private-l2";
        assert_eq!(a.ask(vpc_tag).await, Err("InvalidParameterValue".into()), "it means nothing there");
        a.ask(&format!("DeleteSubnet&SubnetId={subnet}")).await.unwrap();
    }

    #[tokio::test]
    async fn what_only_a_routed_subnet_has_is_refused_by_name() {
        let a = Rehearsal::new().await;
        allow(&a, true).await;
        let made = a.ask("CreateVpc&CidrBlock=10.0.0.0/16&AmazonProvidedIpv6CidrBlock=true").await.unwrap();
        let (vpc, block) = (first(&made, "vpcId"), first(&made, "ipv6CidrBlock").replace("00::/56", "07::/64"));
        let gateway = first(&a.ask("CreateInternetGateway").await.unwrap(), "internetGatewayId");
        a.ask(&format!("AttachInternetGateway&InternetGatewayId={gateway}&VpcId={vpc}")).await.unwrap();
        let create = tagged(&vpc, "10.0.0.0/24", "private-l2");
        assert_eq!(a.ask(&format!("{create}&Ipv6CidrBlock={block}")).await, Err("UnsupportedOperation".into()));
        let subnet = first(&a.ask(&create).await.unwrap(), "subnetId");
        let acls = format!("DescribeNetworkAcls&Filter.1.Name=association.subnet-id&Filter.1.Value.1={subnet}");
        assert!(a.all(&acls, "networkAclId").await.is_empty(), "no network ACL is asked about it");
        let group = first(
            &a.ask(&format!("CreateSecurityGroup&GroupName=g&GroupDescription=g&VpcId={vpc}")).await.unwrap(),
            "groupId",
        );
        let interface = a.ask(&format!("CreateNetworkInterface&SubnetId={subnet}")).await.unwrap();
        assert!(interface.contains("<groupSet/>") && interface.contains("<sourceDestCheck>false"), "{interface}");
        let id = first(&interface, "networkInterfaceId");
        let table = first(&a.ask(&format!("CreateRouteTable&VpcId={vpc}")).await.unwrap(), "routeTableId");
        let address = first(&a.ask("AllocateAddress&Domain=vpc").await.unwrap(), "allocationId");
        let launch = format!("RunInstances&ImageId={}&MinCount=1&MaxCount=1&SubnetId={subnet}", a.image);
        for refused in [
            format!("AssociateSubnetCidrBlock&SubnetId={subnet}&Ipv6CidrBlock={block}"),
            format!("ModifySubnetAttribute&SubnetId={subnet}&MapPublicIpOnLaunch.Value=true"),
            format!("AssociateRouteTable&SubnetId={subnet}&RouteTableId={table}"),
            format!("CreateRoute&RouteTableId={table}&DestinationCidrBlock=10.9.0.0/16&NetworkInterfaceId={id}"),
            format!("CreateNatGateway&SubnetId={subnet}&AllocationId={address}"),
            format!("AssociateAddress&AllocationId={address}&NetworkInterfaceId={id}"),
            format!("CreateNetworkInterface&SubnetId={subnet}&SecurityGroupId.1={group}"),
            format!("ModifyNetworkInterfaceAttribute&NetworkInterfaceId={id}&SecurityGroupId.1={group}"),
            format!("ModifyNetworkInterfaceAttribute&NetworkInterfaceId={id}&SourceDestCheck.Value=true"),
            format!("ResetNetworkInterfaceAttribute&NetworkInterfaceId={id}&SourceDestCheck=x"),
            format!("{launch}&SecurityGroupId.1={group}"),
            format!(
                "RunInstances&ImageId={}&MinCount=1&MaxCount=1&NetworkInterface.1.DeviceIndex=0\
                 &NetworkInterface.1.SubnetId={subnet}&NetworkInterface.1.AssociatePublicIpAddress=true",
                a.image
            ),
        ] {
            assert_eq!(a.ask(&refused).await, Err("UnsupportedOperation".into()), "{refused}");
        }
        let instance = first(&a.ask(&launch).await.unwrap(), "instanceId");
        for refused in [
            format!("ModifyInstanceAttribute&InstanceId={instance}&GroupId.1={group}"),
            format!("ModifyInstanceAttribute&InstanceId={instance}&SourceDestCheck.Value=true"),
        ] {
            assert_eq!(a.ask(&refused).await, Err("UnsupportedOperation".into()), "{refused}");
        }
    }
}
