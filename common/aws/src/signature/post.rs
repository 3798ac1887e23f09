//! Browser uploads to S3: a form whose signed policy says what may be uploaded, until when.
//!
//! 1. [`Form::new`] takes the fields before `file`, the bucket of the URL and the file's name.
//! 2. [`Form::presented`] takes the credentials out (SigV4 or SigV2); look up the key and `verify` as for any request.
//! 3. [`Form::policy`] then says whether this very form is allowed, and how long the file may be.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use time::OffsetDateTime;

use super::v2::{Algorithm, parse_iso_date};
use super::v4::{ALGORITHM, parse_basic_date, parse_credential, parse_signature};
use super::{Clock, Method, Payload, Presented, Proof, Route, Rules, SigV2};
use crate::error::AwsError;

/// AWS' bound on all fields but the file.
const MAX_FIELDS: usize = 20_000;
/// Fields a policy need not mention.
const FREE: [&str; 5] = ["file", "policy", "awsaccesskeyid", "signature", "x-amz-signature"];

/// The fields of a form, by lower-case name.
#[derive(Clone)]
pub struct Form {
    fields: Vec<(String, String)>,
}

impl Form {
    /// `${filename}` in the key becomes `filename`. Refuses doubled fields and a `bucket` field that is not the URL's.
    pub fn new(fields: Vec<(String, String)>, bucket: &str, filename: &str) -> Result<Form, AwsError> {
        let mut form = Form { fields: Vec::with_capacity(fields.len() + 1) };
        let mut size = 0_usize;
        for (name, value) in fields {
            size = size.saturating_add(name.len()).saturating_add(value.len());
            if size > MAX_FIELDS {
                return Err(AwsError::bad_request(
                    "MaxPostPreDataLengthExceeded",
                    "Your POST request fields preceding the upload file were too large.",
                ));
            }
            let name = name.to_ascii_lowercase();
            if form.get(&name).is_some() {
                return Err(AwsError::bad_request("InvalidArgument", format!("The form field {name} is given twice.")));
            }
            let value = if name == "key" { value.replace("${filename}", filename) } else { value };
            form.fields.push((name, value));
        }
        match form.get("bucket") {
            Some(named) if named != bucket => {
                return Err(AwsError::bad_request("InvalidArgument", "The form's bucket is not that of the URL."));
            }
            Some(_) => {}
            None => form.fields.push(("bucket".to_string(), bucket.to_string())),
        }
        Ok(form)
    }

    /// A field's value, by lower-case name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The form's credentials, good until its policy expires; `None` if it carries none.
    pub fn presented(&self, rules: &Rules<'_>) -> Result<Option<Presented>, AwsError> {
        let route = Route::S3;
        let v4 = ["x-amz-algorithm", "x-amz-credential", "x-amz-signature"].iter().any(|name| self.get(name).is_some());
        let v2 = self.get("awsaccesskeyid").is_some() || self.get("signature").is_some();
        if !v4 && !v2 {
            // A policy nobody signed is nobody's word.
            return if self.get("policy").is_some() { Err(AwsError::access_denied()) } else { Ok(None) };
        }
        if v4 && v2 {
            return Err(route.two_credentials());
        }
        let needed = |name: &str| {
            self.get(name).ok_or_else(|| {
                AwsError::bad_request("InvalidArgument", format!("Bucket POST must contain a field named '{name}'."))
            })
        };
        let policy = needed("policy")?;
        let signed_at = Policy::parse(policy)?.expiration;
        let malformed = |detail| AwsError::bad_request("InvalidArgument", detail);
        let (access_key, scope, proof) = if v4 {
            if needed("x-amz-algorithm")? != ALGORITHM {
                return Err(malformed("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"."));
            }
            let (access_key, scope) = parse_credential(needed("x-amz-credential")?)
                .ok_or_else(|| malformed("The Credential must be KEY/YYYYMMDD/REGION/SERVICE/aws4_request."))?;
            let date = needed("x-amz-date")?;
            if parse_basic_date(date).is_none() || !date.starts_with(&scope.date) {
                return Err(route.bad_date());
            }
            let signature = parse_signature(needed("x-amz-signature")?).ok_or_else(|| route.signature_mismatch())?;
            (access_key, Some(scope), Proof::V4Policy { policy: policy.as_bytes().to_vec(), signature })
        } else {
            if rules.sigv2 == SigV2::Refused {
                return Err(route.sigv2_refused());
            }
            let access_key = needed("awsaccesskeyid")?.parse().map_err(|_| route.unknown_key())?;
            let signature = STANDARD.decode(needed("signature")?).map_err(|_| route.signature_mismatch())?;
            let string_to_sign = policy.as_bytes().to_vec();
            (access_key, None, Proof::V2 { string_to_sign, or_else: None, algorithm: Algorithm::HmacSha1, signature })
        };
        Ok(Some(Presented {
            access_key,
            route,
            method: Method::PostForm,
            scope,
            signed_headers: Vec::new(),
            session_token: self.get("x-amz-security-token").map(str::to_string),
            payload: Payload::Unsigned,
            signed_at,
            clock: Clock::Until,
            proof,
        }))
    }

    /// Checks every condition against every field, and returns how long the file may be. To be asked after `verify`.
    pub fn policy(&self, now: OffsetDateTime) -> Result<RangeInclusive<u64>, AwsError> {
        let policy = Policy::parse(self.get("policy").ok_or_else(AwsError::access_denied)?)?;
        if now > policy.expiration {
            return Err(denied("Policy expired."));
        }
        let mut length = 0..=u64::MAX;
        let mut mentioned = std::collections::BTreeSet::new();
        for condition in &policy.conditions {
            match condition {
                Condition::Length(range) => {
                    length = *length.start().max(range.start())..=*length.end().min(range.end());
                }
                Condition::Equal(name, wanted) => {
                    mentioned.insert(name.as_str());
                    if self.get(name) != Some(wanted) {
                        return Err(denied(&format!("Policy Condition failed: [\"eq\", \"${name}\", \"{wanted}\"]")));
                    }
                }
                Condition::Prefix(name, prefix) => {
                    mentioned.insert(name.as_str());
                    // Of a field that may begin with anything, nothing is a beginning too.
                    if !self.get(name).unwrap_or_default().starts_with(prefix) {
                        return Err(denied(&format!(
                            "Policy Condition failed: [\"starts-with\", \"${name}\", \"{prefix}\"]"
                        )));
                    }
                }
            }
        }
        for (name, _) in &self.fields {
            // A checksum lets nothing more in: what it does not fit is refused.
            let narrows = name.starts_with("x-amz-checksum-") || name == "x-amz-sdk-checksum-algorithm";
            let free = FREE.contains(&name.as_str()) || narrows || name.starts_with("x-ignore-") || name == "bucket";
            if !free && !mentioned.contains(name.as_str()) {
                return Err(denied(&format!("Extra input fields: {name}")));
            }
        }
        // A policy that does not name its bucket would open all of them.
        if !mentioned.contains("bucket") {
            return Err(denied("The policy has no condition on the bucket."));
        }
        Ok(length)
    }
}

struct Policy {
    expiration: OffsetDateTime,
    conditions: Vec<Condition>,
}

enum Condition {
    Equal(String, String),
    Prefix(String, String),
    Length(RangeInclusive<u64>),
}

impl Policy {
    fn parse(base64: &str) -> Result<Policy, AwsError> {
        let compact: String = base64.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = STANDARD.decode(compact).map_err(|_| invalid("it is not base64"))?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("it is not JSON"))?;
        let expiration = json
            .get("expiration")
            .and_then(Value::as_str)
            .and_then(parse_iso_date)
            .ok_or_else(|| invalid("it has no valid expiration"))?;
        let listed = json.get("conditions").and_then(Value::as_array).ok_or_else(|| invalid("it has no conditions"))?;
        let mut conditions = Vec::with_capacity(listed.len());
        for condition in listed {
            match condition {
                Value::Object(members) if members.is_empty() => return Err(invalid("a condition is empty")),
                Value::Object(members) => {
                    for (name, value) in members {
                        let value = value.as_str().ok_or_else(|| invalid("a condition's value is no string"))?;
                        conditions.push(Condition::Equal(name.to_ascii_lowercase(), value.to_string()));
                    }
                }
                Value::Array(triple) => conditions.push(parse_triple(triple)?),
                _ => return Err(invalid("a condition is neither a list nor an object")),
            }
        }
        Ok(Policy { expiration, conditions })
    }
}

fn parse_triple(triple: &[Value]) -> Result<Condition, AwsError> {
    let [operator, left, right] = triple else { return Err(invalid("a condition has not three parts")) };
    let operator = operator.as_str().unwrap_or_default().to_ascii_lowercase();
    if operator == "content-length-range" {
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
        let (Some(least), Some(most)) = (number(left), number(right)) else {
            return Err(invalid("a content-length-range is not two numbers"));
        };
        return Ok(Condition::Length(least..=most));
    }
    let name = left.as_str().and_then(|name| name.strip_prefix('$'));
    let (Some(name), Some(value)) = (name, right.as_str()) else {
        return Err(invalid("a condition does not compare a $field with a string"));
    };
    match operator.as_str() {
        "eq" => Ok(Condition::Equal(name.to_ascii_lowercase(), value.to_string())),
        "starts-with" => Ok(Condition::Prefix(name.to_ascii_lowercase(), value.to_string())),
        _ => Err(invalid("a condition's operator is not known")),
    }
}

fn invalid(detail: &str) -> AwsError {
    AwsError::bad_request("InvalidPolicyDocument", format!("Invalid Policy: {detail}."))
}

fn denied(detail: &str) -> AwsError {
    AwsError::new("AccessDenied", 403, format!("Invalid according to Policy: {detail}"))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::SecretKey;

    const NOW: OffsetDateTime = datetime!(2015-12-29 00:00:00 UTC);
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    fn form(change: Option<(&str, &str)>) -> Form {
        let policy = r#"{ "expiration": "2015-12-30T12:00:00.000Z", "conditions": [ {"bucket": "sigv4examplebucket"},
            ["starts-with", "$key", "user/user1/"], {"acl": "public-read"}, ["content-length-range", 1, 1048576],
            {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},
            {"x-amz-algorithm": "AWS4-HMAC-SHA256"}, {"x-amz-date": "20151229T000000Z" } ] }"#;
        let policy = STANDARD.encode(policy);
        let scope = super::super::Scope { date: "20151229".into(), region: "us-east-1".into(), service: "s3".into() };
        let key = super::super::SigningKey::derive(&SecretKey::new(SECRET), &scope);
        let signature = hex::encode(key.sign(policy.as_bytes()));
        let mut fields = vec![
            ("key", "user/user1/${filename}"),
            ("acl", "public-read"),
            ("X-Amz-Credential", "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Date", "20151229T000000Z"),
            ("Policy", &policy),
            ("X-Amz-Signature", &signature),
            ("x-ignore-me", "1"),
        ];
        if let Some((name, value)) = change {
            fields.retain(|(known, _)| *known != name);
            fields.push((name, value));
        }
        let fields = fields.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Form::new(fields, "sigv4examplebucket", "a.txt").unwrap()
    }

    fn run(form: &Form, now: OffsetDateTime) -> Result<RangeInclusive<u64>, AwsError> {
        let presented = form.presented(&Rules::new(Route::S3))?.ok_or_else(AwsError::access_denied)?;
        presented.verify(&SecretKey::new(SECRET), None, now)?;
        form.policy(now)
    }

    #[test]
    fn a_form_within_its_policy_is_let_in() {
        assert_eq!(run(&form(None), NOW).unwrap(), 1..=1_048_576);
        assert_eq!(form(None).get("key"), Some("user/user1/a.txt"));
    }

    #[test]
    fn every_field_is_held_to_the_policy() {
        for change in [
            ("key", "user/user2/x"),
            ("acl", "private"),
            ("x-amz-meta-extra", "1"),
            ("X-Amz-Signature", "00"),
            ("Policy", "e30="),
            ("X-Amz-Date", "20151228T000000Z"),
            ("AWSAccessKeyId", "x"),
        ] {
            assert!(run(&form(Some(change)), NOW).is_err(), "{change:?}");
        }
        assert_eq!(run(&form(None), datetime!(2015-12-30 12:00:01 UTC)).unwrap_err().code, "AccessDenied");
        assert!(Form::new(vec![("bucket".into(), "other".into())], "mine", "f").is_err());
        assert!(Form::new(vec![("Key".into(), "a".into()), ("key".into(), "b".into())], "mine", "f").is_err());
    }

    #[test]
    fn a_condition_that_says_nothing_is_refused_and_one_that_asks_nothing_holds() {
        let judged = |conditions: &str| {
            let policy = format!(r#"{{"expiration": "2015-12-30T12:00:00Z", "conditions": [{conditions}]}}"#);
            let fields = vec![("key".to_owned(), "k".to_owned()), ("policy".to_owned(), STANDARD.encode(policy))];
            Form::new(fields, "b", "").unwrap().policy(NOW).map(drop).map_err(|e| e.status)
        };
        let good = r#"{"bucket": "b"}, ["starts-with", "$key", ""]"#;
        assert_eq!(judged(good), Ok(()));
        assert_eq!(judged(&format!("{good}, {{}}")), Err(400));
        assert_eq!(judged(&format!(r#"{good}, ["starts-with", "$x-amz-meta-a", ""]"#)), Ok(()));
        assert_eq!(judged(&format!(r#"{good}, ["starts-with", "$x-amz-meta-a", "b"]"#)), Err(403));
    }

    /// The policy and signatures printed in S3's "Authenticating requests in browser-based uploads (AWS Signature
    /// Version 4)" example.
    #[test]
    fn aws_manual_post_example_signature() {
        let policy = "eyAiZXhwaXJhdGlvbiI6ICIyMDE1LTEyLTMwVDEyOjAwOjAwLjAwMFoiLA0KICAiY29uZGl0aW9ucyI6IFsNCiAgICB7ImJ1Y2tldCI6ICJzaWd2NGV4YW1wbGVidWNrZXQifSwNCiAgICBbInN0YXJ0cy13aXRoIiwgIiRrZXkiLCAidXNlci91c2VyMS8iXSwNCiAgICB7ImFjbCI6ICJwdWJsaWMtcmVhZCJ9LA0KICAgIHsic3VjY2Vzc19hY3Rpb25fcmVkaXJlY3QiOiAiaHR0cDovL3NpZ3Y0ZXhhbXBsZWJ1Y2tldC5zMy5hbWF6b25hd3MuY29tL3N1Y2Nlc3NmdWxfdXBsb2FkLmh0bWwifSwNCiAgICBbInN0YXJ0cy13aXRoIiwgIiRDb250ZW50LVR5cGUiLCAiaW1hZ2UvIl0sDQogICAgeyJ4LWFtei1tZXRhLXV1aWQiOiAiMTQzNjUxMjM2NTEyNzQifSwNCiAgICB7IngtYW16LXNlcnZlci1zaWRlLWVuY3J5cHRpb24iOiAiQUVTMjU2In0sDQogICAgWyJzdGFydHMtd2l0aCIsICIkeC1hbXotbWV0YS10YWciLCAiIl0sDQoNCiAgICB7IngtYW16LWNyZWRlbnRpYWwiOiAiQUtJQUlPU0ZPRE5ON0VYQU1QTEUvMjAxNTEyMjkvdXMtZWFzdC0xL3MzL2F3czRfcmVxdWVzdCJ9LA0KICAgIHsieC1hbXotYWxnb3JpdGhtIjogIkFXUzQtSE1BQy1TSEEyNTYifSwNCiAgICB7IngtYW16LWRhdGUiOiAiMjAxNTEyMjlUMDAwMDAwWiIgfQ0KICBdDQp9";
        let scope = super::super::Scope { date: "20151229".into(), region: "us-east-1".into(), service: "s3".into() };
        let key = super::super::SigningKey::derive(&SecretKey::new(SECRET), &scope);
        assert_eq!(
            hex::encode(key.sign(policy.as_bytes())),
            "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e"
        );
    }
}
