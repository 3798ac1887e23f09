//! Attacks that other S3 servers fell to, by the numbers of the attack list they are kept under: each is tried, and must
//! neither get what it is after nor leave anything behind. 26 (what is encrypted is nowhere on the disk in clear) is in
//! `versions.rs`, the fuzzing half of 24 in `hard/nonsense.rs`.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use mallee_aws::{
    AccessKeyId, SecretKey,
    signature::{Payload, Signer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    buckets::{World, form, world, world_with},
    client::{ALICE, Answer, BOB, S3, between},
    hard::{
        disk::Disk,
        load::nothing_left,
        server::{Server, rounds},
    },
};

async fn absent(world: &World, key: &str) {
    assert_eq!(world.s3.get(&format!("/bkt/{key}")).await.code(), "NoSuchKey", "{key}");
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// 2
#[tokio::test(flavor = "multi_thread")]
async fn entities_in_documents_expand_to_nothing() {
    let world = world().await;
    world.s3.put("/bkt/k", "x").await;
    let upload = world.s3.call("POST", "/bkt/k?uploads", &[], "").await.text();
    let id = between(&upload, "<UploadId>", "<").unwrap().to_owned();
    let laughs: String =
        (1..=9).map(|n| format!("<!ENTITY l{n} \"{}\">", format!("&l{};", n - 1).repeat(10))).collect();
    let bomb = |root: &str| {
        format!(
            "<?xml version=\"1.0\"?><!DOCTYPE {root} [<!ENTITY l0 \"ha\">{laughs}<!ENTITY x SYSTEM \"file:///etc/passwd\">]><{root}><a>&l9;&x;</a></{root}>"
        )
    };
    let doors = [
        ("POST", "/bkt?delete".to_owned(), "Delete"),
        ("POST", format!("/bkt/k?uploadId={id}"), "CompleteMultipartUpload"),
        ("PUT", "/bkt2".to_owned(), "CreateBucketConfiguration"),
        ("PUT", "/bkt?acl".to_owned(), "AccessControlPolicy"),
        ("PUT", "/bkt/k?acl".to_owned(), "AccessControlPolicy"),
        ("PUT", "/bkt/k?tagging".to_owned(), "Tagging"),
        ("PUT", "/bkt?tagging".to_owned(), "Tagging"),
        ("PUT", "/bkt?cors".to_owned(), "CORSConfiguration"),
        ("PUT", "/bkt?website".to_owned(), "WebsiteConfiguration"),
        ("PUT", "/bkt?logging".to_owned(), "BucketLoggingStatus"),
        ("PUT", "/bkt?notification".to_owned(), "NotificationConfiguration"),
        ("PUT", "/bkt?encryption".to_owned(), "ServerSideEncryptionConfiguration"),
        ("PUT", "/bkt?publicAccessBlock".to_owned(), "PublicAccessBlockConfiguration"),
        ("PUT", "/bkt?ownershipControls".to_owned(), "OwnershipControls"),
        ("PUT", "/bkt?requestPayment".to_owned(), "RequestPaymentConfiguration"),
        ("PUT", "/bkt?versioning".to_owned(), "VersioningConfiguration"),
        ("PUT", "/bkt?lifecycle".to_owned(), "LifecycleConfiguration"),
    ];
    let before = resident();
    for _ in 0..5 {
        for (method, path, root) in &doors {
            let answer = world.s3.call(method, path, &[], bomb(root)).await;
            let code = if path.ends_with("?acl") { "MalformedACLError" } else { "MalformedXML" };
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, code), "{method} {path}");
            assert!(!answer.text().contains("root:"));
            let deep = format!("<{root}>{}{}</{root}>", "<a>".repeat(50_000), "</a>".repeat(50_000));
            let code = world.s3.call(method, path, &[], deep).await.code();
            assert!(
                ["MalformedXML", "MalformedACLError", "MaxMessageLengthExceeded"].contains(&code.as_str()),
                "{method} {path}: {code}"
            );
        }
    }
    assert!(resident() < before + (32 << 20), "{} MiB more", (resident() - before) >> 20);
}

fn plain(method: &str, url: String, headers: &[(&str, &str)], body: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body)).unwrap()
}

/// 3, 4
#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_trailer_needs_a_signed_request() {
    let world = world().await;
    let body = "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n";
    let at = |query: &str| format!("http://{}/bkt/k{query}", world.s3.address);
    let trailer = [
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
        ("x-amz-decoded-content-length", "5"),
        ("content-encoding", "aws-chunked"),
    ];
    let credential = format!("{}/20260101/us-east-1/s3/aws4_request", ALICE.0);
    let query = format!("?X-Amz-Credential={}", credential.replace('/', "%2F"));
    let garbage = format!(
        "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={}",
        "0".repeat(64)
    );
    let now = time::OffsetDateTime::now_utc();
    let date = format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    );
    let today = garbage.replace("20260101", &date[..8]);
    for (url, more) in [
        (at(""), vec![]),
        (at(&query), vec![]),
        (at(&format!("{query}&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={}", "0".repeat(64)).replace("20260101", &date[..8])), vec![]),
        (at(""), vec![("authorization", garbage.as_str()), ("x-amz-date", date.as_str())]),
        (at(""), vec![("authorization", today.as_str()), ("x-amz-date", date.as_str())]),
        (at(&query), vec![("authorization", today.as_str()), ("x-amz-date", date.as_str())]),
    ] {
        let headers: Vec<_> = trailer.iter().copied().chain(more).collect();
        let answer = world.s3.send(plain("PUT", url.clone(), &headers, body)).await;
        assert!([400, 403].contains(&answer.status.as_u16()), "{url}: {} {}", answer.status, answer.text());
    }
    absent(&world, "k").await;
}

/// 5
#[tokio::test(flavor = "multi_thread")]
async fn a_presigned_url_binds_its_headers_and_needs_its_signature() {
    let world = world().await;
    let now = time::OffsetDateTime::now_utc();
    let put = world.s3.presigned("PUT", "/bkt/k?x-amz-acl=private", now).to_string();
    let (head, _) = put.split_once("X-Amz-Signature=").unwrap();
    for signature in ["00", &"0".repeat(64), ""] {
        let answer = world.s3.send(plain("PUT", format!("{head}X-Amz-Signature={signature}"), &[], "x")).await;
        assert!([400, 403].contains(&answer.status.as_u16()) && !answer.code().is_empty(), "{}", answer.text());
    }
    let twice = put.replace("x-amz-acl=private", "x-amz-acl=private&x-amz-acl=public-read");
    assert!(world.s3.send(plain("PUT", twice, &[], "x")).await.status.is_client_error());
    let answer = world
        .s3
        .send(plain(
            "PUT",
            put.clone(),
            &[("x-amz-grant-read", "uri=http://acs.amazonaws.com/groups/global/AllUsers")],
            "x",
        ))
        .await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    absent(&world, "k").await;
    assert_eq!(world.s3.send(plain("PUT", put, &[], "x")).await.status, StatusCode::OK);
}

fn signed_at(s3: &S3, at: time::OffsetDateTime, keys: (&str, &str), token: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = plain("PUT", format!("http://{}/bkt/k", s3.address), &[], "x");
    let (key, secret): (AccessKeyId, _) = (keys.0.parse().unwrap(), SecretKey::new(keys.1));
    let signer = Signer { access_key: &key, secret: &secret, session_token: token, region: "mallee-1", service: "s3" };
    signer.sign(&mut request, Payload::Unsigned, at).unwrap();
    request
}

/// 6
#[tokio::test(flavor = "multi_thread")]
async fn an_old_request_is_not_taken_again() {
    let world = world().await;
    let now = time::OffsetDateTime::now_utc();
    for minutes in [-16, 16, -60 * 24 * 400] {
        let answer = world.s3.send(signed_at(&world.s3, now + time::Duration::minutes(minutes), ALICE, None)).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "RequestTimeTooSkewed".into()), "{minutes}");
    }
    for date in ["", "yesterday", "20261301T000000Z", "0", "99999999T999999Z"] {
        let mut request = signed_at(&world.s3, now, ALICE, None);
        request.headers_mut().insert("x-amz-date", date.parse().unwrap());
        let answer = world.s3.send(request).await;
        assert!([400, 403].contains(&answer.status.as_u16()), "{date:?}: {}", answer.status);
    }
    absent(&world, "k").await;
}

/// 7
#[tokio::test(flavor = "multi_thread")]
async fn temporary_credentials_cannot_be_made_up() {
    let world = world().await;
    let now = time::OffsetDateTime::now_utc();
    for (keys, token) in [
        (("ASIAMADEUPMADEUP", "secret"), Some("made up")),
        (("ASIAMADEUPMADEUP", ""), None),
        (ALICE, Some("a token of somebody")),
        ((ALICE.0, BOB.1), None),
        (("anonymous", ""), None),
    ] {
        let answer = world.s3.send(signed_at(&world.s3, now, keys, token)).await;
        assert!([400, 403].contains(&answer.status.as_u16()), "{keys:?} {token:?}: {}", answer.text());
    }
    absent(&world, "k").await;
}

/// 8, 9
#[tokio::test(flavor = "multi_thread")]
async fn what_was_signed_is_what_is_done() {
    let world = world().await;
    let mut swapped = world.s3.signed("PUT", "/bkt/k", &[], Bytes::from("good"));
    *swapped.body_mut() = Full::from("evil");
    let answer = world.s3.send(swapped).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "XAmzContentSHA256Mismatch"));
    world.s3.put("/bkt/source", "x").await;
    for (name, value) in [
        ("x-amz-copy-source", "/bkt/source"),
        ("x-amz-acl", "public-read"),
        ("x-amz-meta-a", "b"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-bypass-governance-retention", "true"),
    ] {
        let mut request = world.s3.signed("PUT", "/bkt/k", &[], Bytes::from("good"));
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(world.s3.send(request).await.status, StatusCode::FORBIDDEN, "{name}");
    }
    absent(&world, "k").await;
}

/// 10, 11
#[tokio::test(flavor = "multi_thread")]
async fn copies_and_old_versions_are_read_only_with_the_right_to_read_them() {
    let world = world().await;
    world
        .s3
        .put("/bkt?versioning", "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")
        .await;
    let old = world.s3.put("/bkt/open", "old secret").await.header("x-amz-version-id").to_owned();
    world.s3.put("/bkt/open", "new").await;
    world.s3.put("/bkt/shut", "shut").await;
    assert!(!old.is_empty());
    world.bob.put("/bobs", "").await;
    let answer = world
        .policy(r#"{"Effect":"Allow","Principal":{"AWS":"000000000002"},"Action":"s3:GetObject","Resource":"arn:aws:s3:::bkt/open"}"#)
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(world.bob.get("/bkt/open").await.body, "new");
    let by_version = format!("/bkt/open?versionId={old}");
    for (method, path) in [
        ("GET", by_version.clone()),
        ("HEAD", by_version.clone()),
        ("GET", format!("{by_version}&acl")),
        ("GET", format!("{by_version}&tagging")),
        ("DELETE", by_version.clone()),
    ] {
        assert_eq!(world.bob.call(method, &path, &[], "").await.status, StatusCode::FORBIDDEN, "{method} {path}");
    }
    let upload = world.bob.call("POST", "/bobs/stolen?uploads", &[], "").await.text();
    let part = format!("/bobs/stolen?partNumber=1&uploadId={}", between(&upload, "<UploadId>", "<").unwrap());
    for (source, status) in [
        ("/bkt/shut".to_owned(), 403),
        (format!("/bkt/open?versionId={old}"), 403),
        (format!("bkt%2Fopen?versionId={old}"), 403),
        ("/bkt/../bkt/shut".to_owned(), 403),
        ("/bkt/open".to_owned(), 200),
    ] {
        for path in ["/bobs/stolen", &part] {
            let answer = world.bob.call("PUT", path, &[("x-amz-copy-source", &source)], "").await;
            assert_eq!(answer.status.as_u16(), status, "{path} {source}: {}", answer.text());
        }
    }
    // A copy has its source's tags, which are read by another right than the object.
    world.s3.call("PUT", "/bkt/open", &[("x-amz-tagging", "a=b")], "tagged").await;
    assert_eq!(
        world.bob.call("PUT", "/bobs/stolen", &[("x-amz-copy-source", "/bkt/open")], "").await.code(),
        "AccessDenied"
    );
    let replace = [("x-amz-copy-source", "/bkt/open"), ("x-amz-tagging-directive", "REPLACE")];
    assert_eq!(world.bob.call("PUT", "/bobs/stolen", &replace, "").await.status, StatusCode::OK);
    // The copy's other end is asked about as well.
    assert_eq!(
        world.bob.call("PUT", "/bkt/new", &[("x-amz-copy-source", "/bobs/stolen")], "").await.code(),
        "AccessDenied"
    );
}

/// 12
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_a_name_and_no_path() {
    let world = world().await;
    world.bob.put("/other", "").await;
    world.bob.put("/other/x", "bob's").await;
    let keys = [
        "../other/x",
        "a/../../other/x",
        "%2e%2e/other/x",
        "..%2fother%2fx",
        "/other/x",
        "//other/x",
        "./x",
        "..",
        "a/./b",
        "x%5c..%5cy",
    ];
    for key in keys {
        let path = format!("/bkt/{key}");
        assert_eq!(world.s3.put(&path, key.to_owned()).await.status, StatusCode::OK, "{key}");
        assert_eq!(world.s3.get(&path).await.body, *key, "{key}");
        assert_eq!(world.bob.get(&path).await.code(), "AccessDenied", "{key}");
    }
    let listed = world.s3.get("/bkt").await.text();
    assert_eq!(listed.matches("<Contents>").count(), keys.len() - 2, "{listed}");
    assert_eq!(world.bob.get("/other/x").await.body, "bob's");
    assert_eq!(world.bob.get("/other").await.text().matches("<Contents>").count(), 1);
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "public-read-write")], "").await;
    for bad in ["%00", "a%00b", "%ff", "%zz", &"k".repeat(1025)] {
        assert_eq!(
            world.anonymous("PUT", &format!("/bkt/{bad}"), &[]).await.status,
            StatusCode::BAD_REQUEST,
            "{bad:.20}"
        );
    }
    for bucket in ["..", ".", "%2e%2e", "blobs%2f..", "-", "..%2f..%2fetc"] {
        assert!(world.s3.put(&format!("/{bucket}"), "").await.status.is_client_error(), "{bucket}");
    }
}

/// 13
#[tokio::test(flavor = "multi_thread")]
async fn a_forms_policy_is_kept_to_the_letter() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let world = world_with("host_suffixes = ['s3.example']").await;
    world.bob.put("/bobs", "").await;
    let now = time::OffsetDateTime::now_utc();
    let until = |hours: i64| {
        let at = now + time::Duration::hours(hours);
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        )
    };
    // Version 2, which is the shorter one to sign by hand.
    let signed = |policy: &str| {
        let policy = STANDARD.encode(policy);
        let key = openssl::pkey::PKey::hmac(ALICE.1.as_bytes()).unwrap();
        let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha1(), &key).unwrap();
        signer.update(policy.as_bytes()).unwrap();
        (policy, STANDARD.encode(signer.sign_to_vec().unwrap()))
    };
    let post = async |url: &str, host: &str, fields: &[(&str, &str)], policy: &str, size: usize| -> Answer {
        let (policy, signature) = signed(policy);
        let mut fields = fields.to_vec();
        fields.extend([("AWSAccessKeyId", ALICE.0), ("policy", &policy), ("signature", &signature)]);
        let (content_type, body) = form(&fields, &vec![b'x'; size]);
        let request = Request::post(format!("http://{}{url}", world.s3.address))
            .header("content-type", content_type)
            .header("host", host);
        world.s3.send(request.body(Full::from(body)).unwrap()).await
    };
    let policy = |more: &str, hours: i64| {
        format!(
            r#"{{"expiration":"{}","conditions":[{{"bucket":"bkt"}},["starts-with","$key","up/"],["content-length-range",2,10],{{"acl":"private"}}{more}]}}"#,
            until(hours)
        )
    };
    let good = policy("", 1);
    let fields = [("key", "up/${filename}"), ("acl", "private")];
    let answer = post("/bkt", "x", &fields, &good, 5).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
    assert_eq!(world.s3.get("/bkt/up/a.txt").await.body, "xxxxx");
    world.s3.call("DELETE", "/bkt/up/a.txt", &[], "").await;
    assert_eq!(post("/", "bkt.s3.example", &fields, &good, 5).await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.s3.get("/bkt/up/a.txt").await.status, StatusCode::OK);
    world.s3.call("DELETE", "/bkt/up/a.txt", &[], "").await;

    let redirecting = policy(r#",["starts-with","$success_action_redirect","http"]"#, 1);
    let telling = policy(r#",["starts-with","$success_action_status",""]"#, 1);
    let with = |more: &[(&'static str, &'static str)]| [&fields[..], more].concat();
    let sent =
        post("/bkt", "x", &with(&[("success_action_redirect", "http://app.example/done?a=1")]), &redirecting, 5).await;
    assert_eq!(sent.status, StatusCode::SEE_OTHER);
    assert!(
        sent.header("location").starts_with("http://app.example/done?a=1&bucket=bkt&key=up/a.txt&etag=%22"),
        "{}",
        sent.header("location")
    );
    let created = post("/bkt", "x", &with(&[("success_action_status", "201")]), &telling, 5).await;
    assert!(
        created.status == StatusCode::CREATED && created.text().contains("<Key>up/a.txt</Key>"),
        "{}",
        created.text()
    );
    world.s3.call("DELETE", "/bkt/up/a.txt", &[], "").await;

    type Case<'c> = (&'c str, Vec<(&'c str, &'c str)>, String, usize);
    let table: &[Case<'_>] = &[
        ("/bkt", with(&[("acl2", "x")]), good.clone(), 5),
        ("/bkt", vec![("key", "down/a"), ("acl", "private")], good.clone(), 5),
        ("/bkt", vec![("key", "up/a"), ("acl", "public-read")], good.clone(), 5),
        ("/bkt", vec![("key", "up/a")], good.clone(), 5),
        ("/bkt", with(&[("x-amz-meta-a", "b")]), good.clone(), 5),
        ("/bkt", with(&[("bucket", "bobs")]), good.clone(), 5),
        ("/bkt", with(&[("key", "up/b")]), good.clone(), 5),
        ("/bobs", fields.to_vec(), good.clone(), 5),
        ("/bkt", fields.to_vec(), good.clone(), 1),
        ("/bkt", fields.to_vec(), good.clone(), 11),
        ("/bkt", fields.to_vec(), policy("", -1), 5),
        ("/bkt", fields.to_vec(), "{}".into(), 5),
        ("/bkt", fields.to_vec(), "not json".into(), 5),
    ];
    for (url, fields, policy, size) in table {
        let answer = post(url, "x", fields, policy, *size).await;
        assert!([400, 403].contains(&answer.status.as_u16()), "{url} {fields:?}: {}", answer.status);
    }
    let (content_type, body) = form(&fields, b"xxxxx");
    let unsigned = Request::post(format!("http://{}/bkt", world.s3.address)).header("content-type", content_type);
    assert_eq!(world.s3.send(unsigned.body(Full::from(body)).unwrap()).await.code(), "AccessDenied");
    assert!(!world.s3.get("/bkt").await.text().contains("<Contents>"));
}

/// 17
#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_a_header_is_nobodys_address() {
    let world = world().await;
    world.s3.put("/bkt/k", "x").await;
    let from = |network: &str| {
        format!(
            r#"{{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bkt/*","Condition":{{"IpAddress":{{"aws:SourceIp":"{network}"}}}}}}"#
        )
    };
    world.policy(&from("10.0.0.0/8")).await;
    let lies = [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("true-client-ip", "10.0.0.1"),
        ("aws:sourceip", "10.0.0.1"),
        ("userid", "000000000001"),
    ];
    for (name, value) in lies.into_iter().filter(|(name, _)| !name.contains(':')) {
        assert_eq!(world.anonymous("GET", "/bkt/k", &[(name, value)]).await.code(), "AccessDenied", "{name}");
    }
    assert_eq!(world.anonymous("GET", "/bkt/k?aws:SourceIp=10.0.0.1", &[]).await.code(), "AccessDenied");
    world.policy(&from("127.0.0.0/8")).await;
    assert_eq!(world.anonymous("GET", "/bkt/k", &[("x-forwarded-for", "10.0.0.1")]).await.status, StatusCode::OK);
}

/// Sends bytes as they are; what comes back until the server closes, or says no more.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.s3.address).await.unwrap();
    exchange(&mut stream, bytes).await
}

async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_without_a_length_is_not_an_empty_one() {
    let world = world().await;
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "public-read-write")], "").await;
    let answer = raw(&world, b"PUT /bkt/none HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 411") && answer.contains("<Code>MissingContentLength</Code>"), "{answer}");
    absent(&world, "none").await;
    for said in ["Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let answer = raw(&world, format!("PUT /bkt/empty HTTP/1.1\r\nHost: x\r\n{said}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// 22
#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_end() {
    let world = world().await;
    world.s3.put("/bkt/k", "x").await;
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "public-read-write")], "").await;
    // Behind each stands a request that must never be seen as one of its own.
    let behind = "PUT /bkt/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";
    // Also as the second request of a connection.
    for first in ["", "GET /bkt HTTP/1.1\r\nHost: x\r\n\r\n"] {
        for lengths in
            ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
        {
            let mut stream = TcpStream::connect(world.s3.address).await.unwrap();
            if !first.is_empty() {
                stream.write_all(first.as_bytes()).await.unwrap();
                let mut answer = [0; 4096];
                assert!(stream.read(&mut answer).await.unwrap() > 0 && answer.starts_with(b"HTTP/1.1 200"));
            }
            let request = format!("PUT /bkt/both HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n0\r\n\r\n{behind}");
            let answer = exchange(&mut stream, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
            assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
            absent(&world, "smuggled").await;
            absent(&world, "both").await;
        }
    }
    // Sent before the request ahead of it was answered, its head is not seen; the connection ends with it all the same.
    let both = "PUT /bkt/both HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = raw(&world, format!("GET /bkt HTTP/1.1\r\nHost: x\r\n\r\n{both}{behind}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 2, "{answer}");
    absent(&world, "smuggled").await;
    let table = [
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 5\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nX-A: b\r\n Content-Length: 0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n{behind}"),
        format!(
            "PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n{behind}"
        ),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n{behind}"),
        format!("PUT /bkt/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{behind}"),
        format!(
            "PUT /bkt/a HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 0\r\n\r\n{}",
            behind.replace("Content-Length: 1", "Content-Length: one")
        ),
    ];
    for request in &table {
        let answer = raw(&world, request.as_bytes()).await;
        let first = answer.lines().next().unwrap_or_default().to_owned();
        assert!(first.is_empty() || first.contains(" 400 ") || first.contains(" 501 "), "{request:?}: {first}");
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 0, "{request:?}: {answer}");
        absent(&world, "smuggled").await;
        absent(&world, "a").await;
    }
    // A bare line feed is one end of a line or none, never both: what follows is in the head or is not read at all.
    let answer = raw(&world, format!("GET /bkt/k HTTP/1.1\nHost: x\n\n{behind}").as_bytes()).await;
    assert!(answer.matches("HTTP/1.1").count() <= 2, "{answer}");

    // Lies inside of aws-chunked.
    let chunked = |decoded: &str, body: &'static str| {
        let headers = [
            ("x-amz-decoded-content-length", decoded),
            ("content-encoding", "aws-chunked"),
            ("x-amz-trailer", "x-amz-checksum-crc32"),
        ];
        world.s3.signed_as("PUT", "/bkt/lie", &headers, Bytes::from(body), Payload::UnsignedTrailer)
    };
    for (decoded, body) in [
        ("4", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"),
        ("6", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"),
        ("5", "5\r\nhello\r\n0\r\n\r\n"),
        ("5", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"),
        ("5", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\nmore"),
        ("5", "fffffffffffffff\r\nhello"),
        ("5", "5\r\nhello"),
        ("5", "-5\r\nhello\r\n0\r\n\r\n"),
        ("99999999999999999999", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"),
    ] {
        let answer = world.s3.send(chunked(decoded, body)).await;
        assert!(answer.status.is_client_error(), "{decoded} {body:?}: {}", answer.status);
    }
    absent(&world, "lie").await;
    let fits = chunked("5", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n");
    assert_eq!(world.s3.send(fits).await.status, StatusCode::OK);
}

/// 23
#[tokio::test(flavor = "multi_thread")]
async fn no_value_becomes_a_header_of_its_own() {
    let world = world().await;
    world.s3.put("/bkt/k", "x").await;
    for name in
        ["content-disposition", "content-type", "cache-control", "content-language", "expires", "content-encoding"]
    {
        let answer = world.s3.get(&format!("/bkt/k?response-{name}=a%0d%0aX-Evil:%201")).await;
        assert_eq!((answer.status, answer.header("x-evil")), (StatusCode::BAD_REQUEST, ""), "{name}");
    }
    let cors = "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod><ExposeHeader>x&#13;&#10;X-Evil: 1</ExposeHeader></CORSRule></CORSConfiguration>";
    assert_eq!(world.s3.put("/bkt?cors", cors).await.status, StatusCode::BAD_REQUEST);
    let tags = "<Tagging><TagSet><Tag><Key>a&#13;&#10;X-Evil: 1</Key><Value/></Tag></TagSet></Tagging>";
    assert_eq!(world.s3.put("/bkt/k?tagging", tags).await.code(), "InvalidTag");
    assert_eq!(
        world.s3.call("PUT", "/bkt/l", &[("x-amz-tagging", "a=b%0d%0aX-Evil:1")], "x").await.status,
        StatusCode::BAD_REQUEST
    );
    let (content_type, body) = form(
        &[("key", "f"), ("x-amz-meta-a", "b\r\nX-Evil: 1"), ("success_action_redirect", "http://a/\r\nX-Evil: 1")],
        b"x",
    );
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "public-read-write")], "").await;
    let request = Request::post(format!("http://{}/bkt", world.s3.address)).header("content-type", content_type);
    let answer = world.s3.send(request.body(Full::from(body)).unwrap()).await;
    assert_eq!((answer.status, answer.header("x-evil")), (StatusCode::BAD_REQUEST, ""));
    // A key may hold a line's end; the headers that show it may not.
    let copied = world.s3.call("PUT", "/bkt/a%0d%0aX-Evil:1", &[], "x").await;
    assert_eq!((copied.status, copied.header("x-evil")), (StatusCode::OK, ""));
    let created = world.s3.put("/bkt%0d%0aX-Evil:1", "").await;
    assert_eq!((created.status, created.header("x-evil")), (StatusCode::BAD_REQUEST, ""));
}

/// 24
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_no_connection_and_no_process() {
    let world = world().await;
    world.s3.put("/bkt/k", "x").await;
    let deep = format!("{}{}", "{\"a\":[".repeat(4000), "]}".repeat(4000));
    for source in ["", "/", "?", "?versionId=", "/?versionId=", "%", "//", "/bkt/", "/bkt/?x", "\u{7f}"] {
        let Ok(_) = source.parse::<http::HeaderValue>() else { continue };
        let answer = world.s3.call("PUT", "/bkt/c", &[("x-amz-copy-source", source)], "").await;
        assert!(answer.status.is_client_error(), "{source:?}: {}", answer.status);
    }
    for body in [
        deep.as_str(),
        "{\"Version\":1e999}",
        "{\"Statement\":[null]}",
        "\u{feff}{}",
        "[]",
        "{\"Statement\":{\"Condition\":{\"Bool\":{\"a\":[[]]}}}}",
        "nul",
    ] {
        assert_eq!(world.s3.put("/bkt?policy", body.to_owned()).await.code(), "MalformedPolicy", "{body:.40}");
    }
    for (name, value) in [
        ("range", "bytes=99999999999999999999999-"),
        ("range", "bytes=-"),
        ("if-modified-since", "Thu, 99 Foo"),
        ("content-length", "0"),
    ] {
        let answer = world.s3.call("GET", "/bkt/k", &[(name, value)], "").await;
        assert!(answer.status.as_u16() < 500, "{name}: {value}");
    }
    for query in [
        "partNumber=99999999999",
        "max-keys=-1",
        "max-keys=99999999999999999999",
        "list-type=9",
        "versionId=%00",
        "uploadId=",
        "encoding-type=x",
        "X-Amz-Expires=-1",
        "acl=&policy=&cors",
        "=",
        "&&",
        "%26=%3D",
    ] {
        assert!(world.s3.get(&format!("/bkt?{query}")).await.status.as_u16() < 500, "{query}");
        assert!(world.s3.get(&format!("/bkt/k?{query}")).await.status.as_u16() < 500, "{query}");
    }
    for boundary in ["", "boundary=", "boundary=\"", "boundary=X; boundary=Y"] {
        let headers = [("content-type", format!("multipart/form-data; {boundary}"))];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let request = plain("POST", format!("http://{}/bkt", world.s3.address), &headers, "--X\r\n\r\n");
        assert!(world.s3.send(request).await.status.is_client_error(), "{boundary}");
    }
    assert_eq!(world.s3.get("/bkt/k").await.body, "x");
}

/// 25
#[tokio::test(flavor = "multi_thread")]
async fn no_page_gets_a_users_credentials() {
    let world = world().await;
    world.s3.put("/bkt/k", "<script>alert(1)</script>").await;
    for allowed in ["*", "https://*.example", "https://evil.test"] {
        let cors = format!(
            "<CORSConfiguration><CORSRule><AllowedOrigin>{allowed}</AllowedOrigin><AllowedMethod>GET</AllowedMethod><AllowedHeader>*</AllowedHeader></CORSRule></CORSConfiguration>"
        );
        assert_eq!(world.s3.put("/bkt?cors", cors).await.status, StatusCode::OK);
        for (method, origin) in [("OPTIONS", "https://evil.test"), ("GET", "https://evil.test"), ("GET", "null")] {
            let asked = [("origin", origin), ("access-control-request-method", "GET")];
            let answer = match method {
                "OPTIONS" => world.anonymous(method, "/bkt/k", &asked).await,
                _ => world.s3.call(method, "/bkt/k", &asked[..1], "").await,
            };
            assert_eq!(answer.header("access-control-allow-credentials"), "", "{allowed} {method} {origin}");
            let told = answer.header("access-control-allow-origin");
            assert!(allowed == "*" || told.is_empty() || (told == origin && allowed == origin), "{allowed}: {told}");
            // What was stored without a type is nothing a browser would run.
            assert!(method == "OPTIONS" || answer.header("content-type") == "binary/octet-stream");
        }
    }
}

/// The real binary under 64 slow uploads: it holds a fixed amount of them, and when they break off, nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_hold_little_memory_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // In memory that is not walrus': 4 GiB are much for the disk of who runs the tests.
    let disk = Disk::new(8 << 30);
    let _mounted = disk.mount(&dir.path().join("disk"));
    let state = dir.path().join("disk/state");
    let server = Server::start(dir.path(), &state, "").await;
    server.s3.put("/bkt", "").await;
    const PIECE: usize = 256 << 10;
    // 64 MiB of each in the soak.
    let pieces = rounds(24, 256);
    let block: Bytes = vec![b'x'; PIECE].into();
    let mut streams = Vec::new();
    for n in 0..64 {
        streams.push(upload(&server.s3, &format!("/bkt/slow-{n}"), 2 * pieces * PIECE).await);
    }
    for _ in 0..pieces {
        for stream in &mut streams {
            stream.write_all(&block).await.unwrap();
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let most: usize = between(&status, "VmHWM:", "kB").unwrap().trim().parse().unwrap();
    drop(streams);
    println!("{} MiB at most under 64 uploads, cut off after {} MiB each", most >> 10, (pieces * PIECE) >> 20);
    assert!(most < 100 << 10, "{} MiB", most >> 10);
    nothing_left(&server, &state).await;
    assert!(!server.s3.get("/bkt").await.text().contains("<Contents>"));
}

/// The head of a PUT whose body is to come.
async fn upload(s3: &S3, path: &str, size: usize) -> TcpStream {
    let size = size.to_string();
    let request = s3.signed_as("PUT", path, &[("content-length", &size)], Bytes::new(), Payload::Unsigned);
    let mut head = format!("PUT {path} HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let mut stream = TcpStream::connect(s3.address).await.unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upload_and_a_trickling_one_are_ended() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let lines = "upload_patience_ms = 1000\nupload_bytes_per_second = 200000";
    let server = Server::start(dir.path(), &state, lines).await;
    server.s3.put("/bkt", "").await;
    let mut silent = upload(&server.s3, "/bkt/silent", 1 << 20).await;
    silent.write_all(&[b'x'; 300_000]).await.unwrap();
    let (mut trickles, mut pouring) = upload(&server.s3, "/bkt/trickling", 1 << 20).await.into_split();
    let pouring = tokio::spawn(async move {
        // Never silent, and never fast.
        while pouring.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut told = String::new();
    silent.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("<Code>RequestTimeout<"), "{told}");
    let mut told = Vec::new();
    let _ = trickles.read_to_end(&mut told).await;
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("<Code>RequestTimeout<"), "{told}");
    pouring.await.unwrap();
    // One that comes at a run is left alone.
    assert_eq!(server.s3.put("/bkt/fast", vec![b'x'; 4 << 20]).await.status, StatusCode::OK);
    server.s3.call("DELETE", "/bkt/fast", &[], "").await;
    nothing_left(&server, &state).await;
}

/// A client that sends all of its body before it reads learns all the same why it was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let world = world().await;
    for (path, code) in [("/nowhere/k", "NoSuchBucket"), ("/bkt/k", "SignatureDoesNotMatch")] {
        let mut stream = upload(&world.s3, path, 24 << 20).await;
        if code == "SignatureDoesNotMatch" {
            stream = TcpStream::connect(world.s3.address).await.unwrap();
            let size = (24 << 20).to_string();
            let headers = [("content-length", &*size)];
            let request = world.s3.signed_as("PUT", "/bkt/other", &headers, Bytes::new(), Payload::Unsigned);
            let mut head = format!("PUT {path} HTTP/1.1\r\n");
            for (name, value) in request.headers() {
                head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
            }
            stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        }
        stream.write_all(&vec![b'x'; 24 << 20]).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains(code), "{answer}");
    }
}
