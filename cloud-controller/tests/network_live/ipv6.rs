//! IPv6 as packets: subnets that are open, that lead out only, and that are closed; groups, network ACLs, router
//! advertisements, DHCPv6. Also a gateway endpoint, which is a way out for one destination. Needs root.

use std::net::{Ipv4Addr, Ipv6Addr};

use mallee_aws::id::{EgressOnlyInternetGatewayId, SubnetId};
use mallee_cloud_controller::{
    ec2::{
        egress_only_gateway, endpoint,
        interface::InterfaceRow,
        internet_gateway, network_acl,
        network_acl::EntryRow,
        prefix_list, route_table,
        route_table::Target,
        security_group::{self, Direction, Peer, Protocol, Traffic},
        subnet, vpc,
    },
    network::Cidr6,
};
use mallee_store::params;

use super::{
    ACCOUNTS, Cloud,
    packets::{Machine, must, run},
};

const ONE: &str = ACCOUNTS[0];
const GATEWAY: &str = "fd6d:616c:6e65:74::1";

impl Cloud {
    /// Part `n` of the VPC's block; new interfaces get an address of it.
    async fn with_ipv6(&self, subnet: &SubnetId, n: u128) {
        let id = subnet.clone();
        self.write(move |tx, _| {
            let row = subnet::get(tx, ONE, &id)?;
            let vpc = vpc::get(tx, ONE, &row.vpc)?;
            let cidr = vpc.ipv6.as_ref().unwrap().1.part(64, n);
            subnet::ipv6::give(tx, &vpc, &row, cidr)?;
            tx.execute("UPDATE subnet SET ipv6_on_creation = 1 WHERE id = ?1", params![id.as_str()])?;
            Ok(())
        })
        .await;
    }

    async fn rule(&self, of: &InterfaceRow, traffic: Traffic) {
        let (account, id) = (of.account.clone(), of.groups[0].group_id.clone());
        self.write(move |tx, _| {
            let group = security_group::get(tx, &account, &id)?;
            security_group::insert_rule(tx, &group, Direction::Ingress, &traffic, None)
        })
        .await;
        self.passes_cleanly().await;
    }
}

impl Machine {
    /// Its IPv6 address, and the way its router advertises.
    fn wear_ipv6(&self, short: &str, row: &InterfaceRow) {
        let name = self.name(short);
        must(&format!("ip -n {name} addr add {}/64 dev eth0 nodad", row.ipv6[0]));
        must(&format!("ip netns exec {name} sysctl -qw net.ipv6.conf.eth0.accept_ra=2"));
        must(&format!("ip -n {name} link set eth0 down && ip -n {name} link set eth0 up"));
        must(&format!("ip -n {name} addr replace {}/64 dev eth0 nodad", row.ipv6[0]));
        must(&format!(
            "ip -n {name} route replace default via {} dev eth0",
            Ipv4Addr::from(u32::from(row.address) & !0xff | 1)
        ));
    }
}

fn at(address: Ipv6Addr, port: u16) -> String {
    format!("[{address}]:{port}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_goes_where_rules_and_routes_let_it() {
    let mut machine = Machine::start().await;
    let cloud = Cloud::start_with(&machine.central.path("nb.sock"), "s3_url = \"http://172.29.0.1:8000\"\n").await;
    let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let vpc = cloud.closed_vpc(ONE, "10.0.0.0/16").await;
    let of = vpc.clone();
    let pool: Cidr6 = cloud
        .write(move |tx, config| {
            let row = vpc::get(tx, ONE, &of)?;
            vpc::ipv6::give(tx, &config.network, &row)?;
            Ok(config.network.ipv6_pool()?.unwrap())
        })
        .await;
    let (open, out_only, closed) = (
        cloud.subnet(ONE, &vpc, "10.0.0.0/24").await,
        cloud.subnet(ONE, &vpc, "10.0.1.0/24").await,
        cloud.subnet(ONE, &vpc, "10.0.2.0/24").await,
    );
    for (subnet, n) in [(&open, 0), (&out_only, 1), (&closed, 2)] {
        cloud.with_ipv6(subnet, n).await;
    }
    let of = vpc.clone();
    let gateway = cloud.write(move |tx, _| internet_gateway::insert(tx, ONE, &of, 1)).await;
    cloud.route(ONE, &vpc, Some(&open), "::/0", Target::Gateway(gateway.clone())).await;
    let of = vpc.clone();
    let egress_only = EgressOnlyInternetGatewayId::from_random(rand::random());
    let id = egress_only.clone();
    cloud
        .write(move |tx, _| {
            tx.execute(
                "INSERT INTO egress_only_gateway (id, account, vpc, created) VALUES (?1, ?2, ?3, 1)",
                params![id.as_str(), ONE, of.as_str()],
            )?;
            egress_only_gateway::get(tx, ONE, &id).map(drop)
        })
        .await;
    cloud.route(ONE, &vpc, Some(&out_only), "::/0", Target::EgressOnly(egress_only)).await;

    let p = cloud.interface(ONE, &open, ip("10.0.0.10")).await;
    let q = cloud.interface(ONE, &out_only, ip("10.0.1.10")).await;
    let c = cloud.interface(ONE, &closed, ip("10.0.2.10")).await;
    cloud.passes_cleanly().await;
    for (short, row, router) in [("p", &p, "10.0.0.1"), ("q", &q, "10.0.1.1"), ("c", &c, "10.0.2.1")] {
        machine.wear(short, row, 24, ip(router));
        machine.wear_ipv6(short, row);
    }
    let outside = machine.name("outside");
    must(&format!("ip -n {outside} addr add {GATEWAY}/64 dev link0 nodad"));
    must(&format!("ip -n {outside} route add {pool} via fd6d:616c:6e65:74::2"));
    machine.serve("outside", 8000);
    let (to_p, to_q, to_c) = (at(p.ipv6[0], 8080), at(q.ipv6[0], 8080), at(c.ipv6[0], 8080));
    let out = at(GATEWAY.parse().unwrap(), 8000);

    // The way out is the router that advertises itself, with the flag that says that addresses come by DHCPv6.
    machine.opens("p", &out).await;
    machine.opens("q", &out).await;
    let route = String::from_utf8(run(&format!("ip -6 -n {} route show default", machine.name("p"))).stdout).unwrap();
    assert!(route.contains("via fe80::") && route.contains("proto ra"), "{route}");
    assert!(!machine.answers("c", &out), "no route, no way");

    // Groups: members reach each other by either family; IPv4's rules say nothing about IPv6.
    let traffic = |peer| Traffic { protocol: Protocol::Tcp, from: 8080, to: 8080, peer };
    cloud.rule(&p, traffic(Peer::anywhere())).await;
    machine.opens("q", &to_p).await;
    machine.opens("p", &to_q).await;
    machine.opens("c", &to_p).await;
    assert!(!machine.answers("outside", &to_p), "it is in no group");
    cloud.rule(&p, traffic(Peer::anywhere6())).await;
    machine.opens("outside", &to_p).await;
    assert!(!machine.answers("outside", &to_q), "an egress-only gateway lets nobody in");
    assert!(!machine.answers("outside", &to_c), "nobody comes into a subnet that leads nowhere");

    // Network ACLs have entries of their own for IPv6.
    let entry = |number, allow, cidr: &str| EntryRow {
        egress: false,
        number,
        protocol: "-1".into(),
        allow,
        cidr: cidr.parse().unwrap(),
        range: None,
    };
    let all = [entry(100, true, "0.0.0.0/0"), entry(101, true, "::/0")];
    let acl = cloud
        .write(move |tx, _| Ok(network_acl::all(tx, Some(ONE))?.into_iter().find(|a| a.vpc == vpc).unwrap()))
        .await;
    assert!(acl.entries.iter().any(|e| e.cidr.v6().is_some()), "the default ACL lets IPv6 through as well");
    let of_q = format!("{}/128", q.ipv6[0]);
    let deny = |acl: &network_acl::NetworkAclRow, entries: Vec<EntryRow>| {
        let acl = acl.clone();
        cloud.write(move |tx, _| {
            tx.execute(
                "DELETE FROM network_acl_entry WHERE network_acl = ?1 AND egress = 0",
                params![acl.id.as_str()],
            )?;
            entries.iter().try_for_each(|entry| network_acl::entry::put(tx, &acl, entry))
        })
    };
    deny(&acl, [all.to_vec(), vec![entry(90, false, &of_q)]].concat()).await;
    cloud.passes_cleanly().await;
    machine.closes("q", &to_p).await;
    assert!(machine.answers("c", &to_p) && machine.answers("q", "10.0.0.10:8080"));
    deny(&acl, all.to_vec()).await;
    cloud.passes_cleanly().await;
    machine.opens("q", &to_p).await;

    // An address that is nobody's does not get out of the port.
    let name = machine.name("q");
    let nobody = Ipv6Addr::from(u128::from(q.ipv6[0]) ^ 0xff);
    must(&format!(
        "ip -n {name} addr add {nobody}/64 dev eth0 nodad && ip -n {name} addr del {}/64 dev eth0",
        q.ipv6[0]
    ));
    assert!(!machine.answers("q", &to_p), "a spoofed source is dropped");
    must(&format!(
        "ip -n {name} addr add {}/64 dev eth0 nodad && ip -n {name} addr del {nobody}/64 dev eth0",
        q.ipv6[0]
    ));
    machine.opens("q", &to_p).await;

    // S3 by a gateway endpoint, and nothing else of the outside.
    machine.serve("outside", 8001);
    must(&format!("ip -n {outside} addr add 172.29.0.9/24 dev link0"));
    assert!(!machine.answers("c", "172.29.0.1:8000"), "a closed subnet");
    let subnet = closed.clone();
    cloud
        .write(move |tx, config| {
            let row = subnet::get(tx, ONE, &subnet)?;
            let table = route_table::change::insert(tx, ONE, &row.vpc, 1)?;
            let row_of_table = route_table::get(tx, ONE, &table)?;
            route_table::change::put(tx, &row_of_table, Some(&subnet))?;
            let service = prefix_list::s3_service(config);
            let id = endpoint::change::make(tx, config, ONE, &row.vpc, &service, 1)?;
            let endpoint = endpoint::get(tx, ONE, &id)?;
            endpoint::change::join(tx, config, &endpoint, &[table])
        })
        .await;
    cloud.passes_cleanly().await;
    machine.opens("c", "172.29.0.1:8000").await;
    assert!(!machine.answers("c", "172.29.0.9:8000"), "the endpoint leads to S3 only");
    assert_eq!(cloud.passes_cleanly().await, 0, "a second pass finds nothing to do");

    for (name, words) in [("ovn-controller.log", ["error parsing", "|ERR|"]), ("northd.log", ["|ERR|", "|WARN|"])] {
        let log = std::fs::read_to_string(machine.central.path(name)).unwrap();
        let bad: Vec<&str> = log.lines().filter(|l| words.iter().any(|w| l.contains(w))).collect();
        assert_eq!(bad, Vec::<&str>::new(), "{name}");
    }
}
