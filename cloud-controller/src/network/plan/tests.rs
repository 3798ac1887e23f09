//! What a change costs in the transaction, beside few neighbours and beside many; and that what is known makes no difference
//! to it.

use std::sync::Arc;

use mallee_aws::id::{SecurityGroupId, SecurityGroupRuleId};
use mallee_ovsdb::{Change, RowUpdate, Schema};
use proptest::prelude::*;

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

/// One thing that happens to a cloud of two VPCs.
fn happens(all: &mut Wanted, what: u8, which: u16) {
    let vpc = usize::from(which % 2);
    let group = all.groups[vpc].id.clone();
    let at = |len: usize| usize::from(which) % len.max(1);
    let i = at(all.interfaces.len());
    let is_free = all.interfaces.iter().all(|i| i.port != Uuid::from_u128(which.into()));
    match (what, all.interfaces.get_mut(i)) {
        (0, Some(_)) => {
            all.interfaces.swap_remove(i);
        }
        (1, Some(row)) => row.groups.clear(),
        (2, Some(row)) => row.source_dest_check = !row.source_dest_check,
        (3, Some(row)) => row.released = !row.released,
        (4, Some(row)) => row.elastic = None,
        (5, _) => {
            let traffic =
                Traffic { protocol: Protocol::Udp, from: 1, to: which.into(), peer: Peer::Group(group.clone()) };
            let id = SecurityGroupRuleId::from_random([which.to_be_bytes()[1]; 9]);
            all.rules.retain(|r| r.id != id);
            all.rules.push(RuleRow { id, ..rule(&group, 0, Direction::Egress, traffic) });
        }
        (6, _) => {
            all.rules.pop();
        }
        (7, _) => all.route_tables[vpc].routes.iter_mut().for_each(|route| route.active = !route.active),
        (8, _) => {
            // A VPC and all that is in it come and go.
            let id = all.vpcs[vpc].id.clone();
            let there = all.subnets.iter().any(|s| s.vpc == id);
            all.interfaces.retain(|i| i.vpc != id);
            all.subnets.retain(|s| s.vpc != id);
            if !there {
                all.subnets.extend(cloud(2).subnets.into_iter().filter(|s| s.vpc == id));
                all.subnets.sort_by(|a, b| a.vpc.as_str().cmp(b.vpc.as_str()));
            }
        }
        _ if all.subnets.len() == 2 && is_free => launch(all, vpc, which, what.is_multiple_of(2)),
        _ => {}
    }
}

/// In an order of their own: what goes is told by keys in one, by ids in the other.
fn told(plan: &Plan) -> (Vec<String>, [usize; 3]) {
    let mut ops: Vec<String> = plan.ops.iter().map(|op| format!("{op:?}")).collect();
    ops.sort();
    (ops, [plan.inserted, plan.updated, plan.deleted])
}

fn touched(now: &Content, before: &Content) -> BTreeSet<(Table, Uuid)> {
    now.differences(before).into_iter().map(|(table, key, _)| (table, id_of(table, key))).collect()
}

proptest! {
    // A case is a whole history, rendered at each step.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn what_is_known_makes_the_same_plan_as_looking_at_everything(
        steps in proptest::collection::vec((0u8..14, 0u16..60), 1..24)
    ) {
        let mut all = cloud(2);
        let mut content = Arc::new(render(&all, &outside()));
        let mut replica = database(&content);
        let mut known = Known::new(content.clone(), &replica).unwrap();
        let mut rows = BTreeSet::new();
        for (what, which) in steps {
            happens(&mut all, what, which);
            let next = Arc::new(render(&all, &outside()));
            let (after, short) = known.plan(&next, &replica, &rows).unwrap();
            prop_assert_eq!(told(&short), told(&plan(&next, &replica)));
            known = after;
            rows = touched(&next, &content);
            replica = database(&next);
            content = next;
        }
    }
}

#[test]
fn what_is_known_does_not_pass_over_what_somebody_else_did() {
    let content = Arc::new(render(&crowd(3), &outside()));
    let stranger = Uuid::from_u128(1);
    let mut mended = 0;
    for (table, key, columns) in content.differences(&Content::default()) {
        let columns = columns.unwrap();
        let id = id_of(table, key);
        let tagged = |pairs: &[(&'static str, &'static str)]| Row::new().with(TAGS, value::map(pairs.iter().copied()));
        let nothing_in = columns
            .keys()
            .fold(Row::new(), |row, name| if *name == TAGS { row } else { row.with(name, value::set([""; 0])) });
        let by_hand = [
            (id, Change::Delete),
            (id, Change::Modify(tagged(&[]))),
            (id, Change::Modify(tagged(&[(TAG, "other")]))),
            (id, Change::Modify(nothing_in)),
            (stranger, Change::Insert(tagged(&[(TAG, "other")]))),
            (stranger, Change::Insert(row(columns, &|_, _| None))),
        ];
        for (id, change) in by_hand {
            let mut replica = database(&content);
            let known = Known::new(content.clone(), &replica).unwrap();
            replica.apply([RowUpdate { table: table.name().to_owned(), id, change: change.clone() }]);
            let short = known.plan(&content, &replica, &BTreeSet::from([(table, id)]));
            let whole = plan(&content, &replica);
            assert!(whole.is_empty() || short.is_none(), "{table:?} {key}: {change:?}");
            mended += usize::from(!whole.is_empty());
        }
    }
    assert!(mended > content.len() * 3);
}

#[test]
fn a_name_that_somebody_else_has_is_not_given_to_a_second_row() {
    let (before, mut all) = (crowd(3), crowd(3));
    launch(&mut all, 0, 4000, true);
    let (before, after) = (Arc::new(render(&before, &outside())), Arc::new(render(&all, &outside())));
    let mut replica = database(&before);
    let port = after.differences(&before).into_iter().find(|(table, _, _)| *table == Table::SwitchPort).unwrap().1;
    let row = Row::new().with("name", port);
    replica.apply([RowUpdate {
        table: "Logical_Switch_Port".into(),
        id: Uuid::from_u128(1),
        change: Change::Initial(row),
    }]);
    let known = Known::new(before, &replica).unwrap();
    assert!(known.plan(&after, &replica, &BTreeSet::new()).is_none());
}
