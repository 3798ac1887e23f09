//! The lines of a flow log's object, after "Flow log records" of the VPC user guide. Pure.

use std::net::IpAddr;

use mallee_tiers::{FlowField, FlowLog, FlowTraffic, Interface, Millis};

use super::window::{Action, Direction, Flow, Settled};

/// What a field has that says nothing.
const NOTHING: &str = "-";

/// The line with the names of the fields.
pub fn header(log: &FlowLog) -> String {
    let names: Vec<&str> = log.fields.iter().map(|f| f.name.as_str()).collect();
    names.join(" ") + "\n"
}

/// What a window has to say in a log.
pub fn lines(log: &FlowLog, interface: &Interface, settled: &Settled) -> String {
    let mut text = String::new();
    let its = |flow: &&Flow| match log.traffic {
        FlowTraffic::Accept => flow.action == Action::Accept,
        FlowTraffic::Reject => flow.action == Action::Reject,
        FlowTraffic::All => true,
        FlowTraffic::Unknown => false,
    };
    for flow in settled.flows.iter().filter(its) {
        line(&mut text, log, |name| seen(name, interface, flow));
    }
    if text.is_empty() && !settled.skipped {
        silent(&mut text, log, settled.begin, settled.end, "NODATA");
    }
    if settled.skipped {
        skipped(&mut text, log, settled.begin, settled.end);
    }
    text
}

/// Says that packets of this time may be missing.
pub fn skipped(text: &mut String, log: &FlowLog, begin: Millis, end: Millis) {
    silent(text, log, begin, end, "SKIPDATA");
}

fn silent(text: &mut String, log: &FlowLog, begin: Millis, end: Millis, status: &str) {
    line(text, log, |name| match name {
        "start" => Some(seconds(begin)),
        "end" => Some(seconds(end)),
        "log-status" => Some(status.to_owned()),
        _ => None,
    });
}

fn line(text: &mut String, log: &FlowLog, seen: impl Fn(&str) -> Option<String>) {
    let value = |field: &FlowField| field.fixed.clone().or_else(|| seen(&field.name)).unwrap_or_else(|| NOTHING.into());
    let values: Vec<String> = log.fields.iter().map(value).collect();
    text.push_str(&values.join(" "));
    text.push('\n');
}

fn seconds(at: Millis) -> String {
    at.div_euclid(1000).to_string()
}

/// None: a field of a later release.
fn seen(name: &str, interface: &Interface, flow: &Flow) -> Option<String> {
    let tuple = &flow.tuple;
    // Whatever address of the interface it was, AWS shows the first one; `pkt-` shows which.
    let shown = |address: IpAddr, own: Direction| match address {
        IpAddr::V4(_) if flow.direction == own => IpAddr::from(interface.address),
        other => other,
    };
    Some(match name {
        "srcaddr" => shown(tuple.source, Direction::Out).to_string(),
        "dstaddr" => shown(tuple.destination, Direction::In).to_string(),
        "pkt-srcaddr" => tuple.source.to_string(),
        "pkt-dstaddr" => tuple.destination.to_string(),
        "srcport" => tuple.source_port.to_string(),
        "dstport" => tuple.destination_port.to_string(),
        "protocol" => tuple.protocol.to_string(),
        "packets" => flow.count.packets.to_string(),
        "bytes" => flow.count.bytes.to_string(),
        "start" => seconds(flow.count.first),
        "end" => seconds(flow.count.last),
        "action" => match flow.action {
            Action::Accept => "ACCEPT".to_owned(),
            Action::Reject => "REJECT".to_owned(),
        },
        "log-status" => "OK".to_owned(),
        "tcp-flags" => flow.count.flags.0.to_string(),
        "type" => if tuple.source.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        "flow-direction" => match flow.direction {
            Direction::In => "ingress".to_owned(),
            Direction::Out => "egress".to_owned(),
        },
        _ => return None,
    })
}

#[cfg(test)]
pub mod tests {
    use super::super::{
        packet::{TcpFlags, Tuple},
        window::Count,
    };
    use super::*;
    use mallee_tiers::{FlowPlace, VpcLink};
    use uuid::Uuid;

    pub fn interface() -> Interface {
        Interface {
            id: "eni-1".into(),
            port: Uuid::from_bytes([7; 16]),
            device_index: 0,
            mac: "0e:00:00:00:00:01".into(),
            address: [10, 0, 0, 5].into(),
            secondary: vec![[10, 0, 0, 6].into()],
            vpc: VpcLink { id: "vpc-1".into(), metadata_port: "m".into(), metadata_mac: "m".into() },
            flow: None,
        }
    }

    pub fn log(traffic: FlowTraffic, names: &str) -> FlowLog {
        let fixed = |name: &str| match name {
            "version" => Some("2".to_owned()),
            "account-id" => Some("000000000001".to_owned()),
            "interface-id" => Some("eni-1".to_owned()),
            _ => None,
        };
        FlowLog {
            id: "fl-1".into(),
            traffic,
            window_s: 60,
            place: FlowPlace {
                account: "000000000001".into(),
                bucket: "logs".into(),
                folder: "p/AWSLogs/000000000001/vpcflowlogs/mallee-1/".into(),
                name: "000000000001_vpcflowlogs_mallee-1_fl-1".into(),
            },
            fields: names.split(' ').map(|n| FlowField { name: n.into(), fixed: fixed(n) }).collect(),
        }
    }

    const DEFAULT: &str = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status";

    fn flow(direction: Direction, action: Action, source: &str, destination: &str) -> Flow {
        Flow {
            direction,
            action,
            tuple: Tuple {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                source_port: 49152,
                destination_port: 22,
                protocol: 6,
            },
            count: Count { packets: 4, bytes: 336, flags: TcpFlags(19), first: 61_500, last: 119_999 },
        }
    }

    fn settled(flows: Vec<Flow>, skipped: bool) -> Settled {
        Settled { begin: 60_000, end: 120_000, flows, skipped }
    }

    #[test]
    fn a_line_is_as_the_manual_shows_it() {
        let log = log(FlowTraffic::All, DEFAULT);
        assert_eq!(header(&log), format!("{DEFAULT}\n"));
        let window = settled(
            vec![
                flow(Direction::In, Action::Reject, "203.0.113.12", "10.0.0.5"),
                flow(Direction::In, Action::Accept, "fd00::9", "fd00::5"),
            ],
            false,
        );
        assert_eq!(
            lines(&log, &interface(), &window),
            "2 000000000001 eni-1 203.0.113.12 10.0.0.5 49152 22 6 4 336 61 119 REJECT OK\n\
             2 000000000001 eni-1 fd00::9 fd00::5 49152 22 6 4 336 61 119 ACCEPT OK\n"
        );
    }

    #[test]
    fn a_log_of_one_kind_has_no_other_and_says_when_there_was_nothing_or_not_all() {
        let log = log(FlowTraffic::Reject, DEFAULT);
        let accepted = || vec![flow(Direction::In, Action::Accept, "203.0.113.12", "10.0.0.5")];
        let none = "2 000000000001 eni-1 - - - - - - - 60 120 -";
        assert_eq!(lines(&log, &interface(), &settled(accepted(), false)), format!("{none} NODATA\n"));
        assert_eq!(lines(&log, &interface(), &settled(accepted(), true)), format!("{none} SKIPDATA\n"));
    }

    #[test]
    fn a_secondary_address_is_shown_as_the_first_one_and_told_beside() {
        let log = log(
            FlowTraffic::All,
            "srcaddr dstaddr pkt-srcaddr pkt-dstaddr tcp-flags type flow-direction sublocation-id",
        );
        let window = settled(
            vec![
                flow(Direction::In, Action::Accept, "1.2.3.4", "10.0.0.6"),
                flow(Direction::Out, Action::Accept, "10.0.0.6", "1.2.3.4"),
            ],
            false,
        );
        assert_eq!(
            lines(&log, &interface(), &window),
            "1.2.3.4 10.0.0.5 1.2.3.4 10.0.0.6 19 IPv4 ingress -\n10.0.0.5 1.2.3.4 10.0.0.6 1.2.3.4 19 IPv4 egress -\n"
        );
    }
}
