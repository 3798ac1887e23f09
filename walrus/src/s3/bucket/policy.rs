//! A bucket's policy: what its owner says about everybody's access to it. What it means is in [`crate::access`].

use http::{HeaderValue, Response, StatusCode, header};
use mallee_aws::AwsError;
use mallee_policy::{Effect, Listed, Policy, Statement, account_of, covers};
use mallee_service::{Body, body};
use serde::Serialize;

use super::{
    Bucket, opened,
    settings::{Ownership, update},
};
use crate::{
    Error, Walrus,
    access::{Action, Kind},
    call::Call,
    error::refuse,
    identity::Holders,
    s3::{done, xml},
};

/// As AWS limits it.
const LARGEST: usize = 20 * 1024;

fn none(bucket: &Bucket) -> Error {
    Error::Refused(
        AwsError::new("NoSuchBucketPolicy", 404, "The bucket policy does not exist")
            .with_field("BucketName", &bucket.name),
    )
}

fn malformed(why: impl Into<String>) -> Error {
    refuse::coded("MalformedPolicy", 400, why)
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketPolicy).await?;
    let text = bucket.settings.policy.clone().ok_or_else(|| none(&bucket))?;
    let mut response = Response::new(body::full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketPolicy).await?;
    // Larger than it may be, so that it can be told from a request that is too large.
    let body = call.document(1 << 20).await?;
    if body.len() > LARGEST {
        return Err(malformed("Policy exceeds the maximum allowed document size."));
    }
    let text =
        String::from_utf8(body).map_err(|_| malformed("Policies must be valid JSON and the first byte must be '{'"))?;
    let policy = Policy::parse(&text).map_err(|e| malformed(e.0))?;
    check(&policy, &bucket.name, &walrus.holders)?;
    if policy.is_public() && bucket.settings.block.is_some_and(|block| block.block_public_policy) {
        return Err(refuse::access_denied());
    }
    update(walrus, bucket, move |settings| settings.policy = Some(text.clone())).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::DeleteBucketPolicy).await?;
    update(walrus, bucket, |settings| settings.policy = None).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

pub async fn status(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Status {
        is_public: bool,
    }
    let bucket = opened(walrus, call, Action::GetBucketPolicyStatus).await?;
    // Without a policy there is still the list, and the question is the same.
    let by_policy = bucket.policy.as_ref().is_some_and(|policy| policy.is_public());
    let lists_count = bucket.settings.ownership != Some(Ownership::BucketOwnerEnforced);
    xml("PolicyStatus", &Status { is_public: by_policy || lists_count && bucket.acl.is_public() })
}

/// What S3 asks of a policy beyond the grammar: it is about this bucket, and about what can be done to it.
fn check(policy: &Policy, bucket: &str, holders: &Holders) -> Result<(), Error> {
    for statement in &policy.statements {
        check_principals(statement, holders)?;
        let kinds = check_resources(statement, bucket)?;
        check_actions(statement, &kinds)?;
        for condition in &statement.conditions {
            if !is_known_key(&condition.key) {
                return Err(malformed("Policy has an invalid condition key"));
            }
        }
    }
    Ok(())
}

fn check_principals(statement: &Statement, holders: &Holders) -> Result<(), Error> {
    let invalid = || malformed("Invalid principal in policy");
    if statement.effect == Effect::Allow && matches!(statement.principal, Some(Listed::AllBut(_))) {
        return Err(malformed("Allow with NotPrincipal is not allowed."));
    }
    let list = statement.principal.as_ref().ok_or_else(|| malformed("Missing required field Principal"))?.list();
    for (kind, name) in list.names() {
        let known = match kind {
            "AWS" if name == "*" => true,
            "AWS" => account_named(name).is_some_and(|account| holders.by_account(account).is_some()),
            "CanonicalUser" => holders.by_canonical_id(name).is_some(),
            "Service" => name.ends_with(".amazonaws.com"),
            _ => false,
        };
        if !known {
            return Err(invalid());
        }
    }
    Ok(())
}

/// The account of a principal, or of somebody in it.
fn account_named(name: &str) -> Option<&str> {
    account_of(name).or_else(|| {
        let (account, path) = name.strip_prefix("arn:aws:iam::")?.split_once(':')?;
        let named = ["user/", "role/"].iter().any(|kind| path.strip_prefix(kind).is_some_and(|rest| !rest.is_empty()));
        (named && !path.contains(['*', '?'])).then_some(account)
    })
}

/// Which kinds of things the statement's resources are.
fn check_resources(statement: &Statement, bucket: &str) -> Result<Vec<Kind>, Error> {
    let resources = statement.resources.as_ref().ok_or_else(|| malformed("Missing required field Resource"))?;
    let mut kinds = Vec::new();
    for resource in resources.list() {
        let found = resource.strip_prefix("arn:aws:s3:::").map(|pattern| kinds_meant(pattern, bucket));
        let found = found.filter(|found| !found.is_empty());
        kinds.extend(found.ok_or_else(|| malformed("Policy has invalid resource"))?);
    }
    Ok(match resources {
        Listed::These(_) => kinds,
        Listed::AllBut(_) => vec![Kind::Bucket, Kind::Object],
    })
}

/// What of this bucket a resource may mean: itself, what is in it, both (`bucket*`), or nothing.
fn kinds_meant(pattern: &str, bucket: &str) -> Vec<Kind> {
    let (name, key) = pattern.split_once('/').map_or((pattern, None), |(name, key)| (name, Some(key)));
    // A `*` in the name may also stand for the slash and more.
    let runs_on = name.split_once('*').is_some_and(|(stem, _)| format!("{bucket}/").starts_with(stem));
    let fits = covers(name, bucket);
    let mut kinds = Vec::new();
    if fits && key.is_none() {
        kinds.push(Kind::Bucket);
    }
    if runs_on || fits && key.is_some() {
        kinds.push(Kind::Object);
    }
    kinds
}

fn check_actions(statement: &Statement, kinds: &[Kind]) -> Result<(), Error> {
    let mut fits = false;
    for pattern in statement.actions.list() {
        let mut meant = Action::ALL.iter().filter(|action| covers(pattern, action.name())).peekable();
        // Actions of S3 that walrus does not have may be named: they are refused anyway.
        if meant.peek().is_none() && !is_action_elsewhere(pattern) {
            return Err(malformed("Policy has invalid action"));
        }
        fits |= meant.any(|action| kinds.contains(&action.on())) || is_action_elsewhere(pattern);
    }
    if !fits && matches!(statement.actions, Listed::These(_)) {
        return Err(malformed("Action does not apply to any resource(s) in statement"));
    }
    Ok(())
}

/// Actions of S3's list that nothing here asks for.
fn is_action_elsewhere(pattern: &str) -> bool {
    const ELSEWHERE: [&str; 10] = [
        "s3:RestoreObject",
        "s3:ReplicateObject",
        "s3:ReplicateDelete",
        "s3:ReplicateTags",
        "s3:ObjectOwnerOverrideToBucketOwner",
        "s3:GetObjectTorrent",
        "s3:GetObjectVersionTorrent",
        "s3:GetObjectVersionForReplication",
        "s3:InitiateReplication",
        "s3:UpdateObjectEncryption",
    ];
    ELSEWHERE.iter().any(|action| covers(pattern, action))
}

/// `s3:` keys that requests have here. One nobody sets would leave a denial without effect, so it is refused.
fn is_known_key(key: &str) -> bool {
    const S3: [&str; 33] = [
        "authtype",
        "signatureversion",
        "signatureage",
        "resourceaccount",
        "tlsversion",
        "prefix",
        "delimiter",
        "max-keys",
        "versionid",
        "requestobjecttagkeys",
        "x-amz-acl",
        "x-amz-grant-full-control",
        "x-amz-grant-read",
        "x-amz-grant-write",
        "x-amz-grant-read-acp",
        "x-amz-grant-write-acp",
        "x-amz-content-sha256",
        "x-amz-copy-source",
        "x-amz-metadata-directive",
        "x-amz-object-ownership",
        "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-customer-algorithm",
        "x-amz-storage-class",
        "x-amz-website-redirect-location",
        "object-lock-mode",
        "object-lock-retain-until-date",
        "object-lock-legal-hold",
        "if-match",
        "if-none-match",
        "dataaccesspointaccount",
        "dataaccesspointarn",
        "accesspointnetworkorigin",
    ];
    let key = key.to_ascii_lowercase();
    let tagged = |rest: &str| {
        ["existingobjecttag/", "requestobjecttag/"]
            .iter()
            .any(|prefix| rest.strip_prefix(prefix).is_some_and(|t| !t.is_empty()))
    };
    match key.split_once(':') {
        Some(("aws", rest)) => !rest.is_empty(),
        Some(("s3", rest)) => S3.contains(&rest) || tagged(rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::from_config;

    fn refused(statement: &str) -> Option<String> {
        let holders = Holders::default();
        let identity = crate::StaticIdentity {
            access_key: "AK".into(),
            secret: mallee_tiers::Secret("s".into()),
            account: "000000000001".into(),
            account_name: "a".into(),
        };
        holders.take(None, &from_config(&[identity]));
        let policy = Policy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#)).unwrap();
        check(&policy, "bkt", &holders).err().map(|e| e.told().message)
    }

    #[test]
    fn a_policy_is_about_its_bucket_and_what_can_be_done_to_it() {
        let good = r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bkt/*"}"#;
        assert_eq!(refused(good), None);
        let table = [
            ("s3:GetObject", "s3:get*", None),
            ("s3:GetObject", "*", None),
            ("s3:GetObject", "s3:FlyToTheMoon", Some("Policy has invalid action")),
            ("s3:GetObject", "ec2:RunInstances", Some("Policy has invalid action")),
            ("s3:GetObject", "s3:ListBucket", Some("Action does not apply to any resource(s) in statement")),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::bkt", Some("Action does not apply to any resource(s) in statement")),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::bkt*", None),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::bkt2/*", Some("Policy has invalid resource")),
            ("arn:aws:s3:::bkt/*", "*", Some("Policy has invalid resource")),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::*", None),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::*/*", None),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::b?t/x", None),
            ("arn:aws:s3:::bkt/*", "arn:aws:s3:::c*", Some("Policy has invalid resource")),
            (
                r#""Principal":"*""#,
                r#""NotPrincipal":{"AWS":"000000000001"}"#,
                Some("Allow with NotPrincipal is not allowed."),
            ),
            (r#""*""#, r#"{"AWS":"000000000001"}"#, None),
            (r#""*""#, r#"{"AWS":"arn:aws:iam::000000000001:user/x"}"#, None),
            (r#""*""#, r#"{"AWS":"000000000002"}"#, Some("Invalid principal in policy")),
            (r#""*""#, r#"{"CanonicalUser":"x"}"#, Some("Invalid principal in policy")),
            (r#""Principal":"*","#, "", Some("Missing required field Principal")),
            (r#","Resource":"arn:aws:s3:::bkt/*""#, "", Some("Missing required field Resource")),
            (
                "bkt/*\"",
                "bkt/*\",\"Condition\":{\"Bool\":{\"s3:x\":\"true\"}}",
                Some("Policy has an invalid condition key"),
            ),
            ("bkt/*\"", "bkt/*\",\"Condition\":{\"Bool\":{\"aws:SecureTransport\":\"true\"}}", None),
            ("bkt/*\"", "bkt/*\",\"Condition\":{\"Null\":{\"s3:ExistingObjectTag/a\":\"true\"}}", None),
        ];
        for (from, to, expected) in table {
            assert_eq!(refused(&good.replacen(from, to, 1)).as_deref(), expected, "{to}");
        }
    }
}
