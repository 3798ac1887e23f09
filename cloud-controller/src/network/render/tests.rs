//! What the rows of a small cloud become, and how much one more instance adds.

use std::collections::BTreeSet;

use mallee_aws::id::{
    AddressAssociationId, AllocationId, DhcpOptionsId, EgressOnlyInternetGatewayId, InstanceId, InternetGatewayId,
    NatGatewayId, NetworkAclAssociationId, NetworkAclId, NetworkInterfaceId, RouteTableAssociationId, RouteTableId,
    SecurityGroupRuleId, SubnetCidrAssociationId, VpcCidrAssociationId, VpcEndpointId, VpcPeeringConnectionId,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ec2::{
    address::Elastic,
    interface::GroupIdentifier,
    nat_gateway::{self, NatGatewayRow},
    network_acl::{EntryRow, NetworkAclRow},
    peering::{End, PeeringRow, State as PeeringState},
    prefix_list::{Entry, PrefixListRow},
    route_table::{AssociationRow, Destination, RouteRow, Target},
    security_group::{GroupRow, Traffic},
    subnet::Kind as SubnetKind,
};

pub(in crate::network) fn outside() -> Outside {
    Outside {
        network: "172.29.0.0/24".parse().unwrap(),
        elastic: "10.9.0.0/16".parse().unwrap(),
        gateway: [172, 29, 0, 1].into(),
        physical: "public".into(),
        chassis: vec!["node1".into(), "node2".into()],
        dns: None,
        ipv6: "fd00:e::/64".parse().unwrap(),
    }
}

fn vpc_row(n: u8) -> VpcRow {
    VpcRow {
        id: VpcId::from_random([n; 9]),
        account: "123456789012".into(),
        cidr: "172.31.0.0/16".parse().unwrap(),
        cidr_association: String::new(),
        more: Vec::new(),
        ipv6: None,
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
            kind: SubnetKind::Routed,
            is_default: true,
            public_on_launch: true,
            ipv6: None,
            ipv6_on_creation: false,
            router_mac: format!("06:00:00:00:{n:02x}:04"),
            created: 0,
        });
        all.route_tables.push(RouteTableRow {
            id: RouteTableId::from_random([n; 9]),
            account: vpc.account.clone(),
            vpc: vpc.id.clone(),
            routes: vec![RouteRow {
                destination: Cidr::ANYWHERE.into(),
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
        ipv6: Vec::new(),
        elastic: public.then(|| Elastic {
            public_ip: Ipv4Addr::new(10, 9, high, low),
            private_ip: subnet.cidr.nth(4 + u32::from(n)),
            allocation: AllocationId::from_random(random),
            association: AddressAssociationId::from_random(random),
        }),
        link: all.vpcs[vpc].link(),
    });
}

/// The rendering is what its file says. `MALLEE_WRITE_GOLDEN=1` writes the file, whose difference is then to be read.
fn golden(name: &str, all: &Wanted) {
    let content = render(all, &outside());
    assert!(is_closed(&content) && is_held(&content));
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/network/render/golden/{name}.txt"));
    if std::env::var_os("MALLEE_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, content.to_string()).unwrap();
    }
    assert_eq!(content.to_string(), std::fs::read_to_string(&file).unwrap_or_default(), "{}", file.display());
}

/// A VPC with IPv6: one subnet is open, one leads out only, and reaches S3 by an endpoint.
#[test]
fn a_vpc_with_both_families() {
    let mut all = cloud(1);
    let (vpc, group) = (all.vpcs[0].id.clone(), all.groups[0].id.clone());
    let block = |n: u8, text: &str| Some((SubnetCidrAssociationId::from_random([n; 9]), text.parse().unwrap()));
    all.vpcs[0].ipv6 = Some((VpcCidrAssociationId::from_random([1; 9]), "fd00:1:0:100::/56".parse().unwrap()));
    all.subnets[0].ipv6 = block(1, "fd00:1:0:101::/64");
    let own = SubnetRow {
        id: SubnetId::from_random([2; 9]),
        cidr: "172.31.16.0/20".parse().unwrap(),
        router_mac: "06:00:00:00:01:05".into(),
        ipv6: block(2, "fd00:1:0:102::/64"),
        ..all.subnets[0].clone()
    };
    let list = |n: u8, is_ipv6: bool, text: &str| PrefixListRow {
        id: PrefixListId::from_random([n; 9]),
        account: String::new(),
        name: String::new(),
        is_ipv6,
        max_entries: 5,
        version: 1,
        state: String::new(),
        entries: vec![Entry { cidr: text.parse().unwrap(), description: None }],
    };
    all.prefix_lists = vec![list(1, false, "172.29.0.1/32"), list(2, true, "fd00:2::/32")];
    let route = |destination, target| RouteRow { destination, target, active: true, instance: None };
    let anywhere6 = || Destination::Net(Net::V6(Cidr6::ANYWHERE));
    let gateway = all.route_tables[0].routes[0].target.clone();
    all.route_tables[0].routes.push(route(anywhere6(), gateway));
    all.route_tables.push(RouteTableRow {
        id: RouteTableId::from_random([2; 9]),
        account: String::new(),
        vpc: vpc.clone(),
        routes: vec![
            route(anywhere6(), Target::EgressOnly(EgressOnlyInternetGatewayId::from_random([1; 9]))),
            route(
                Destination::PrefixList(all.prefix_lists[0].id.clone()),
                Target::Endpoint(VpcEndpointId::from_random([1; 9])),
            ),
        ],
        associations: vec![AssociationRow {
            id: RouteTableAssociationId::from_random([2; 9]),
            subnet: Some(own.id.clone()),
        }],
    });
    all.subnets.push(own);
    launch(&mut all, 0, 5, false);
    all.interfaces[0].ipv6 = vec!["fd00:1:0:101::5".parse().unwrap()];
    for (n, protocol, peer) in [
        (1, Protocol::All, Peer::Group(group.clone())),
        (2, Protocol::Icmpv6, Peer::anywhere6()),
        (3, Protocol::All, Peer::PrefixList(all.prefix_lists[1].id.clone())),
    ] {
        all.rules.push(rule(&group, n, Direction::Ingress, Traffic { protocol, from: -1, to: -1, peer }));
    }
    let entry = |number, allow, cidr: &str| EntryRow {
        egress: false,
        number,
        protocol: "-1".into(),
        allow,
        cidr: cidr.parse().unwrap(),
        range: None,
    };
    all.acls.push(NetworkAclRow {
        id: NetworkAclId::from_random([1; 9]),
        account: String::new(),
        vpc,
        is_default: true,
        entries: vec![entry(90, false, "fd00:9::/64"), entry(100, true, "0.0.0.0/0"), entry(101, true, "::/0")],
        associations: vec![(NetworkAclAssociationId::from_random([1; 9]), all.subnets[0].id.clone())],
    });
    golden("both_families", &all);
}

#[test]
fn a_vpc_with_one_instance() {
    let mut all = cloud(1);
    launch(&mut all, 0, 5, true);
    let group = all.groups[0].id.clone();
    let ssh = Traffic { protocol: Protocol::Tcp, from: 22, to: 22, peer: Peer::anywhere() };
    all.rules.push(rule(&group, 1, Direction::Ingress, ssh));
    golden("one_instance", &all);
}

/// Beside the instance's own subnet one of pure L2, in which it has a second interface. The subnet is asked for by all that
/// could hang on it: the main table with its NAT gateway, a network ACL, a group.
#[test]
fn a_private_l2_subnet_is_a_switch_that_hangs_on_nothing() {
    let mut all = cloud(1);
    launch(&mut all, 0, 1, false);
    let private = SubnetRow {
        id: SubnetId::from_random([9; 9]),
        kind: SubnetKind::PrivateL2,
        cidr: "172.31.16.0/20".parse().unwrap(),
        router_mac: "06:00:00:00:01:09".into(),
        ..all.subnets[0].clone()
    };
    all.subnets.push(private.clone());
    let mut second = all.interfaces[0].clone();
    second.id = NetworkInterfaceId::from_random([9; 9]);
    second.subnet = private.id.clone();
    second.address = private.cidr.nth(4);
    second.mac = "06:00:00:01:00:09".into();
    second.port = Uuid::from_u128(9);
    second.source_dest_check = false;
    second.groups.clear();
    all.interfaces.push(second);
    golden("private_l2", &all);
    let nat = nat_gateway(&all);
    let target = Target::Nat(nat.id.clone());
    all.route_tables[0].routes.push(RouteRow {
        destination: "8.8.0.0/16".parse::<Cidr>().unwrap().into(),
        target,
        active: true,
        instance: None,
    });
    all.nat_gateways.push(nat);
    let content = render(&all, &outside()).to_string();
    let about: Vec<_> =
        content.lines().filter(|l| l.contains(private.id.as_str()) || l.contains("172.31.16.")).collect();
    assert!(about.iter().all(|line| !line.contains("inner-") && !line.contains("172.31.16.")), "{about:#?}");
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
        (Direction::Egress, Protocol::All, -1, -1, Peer::anywhere6(), Some("ip6")),
        (
            Direction::Egress,
            Protocol::Tcp,
            80,
            80,
            Peer::Ipv6("fd00::/64".parse().unwrap()),
            Some("ip6 && tcp.dst == 80 && ip6.dst == fd00::/64"),
        ),
        (Direction::Ingress, Protocol::Icmpv6, 128, -1, Peer::anywhere6(), Some("ip6 && icmp6 && icmp6.type == 128")),
        (Direction::Ingress, Protocol::Icmp, 8, -1, Peer::anywhere6(), None),
        (
            Direction::Ingress,
            Protocol::Udp,
            53,
            53,
            Peer::PrefixList(PrefixListId::from_random([3; 9])),
            Some("ip4 && udp.dst == 53 && ip4.src == $pl_03030303030303030"),
        ),
        (Direction::Ingress, Protocol::Icmpv6, -1, -1, Peer::anywhere(), None),
    ];
    for (direction, protocol, from, to, peer, expected) in table {
        let rule = rule(&group, 1, direction, Traffic { protocol, from, to, peer });
        assert_eq!(expression(&rule, &Families::new(&Wanted::default())).as_deref(), expected, "{rule:?}");
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
    let route = |to: &str, target, active| RouteRow {
        destination: Destination::Net(to.parse().unwrap()),
        target,
        active,
        instance: None,
    };
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

/// Two VPCs of both families, each of which leads to the other's addresses; and what is left of that without one's IPv6.
#[test]
fn peers_reach_each_other_by_both_families() {
    let mut all = cloud(2);
    for (n, vpc, subnet) in
        [(0, "fd00:1:0:100::/56", "fd00:1:0:101::/64"), (1, "fd00:1:0:200::/56", "fd00:1:0:201::/64")]
    {
        let number = [n as u8 + 1; 9];
        all.vpcs[n].ipv6 = Some((VpcCidrAssociationId::from_random(number), vpc.parse().unwrap()));
        all.subnets[n].ipv6 = Some((SubnetCidrAssociationId::from_random(number), subnet.parse().unwrap()));
    }
    all.vpcs[1].cidr = "10.1.0.0/16".parse().unwrap();
    all.subnets[1].cidr = "10.1.0.0/20".parse().unwrap();
    let peering = peering(&all);
    for (n, other) in [(0, 1), (1, 0)] {
        let nets = [Net::V4(all.vpcs[other].cidr), Net::V6(all.vpcs[other].ipv6.as_ref().unwrap().1)];
        all.route_tables[n].routes.extend(nets.map(|net| RouteRow {
            destination: Destination::Net(net),
            target: Target::Peering(peering.id.clone()),
            active: true,
            instance: None,
        }));
    }
    all.peerings.push(peering);
    golden("peering", &all);
    all.vpcs[1].ipv6 = None;
    all.subnets[1].ipv6 = None;
    let route = "rtb-01010101010101010-fd00:1:0:200::/56";
    assert_eq!(render(&all, &outside()).get(Table::StaticRoute, route).unwrap()["nexthop"], Column::text("discard"));
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
