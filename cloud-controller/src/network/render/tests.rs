//! What the rows of a small cloud become, and how much one more instance adds.

use std::collections::BTreeSet;

use mallee_aws::id::{
    AddressAssociationId, AllocationId, DhcpOptionsId, InstanceId, InternetGatewayId, NatGatewayId, NetworkInterfaceId,
    RouteTableAssociationId, RouteTableId, SecurityGroupRuleId, VpcPeeringConnectionId,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ec2::{
    address::Elastic,
    interface::GroupIdentifier,
    nat_gateway::{self, NatGatewayRow},
    peering::{End, PeeringRow, State as PeeringState},
    route_table::{AssociationRow, RouteRow, Target},
    security_group::{GroupRow, Traffic},
};

pub(in crate::network) fn outside() -> Outside {
    Outside {
        network: "172.29.0.0/24".parse().unwrap(),
        elastic: "10.9.0.0/16".parse().unwrap(),
        gateway: [172, 29, 0, 1].into(),
        physical: "public".into(),
        chassis: vec!["node1".into(), "node2".into()],
        dns: None,
    }
}

fn vpc_row(n: u8) -> VpcRow {
    VpcRow {
        id: VpcId::from_random([n; 9]),
        account: "123456789012".into(),
        cidr: "172.31.0.0/16".parse().unwrap(),
        cidr_association: String::new(),
        more: Vec::new(),
        is_default: true,
        dhcp_options: Some(DhcpOptionsId::from_random([n; 9])),
        dns_support: true,
        dns_hostnames: false,
        outer_address: Ipv4Addr::new(172, 29, 0, 10 + n),
        outer_mac: format!("06:00:00:00:{n:02x}:01"),
        service_mac: format!("06:00:00:00:{n:02x}:02"),
        metadata_mac: format!("06:00:00:00:{n:02x}:03"),
        created: 0,
    }
}

/// A cloud of `vpcs` VPCs, each with one subnet, a main route table and a group.
pub(in crate::network) fn cloud(vpcs: u8) -> Wanted {
    let mut all = Wanted::default();
    for n in 1..=vpcs {
        let vpc = vpc_row(n);
        let group = GroupRow {
            id: SecurityGroupId::from_random([n; 9]),
            account: vpc.account.clone(),
            vpc: vpc.id.clone(),
            name: "default".into(),
            description: String::new(),
        };
        all.subnets.push(SubnetRow {
            id: SubnetId::from_random([n; 9]),
            account: vpc.account.clone(),
            vpc: vpc.id.clone(),
            zone: "mallee-1a".into(),
            cidr: "172.31.0.0/20".parse().unwrap(),
            is_default: true,
            public_on_launch: true,
            router_mac: format!("06:00:00:00:{n:02x}:04"),
            created: 0,
        });
        all.route_tables.push(RouteTableRow {
            id: RouteTableId::from_random([n; 9]),
            account: vpc.account.clone(),
            vpc: vpc.id.clone(),
            routes: vec![RouteRow {
                destination: "0.0.0.0/0".parse().unwrap(),
                target: Target::Gateway(InternetGatewayId::from_random([n; 9])),
                active: true,
                instance: None,
            }],
            associations: vec![AssociationRow { id: RouteTableAssociationId::from_random([n; 9]), subnet: None }],
        });
        all.groups.push(group);
        all.vpcs.push(vpc);
    }
    all
}

pub(in crate::network) fn rule(group: &SecurityGroupId, n: u8, direction: Direction, traffic: Traffic) -> RuleRow {
    RuleRow {
        id: SecurityGroupRuleId::from_random([n; 9]),
        account: String::new(),
        group: group.clone(),
        direction,
        traffic,
        description: None,
    }
}

/// Adds the interface of an instance, with an elastic IP when `public`.
pub(in crate::network) fn launch(all: &mut Wanted, vpc: usize, n: u16, public: bool) {
    let [high, low] = n.to_be_bytes();
    let random = [high, low, 0, 0, 0, 0, 0, 0, 0];
    let (subnet, group) = (&all.subnets[vpc], &all.groups[vpc]);
    all.interfaces.push(InterfaceRow {
        id: NetworkInterfaceId::from_random(random),
        account: subnet.account.clone(),
        vpc: subnet.vpc.clone(),
        subnet: subnet.id.clone(),
        zone: subnet.zone.clone(),
        instance: Some(InstanceId::from_random(random)),
        attachment: None,
        device_index: 0,
        attached: 0,
        delete_on_termination: true,
        mac: format!("06:00:00:01:{high:02x}:{low:02x}"),
        address: subnet.cidr.nth(4 + u32::from(n)),
        port: Uuid::from_u128(u128::from(n)),
        description: String::new(),
        source_dest_check: true,
        public_wanted: false,
        automatic_ip: None,
        released: false,
        phase: crate::ec2::interface::Phase::Attached,
        created: 0,
        groups: vec![GroupIdentifier { group_id: group.id.clone(), group_name: group.name.clone() }],
        kind: Kind::Interface,
        secondary: Vec::new(),
        elastic: public.then(|| Elastic {
            public_ip: Ipv4Addr::new(10, 9, high, low),
            private_ip: subnet.cidr.nth(4 + u32::from(n)),
            allocation: AllocationId::from_random(random),
            association: AddressAssociationId::from_random(random),
        }),
        link: all.vpcs[vpc].link(),
    });
}

#[test]
fn a_vpc_with_one_instance() {
    let mut all = cloud(1);
    launch(&mut all, 0, 5, true);
    let group = all.groups[0].id.clone();
    let ssh = Traffic { protocol: Protocol::Tcp, from: 22, to: 22, peer: Peer::anywhere() };
    all.rules.push(rule(&group, 1, Direction::Ingress, ssh));
    let expected = "\
Logical_Switch mallee-ext: name=\"mallee-ext\" ports=<mallee-ext-localnet, outer-vpc-01010101010101010-peer>
Logical_Switch service-vpc-01010101010101010: name=\"service-vpc-01010101010101010\" ports=<metadata-vpc-01010101010101010, service-vpc-01010101010101010-router-peer>
Logical_Switch subnet-01010101010101010: name=\"subnet-01010101010101010\" ports=<00000000-0000-0000-0000-000000000005, inner-subnet-01010101010101010-peer>
Logical_Switch_Port 00000000-0000-0000-0000-000000000005: addresses=[06:00:00:01:00:05 172.31.0.9] dhcpv4_options=<subnet-01010101010101010> enabled=true name=\"00000000-0000-0000-0000-000000000005\" port_security=[06:00:00:01:00:05 172.31.0.9] type=\"\"
Logical_Switch_Port inner-subnet-01010101010101010-peer: addresses=[router] name=\"inner-subnet-01010101010101010-peer\" options={router-port=inner-subnet-01010101010101010} type=\"router\"
Logical_Switch_Port mallee-ext-localnet: addresses=[unknown] name=\"mallee-ext-localnet\" options={network_name=public} type=\"localnet\"
Logical_Switch_Port metadata-vpc-01010101010101010: addresses=[06:00:00:00:01:03 169.254.169.254] name=\"metadata-vpc-01010101010101010\" type=\"localport\"
Logical_Switch_Port outer-vpc-01010101010101010-peer: addresses=[router] name=\"outer-vpc-01010101010101010-peer\" options={nat-addresses=router, router-port=outer-vpc-01010101010101010} type=\"router\"
Logical_Switch_Port service-vpc-01010101010101010-router-peer: addresses=[router] name=\"service-vpc-01010101010101010-router-peer\" options={router-port=service-vpc-01010101010101010-router} type=\"router\"
Logical_Router vpc-01010101010101010: name=\"vpc-01010101010101010\" nat=<eipalloc-00050000000000000, snat-vpc-01010101010101010> policies=<service-vpc-01010101010101010> ports=<inner-subnet-01010101010101010, outer-vpc-01010101010101010, service-vpc-01010101010101010-router> static_routes=<rtb-01010101010101010-0.0.0.0/0>
Logical_Router_Port inner-subnet-01010101010101010: mac=\"06:00:00:00:01:04\" name=\"inner-subnet-01010101010101010\" networks=[172.31.0.1/20] options={route_table=rtb-01010101010101010}
Logical_Router_Port outer-vpc-01010101010101010: gateway_chassis=<outer-vpc-01010101010101010-node1, outer-vpc-01010101010101010-node2> mac=\"06:00:00:00:01:01\" name=\"outer-vpc-01010101010101010\" networks=[172.29.0.11/24]
Logical_Router_Port service-vpc-01010101010101010-router: mac=\"06:00:00:00:01:02\" name=\"service-vpc-01010101010101010-router\" networks=[169.254.169.1/24]
Gateway_Chassis outer-vpc-01010101010101010-node1: chassis_name=\"node1\" name=\"outer-vpc-01010101010101010-node1\" priority=2
Gateway_Chassis outer-vpc-01010101010101010-node2: chassis_name=\"node2\" name=\"outer-vpc-01010101010101010-node2\" priority=1
Logical_Router_Static_Route rtb-01010101010101010-0.0.0.0/0: ip_prefix=\"0.0.0.0/0\" nexthop=\"172.29.0.1\" output_port=[outer-vpc-01010101010101010] route_table=\"rtb-01010101010101010\"
Logical_Router_Policy service-vpc-01010101010101010: action=\"allow\" match=\"inport == \\\"service-vpc-01010101010101010-router\\\" || outport == \\\"service-vpc-01010101010101010-router\\\"\" priority=3000
NAT eipalloc-00050000000000000: external_ip=\"10.9.0.5\" logical_ip=\"172.31.0.9\" type=\"dnat_and_snat\"
NAT snat-vpc-01010101010101010: external_ip=\"172.29.0.11\" logical_ip=\"172.31.0.0/16\" type=\"snat\"
Port_Group mallee_drop: acls=<base-dhcp, base-drop-in, base-drop-out, base-metadata> name=\"mallee_drop\" ports=<00000000-0000-0000-0000-000000000005>
Port_Group mallee_outer: acls=<outside-entering, outside-leaving> name=\"mallee_outer\" ports=<outer-vpc-01010101010101010-peer>
Port_Group sg_01010101010101010: acls=<sgr-01010101010101010> name=\"sg_01010101010101010\" ports=<00000000-0000-0000-0000-000000000005>
ACL base-dhcp: action=\"allow\" direction=\"from-lport\" match=\"inport == @mallee_drop && ip4 && udp.src == 68 && udp.dst == 67\" priority=2000
ACL base-drop-in: action=\"drop\" direction=\"to-lport\" match=\"outport == @mallee_drop && ip\" priority=1000
ACL base-drop-out: action=\"drop\" direction=\"from-lport\" match=\"inport == @mallee_drop && ip\" priority=1000
ACL base-metadata: action=\"allow-related\" direction=\"from-lport\" match=\"inport == @mallee_drop && ip4.dst == 169.254.169.254 && tcp.dst == 80\" priority=2000
ACL outside-entering: action=\"drop\" direction=\"to-lport\" match=\"outport == @mallee_outer && ip4 && ip4.dst != 172.29.0.0/24 && ip4.dst != 10.9.0.0/16\" priority=1000
ACL outside-leaving: action=\"drop\" direction=\"from-lport\" match=\"inport == @mallee_outer && ip4 && ip4.src != 172.29.0.0/24 && ip4.src != 10.9.0.0/16\" priority=1000
ACL sgr-01010101010101010: action=\"allow-related\" direction=\"to-lport\" match=\"outport == @sg_01010101010101010 && ip4 && tcp.dst == 22\" priority=1002
DHCP_Options subnet-01010101010101010: cidr=\"172.31.0.0/20\" options={lease_time=3600, mtu=1442, router=172.31.0.1, server_id=172.31.0.1, server_mac=06:00:00:00:01:04}
";
    assert_eq!(render(&all, &outside()).to_string(), expected);
}

#[test]
fn rules_in_ovns_words() {
    let group = SecurityGroupId::from_random([7; 9]);
    let net = |text: &str| Peer::Ipv4(text.parse().unwrap());
    let table = [
        (Direction::Ingress, Protocol::All, -1, -1, Peer::anywhere(), Some("ip4")),
        (
            Direction::Ingress,
            Protocol::Tcp,
            80,
            90,
            net("10.0.0.0/8"),
            Some("ip4 && tcp.dst >= 80 && tcp.dst <= 90 && ip4.src == 10.0.0.0/8"),
        ),
        (Direction::Egress, Protocol::Udp, 0, 65535, net("1.2.3.4/32"), Some("ip4 && udp && ip4.dst == 1.2.3.4/32")),
        (Direction::Ingress, Protocol::Icmp, 8, -1, Peer::anywhere(), Some("ip4 && icmp4 && icmp4.type == 8")),
        (
            Direction::Ingress,
            Protocol::Icmp,
            3,
            4,
            Peer::anywhere(),
            Some("ip4 && icmp4 && icmp4.type == 3 && icmp4.code == 4"),
        ),
        (Direction::Ingress, Protocol::Number(50), -1, -1, Peer::anywhere(), Some("ip4 && ip.proto == 50")),
        (
            Direction::Ingress,
            Protocol::All,
            -1,
            -1,
            Peer::Group(group.clone()),
            Some("ip4 && ip4.src == $sg_07070707070707070_ip4"),
        ),
        (Direction::Egress, Protocol::All, -1, -1, Peer::Ipv6("::/0".into()), None),
        (Direction::Ingress, Protocol::Icmpv6, -1, -1, Peer::anywhere(), None),
    ];
    for (direction, protocol, from, to, peer, expected) in table {
        let rule = rule(&group, 1, direction, Traffic { protocol, from, to, peer });
        assert_eq!(expression(&rule).as_deref(), expected, "{rule:?}");
    }
}

#[test]
fn a_subnet_without_a_default_route_does_not_reach_the_outside_link() {
    let mut all = cloud(1);
    all.route_tables[0].routes.clear();
    let content = render(&all, &outside());
    assert_eq!(content.rows(Table::StaticRoute).count(), 0);
    let policy = content.get(Table::Policy, "closed-subnet-01010101010101010").unwrap();
    let expected = "inport == \"inner-subnet-01010101010101010\" && ip4.dst == 172.29.0.0/24";
    assert_eq!(policy["match"], Column::text(expected));
}

#[test]
fn a_released_interface_has_its_port_shut_and_one_without_check_is_held_to_its_mac_alone() {
    let mut all = cloud(1);
    launch(&mut all, 0, 1, false);
    launch(&mut all, 0, 2, false);
    all.interfaces[0].released = true;
    all.interfaces[1].source_dest_check = false;
    let content = render(&all, &outside());
    let port = |n: u128| content.get(Table::SwitchPort, &Uuid::from_u128(n).to_string()).unwrap();
    assert_eq!(port(1)["enabled"], Column::Flag(false));
    assert_eq!(port(2)["port_security"], Column::set(["06:00:00:01:00:02"]));
}

#[test]
fn what_a_route_leads_to_decides_what_becomes_of_it() {
    let mut all = cloud(2);
    launch(&mut all, 0, 1, false);
    let peering = peering(&all);
    let nat = nat_gateway(&all);
    let route =
        |to: &str, target, active| RouteRow { destination: to.parse().unwrap(), target, active, instance: None };
    let interface = all.interfaces[0].id.clone();
    all.route_tables[0].routes.extend([
        route("10.1.0.0/16", Target::Peering(peering.id.clone()), true),
        route("10.2.0.0/16", Target::Interface(interface), true),
        route("10.3.0.0/16", Target::Nat(nat.id.clone()), true),
        route("10.4.0.0/16", Target::Nat(nat.id.clone()), false),
    ]);
    all.peerings.push(peering);
    all.nat_gateways.push(nat);
    let content = render(&all, &outside());
    let of =
        |to: &str| content.get(Table::StaticRoute, &format!("rtb-01010101010101010-{to}")).unwrap()["nexthop"].clone();
    assert_eq!(of("10.1.0.0/16"), Column::text("169.254.0.14"));
    assert_eq!(of("10.2.0.0/16"), Column::text("172.31.0.5"));
    assert_eq!(of("10.3.0.0/16"), Column::text("172.29.0.1"));
    assert_eq!(of("10.4.0.0/16"), Column::text("discard"), "a black hole does not fall through to a wider route");
    let translated = content.get(Table::Nat, "nat-09090909090909090-subnet-01010101010101010").unwrap();
    assert_eq!(translated["external_ip"], Column::text("172.29.0.200"));
    assert!(is_closed(&content) && is_held(&content));
}

fn peering(all: &Wanted) -> PeeringRow {
    let end = |n: usize| End {
        account: all.vpcs[n].account.clone(),
        vpc: all.vpcs[n].id.clone(),
        mac: format!("06:00:00:00:09:{n:02x}"),
    };
    PeeringRow {
        id: VpcPeeringConnectionId::from_random([8; 9]),
        requester: end(0),
        accepter: end(1),
        link: Some(3),
        state: PeeringState::Active,
        message: String::new(),
        created: 0,
        ended: None,
    }
}

fn nat_gateway(all: &Wanted) -> NatGatewayRow {
    NatGatewayRow {
        id: NatGatewayId::from_random([9; 9]),
        account: all.vpcs[0].account.clone(),
        vpc: all.vpcs[0].id.clone(),
        subnet: all.subnets[0].id.clone(),
        interface: NetworkInterfaceId::from_random([9; 9]),
        private_ip: [172, 31, 0, 9].into(),
        allocation: AllocationId::from_random([9; 9]),
        association: AddressAssociationId::from_random([9; 9]),
        public_ip: [172, 29, 0, 200].into(),
        state: nat_gateway::State::Available,
        created: 0,
        deleted: None,
    }
}

/// Everything a row refers to is in the content.
fn is_closed(content: &Content) -> bool {
    Table::ALL.iter().all(|table| {
        content.rows(*table).all(|(_, columns)| {
            columns.values().all(|column| match column {
                Column::Rows(to, keys) => keys.iter().all(|key| content.get(*to, key).is_some()),
                _ => true,
            })
        })
    })
}

/// Every row that needs a reference to stay has exactly one.
fn is_held(content: &Content) -> bool {
    let mut held: BTreeSet<(Table, String)> = BTreeSet::new();
    for table in Table::ALL {
        for (_, columns) in content.rows(table) {
            for (name, column) in columns {
                let Column::Rows(to, keys) = column else { continue };
                // A port group and DHCP options do not hold.
                if table == Table::PortGroup && *name == "ports" || to.is_root() {
                    continue;
                }
                if !keys.iter().all(|key| held.insert((*to, key.clone()))) {
                    return false;
                }
            }
        }
    }
    Table::ALL
        .iter()
        .filter(|t| !t.is_root())
        .all(|t| content.rows(*t).all(|(k, _)| held.contains(&(*t, k.to_owned()))))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_instance_adds_the_same_rows_however_many_there_are(
        launches in prop::collection::vec((0usize..3, any::<bool>()), 0..60)
    ) {
        let mut all = cloud(3);
        for (n, (vpc, public)) in launches.iter().enumerate() {
            let before = render(&all, &outside()).len();
            launch(&mut all, *vpc, n as u16, *public);
            let after = render(&all, &outside());
            prop_assert_eq!(after.len() - before, 1 + usize::from(*public));
            prop_assert!(is_closed(&after) && is_held(&after));
        }
    }
}
