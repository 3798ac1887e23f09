//! `mallee net trace A B tcp 443`: `ovn-trace` over the compiled network, told in EC2's words.
//!
//! What `ovn-trace` follows is what every chassis has, so this says what would really become of the packet; it is the first one
//! of a connection, which the network does not know yet. Answers are let through by the connection they belong to, but network
//! ACLs ask of them as well: trace the other way for those.

use clap::Args;
use mallee_tiers::{TraceAsked, TracePlan};
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::output::out;
use crate::state::State;
use crate::{admin, needs};

#[derive(Args)]
pub struct Choices {
    /// An instance or a network interface
    from: String,
    /// An instance, a network interface or an address
    to: String,
    /// tcp, udp or icmp
    protocol: String,
    /// The port at the receiver; none with icmp
    port: Option<u16>,
    /// By IPv6 also to an instance or interface
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Show what ovn-trace said, too
    #[arg(long)]
    ovn: bool,
}

/// A line of the story.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    at: String,
    told: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Story {
    steps: Vec<Step>,
    /// Where it came out; None: it died.
    arrived: Option<String>,
}

/// True: it arrives.
pub async fn run(state: &State, choices: &Choices) -> Result<bool> {
    needs::root()?;
    let asked = TraceAsked {
        from: choices.from.clone(),
        to: choices.to.clone(),
        protocol: choices.protocol.to_ascii_lowercase(),
        port: choices.port,
        ipv6: choices.ipv6,
    };
    let plan = admin::client(state).trace(&asked).await?;
    let southbound = mallee_engines::Layout::new(state.engines())?.southbound_socket();
    let traced = Command::new("ovn-trace")
        .arg(format!("--db=unix:{}", southbound.display()))
        // A new connection, at every place that tracks them.
        .args(["--ct=new"; 8])
        .args([&plan.switch, &plan.packet])
        .output()
        .await
        .map_err(|error| Error::refused(format!("ovn-trace: {error}")))?;
    let text = String::from_utf8_lossy(&traced.stdout).into_owned();
    if !traced.status.success() {
        let why = String::from_utf8_lossy(&traced.stderr).into_owned();
        return Err(Error::refused(format!("ovn-trace {} {:?}: {}", plan.switch, plan.packet, why.trim())));
    }
    if choices.ovn {
        out!("{}", text.trim_end());
    }
    let story = read(&text, &plan);
    for step in &story.steps {
        out!("{:<24} {}", step.at, step.told);
    }
    match &story.arrived {
        Some(place) => out!("arrives at {place}"),
        None => out!("dies there"),
    }
    Ok(story.arrived.is_some())
}

/// What happened, from `ovn-trace`'s detailed words: headings name datapaths, numbered lines are the flows that matched.
fn read(text: &str, plan: &TracePlan) -> Story {
    let mut story = Story { steps: Vec::new(), arrived: None };
    let (mut at, mut stage) = (String::new(), String::new());
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(datapath) = quoted_after(trimmed, "ingress(dp=") {
            at = datapath;
            story.steps.push(Step { at: at.clone(), told: place(&at) });
        } else if let Some(datapath) = quoted_after(trimmed, "egress(dp=") {
            at = datapath;
        } else if let Some(stage) = without_match(trimmed) {
            story.steps.extend(dropped(stage).map(|told| Step { at: at.clone(), told: told.to_owned() }));
        } else if let Some(flow) = flow(trimmed) {
            stage = flow.0.to_owned();
            if stage.ends_with("_acl") || stage.ends_with("_policy") {
                let rule = plan.rules.iter().find(|rule| flow.1.contains(&rule.expression));
                story.steps.extend(rule.map(|rule| Step { at: at.clone(), told: rule.told.clone() }));
            }
        } else if let Some(port) = quoted_after(trimmed, "/* output to ").filter(|_| !goes_on(trimmed)) {
            story.arrived = Some(told_port(&port, plan));
        } else if trimmed.starts_with("drop;") || trimmed.starts_with("/* drop */") {
            let told = dropped(&stage);
            story.steps.extend(told.map(|told| Step { at: at.clone(), told: told.to_owned() }));
        }
    }
    story.steps.dedup();
    story
}

/// What a datapath is, by the name it was given.
fn place(datapath: &str) -> String {
    let kind = match datapath.split_once('-').map_or(datapath, |(prefix, _)| prefix) {
        "subnet" => "through the subnet",
        "vpc" => "through the VPC's router",
        "pcx" => "over the peering connection",
        "service" => "towards the metadata service",
        "mallee" => "on the outside network",
        _ => "through",
    };
    kind.to_owned()
}

/// `8. ls_in_acl (northd.c:1): MATCH, priority 2002, uuid 1` → stage and match.
fn flow(line: &str) -> Option<(&str, &str)> {
    let (number, rest) = line.split_once(". ")?;
    number.parse::<u8>().ok()?;
    let (stage, rest) = rest.split_once(' ')?;
    let (_, told) = rest.split_once(": ")?;
    Some((stage, told.split(", priority ").next().unwrap_or(told)))
}

/// `11. lr_in_ip_routing: no match (implicit drop)` → stage.
fn without_match(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(". ")?;
    rest.strip_suffix(": no match (implicit drop)")
}

fn quoted_after(line: &str, prefix: &str) -> Option<String> {
    let rest = line.strip_prefix(prefix)?.strip_prefix('"')?;
    rest.split_once('"').map(|(name, _)| name.to_owned())
}

/// Between a switch and a router nothing has arrived yet.
fn goes_on(line: &str) -> bool {
    ["patch", "l3gateway", "chassisredirect"].iter().any(|kind| line.contains(&format!("type \"{kind}\"")))
}

/// Names that are UUIDs are cut by `ovn-trace`.
fn told_port(port: &str, plan: &TracePlan) -> String {
    let found = plan
        .ports
        .iter()
        .find(|(name, _)| *name == port || name.len() == 36 && port.len() >= 6 && name.starts_with(port));
    found.map_or_else(|| port.to_owned(), |(_, told)| told.clone())
}

/// Why a packet dies where no rule of the user's said so.
fn dropped(stage: &str) -> Option<&'static str> {
    match stage {
        s if s.ends_with("_acl") || s.ends_with("_policy") || s.ends_with("_acl_eval") => None,
        s if s.contains("port_sec") => Some("the sender has another address: a spoofed packet is dropped"),
        s if s.contains("ip_routing") => Some("no route leads there, or it is a black hole"),
        s if s.contains("arp_re") || s.contains("l2_lkup") => Some("nobody there has that address"),
        s if s.contains("ip_input") => Some("the router does not take it"),
        _ => Some("dropped"),
    }
}

#[cfg(test)]
mod tests {
    use mallee_tiers::TraceRule;

    use super::*;

    fn plan() -> TracePlan {
        let rule = |expression: &str, told: &str| TraceRule { expression: expression.into(), told: told.into() };
        TracePlan {
            switch: "subnet-1".into(),
            packet: String::new(),
            ports: [("0a1b2c3d-0000-4000-8000-000000000001".to_owned(), "eni-2 of i-2".to_owned())].into(),
            rules: vec![
                rule("inport == @sg_1 && ip4", "rule sgr-1 lets it through"),
                rule("outport == @mallee_drop && ip", "no rule lets it in"),
            ],
        }
    }

    const BEGIN: &str = r#"# tcp,reg14=0x1
ingress(dp="subnet-1", inport="0a1b2c")
---------------------------------------
 0. ls_in_check_port_sec (northd.c:8589): 1, priority 50, uuid 1
    reg0[15] = check_in_port_sec();
    next;
 8. ls_in_acl (northd.c:6409): reg0[7] == 1 && (inport == @sg_1 && ip4), priority 2002, uuid 2
    next;
"#;

    #[test]
    fn a_packet_that_arrives_is_told_by_the_rules_that_let_it() {
        let text = format!(
            "{BEGIN}egress(dp=\"subnet-1\", inport=\"0a1b2c\", outport=\"0a1b2c\")\n 9. ls_out_check_port_sec (x): 1, priority 0, uuid 3\n    output;\n    /* output to \"0a1b2c\", type \"\" */\n"
        );
        let story = read(&text, &plan());
        let told: Vec<&str> = story.steps.iter().map(|s| s.told.as_str()).collect();
        assert_eq!(told, ["through the subnet", "rule sgr-1 lets it through"]);
        assert_eq!(story.arrived.as_deref(), Some("eni-2 of i-2"));
    }

    #[test]
    fn a_packet_that_dies_is_told_by_the_rule_that_killed_it_or_the_place() {
        let acl = format!(
            "{BEGIN}egress(dp=\"subnet-2\", inport=\"a\", outport=\"b\")\n 4. ls_out_acl (x): reg0[10] == 1 && (outport == @mallee_drop && ip), priority 2000, uuid 3\n    /* drop */\n"
        );
        let story = read(&acl, &plan());
        assert_eq!(story.steps.last(), Some(&Step { at: "subnet-2".into(), told: "no rule lets it in".into() }));
        assert_eq!(story.arrived, None);
        let route =
            format!("{BEGIN}ingress(dp=\"vpc-1\", inport=\"inner\")\n11. lr_in_ip_routing: no match (implicit drop)\n");
        let story = read(&route, &plan());
        assert_eq!(story.steps.last().unwrap().told, "no route leads there, or it is a black hole");
        assert_eq!(story.arrived, None, "what left a switch for a router has not arrived");
    }
}
