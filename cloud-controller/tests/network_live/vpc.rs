//! Packets in VPCs as users make them: network ACLs, NAT gateways, peering, secondary addresses. Needs root.

use std::net::Ipv4Addr;

use mallee_aws::id::{InstanceId, NetworkAclId, SubnetId, VpcId};
use mallee_cloud_controller::{
    Refusal,
    ec2::{
        address, interface,
        interface::{InterfaceRow, Kind, Secondary},
        internet_gateway, nat_gateway,
        network_acl::{self, EntryRow},
        peering, route_table,
        route_table::{Destination, Target},
        security_group::{self, Direction, Peer, Protocol, Traffic},
        subnet, vpc,
    },
};
use mallee_store::params;

use super::{
    ACCOUNTS, Cloud,
    packets::{Machine, must, run},
};

type Account = &'static str;

impl Cloud {
    /// A VPC whose default group lets in its own members, as AWS makes it.
    pub async fn closed_vpc(&self, account: Account, cidr: &'static str) -> VpcId {
        self.write(move |tx, config| Ok(vpc::change::make(tx, config, account, cidr.parse().unwrap(), 1)?.id)).await
    }

    /// A VPC whose default group lets everything in.
    async fn vpc(&self, account: Account, cidr: &'static str) -> VpcId {
        let id = self.closed_vpc(account, cidr).await;
        self.write(move |tx, _| {
            let group = security_group::for_launch(tx, account, &id, &[], &[])?;
            let group = security_group::get(tx, account, &group[0])?;
            let all = Traffic { protocol: Protocol::All, from: -1, to: -1, peer: Peer::anywhere() };
            security_group::insert_rule(tx, &group, Direction::Ingress, &all, None)?;
            Ok(id.clone())
        })
        .await
    }

    pub async fn subnet(&self, account: Account, vpc: &VpcId, cidr: &'static str) -> SubnetId {
        let vpc = vpc.clone();
        self.write(move |tx, _| {
            let new = subnet::New {
                vpc: vpc.clone(),
                zone: "mallee-1a".into(),
                cidr: cidr.parse().unwrap(),
                is_default: false,
                kind: subnet::Kind::Routed,
                public_on_launch: false,
                now: 1,
            };
            let subnet = subnet::insert(tx, account, new)?;
            let acl = network_acl::default_of(tx, &vpc)?;
            network_acl::associate(tx, &acl, &subnet.id)?;
            Ok(subnet.id)
        })
        .await
    }

    pub async fn route(&self, account: Account, vpc: &VpcId, own: Option<&SubnetId>, to: &'static str, target: Target) {
        let (vpc, own) = (vpc.clone(), own.cloned());
        self.write(move |tx, _| {
            let tables = route_table::all(tx, Some(account))?;
            let found = tables.iter().find(|t| t.vpc == vpc && t.associations.iter().any(|a| a.subnet == own));
            let id = match found {
                Some(table) => table.id.clone(),
                None => {
                    let id = route_table::change::insert(tx, account, &vpc, 1)?;
                    let table = route_table::get(tx, account, &id)?;
                    route_table::change::put(tx, &table, own.as_ref())?;
                    id
                }
            };
            Ok(route_table::insert_route(tx, &id, &Destination::Net(to.parse().unwrap()), &target)?)
        })
        .await;
    }

    pub async fn interface(&self, account: Account, subnet: &SubnetId, at: Ipv4Addr) -> InterfaceRow {
        let subnet = subnet.clone();
        self.write(move |tx, config| {
            let subnet = subnet::get(tx, account, &subnet)?;
            let groups = security_group::for_launch(tx, account, &subnet.vpc, &[], &[])?;
            let new = interface::New {
                account,
                subnet: &subnet,
                attached: Some((&InstanceId::from_random(rand::random()), 0)),
                address: Some(at),
                secondary: Secondary::none(),
                ipv6: Default::default(),
                groups: &groups,
                description: "",
                delete_on_termination: true,
                source_dest_check: true,
                public: None,
                kind: Kind::Interface,
                now: 1,
            };
            interface::create(tx, &config.network, new)
        })
        .await
    }

    /// An elastic IP at an address of an interface.
    async fn elastic(&self, account: Account, row: &InterfaceRow, private: Ipv4Addr) -> Ipv4Addr {
        let id = row.id.clone();
        self.write(move |tx, config| {
            let address = address::associate::take(tx, config, account, 1)?;
            let row = interface::get(tx, account, &id)?;
            address::associate::point(tx, &address, &row, private, false)?;
            Ok(address.public_ip)
        })
        .await
    }

    /// These are all the entries of an ACL.
    async fn entries(&self, acl: &NetworkAclId, entries: Vec<EntryRow>) {
        let acl = acl.clone();
        self.write(move |tx, _| {
            tx.execute("DELETE FROM network_acl_entry WHERE network_acl = ?1", params![acl.as_str()])?;
            let row = network_acl::get(tx, ACCOUNTS[0], &acl)?;
            entries.iter().try_for_each(|entry| network_acl::entry::put(tx, &row, entry))
        })
        .await;
        self.passes_cleanly().await;
    }
}

fn entry(egress: bool, number: i64, allow: bool, cidr: &str, ports: Option<(i64, i64)>) -> EntryRow {
    let protocol = if ports.is_some() { "6" } else { "-1" };
    EntryRow { egress, number, protocol: protocol.into(), allow, cidr: cidr.parse().unwrap(), range: ports }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vpcs_of_users_filter_translate_and_peer() {
    let mut machine = Machine::start().await;
    let cloud = Cloud::start(&machine.central.path("nb.sock")).await;
    let (one, two) = (ACCOUNTS[0], ACCOUNTS[1]);
    let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();

    // A VPC with a public subnet and a private one that goes out by a NAT gateway; one of the same addresses; a peer.
    let vpc = cloud.vpc(one, "10.0.0.0/16").await;
    let (public, private) =
        (cloud.subnet(one, &vpc, "10.0.0.0/24").await, cloud.subnet(one, &vpc, "10.0.1.0/24").await);
    let at = vpc.clone();
    let gateway = cloud.write(move |tx, _| internet_gateway::insert(tx, one, &at, 1)).await;
    cloud.route(one, &vpc, None, "0.0.0.0/0", Target::Gateway(gateway.clone())).await;
    let nat_in = public.clone();
    let (nat, nat_ip) = cloud
        .write(move |tx, config| {
            let address = address::associate::take(tx, config, one, 1)?;
            let id = nat_gateway::make(tx, config, one, &nat_in, &address.id, None, 1)?;
            Ok((id, address.public_ip))
        })
        .await;
    cloud.route(one, &vpc, Some(&private), "0.0.0.0/0", Target::Nat(nat)).await;
    let twin = cloud.vpc(two, "10.0.0.0/16").await;
    let twin_subnet = cloud.subnet(two, &twin, "10.0.0.0/24").await;
    let peer = cloud.vpc(two, "10.1.0.0/16").await;
    let peer_subnet = cloud.subnet(two, &peer, "10.1.0.0/24").await;

    let p = cloud.interface(one, &public, ip("10.0.0.10")).await;
    let p2 = cloud.interface(one, &public, ip("10.0.0.11")).await;
    let q = cloud.interface(one, &private, ip("10.0.1.10")).await;
    let q2 = cloud.interface(one, &private, ip("10.0.1.11")).await;
    let t = cloud.interface(two, &twin_subnet, ip("10.0.0.10")).await;
    let w = cloud.interface(two, &peer_subnet, ip("10.1.0.10")).await;
    let elastic = cloud.elastic(one, &p, p.address).await;
    cloud.passes_cleanly().await;
    for (short, row, router) in [
        ("p", &p, "10.0.0.1"),
        ("p2", &p2, "10.0.0.1"),
        ("q", &q, "10.0.1.1"),
        ("q2", &q2, "10.0.1.1"),
        ("t", &t, "10.0.0.1"),
        ("w", &w, "10.1.0.1"),
    ] {
        machine.wear(short, row, 24, ip(router));
    }
    machine.serve("outside", 8000);
    // The outside would answer to private addresses as well: nothing but the cloud keeps them in.
    for (of, net) in [(&vpc, "10.0.0.0/16"), (&peer, "10.1.0.0/16")] {
        let (account, id) = (if *of == vpc { one } else { two }, of.clone());
        let router = cloud.write(move |tx, _| Ok(vpc::get(tx, account, &id)?.outer_address)).await;
        must(&format!("ip -n {} route add {net} via {router}", machine.name("outside")));
    }
    let out = "172.29.0.1:8000";

    // Ways out: by an elastic IP, by the NAT gateway, or not at all.
    machine.opens("p", out).await;
    machine.opens("q", out).await;
    machine.opens("outside", &format!("{elastic}:8080")).await;
    assert!(!machine.answers("p2", out), "no public address and no NAT gateway: no way out");
    assert!(!machine.answers("outside", &format!("{nat_ip}:8080")), "a NAT gateway lets nobody in");
    let seen = cloud.write(|tx, _| Ok(nat_gateway::alive(tx)?.remove(0).state)).await;
    assert_eq!(seen, nat_gateway::State::Available, "a pass that wrote it says so");

    // The twin has its own addresses.
    assert!(!machine.answers("t", "10.0.0.11:8080") && !machine.answers("t", out));
    machine.opens("p", "10.0.0.11:8080").await;
    machine.opens("p", "10.0.1.10:8080").await;

    // Network ACLs: at the subnet's edge, by number, without memory.
    let of = private.clone();
    let acl = cloud
        .write(move |tx, _| {
            let acls = network_acl::all(tx, Some(one))?;
            let vpc = subnet::get(tx, one, &of)?.vpc;
            let default = acls.iter().find(|a| a.vpc == vpc).unwrap();
            let id = NetworkAclId::from_random(rand::random());
            tx.execute(
                "INSERT INTO network_acl (id, account, vpc, created) VALUES (?1, ?2, ?3, 1)",
                params![id.as_str(), one, default.vpc.as_str()],
            )?;
            network_acl::associate(tx, &id, &of)?;
            Ok::<_, Refusal>(id)
        })
        .await;
    cloud.passes_cleanly().await;
    machine.closes("p", "10.0.1.10:8080").await;
    machine.closes("q", out).await;
    assert!(machine.answers("q2", "10.0.1.10:8080"), "inside the subnet nothing is asked");
    let all = || vec![entry(false, 100, true, "0.0.0.0/0", None), entry(true, 100, true, "0.0.0.0/0", None)];
    cloud.entries(&acl, all()).await;
    machine.opens("p", "10.0.1.10:8080").await;
    machine.opens("q", out).await;
    let deny = |number| entry(false, number, false, "10.0.0.0/24", Some((8080, 8080)));
    cloud.entries(&acl, [all(), vec![deny(90)]].concat()).await;
    machine.closes("p", "10.0.1.10:8080").await;
    machine.opens("q", "10.0.0.10:8080").await;
    cloud
        .entries(&acl, [all(), vec![deny(90), entry(false, 80, true, "10.0.0.11/32", Some((8080, 8080)))]].concat())
        .await;
    machine.opens("p2", "10.0.1.10:8080").await;
    assert!(!machine.answers("p", "10.0.1.10:8080"), "the lower number decides");
    cloud.entries(&acl, [all(), vec![deny(110)]].concat()).await;
    machine.opens("p", "10.0.1.10:8080").await;
    // Answers are packets like others: without a way for them a connection does not come about.
    cloud.entries(&acl, [all(), vec![entry(true, 90, false, "10.0.0.0/24", Some((1024, 65535)))]].concat()).await;
    machine.closes("p", "10.0.1.10:8080").await;
    machine.opens("q", out).await;
    cloud.entries(&acl, [all(), vec![entry(false, 90, false, "172.29.0.0/24", Some((1024, 65535)))]].concat()).await;
    machine.closes("q", out).await;
    cloud.entries(&acl, all()).await;
    machine.opens("q", out).await;

    // Peering: both ways, and only where tables say so.
    let (mine, other) = (vpc.clone(), peer.clone());
    let connection = cloud
        .write(move |tx, _| {
            let (a, b) = (vpc::get(tx, one, &mine)?, vpc::get(tx, two, &other)?);
            let row = peering::insert(tx, &a, &b, 1)?;
            tx.execute("UPDATE vpc_peering SET state = 'active' WHERE id = ?1", params![row.id.as_str()])?;
            Ok(row.id)
        })
        .await;
    cloud.passes_cleanly().await;
    assert!(!machine.answers("p", "10.1.0.10:8080"), "no table leads there");
    cloud.route(one, &vpc, None, "10.1.0.0/16", Target::Peering(connection.clone())).await;
    cloud.route(two, &peer, None, "10.0.0.0/16", Target::Peering(connection.clone())).await;
    cloud.route(two, &peer, None, "172.29.0.0/24", Target::Peering(connection)).await;
    cloud.passes_cleanly().await;
    machine.opens("p", "10.1.0.10:8080").await;
    machine.opens("w", "10.0.0.11:8080").await;
    assert!(!machine.answers("w", "10.0.1.10:8080"), "the private subnet's table does not lead back");
    assert!(!machine.answers("w", out), "a peer's way out is its own");

    // A secondary address, with an elastic IP of its own.
    let (id, in_subnet) = (p2.id.clone(), public.clone());
    cloud
        .write(move |tx, _| {
            let subnet = subnet::get(tx, one, &in_subnet)?;
            let asked = Secondary { named: vec!["10.0.0.50".parse().unwrap()], count: 0 };
            interface::address::take(tx, &subnet, &asked, &id)
        })
        .await;
    let second = cloud.elastic(one, &p2, ip("10.0.0.50")).await;
    cloud.passes_cleanly().await;
    let p2_name = machine.name("p2");
    must(&format!("ip -n {p2_name} addr add 10.0.0.50/24 dev eth0"));
    machine.opens("q", "10.0.0.50:8080").await;
    machine.opens("outside", &format!("{second}:8080")).await;

    // An address that is nobody's does not get out of the port.
    must(&format!(
        "ip -n {p2_name} addr add 10.0.0.77/24 dev eth0 && ip -n {p2_name} route replace 10.0.1.0/24 via 10.0.0.1 src 10.0.0.77"
    ));
    assert!(!machine.answers("p2", "10.0.1.10:8080"), "a spoofed source is dropped");
    must(&format!("ip -n {p2_name} route replace 10.0.1.0/24 via 10.0.0.1 src 10.0.0.50"));
    machine.opens("p2", "10.0.1.10:8080").await;

    // Without its gateway the VPC has no way out, and what its table says is a black hole.
    cloud
        .write(move |tx, _| {
            tx.execute("UPDATE internet_gateway SET vpc = NULL WHERE id = ?1", params![gateway.as_str()])?;
            Ok(())
        })
        .await;
    cloud.passes_cleanly().await;
    machine.closes("p", out).await;
    machine.closes("q", out).await;
    assert!(machine.answers("p", "10.0.1.10:8080"));
    assert_eq!(cloud.passes_cleanly().await, 0, "a second pass finds nothing to do");

    let lease = run(&format!("ip netns exec {} busybox udhcpc -i eth0 -n -q -f -s /bin/true 2>&1", machine.name("q")));
    let lease = String::from_utf8_lossy(&lease.stdout).into_owned();
    assert!(lease.contains("lease of 10.0.1.10 obtained"), "{lease}");
    for (name, words) in [("ovn-controller.log", ["error parsing", "|ERR|"]), ("northd.log", ["|ERR|", "|WARN|"])] {
        let log = std::fs::read_to_string(machine.central.path(name)).unwrap();
        let bad: Vec<&str> = log.lines().filter(|l| words.iter().any(|w| l.contains(w))).collect();
        assert_eq!(bad, Vec::<&str>::new(), "{name}");
    }
}
