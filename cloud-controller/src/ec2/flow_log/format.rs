//! The format of a flow log's lines: its fields, and what of a line is known here. Pure.
//!
//! After "Flow log records" of the VPC user guide: every field of version 2, and of the later ones those that can be told
//! truthfully here. The others are refused by name.

use std::{collections::BTreeSet, fmt};

use mallee_tiers::{FlowField, FlowLog, FlowPlace, flow_log_folder};

use super::FlowLogRow;
use crate::{Refusal, ec2::interface::InterfaceRow};

/// Fields and the version of the format they came with.
const FIELDS: [(&str, u8); 22] = [
    ("version", 2),
    ("account-id", 2),
    ("interface-id", 2),
    ("srcaddr", 2),
    ("dstaddr", 2),
    ("srcport", 2),
    ("dstport", 2),
    ("protocol", 2),
    ("packets", 2),
    ("bytes", 2),
    ("start", 2),
    ("end", 2),
    ("action", 2),
    ("log-status", 2),
    ("vpc-id", 3),
    ("subnet-id", 3),
    ("instance-id", 3),
    ("tcp-flags", 3),
    ("type", 3),
    ("pkt-srcaddr", 3),
    ("pkt-dstaddr", 3),
    ("region", 4),
];
/// Those of the later versions that a node can tell, beside the ones above.
const LATER: [(&str, u8); 1] = [("flow-direction", 5)];
/// What a log has that names no format: version 2, in the manual's order.
const DEFAULT: usize = 14;

/// The fields of a line, in order; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format(Vec<(&'static str, u8)>);

impl Default for Format {
    fn default() -> Self {
        Self(FIELDS.into_iter().take(DEFAULT).collect())
    }
}

impl Format {
    /// `${version} ${account-id} …`.
    pub fn read(text: &str) -> Result<Self, Unknown> {
        let mut fields = Vec::new();
        for word in text.split_ascii_whitespace() {
            let name = word.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            let known = name.and_then(|name| FIELDS.iter().chain(&LATER).find(|(field, _)| *field == name));
            fields.push(*known.ok_or_else(|| Unknown(word.to_owned()))?);
        }
        if fields.is_empty() { Err(Unknown(text.to_owned())) } else { Ok(Self(fields)) }
    }

    /// The same field twice says nothing more, and lines are kept short.
    pub fn has_repeats(&self) -> bool {
        self.0.iter().collect::<BTreeSet<_>>().len() < self.0.len()
    }

    /// What `${version}` says: the highest of its fields'.
    fn version(&self) -> u8 {
        self.0.iter().map(|(_, version)| *version).max().unwrap_or(2)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(name, _)| format!("${{{name}}}")).collect();
        f.write_str(&words.join(" "))
    }
}

/// A word of a format that is no field, or none that this cloud has.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a field of flow logs of this cloud")]
pub struct Unknown(String);

impl From<Unknown> for Refusal {
    fn from(unknown: Unknown) -> Self {
        Refusal::new("InvalidParameter", format!("Unknown fields provided: {unknown}"))
    }
}

/// A log as the node of an interface is told of it.
pub fn wanted(log: &FlowLogRow, region: &str, interface: &InterfaceRow) -> FlowLog {
    let fixed = |name: &str| match name {
        "version" => Some(log.format.version().to_string()),
        // AWS: the owner of the interface.
        "account-id" => Some(interface.account.clone()),
        "interface-id" => Some(interface.id.to_string()),
        "vpc-id" => Some(interface.vpc.to_string()),
        "subnet-id" => Some(interface.subnet.to_string()),
        "instance-id" => interface.instance.as_ref().map(ToString::to_string),
        "region" => Some(region.to_owned()),
        _ => None,
    };
    FlowLog {
        id: log.id.to_string(),
        traffic: log.traffic.wanted(),
        window_s: log.window_s.unsigned_abs(),
        place: FlowPlace {
            account: log.account.clone(),
            bucket: log.destination.bucket.clone(),
            folder: folder(log, region),
            name: format!("{}_vpcflowlogs_{region}_{}", log.account, log.id),
        },
        fields: log.format.0.iter().map(|(name, _)| FlowField { name: (*name).into(), fixed: fixed(name) }).collect(),
    }
}

fn folder(log: &FlowLogRow, region: &str) -> String {
    format!("{}{}{region}/", log.destination.prefix, flow_log_folder(&log.account))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formats_version_is_that_of_its_latest_field() {
        let two = "${version} ${account-id} ${interface-id} ${srcaddr} ${dstaddr} ${srcport} ${dstport} ${protocol} \
                   ${packets} ${bytes} ${start} ${end} ${action} ${log-status}";
        assert_eq!(Format::default().to_string(), two);
        for (text, version) in [(two, 2), ("${srcaddr}  ${vpc-id}", 3), ("${flow-direction} ${version}", 5)] {
            let format = Format::read(text).unwrap();
            assert_eq!(format.version(), version, "{text}");
            assert_eq!(Format::read(&format.to_string()).unwrap(), format);
        }
    }

    #[test]
    fn what_cannot_be_told_is_refused_by_name() {
        for bad in ["${traffic-path}", "${srcaddr} ${pkt-src-aws-service}", "srcaddr", "", "${srcaddr} x", "${}"] {
            assert!(Format::read(bad).is_err(), "{bad:?}");
        }
        let refused = Refusal::from(Format::read("${srcaddr} ${ecs-task-id}").unwrap_err());
        assert!(refused.answer.message.contains("ecs-task-id"));
    }
}
