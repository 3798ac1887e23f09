//! `mallee net show [VPC]`: a tree, JSON, or a graph for Graphviz.

use std::collections::BTreeSet;
use std::fmt::Write;

use mallee_tiers::{NetworkAsked, NetworkThing, NetworkTree};

use crate::error::{Error, Result};
use crate::output::out;
use crate::state::State;
use crate::{admin, needs};

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    Tree,
    Json,
    Dot,
}

pub async fn run(state: &State, vpc: Option<String>, told: As) -> Result<()> {
    needs::root()?;
    let tree = admin::client(state).network(&NetworkAsked { vpc }).await?;
    match told {
        As::Tree => out!("{}", drawn(&tree)),
        As::Dot => out!("{}", dot(&tree)),
        As::Json => {
            let text = serde_json::to_string_pretty(&tree).map_err(|error| Error::refused(error.to_string()))?;
            out!("{text}");
        }
    }
    Ok(())
}

fn drawn(tree: &NetworkTree) -> String {
    let mut text = String::new();
    for vpc in &tree.vpcs {
        line(&mut text, "", "", vpc);
        below(&mut text, "", &vpc.inside);
    }
    text.trim_end().to_owned()
}

fn line(text: &mut String, before: &str, branch: &str, thing: &NetworkThing) {
    let _ = write!(text, "{before}{branch}{}  {}", thing.id, thing.text);
    // A route says where it leads in its words already.
    let leads: Vec<&str> = thing.leads_to.iter().map(String::as_str).filter(|id| !thing.text.contains(id)).collect();
    if !leads.is_empty() {
        let _ = write!(text, " → {}", leads.join(", "));
    }
    text.push('\n');
}

fn below(text: &mut String, before: &str, things: &[NetworkThing]) {
    for (n, thing) in things.iter().enumerate() {
        let (branch, deeper) = if n + 1 == things.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        line(text, before, branch, thing);
        below(text, &format!("{before}{deeper}"), &thing.inside);
    }
}

/// Things that say something of their own are boxes; rules, entries and routes are lines in theirs.
fn dot(tree: &NetworkTree) -> String {
    let mut known = BTreeSet::new();
    tree.vpcs.iter().for_each(|vpc| ids(vpc, &mut known));
    let mut text = "digraph network {\n  rankdir=LR;\n  node [shape=box, fontname=\"monospace\"];\n".to_owned();
    for vpc in &tree.vpcs {
        let _ = writeln!(
            text,
            "  subgraph {} {{\n    label={};",
            quoted(&format!("cluster {}", vpc.id)),
            quoted(&title(vpc))
        );
        vpc.inside.iter().for_each(|thing| boxes(&mut text, thing));
        text.push_str("  }\n");
        vpc.inside.iter().for_each(|thing| arrows(&mut text, thing, &known));
    }
    text.push('}');
    text
}

/// `vpc-…`, not `0.0.0.0/0` or `in 100`.
fn is_box(thing: &NetworkThing) -> bool {
    thing.id.contains('-') && !thing.id.starts_with("sgr-") && !thing.id.contains(['/', ' '])
}

fn ids<'a>(thing: &'a NetworkThing, known: &mut BTreeSet<&'a str>) {
    if is_box(thing) {
        known.insert(&thing.id);
    }
    thing.inside.iter().for_each(|inner| ids(inner, known));
}

fn title(thing: &NetworkThing) -> String {
    let mut lines = vec![thing.id.clone(), thing.text.clone()];
    lines
        .extend(thing.inside.iter().filter(|inner| !is_box(inner)).map(|inner| format!("{} {}", inner.id, inner.text)));
    lines.join("\n")
}

fn boxes(text: &mut String, thing: &NetworkThing) {
    if is_box(thing) {
        let _ = writeln!(text, "    {} [label={}];", quoted(&thing.id), quoted(&title(thing)));
    }
    thing.inside.iter().for_each(|inner| boxes(text, inner));
}

fn arrows(text: &mut String, thing: &NetworkThing, known: &BTreeSet<&str>) {
    for inner in &thing.inside {
        if is_box(inner) {
            let _ = writeln!(text, "  {} -> {} [arrowhead=none];", quoted(&thing.id), quoted(&inner.id));
            arrows(text, inner, known);
        } else {
            leading(text, &thing.id, inner, known);
        }
    }
    leading(text, &thing.id, thing, known);
}

fn leading(text: &mut String, from: &str, thing: &NetworkThing, known: &BTreeSet<&str>) {
    for to in &thing.leads_to {
        // A gateway is no thing of the tree: its name is enough.
        if !known.contains(to.as_str()) {
            let _ = writeln!(text, "  {} [shape=ellipse];", quoted(to));
        }
        let _ = writeln!(text, "  {} -> {} [style=dashed];", quoted(from), quoted(to));
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\l"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(id: &str, text: &str, leads_to: &[&str], inside: Vec<NetworkThing>) -> NetworkThing {
        let leads_to = leads_to.iter().map(|id| (*id).to_owned()).collect();
        NetworkThing { id: id.into(), text: text.into(), leads_to, inside }
    }

    fn network() -> NetworkTree {
        let interface = thing("eni-1", "10.0.0.4 at i-1", &["sg-1"], vec![]);
        let route = thing("0.0.0.0/0", "to igw-1", &["igw-1"], vec![]);
        let inside = vec![
            thing("subnet-1", "10.0.0.0/24 in \"a\"", &["rtb-1"], vec![interface]),
            thing("rtb-1", "the main route table", &[], vec![route]),
            thing("sg-1", "security group default", &[], vec![thing("sgr-1", "in tcp 22 from 0.0.0.0/0", &[], vec![])]),
        ];
        NetworkTree { vpcs: vec![thing("vpc-1", "10.0.0.0/16", &[], inside)] }
    }

    #[test]
    fn a_vpc_is_drawn_as_a_tree() {
        let expected = "\
vpc-1  10.0.0.0/16
├─ subnet-1  10.0.0.0/24 in \"a\" → rtb-1
│  └─ eni-1  10.0.0.4 at i-1 → sg-1
├─ rtb-1  the main route table
│  └─ 0.0.0.0/0  to igw-1
└─ sg-1  security group default
   └─ sgr-1  in tcp 22 from 0.0.0.0/0";
        assert_eq!(drawn(&network()), expected);
    }

    #[test]
    fn a_graph_has_every_thing_once_and_quotes_what_it_says() {
        let graph = dot(&network());
        for line in [
            "    \"subnet-1\" [label=\"subnet-1\\l10.0.0.0/24 in \\\"a\\\"\"];",
            "    \"rtb-1\" [label=\"rtb-1\\lthe main route table\\l0.0.0.0/0 to igw-1\"];",
            "  \"subnet-1\" -> \"rtb-1\" [style=dashed];",
            "  \"rtb-1\" -> \"igw-1\" [style=dashed];",
            "  \"igw-1\" [shape=ellipse];",
            "  \"subnet-1\" -> \"eni-1\" [arrowhead=none];",
        ] {
            assert_eq!(graph.matches(line).count(), 1, "{line} in\n{graph}");
        }
    }
}
