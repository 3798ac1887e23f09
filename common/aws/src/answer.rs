//! EC2 and Query answers: a struct in, the XML document out.
//!
//! EC2 structs say `#[serde(rename_all = "camelCase")]`, Query structs `PascalCase`. A `None` is left out, an empty list is
//! an empty element (boto3 has no key at all without it, and euca2ools crashes), and fields keep their declared order.

use serde::Serialize;

use crate::error::AwsError;
use crate::xml::{DECLARATION, Lists, WriteError, escape_into, write_members};

/// The content type of both dialects, as AWS spells it.
pub const CONTENT_TYPE: &str = "text/xml;charset=UTF-8";

const EC2: Lists = Lists::Wrapped { item: "item", entry: "item" };
const QUERY: Lists = Lists::Wrapped { item: "member", entry: "entry" };

/// `<ActionResponse xmlns="http://ec2.amazonaws.com/doc/VERSION/">`, the request id, the members of `answer`.
///
/// `version` is what the client asked for: libcloud and other namespace-minded clients see empty lists under any other.
/// The unit value answers `<return>true</return>`.
pub fn to_ec2_xml<T: Serialize + ?Sized>(
    action: &str,
    version: &str,
    request_id: &str,
    answer: &T,
) -> Result<String, AwsError> {
    let mut out = String::with_capacity(512);
    out.push_str(DECLARATION);
    out.push('<');
    escape_into(&mut out, action);
    out.push_str("Response xmlns=\"http://ec2.amazonaws.com/doc/");
    escape_into(&mut out, version);
    out.push_str("/\"><requestId>");
    escape_into(&mut out, request_id);
    out.push_str("</requestId>");
    match write_members(&mut out, EC2, answer) {
        Ok(()) => {}
        Err(WriteError::Unit) => out.push_str("<return>true</return>"),
        // A mistake in our own declaration of the answer; the client is told no more than that.
        Err(WriteError::Shape(_)) => return Err(AwsError::internal()),
    }
    out.push_str("</");
    escape_into(&mut out, action);
    out.push_str("Response>");
    Ok(out)
}

/// `<ActionResponse xmlns><ActionResult>members</ActionResult><ResponseMetadata/></ActionResponse>`.
///
/// The unit value leaves the result wrapper out, as actions without output do; a struct without fields keeps it, because
/// boto3 raises KeyError where its model promises one (all of ELBv2 and STS, most of IAM).
pub fn to_query_xml<T: Serialize + ?Sized>(
    action: &str,
    xmlns: &str,
    request_id: &str,
    result: &T,
) -> Result<String, AwsError> {
    let mut members = String::with_capacity(512);
    let has_result = match write_members(&mut members, QUERY, result) {
        Ok(()) => true,
        Err(WriteError::Unit) => false,
        Err(WriteError::Shape(_)) => return Err(AwsError::internal()),
    };
    let mut out = String::with_capacity(members.len() + 256);
    out.push('<');
    escape_into(&mut out, action);
    out.push_str("Response xmlns=\"");
    escape_into(&mut out, xmlns);
    out.push_str("\">");
    if has_result {
        for piece in ["<", action, "Result>", &members, "</", action, "Result>"] {
            out.push_str(piece);
        }
    }
    out.push_str("<ResponseMetadata><RequestId>");
    escape_into(&mut out, request_id);
    out.push_str("</RequestId></ResponseMetadata></");
    escape_into(&mut out, action);
    out.push_str("Response>");
    Ok(out)
}

/// A time as AWS writes it, `2026-11-20T01:02:03.000Z`. Go, Rust and Java parsers want exactly this.
pub fn timestamp(millis: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct State {
        code: u16,
        name: &'static str,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Instance {
        instance_id: String,
        instance_state: State,
        key_name: Option<String>,
        ebs_optimized: bool,
        group_set: Vec<String>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Describe {
        instances_set: Vec<Instance>,
        next_token: Option<String>,
    }

    #[test]
    fn an_ec2_answer_lists_items_and_keeps_empty_lists() {
        let answer = Describe {
            instances_set: vec![Instance {
                instance_id: "i-1".into(),
                instance_state: State { code: 16, name: "running" },
                key_name: None,
                ebs_optimized: true,
                group_set: vec![],
            }],
            next_token: None,
        };
        let xml = to_ec2_xml("DescribeInstances", "2015-10-01", "req-1", &answer).unwrap();
        assert_eq!(
            xml,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeInstancesResponse \
             xmlns=\"http://ec2.amazonaws.com/doc/2015-10-01/\"><requestId>req-1</requestId><instancesSet><item>\
             <instanceId>i-1</instanceId><instanceState><code>16</code><name>running</name></instanceState>\
             <ebsOptimized>true</ebsOptimized><groupSet/></item></instancesSet></DescribeInstancesResponse>"
        );
    }

    #[test]
    fn an_answer_without_members_is_return_true() {
        let xml = to_ec2_xml("DeleteTags", "2016-11-15", "r", &()).unwrap();
        assert!(xml.contains("<requestId>r</requestId><return>true</return></DeleteTagsResponse>"));
    }

    #[test]
    fn a_query_answer_has_result_wrapper_members_and_entries() {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Result {
            roles: Vec<String>,
            summary_map: BTreeMap<&'static str, u32>,
            empty: Vec<String>,
        }
        let result = Result { roles: vec!["a&b".into()], summary_map: BTreeMap::from([("Users", 1)]), empty: vec![] };
        let xml = to_query_xml("ListRoles", "https://iam/", "r", &result).unwrap();
        assert_eq!(
            xml,
            "<ListRolesResponse xmlns=\"https://iam/\"><ListRolesResult><Roles><member>a&amp;b</member></Roles>\
             <SummaryMap><entry><key>Users</key><value>1</value></entry></SummaryMap><Empty/></ListRolesResult>\
             <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></ListRolesResponse>"
        );
        let unit = to_query_xml("DeleteRole", "https://iam/", "r", &()).unwrap();
        assert!(!unit.contains("Result"));
        #[derive(Serialize)]
        struct Nothing {}
        assert!(to_query_xml("X", "u", "r", &Nothing {}).unwrap().contains("<XResult></XResult>"));
    }

    #[test]
    fn control_characters_vanish_and_carriage_returns_survive() {
        let mut out = String::new();
        escape_into(&mut out, "a\u{0}\u{8}\u{b}\r\n\t\u{ffff}é😀\"");
        assert_eq!(out, "a&#13;\n\té😀&quot;");
    }

    #[test]
    fn timestamps_have_milliseconds_and_z() {
        assert_eq!(timestamp(1_795_136_523_007), "2026-11-20T01:02:03.007Z");
    }

    #[test]
    fn flattened_structs_write_their_members_in_place() {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Outer {
            #[serde(flatten)]
            state: State,
            last: u8,
        }
        #[derive(Serialize)]
        struct Root {
            outer: Outer,
        }
        let xml =
            to_ec2_xml("X", "v", "r", &Root { outer: Outer { state: State { code: 1, name: "n" }, last: 2 } }).unwrap();
        assert!(xml.contains("<outer><code>1</code><name>n</name><last>2</last></outer>"));
    }
}
