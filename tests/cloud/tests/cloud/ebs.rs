//! The EBS direct APIs through all tiers: snapshots read and written in blocks, as a backup program does.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Method;
use mallee_cloud_controller::ebs::ACTIONS;
use mallee_tests_cloud::{Answer, Client, Cloud, Signed, Tier, client, eventually};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::snapshot::{completed, read, restored, serve, snapshot, walrus_has, write};

const BLOCK: usize = 512 << 10;

async fn ask(user: &Client, method: Method, target: &str, headers: &[&str], body: impl Into<Bytes>) -> Answer {
    let headers = client::headers(headers).unwrap();
    let sent = user.send(user.query, "ebs", method, target, headers, body.into(), Signed::Properly);
    sent.await.unwrap_or_else(|e| panic!("{target}: {e}"))
}

/// A block of this byte.
fn filled(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK]
}

fn document(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.text()))
}

async fn get(user: &Client, target: &str) -> Value {
    document(&ask(user, Method::GET, target, &[], "").await.ok())
}

/// Code and reason of a refusal.
fn refusal(answer: &Answer) -> (u16, String, String) {
    let code = answer.headers.get("x-amzn-errortype").map(|code| code.to_str().unwrap().to_owned());
    let reason = document(answer)["Reason"].as_str().unwrap_or_default().to_owned();
    (answer.status, code.unwrap_or_default(), reason)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str, reason: &str) {
    assert_eq!(refusal(answer), (status, code.to_owned(), reason.to_owned()), "{}", answer.text());
}

async fn start(user: &Client, asked: Value) -> Answer {
    ask(user, Method::POST, "/snapshots", &["content-type: application/json"], asked.to_string()).await
}

async fn started(user: &Client, asked: Value) -> String {
    document(&start(user, asked).await.ok())["SnapshotId"].as_str().unwrap().to_owned()
}

fn checksum(bytes: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(bytes))
}

async fn put(user: &Client, snapshot: &str, number: u64, block: &[u8]) -> Answer {
    let sum = format!("x-amz-checksum: {}", checksum(block));
    let headers = ["x-amz-data-length: 524288", "x-amz-checksum-algorithm: SHA256", &sum];
    ask(user, Method::PUT, &format!("/snapshots/{snapshot}/blocks/{number}"), &headers, block.to_vec()).await
}

async fn complete(user: &Client, snapshot: &str, count: usize, more: &[&str]) -> Answer {
    let count = format!("x-amz-changedblockscount: {count}");
    let headers: Vec<&str> = std::iter::once(count.as_str()).chain(more.iter().copied()).collect();
    ask(user, Method::POST, &format!("/snapshots/completion/{snapshot}"), &headers, "").await
}

/// Every block of a list, by its number, with the token under this name; none is a block without.
async fn listed(user: &Client, target: &str, list: &str, token: &str) -> BTreeMap<u64, Option<String>> {
    let mut all = BTreeMap::new();
    let mut next = String::new();
    loop {
        let answer = get(user, &format!("{target}{next}")).await;
        assert_eq!(answer["BlockSize"], BLOCK);
        for block in answer[list].as_array().unwrap() {
            all.insert(block["BlockIndex"].as_u64().unwrap(), block[token].as_str().map(str::to_owned));
        }
        let Some(more) = answer["NextToken"].as_str() else { return all };
        let join = if target.contains('?') { '&' } else { '?' };
        next = format!("{join}pageToken={}", mallee_aws::signature::percent_encode(more.as_bytes()));
    }
}

async fn blocks(user: &Client, snapshot: &str) -> BTreeMap<u64, String> {
    let all = listed(user, &format!("/snapshots/{snapshot}/blocks?maxResults=100"), "Blocks", "BlockToken").await;
    all.into_iter().map(|(number, token)| (number, token.unwrap())).collect()
}

async fn changed(user: &Client, first: &str, second: &str, token: &str) -> BTreeMap<u64, Option<String>> {
    let target = format!("/snapshots/{second}/changedblocks?firstSnapshotId={first}");
    listed(user, &target, "ChangedBlocks", token).await
}

async fn block(user: &Client, snapshot: &str, number: u64, token: &str) -> Answer {
    let token = mallee_aws::signature::percent_encode(token.as_bytes());
    ask(user, Method::GET, &format!("/snapshots/{snapshot}/blocks/{number}?blockToken={token}"), &[], "").await
}

async fn content(user: &Client, snapshot: &str, number: u64, token: &str) -> Bytes {
    let answer = block(user, snapshot, number, token).await.ok();
    assert_eq!(answer.headers["x-amz-checksum"], checksum(&answer.body));
    assert_eq!((answer.body.len(), &answer.headers["x-amz-data-length"]), (BLOCK, &"524288".parse().unwrap()));
    answer.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_copied_block_by_block_is_the_same_disk_whoever_is_killed_between_the_steps() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let volume = cloud.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await.value("volumeId");
    serve(&cloud, &volume).await;
    write(&cloud, &volume, "write -P 1 0 512k");
    write(&cloud, &volume, "write -P 2 600M 1M");
    let first = snapshot(&cloud, &volume).await;
    completed(&cloud, &first).await;
    write(&cloud, &volume, "write -P 3 512k 4k");
    write(&cloud, &volume, "write -P 4 600M 512k");
    write(&cloud, &volume, "write -P 0 0 512k");
    let second = snapshot(&cloud, &volume).await;
    completed(&cloud, &second).await;

    let all = blocks(user, &first).await;
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [0, 1200, 1201]);
    // Exactly what was written between the two; one that is zeros now can be read as zeros.
    let since = changed(user, &first, &second, "SecondBlockToken").await;
    assert_eq!(since.keys().copied().collect::<Vec<_>>(), [0, 1, 1200]);
    let before = changed(user, &first, &second, "FirstBlockToken").await;
    assert_eq!(before.values().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    assert!(content(user, &second, 0, since[&0].as_ref().unwrap()).await.iter().all(|b| *b == 0));
    assert!(content(user, &first, 0, before[&0].as_ref().unwrap()).await.iter().all(|b| *b == 1));

    let asked = json!({ "VolumeSize": 1, "ClientToken": "copy", "Tags": [{ "Key": "k", "Value": "v" }] });
    let copy = started(user, asked.clone()).await;
    let mut digests = Vec::new();
    for (number, token) in &all {
        let bytes = content(user, &first, *number, token).await;
        put(user, &copy, *number, &bytes).await.ok();
        digests.extend_from_slice(&Sha256::digest(&bytes));
        cloud.restart(&[Tier::CloudController, Tier::Walrus]).await;
        cloud.wait_for_everybody().await;
    }
    assert_eq!(started(user, asked).await, copy, "the same token makes nothing new");
    let linear = [
        format!("x-amz-checksum: {}", checksum(&digests)),
        "x-amz-checksum-algorithm: SHA256".into(),
        "x-amz-checksum-aggregation-method: LINEAR".into(),
    ];
    let linear: Vec<&str> = linear.iter().map(String::as_str).collect();
    let sealed = complete(user, &copy, 3, &linear).await.ok();
    assert_eq!((sealed.status, document(&sealed)["Status"].as_str()), (202, Some("pending")));
    cloud.restart(&[Tier::CloudController, Tier::Walrus]).await;
    cloud.wait_for_everybody().await;
    // Its answer may have been lost.
    complete(user, &copy, 3, &linear).await.ok();
    completed(&cloud, &copy).await;
    refused(&put(user, &copy, 0, &filled(1)).await, 400, "ValidationException", "INVALID_SNAPSHOT_ID");
    assert_eq!(blocks(user, &copy).await.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());

    // On a parent only what differs is written, and a block of zeros takes one away.
    let child = started(user, json!({ "VolumeSize": 2, "ParentSnapshotId": copy })).await;
    put(user, &child, 1, &filled(9)).await.ok();
    put(user, &child, 0, &filled(0)).await.ok();
    cloud.ec2(&format!("Action=DeleteSnapshot&SnapshotId={copy}")).await.ok();
    complete(user, &child, 2, &[]).await.ok();
    completed(&cloud, &child).await;
    let restored = restored(&cloud, &child).await;
    for (fill, at) in [(0, 0), (9, 512 << 10), (2, 600 << 20), (2, (600 << 20) + (512 << 10))] {
        read(&cloud, &restored, fill, at);
    }
    let tags = cloud.ec2("Action=DescribeTags&Filter.1.Name=key&Filter.1.Value.1=k").await;
    assert!(!tags.text().contains(&copy), "the deleted one's tag is gone: {}", tags.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_leaves_no_block_behind_and_what_is_encrypted_is_so_in_walrus() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let given_up = started(user, json!({ "VolumeSize": 1 })).await;
    put(user, &given_up, 0, &filled(7)).await.ok();
    put(user, &given_up, 1, &filled(8)).await.ok();
    put(user, &given_up, 1, &filled(9)).await.ok();
    eventually("what was overwritten is gone", || async { (!walrus_has(&cloud, 8).await).then_some(()) }).await;
    assert!(walrus_has(&cloud, 7).await && walrus_has(&cloud, 9).await);
    let kept = started(user, json!({ "VolumeSize": 1 })).await;
    put(user, &kept, 5, &filled(9)).await.ok();
    cloud.ec2(&format!("Action=DeleteSnapshot&SnapshotId={given_up}")).await.ok();
    refused(&put(user, &given_up, 0, &filled(7)).await, 404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND");
    eventually("what was given up is gone", || async { (!walrus_has(&cloud, 7).await).then_some(()) }).await;
    assert!(walrus_has(&cloud, 9).await, "another one was written with it");
    complete(user, &kept, 1, &[]).await.ok();
    completed(&cloud, &kept).await;
    assert!(walrus_has(&cloud, 9).await);

    let sealed = document(&start(user, json!({ "VolumeSize": 1, "Encrypted": true })).await.ok());
    assert!(sealed["KmsKeyArn"].as_str().unwrap().starts_with("arn:aws:kms:"));
    let sealed = sealed["SnapshotId"].as_str().unwrap().to_owned();
    put(user, &sealed, 3, &filled(5)).await.ok();
    complete(user, &sealed, 1, &[]).await.ok();
    completed(&cloud, &sealed).await;
    assert!(!walrus_has(&cloud, 5).await);
    let tokens = blocks(user, &sealed).await;
    assert!(content(user, &sealed, 3, &tokens[&3]).await.iter().all(|b| *b == 5));
    let child = started(user, json!({ "VolumeSize": 1, "ParentSnapshotId": sealed })).await;
    put(user, &child, 4, &filled(6)).await.ok();
    complete(user, &child, 1, &[]).await.ok();
    completed(&cloud, &child).await;
    let restored = restored(&cloud, &child).await;
    read(&cloud, &restored, 5, 3 * BLOCK as u64);
    read(&cloud, &restored, 6, 4 * BLOCK as u64);
    assert!(!walrus_has(&cloud, 6).await);
    assert_eq!(changed(user, &sealed, &child, "FirstBlockToken").await, BTreeMap::from([(4, None)]));
}

/// A complete snapshot with one block, number 2, of this byte.
async fn made(cloud: &Cloud, user: &Client, fill: u8) -> String {
    let id = started(user, json!({ "VolumeSize": 1 })).await;
    put(user, &id, 2, &filled(fill)).await.ok();
    complete(user, &id, 1, &[]).await.ok();
    eventually("it is completed", || async {
        let answer = user.ec2(&format!("Action=DescribeSnapshots&SnapshotId.1={id}")).await;
        (answer.value("status") == "completed").then_some(())
    })
    .await;
    cloud.assert_nobody_crashed();
    id
}

/// Every action on this snapshot, well-formed.
fn requests(id: &str) -> Vec<(&'static str, Method, String, Vec<String>, Bytes)> {
    let block = filled(1);
    let sum = format!("x-amz-checksum: {}", checksum(&block));
    let of_block = vec!["x-amz-data-length: 524288".into(), "x-amz-checksum-algorithm: SHA256".into(), sum];
    let count = vec!["x-amz-changedblockscount: 0".to_owned()];
    let json = vec!["content-type: application/json".to_owned()];
    let size = json!({ "VolumeSize": 1, "ParentSnapshotId": id }).to_string();
    let none = Vec::new;
    vec![
        ("CompleteSnapshot", Method::POST, format!("/snapshots/completion/{id}"), count, Bytes::new()),
        ("GetSnapshotBlock", Method::GET, format!("/snapshots/{id}/blocks/2?blockToken=AAAA"), none(), Bytes::new()),
        (
            "ListChangedBlocks",
            Method::GET,
            format!("/snapshots/{id}/changedblocks?firstSnapshotId={id}"),
            none(),
            Bytes::new(),
        ),
        ("ListSnapshotBlocks", Method::GET, format!("/snapshots/{id}/blocks"), none(), Bytes::new()),
        ("PutSnapshotBlock", Method::PUT, format!("/snapshots/{id}/blocks/2"), of_block, block.into()),
        ("StartSnapshot", Method::POST, "/snapshots".into(), json, size.into()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_action_is_for_strangers_and_what_is_another_accounts_is_not_there_until_it_is_shared() {
    let cloud = Cloud::start().await;
    let (alice, mallory) = (cloud.user().await, cloud.account("mallory").await);
    let secret = made(&cloud, alice, 3).await;
    let all = requests(&secret);
    assert_eq!(all.iter().map(|r| r.0).collect::<Vec<_>>(), ACTIONS.iter().map(|a| a.name).collect::<Vec<_>>());
    for (name, method, target, headers, body) in &all {
        let lines: Vec<&str> = headers.iter().map(String::as_str).collect();
        for (how, code) in [
            (Signed::Not, "MissingAuthenticationTokenException"),
            (Signed::WrongSecret, "InvalidSignatureException"),
            (Signed::UnknownKey, "UnrecognizedClientException"),
            (Signed::LongAgo, "InvalidSignatureException"),
            (Signed::OtherBody, "InvalidSignatureException"),
        ] {
            let headers = client::headers(&lines).unwrap();
            let sent = alice.send(alice.query, "ebs", method.clone(), target, headers, body.clone(), how);
            refused(&sent.await.unwrap(), 403, code, "");
        }
        // Signed for another service, the path still says whose it is.
        let headers = client::headers(&lines).unwrap();
        let sent = alice.send(alice.query, "ec2", method.clone(), target, headers, body.clone(), Signed::Properly);
        refused(&sent.await.unwrap(), 403, "InvalidSignatureException", "");
        let answer = ask(&mallory, method.clone(), target, &lines, body.clone()).await;
        refused(&answer, 404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND");
        let none = target.replace(&secret, "snap-0123456789abcdef0");
        let body = String::from_utf8_lossy(body).replace(&secret, "snap-0123456789abcdef0");
        let same = ask(
            &mallory,
            method.clone(),
            &none,
            &lines,
            if *name == "PutSnapshotBlock" { filled(1).into() } else { Bytes::from(body) },
        )
        .await;
        assert_eq!(refusal(&same), refusal(&answer), "{name}");
        assert_eq!(same.text().replace("snap-0123456789abcdef0", &secret), answer.text(), "{name}");
    }
    let token = blocks(alice, &secret).await[&2].clone();
    refused(&block(&mallory, &secret, 2, &token).await, 404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND");
    let share = |what: &str| {
        format!(
            "Action=ModifySnapshotAttribute&SnapshotId={secret}&CreateVolumePermission.{what}.1.UserId={}",
            mallory.key.account
        )
    };
    alice.ec2(&share("Add")).await.ok();
    let tokens = blocks(&mallory, &secret).await;
    assert!(content(&mallory, &secret, 2, &tokens[&2]).await.iter().all(|b| *b == 3));
    refused(&put(&mallory, &secret, 2, &filled(4)).await, 403, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT");
    let done = complete(&mallory, &secret, 1, &[]).await;
    refused(&done, 403, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT");
    alice.ec2(&share("Remove")).await.ok();
    let taken_back = block(&mallory, &secret, 2, &tokens[&2]).await;
    refused(&taken_back, 404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_with_the_reason_and_changes_nothing() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let (whole, other) = (made(&cloud, user, 1).await, made(&cloud, user, 2).await);
    let token = blocks(user, &whole).await[&2].clone();
    let bad = |reason| (400, "ValidationException", reason);

    for (asked, (status, code, reason)) in [
        (json!({}), bad("INVALID_PARAMETER_VALUE")),
        (json!([]), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": "1" }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 1, "Colour": "red" }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 0 }), bad("INVALID_VOLUME_SIZE")),
        (json!({ "VolumeSize": -1 }), bad("INVALID_VOLUME_SIZE")),
        (json!({ "VolumeSize": 65_536 }), bad("INVALID_VOLUME_SIZE")),
        (json!({ "VolumeSize": 1, "Timeout": 9 }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 1, "Timeout": 4_321 }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 1, "ClientToken": "a b" }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 1, "Description": "x".repeat(256) }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 1, "Tags": [{ "Key": "", "Value": "" }] }), bad("INVALID_TAG")),
        (json!({ "VolumeSize": 1, "ParentSnapshotId": "snap-1" }), bad("INVALID_SNAPSHOT_ID")),
        (json!({ "VolumeSize": 1, "ParentSnapshotId": whole, "Encrypted": true }), bad("INVALID_PARAMETER_VALUE")),
        (json!({ "VolumeSize": 1, "KmsKeyArn": "arn:aws:kms:mallee-1:1:key/x" }), bad("INVALID_PARAMETER_VALUE")),
        (
            json!({ "VolumeSize": 1, "Encrypted": true, "KmsKeyArn": "arn:aws:kms:mallee-1:123456789012:key/x" }),
            bad("INVALID_CUSTOMER_KEY"),
        ),
    ] {
        refused(&start(user, asked).await, status, code, reason);
    }
    started(user, json!({ "VolumeSize": 1, "ClientToken": "t" })).await;
    let again = start(user, json!({ "VolumeSize": 2, "ClientToken": "t" })).await;
    refused(&again, 409, "ConflictException", "");

    let list = |id: &str, rest: &str| format!("/snapshots/{id}/blocks{rest}");
    let compare = |rest: &str| format!("/snapshots/{whole}/changedblocks{rest}");
    let pending = started(user, json!({ "VolumeSize": 1 })).await;
    for (target, reason) in [
        (list("snap-zz", ""), "INVALID_SNAPSHOT_ID"),
        (list(&whole, "?maxResults=99"), "INVALID_PARAMETER_VALUE"),
        (list(&whole, "?maxResults=10001"), "INVALID_PARAMETER_VALUE"),
        (list(&whole, "?maxResults=x"), "INVALID_PARAMETER_VALUE"),
        (list(&whole, "?startingBlockIndex=-1"), "INVALID_PARAMETER_VALUE"),
        (list(&whole, "?colour=red"), "INVALID_PARAMETER_VALUE"),
        (list(&whole, "?pageToken=AAAA"), "INVALID_PAGE_TOKEN"),
        (list(&pending, ""), "INVALID_SNAPSHOT_ID"),
        (list(&whole, "/2"), "INVALID_BLOCK_TOKEN"),
        (list(&whole, "/-2?blockToken=AAAA"), "INVALID_PARAMETER_VALUE"),
        (list(&whole, &format!("/3?blockToken={token}")), "INVALID_BLOCK_TOKEN"),
        (list(&other, &format!("/2?blockToken={token}")), "INVALID_BLOCK_TOKEN"),
        (compare(""), "INVALID_PARAMETER_VALUE"),
        (compare(&format!("?firstSnapshotId={other}")), "UNRELATED_SNAPSHOTS"),
    ] {
        let target = target.replace('+', "%2B");
        refused(&ask(user, Method::GET, &target, &[], "").await, 400, "ValidationException", reason);
    }
    assert_eq!(get(user, &list(&whole, "?startingBlockIndex=3")).await["Blocks"], json!([]));

    let block = filled(3);
    let sum = format!("x-amz-checksum: {}", checksum(&block));
    let (length, sha) = ("x-amz-data-length: 524288", "x-amz-checksum-algorithm: SHA256");
    let wrong = format!("x-amz-checksum: {}", checksum(b"other"));
    let sums: [(&[&str], &[u8], &str, &str); 8] = [
        (&[length, sha, &wrong], &block, "0", "INVALID_BLOCK"),
        (&[length, sha], &block, "0", "INVALID_BLOCK"),
        (&[sha, &sum], &block, "0", "INVALID_BLOCK"),
        (&[length, sha, &sum], &block[1..], "0", "INVALID_BLOCK"),
        (&[length, &sum], &block, "0", "INVALID_PARAMETER_VALUE"),
        (&[length, sha, &sum, "x-amz-progress: 101"], &block, "0", "INVALID_PARAMETER_VALUE"),
        (&[length, sha, &sum, "content-encoding: gzip"], &block, "0", "INVALID_CONTENT_ENCODING"),
        (&[length, sha, &sum], &block, "2048", "INVALID_BLOCK"),
    ];
    for (headers, bytes, number, reason) in sums {
        let answer = ask(user, Method::PUT, &list(&pending, &format!("/{number}")), headers, bytes.to_vec()).await;
        refused(&answer, 400, "ValidationException", reason);
    }
    refused(&put(user, &whole, 0, &block).await, 400, "ValidationException", "INVALID_SNAPSHOT_ID");
    put(user, &pending, 2047, &block).await.ok();
    refused(&complete(user, &pending, 2, &[]).await, 400, "ValidationException", "INVALID_PARAMETER_VALUE");
    let done = complete(user, &pending, 1, &[&wrong]).await;
    refused(&done, 400, "ValidationException", "INVALID_PARAMETER_VALUE");
    let done = complete(user, &pending, 1, &["x-amz-checksum-aggregation-method: TREE"]).await;
    refused(&done, 400, "ValidationException", "INVALID_PARAMETER_VALUE");
    let none = ask(user, Method::DELETE, &list(&pending, ""), &[], "").await;
    refused(&none, 404, "UnknownOperationException", "");
    complete(user, &pending, 1, &[]).await.ok();
    completed(&cloud, &pending).await;
    assert_eq!(blocks(user, &pending).await.keys().collect::<Vec<_>>(), [&2047]);
    cloud.assert_nobody_crashed();
}
