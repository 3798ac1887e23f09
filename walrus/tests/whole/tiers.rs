//! What the other tiers do with walrus, over mutual TLS with certificates of a CA made for the test.

use std::path::Path;

use crate::client::{ALICE, BOB, S3, parsed};
use http::{Request, StatusCode};
use mallee_service::{
    Identity, TierHttp, body,
    pki::{Ca, new_key_pem, signing_request, write_public, write_secret},
};
use mallee_tiers::{Digests, FLOW_LOGS_PREFIX, OBJECTS_PREFIX, Peer, Role, StatusAsked, WalrusClient, blob_path};
use sha2::Digest;

fn certify(ca: &Ca, dir: &Path, peer: &Peer) -> Identity {
    std::fs::create_dir_all(dir).unwrap();
    let key = new_key_pem().unwrap();
    write_secret(&dir.join("key.pem"), key.as_bytes()).unwrap();
    write_public(&dir.join("cert.pem"), ca.sign(peer, &signing_request(&key).unwrap()).unwrap().as_bytes()).unwrap();
    write_public(&dir.join("ca.pem"), ca.certificate_pem.as_bytes()).unwrap();
    Identity::load(dir).unwrap()
}

async fn sent(tier: &TierHttp, method: &str, path: &str, range: &str, bytes: &[u8]) -> (StatusCode, Vec<u8>) {
    let mut request = Request::builder().method(method);
    if !range.is_empty() {
        request = request.header("range", range);
    }
    let response = tier.send(request.body(body::full(bytes.to_vec())).unwrap(), path).await.unwrap();
    let status = response.status();
    (status, body::collect(response.into_body(), 1 << 24).await.unwrap().unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_keep_blobs_by_digest_and_read_objects_as_their_owner_would() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open_or_create(&dir.path().join("ca"), "test").unwrap();
    certify(&ca, &dir.path().join("walrus/tls"), &Peer::new(Role::Walrus, "", "walrus"));
    let config = parsed(&dir.path().join("walrus"));
    let running = mallee_walrus::start(config).await.unwrap();
    let address = running.addresses[0].to_string();
    let as_role = |role: Role, name: &str| {
        let identity = certify(&ca, &dir.path().join(name), &Peer::new(role, "mallee-1a", name));
        TierHttp::new(&identity, &address, Role::Walrus, "walrus").unwrap()
    };
    let (cloud, node) = (as_role(Role::CloudController, "cloud-controller"), as_role(Role::NodeController, "n1"));
    let bytes: Vec<u8> = (0..700_000_u32).map(|n| (n % 253) as u8).collect();
    let digest = hex::encode(sha2::Sha256::digest(&bytes));
    let path = blob_path(&digest);

    assert_eq!(sent(&node, "PUT", &path, "", &bytes).await.0, StatusCode::FORBIDDEN);
    assert_eq!(sent(&cloud, "PUT", &path, "", &bytes[1..]).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(sent(&node, "GET", &path, "", b"").await.0, StatusCode::NOT_FOUND);
    for _ in 0..2 {
        assert_eq!(sent(&cloud, "PUT", &path, "", &bytes).await.0, StatusCode::OK);
    }
    assert_eq!(sent(&node, "GET", &path, "", b"").await, (StatusCode::OK, bytes.clone()));
    let part = sent(&node, "GET", &path, "bytes=262140-262150", b"").await;
    assert_eq!(part, (StatusCode::PARTIAL_CONTENT, bytes[262_140..262_151].to_vec()));
    let client = WalrusClient::new(std::sync::Arc::new(cloud.clone()));
    let asked = Digests { digests: vec!["0".repeat(64), digest.clone()] };
    assert_eq!(client.blobs_present(&asked).await.unwrap().digests, std::slice::from_ref(&digest));
    assert_eq!(client.status(&StatusAsked::default()).await.unwrap().role, Role::Walrus);
    assert_eq!(sent(&node, "DELETE", &path, "", b"").await.0, StatusCode::FORBIDDEN);
    assert_eq!(sent(&cloud, "DELETE", &path, "", b"").await.0, StatusCode::OK);
    assert_eq!(sent(&node, "GET", &path, "", b"").await.0, StatusCode::NOT_FOUND);

    let s3 = S3::new(running.addresses[0]).with(ALICE);
    s3.put("/bkt", "").await;
    s3.put("/bkt/a%20private", "mine").await;
    s3.call("PUT", "/bkt/bundle", &[("x-amz-acl", "aws-exec-read")], "image").await;
    let object = |key: &str, account: &str| format!("{OBJECTS_PREFIX}bkt/{key}?account={account}");
    let (alice, bob) = ("000000000001", "000000000002");
    assert_eq!(sent(&cloud, "GET", &object("a%20private", alice), "", b"").await, (StatusCode::OK, b"mine".to_vec()));
    assert_eq!(sent(&cloud, "GET", &object("a%20private", bob), "", b"").await.0, StatusCode::FORBIDDEN);
    assert_eq!(sent(&cloud, "GET", &object("bundle", bob), "", b"").await, (StatusCode::OK, b"image".to_vec()));
    assert_eq!(sent(&cloud, "GET", &object("none", alice), "", b"").await.0, StatusCode::NOT_FOUND);
    assert_eq!(sent(&cloud, "GET", &object("bundle", "000000000009"), "", b"").await.0, StatusCode::NOT_FOUND);
    assert_eq!(sent(&node, "GET", &object("bundle", alice), "", b"").await.0, StatusCode::FORBIDDEN);
    // Without a certificate there is no such door.
    let bare = Request::get(format!("http://{address}{path}")).body(http_body_util::Full::default()).unwrap();
    assert_eq!(s3.send(bare).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_bring_flow_logs_where_the_bucket_lets_them_in_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open_or_create(&dir.path().join("ca"), "test").unwrap();
    certify(&ca, &dir.path().join("walrus/tls"), &Peer::new(Role::Walrus, "", "walrus"));
    let running = mallee_walrus::start(parsed(&dir.path().join("walrus"))).await.unwrap();
    let address = running.addresses[0].to_string();
    let as_role = |role: Role, name: &str| {
        let identity = certify(&ca, &dir.path().join(name), &Peer::new(role, "mallee-1a", name));
        TierHttp::new(&identity, &address, Role::Walrus, "walrus").unwrap()
    };
    let (cloud, node) = (as_role(Role::CloudController, "cloud-controller"), as_role(Role::NodeController, "n1"));
    let (alice, bob) = (S3::new(running.addresses[0]).with(ALICE), S3::new(running.addresses[0]).with(BOB));
    alice.put("/logs", "").await;
    let of = |account: &str| format!("p/AWSLogs/{account}/vpcflowlogs/mallee-1/2026/11/20/a.log.gz");
    let (its, bobs) = (of("000000000001"), of("000000000002"));
    let path = |key: &str, account: &str| format!("{FLOW_LOGS_PREFIX}logs/{key}?account={account}");

    assert_eq!(sent(&node, "PUT", &path(&its, "000000000001"), "", b"lines").await.0, StatusCode::OK);
    assert_eq!(alice.get(&format!("/logs/{its}")).await.text(), "lines");
    assert_eq!(sent(&cloud, "HEAD", &path(&its, "000000000001"), "", b"").await.0, StatusCode::OK);
    // Who may ask is not who may bring.
    assert_eq!(sent(&cloud, "PUT", &path(&its, "000000000001"), "", b"x").await.0, StatusCode::FORBIDDEN);
    assert_eq!(sent(&node, "HEAD", &path(&its, "000000000001"), "", b"").await.0, StatusCode::FORBIDDEN);
    // Keys of another account, or of nobody's flow logs, are out of reach.
    for (key, account) in [(its.as_str(), "000000000002"), ("p/other", "000000000001"), ("AWSLogs/", "")] {
        assert_eq!(sent(&node, "PUT", &path(key, account), "", b"x").await.0, StatusCode::BAD_REQUEST, "{key}");
    }
    let missing = format!("{FLOW_LOGS_PREFIX}gone/{its}?account=000000000001");
    assert_eq!(sent(&node, "PUT", &missing, "", b"x").await.0, StatusCode::NOT_FOUND);

    // Bob's log in Alice's bucket: only by her policy, and what it brings is hers to read.
    assert_eq!(sent(&node, "PUT", &path(&bobs, "000000000002"), "", b"x").await.0, StatusCode::FORBIDDEN);
    let statement = |effect: &str, account: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"{effect}","Principal":{{"Service":"delivery.logs.amazonaws.com"}},
                "Action":"s3:PutObject","Resource":"arn:aws:s3:::logs/p/AWSLogs/*","Condition":{{"StringEquals":
                {{"aws:SourceAccount":"{account}","s3:x-amz-acl":"bucket-owner-full-control"}}}}}}]}}"#
        )
    };
    alice.put("/logs?policy", statement("Allow", "000000000002")).await;
    assert_eq!(sent(&node, "PUT", &path(&bobs, "000000000002"), "", b"bob's").await.0, StatusCode::OK);
    assert_eq!(alice.get(&format!("/logs/{bobs}")).await.text(), "bob's");
    assert_eq!(bob.get(&format!("/logs/{its}")).await.status, StatusCode::FORBIDDEN);
    alice.put("/logs?policy", statement("Deny", "000000000001")).await;
    assert_eq!(sent(&cloud, "HEAD", &path(&its, "000000000001"), "", b"").await.0, StatusCode::FORBIDDEN);
    assert_eq!(sent(&node, "PUT", &path(&its, "000000000001"), "", b"x").await.0, StatusCode::FORBIDDEN);
}
