//! What a change costs in the transaction, beside few neighbours and beside many.

use mallee_aws::id::{SecurityGroupId, SecurityGroupRuleId};
use mallee_ovsdb::{Change, RowUpdate, Schema};

use super::*;
use crate::{
    ec2::{
        address::Elastic,
        security_group::{Direction, Peer, Protocol, RuleRow, Traffic},
    },
    network::{
        render::{
            render,
            tests::{cloud, launch, outside, rule},
        },
        wanted::Wanted,
    },
};

fn id_of(table: Table, key: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {key}", table.name()).as_bytes())
}

/// A database that holds exactly this.
fn database(content: &Content) -> Replica {
    let refer = |table: Table, key: &str| Some(value::uuid(id_of(table, key)));
    let mut replica = Replica::new(Schema::default());
    for table in Table::ALL {
        replica.apply(content.rows(table).map(|(key, columns)| RowUpdate {
            table: table.name().to_owned(),
            id: id_of(table, key),
            change: Change::Initial(row(columns, &refer)),
        }));
    }
    replica
}

/// A VPC whose instances are in one group that refers to itself, as most are.
fn crowd(instances: u16) -> Wanted {
    let mut all = cloud(1);
    let group = all.groups[0].id.clone();
    all.rules.push(rule(&group, 1, Direction::Ingress, Traffic::everything(Peer::Group(group.clone()))));
    (0..instances).for_each(|n| launch(&mut all, 0, n, n % 2 == 0));
    all
}

fn web(group: &SecurityGroupId) -> RuleRow {
    let traffic = Traffic { protocol: Protocol::Tcp, from: 443, to: 443, peer: Peer::Group(group.clone()) };
    RuleRow { id: SecurityGroupRuleId::from_random([9; 9]), ..rule(group, 9, Direction::Ingress, traffic) }
}

/// Rows touched and bytes sent.
fn cost(before: &Wanted, after: &Wanted) -> (usize, usize) {
    let plan = plan(&render(after, &outside()), &database(&render(before, &outside())));
    assert!(!plan.is_empty());
    (plan.changes(), plan.ops.iter().map(|op| format!("{op:?}").len()).sum())
}

#[test]
fn a_database_that_is_right_is_left_alone() {
    let content = render(&crowd(20), &outside());
    assert!(plan(&content, &database(&content)).is_empty());
}

#[test]
fn what_a_change_costs_does_not_grow_with_the_number_of_other_instances() {
    type Change = fn(&mut Wanted);
    let changes: [(&str, Change); 6] = [
        ("a rule", |all| {
            let group = all.groups[0].id.clone();
            all.rules.push(web(&group));
        }),
        ("a rule less", |all| {
            all.rules.pop();
        }),
        ("a port", |all| launch(all, 0, 4000, true)),
        ("a port less", |all| {
            all.interfaces.pop();
        }),
        ("an address elsewhere", |all| {
            let to = all.interfaces[1].address;
            let elastic = all.interfaces[0].elastic.take().map(|e| Elastic { private_ip: to, ..e });
            all.interfaces[1].elastic = elastic;
        }),
        ("a group left", |all| all.interfaces[0].groups.clear()),
    ];
    for (name, change) in changes {
        let of = |instances| {
            let (before, mut after) = (crowd(instances), crowd(instances));
            change(&mut after);
            cost(&before, &after)
        };
        let (few, many) = (of(4), of(1000));
        assert_eq!(few, many, "{name}");
        assert!(many.0 <= 8 && many.1 < 4000, "{name}: {many:?}");
    }
}
