//! `docs/actions.md` is written from the tables, and what the tables of S3 promise is told in transcripts.

use std::{collections::BTreeSet, path::Path};

use http::Method;
use mallee_tests_cloud::{
    actions, client,
    transcript::{self, Exchange},
};
use mallee_walrus::operation::{self, Does, OPERATIONS};

/// `MALLEE_WRITE_DOCS=1` writes it.
#[test]
fn actions_md_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/actions.md");
    let page = actions::page();
    if std::env::var_os("MALLEE_WRITE_DOCS").is_some() {
        std::fs::write(&path, page).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/actions.md is not what the tables say: run `tools/test docs --write`");
}

#[test]
fn no_action_is_in_two_tables() {
    for (name, service) in actions::SERVICES {
        let mut names: Vec<_> =
            service.tables.iter().flat_map(|table| table.iter()).map(|action| action.name).collect();
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{name}: {twice:?}");
    }
}

/// The operation of S3 that an exchange asks for.
fn asked(exchange: &Exchange) -> Option<&'static str> {
    let (method, target) = exchange.request.first()?.split_once(' ')?;
    let head: Vec<&str> =
        exchange.request[1..].iter().map(String::as_str).take_while(|line| !line.is_empty()).collect();
    let method: Method = method.parse().ok()?;
    Some(operation::asked(&method, target, &client::headers(&head).ok()?).ok()?.name)
}

fn s3_exchanges() -> Vec<Exchange> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../transcripts");
    let all = transcript::load(&folder).unwrap().into_iter().flat_map(|transcript| transcript.exchanges);
    all.filter(|exchange| exchange.service == "s3").collect()
}

#[test]
fn every_operation_of_s3_has_a_transcript_that_does_it_and_one_that_is_refused() {
    let exchanges = s3_exchanges();
    let told = |good: bool| -> BTreeSet<&str> {
        exchanges.iter().filter(|exchange| (exchange.status < 300) == good).filter_map(asked).collect()
    };
    let (done, refused) = (told(true), told(false));
    let mut missing = Vec::new();
    for row in OPERATIONS {
        let (does, refuses) = match row.does {
            // Nothing is asked for that could be missing.
            Does::This(_) => (true, row.name != "ListBuckets"),
            Does::Document { .. } | Does::NothingThere => (true, false),
            Does::Absent { .. } | Does::Refused => (false, true),
        };
        missing.extend((does && !done.contains(row.name)).then(|| format!("{} is not done", row.name)));
        missing.extend((refuses && !refused.contains(row.name)).then(|| format!("{} is not refused", row.name)));
    }
    assert!(missing.is_empty(), "in tests/transcripts:\n  {}", missing.join("\n  "));
}

/// The codes that clients branch on.
const CODES: &[&str] = &[
    "AccessControlListNotSupported",
    "AccessDenied",
    "BadDigest",
    "BucketAlreadyExists",
    "BucketAlreadyOwnedByYou",
    "BucketNotEmpty",
    "EntityTooSmall",
    "InvalidArgument",
    "InvalidBucketName",
    "InvalidBucketState",
    "InvalidDigest",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRange",
    "InvalidRequest",
    "InvalidStorageClass",
    "InvalidTag",
    "MalformedPolicy",
    "MalformedXML",
    "MethodNotAllowed",
    "NoSuchBucket",
    "NoSuchBucketPolicy",
    "NoSuchCORSConfiguration",
    "NoSuchConfiguration",
    "NoSuchKey",
    "NoSuchLifecycleConfiguration",
    "NoSuchObjectLockConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "NoSuchTagSet",
    "NoSuchUpload",
    "NoSuchVersion",
    "NoSuchWebsiteConfiguration",
    "NotImplemented",
    "ObjectLockConfigurationNotFoundError",
    "OwnershipControlsNotFoundError",
    "PreconditionFailed",
    "ReplicationConfigurationNotFoundError",
    "RequestTimeTooSkewed",
    "ServerSideEncryptionConfigurationNotFoundError",
    "SignatureDoesNotMatch",
    "XAmzContentSHA256Mismatch",
];

#[test]
fn every_refusal_of_s3_that_clients_know_has_a_transcript() {
    let answers: String = s3_exchanges().iter().flat_map(|exchange| exchange.answer.clone()).collect();
    let missing: Vec<_> = CODES.iter().filter(|code| !answers.contains(&format!("<Code>{code}</Code>"))).collect();
    assert!(missing.is_empty(), "in tests/transcripts there is no {missing:?}");
}
