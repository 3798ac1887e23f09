//! Claims about walrus as a whole, tried over HTTP against one that runs in this process.

use std::{path::Path, time::Duration};

use crate::client::{ALICE, BOB, S3, between, parsed};
use bytes::Bytes;
use http::StatusCode;
use mallee_aws::signature::Payload;
use tokio::io::AsyncWriteExt;

/// A fresh walrus with the bucket `bkt`.
async fn walrus() -> (tempfile::TempDir, mallee_walrus::Running, S3) {
    let dir = tempfile::tempdir().unwrap();
    let running = mallee_walrus::start(parsed(dir.path())).await.unwrap();
    let s3 = S3::new(running.addresses[0]);
    assert_eq!(s3.put("/bkt", "").await.status, StatusCode::OK);
    (dir, running, s3)
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let folders = std::fs::read_dir(dir.join("blobs")).unwrap();
    folders.flat_map(|f| std::fs::read_dir(f.unwrap().path()).unwrap()).map(|f| f.unwrap().path()).collect()
}

/// Waits until the sweep has left just so many files.
async fn files_become(dir: &Path, count: usize) {
    for _ in 0..300 {
        if files(dir).len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(files(dir).len(), count);
}

fn noise(size: usize, seed: u8) -> Bytes {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..size).map(|_| next()).collect::<Vec<u8>>().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_is_got_at_every_edge_of_a_block() {
    let (_dir, _running, s3) = walrus().await;
    for size in [0, 1, 16_384, 16_385, 262_143, 262_144, 262_145, 1_000_000] {
        let body = noise(size, 1);
        let put = s3.put("/bkt/k", body.clone()).await;
        let md5 = openssl::hash::hash(openssl::hash::MessageDigest::md5(), &body).unwrap();
        assert_eq!(put.header("etag"), format!("\"{}\"", hex::encode(md5)));
        let got = s3.get("/bkt/k").await;
        assert_eq!((got.status, got.body.len(), got.body == body), (StatusCode::OK, size, true));
        assert_eq!(got.header("content-type"), "binary/octet-stream");
        for header in ["x-amz-request-id", "x-amz-id-2", "date", "server", "last-modified"] {
            assert!(!got.header(header).is_empty(), "{header}");
        }
        if size > 100 {
            let range = format!("bytes=50-{}", size - 20);
            let got = s3.call("GET", "/bkt/k", &[("range", &range)], "").await;
            assert_eq!((got.status, got.body), (StatusCode::PARTIAL_CONTENT, body.slice(50..size - 19)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_under_if_none_match_one_wins() {
    let (_dir, _running, s3) = walrus().await;
    for round in 0..5 {
        let path = format!("/bkt/race-{round}");
        let writers = (0..16_u8).map(|n| {
            let (s3, path) = (s3.clone(), path.clone());
            tokio::spawn(async move {
                let size = if n % 2 == 0 { 100 } else { 30_000 };
                let answer = s3.call("PUT", &path, &[("if-none-match", "*")], noise(size, n)).await;
                (n, size, answer.status)
            })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            let (n, size, status) = writer.await.unwrap();
            match status {
                StatusCode::OK => winners.push((n, size)),
                status => assert_eq!(status, StatusCode::PRECONDITION_FAILED),
            }
        }
        let [(n, size)] = winners[..] else { panic!("{winners:?}") };
        assert_eq!(s3.get(&path).await.body, noise(size, n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_an_overwritten_object_see_one_of_the_two() {
    let (dir, _running, s3) = walrus().await;
    let bodies: Vec<Bytes> = (0..4).map(|n| noise(900_000 + usize::from(n) * 1000, n)).collect();
    s3.put("/bkt/k", bodies[0].clone()).await;
    let writer = {
        let (s3, bodies) = (s3.clone(), bodies.clone());
        tokio::spawn(async move {
            for n in 0..40 {
                assert_eq!(s3.put("/bkt/k", bodies[n % 4].clone()).await.status, StatusCode::OK);
            }
        })
    };
    let mut reads = 0;
    while !writer.is_finished() {
        let got = s3.get("/bkt/k").await;
        assert!(!got.cut && bodies.contains(&got.body), "a torn object of {} bytes", got.body.len());
        reads += 1;
    }
    writer.await.unwrap();
    assert!(reads > 0);
    files_become(dir.path(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_leaves_nothing() {
    let (dir, running, s3) = walrus().await;
    let body = noise(600_000, 9);

    // Another body than the one whose hash was signed.
    let (parts, _) = s3.signed("PUT", "/bkt/swapped", &[], body.clone()).into_parts();
    let swapped = http::Request::from_parts(parts, http_body_util::Full::new(noise(600_000, 8)));
    assert_eq!(s3.send(swapped).await.code(), "XAmzContentSHA256Mismatch");

    // A header nobody signed.
    for (name, value) in [("x-amz-acl", "public-read"), ("x-amz-copy-source", "/bkt/other"), ("x-amz-meta-a", "b")] {
        let mut request = s3.signed("PUT", "/bkt/unsigned", &[], body.clone());
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(s3.send(request).await.status, StatusCode::FORBIDDEN, "{name}");
    }

    // A wrong checksum, in a header and in a trailer.
    let wrong = s3.call("PUT", "/bkt/sum", &[("x-amz-checksum-crc32", "AAAAAA==")], body.clone()).await;
    assert_eq!(wrong.code(), "BadDigest");
    let framed = "b\r\nhello world\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    let headers = [("x-amz-trailer", "x-amz-checksum-crc32"), ("x-amz-decoded-content-length", "11")];
    let request = s3.signed_as("PUT", "/bkt/trailer", &headers, framed.into(), Payload::UnsignedTrailer);
    assert_eq!(s3.send(request).await.code(), "BadDigest");
    // Chunks without any signature, and with one that is not the key's.
    let mut request = s3.signed_as("PUT", "/bkt/trailer", &headers, framed.into(), Payload::UnsignedTrailer);
    request.headers_mut().remove("authorization");
    assert_eq!(s3.send(request).await.code(), "AccessDenied");
    let query = "/bkt/trailer?X-Amz-Credential=AKIAALICE%2F20261120%2Fmallee-1%2Fs3%2Faws4_request";
    let mut request = s3.signed_as("PUT", query, &headers, framed.into(), Payload::UnsignedTrailer);
    request.headers_mut().remove("authorization");
    assert!(s3.send(request).await.status.is_client_error());
    let forged = s3.with((ALICE.0, "guessed"));
    let request = forged.signed_as("PUT", "/bkt/trailer", &headers, framed.into(), Payload::UnsignedTrailer);
    assert_eq!(s3.send(request).await.code(), "SignatureDoesNotMatch");

    // A connection that ends in the middle.
    let request = s3.signed_as("PUT", "/bkt/torn", &[("content-length", "900000")], Bytes::new(), Payload::Unsigned);
    let mut stream = tokio::net::TcpStream::connect(running.addresses[0]).await.unwrap();
    let mut head = "PUT /bkt/torn HTTP/1.1\r\n".to_owned();
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!files(dir.path()).is_empty(), "the upload was under way");
    drop(stream);

    files_become(dir.path(), 0).await;
    assert_eq!(between(&s3.get("/bkt?list-type=2").await.text(), "<KeyCount>", "<"), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_account_sees_nothing_and_changes_nothing() {
    let (_dir, _running, s3) = walrus().await;
    let bob = s3.with(BOB);
    s3.put("/bkt/k", "alice's").await;
    assert_eq!(bob.put("/bobs", "").await.status, StatusCode::OK);
    for (method, path) in [
        ("GET", "/bkt"),
        ("GET", "/bkt/k"),
        ("GET", "/bkt/none"),
        ("PUT", "/bkt/k"),
        ("DELETE", "/bkt/k"),
        ("DELETE", "/bkt"),
        ("GET", "/bkt?acl"),
        ("PUT", "/bkt?acl"),
        ("GET", "/bkt/k?acl"),
        ("GET", "/bkt/k?tagging"),
        ("GET", "/bkt?location"),
        ("GET", "/bkt?versioning"),
        ("GET", "/bkt?policy"),
        ("GET", "/bkt?uploads"),
        ("POST", "/bkt/k?uploads"),
        ("POST", "/bkt?delete"),
        ("GET", "/bkt?versions"),
        ("GET", "/bkt/k?attributes"),
    ] {
        let headers: &[_] = if path.ends_with("attributes") { &[("x-amz-object-attributes", "ETag")] } else { &[] };
        let answer = bob.call(method, path, headers, "").await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "AccessDenied".into()), "{method} {path}");
        let anonymous = http::Request::builder().method(method).uri(format!("http://{}{path}", s3.address));
        let mut anonymous = anonymous.body(http_body_util::Full::default()).unwrap();
        if path.ends_with("attributes") {
            anonymous.headers_mut().insert("x-amz-object-attributes", "ETag".parse().unwrap());
        }
        assert_eq!(s3.send(anonymous).await.status, StatusCode::FORBIDDEN, "{method} {path}");
    }
    for source in ["/bkt/k", "bkt%2Fk"] {
        let copy = bob.call("PUT", "/bobs/stolen", &[("x-amz-copy-source", source)], "").await;
        assert_eq!(copy.code(), "AccessDenied");
    }
    let upload = bob.call("POST", "/bobs/stolen?uploads", &[], "").await.text();
    let id = between(&upload, "<UploadId>", "<").unwrap();
    let path = format!("/bobs/stolen?partNumber=1&uploadId={id}");
    assert_eq!(bob.call("PUT", &path, &[("x-amz-copy-source", "/bkt/k")], "").await.code(), "AccessDenied");
    assert_eq!(s3.get("/bkt/k").await.body, "alice's");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_an_answer_in_s3s_words() {
    let (_dir, _running, s3) = walrus().await;
    s3.put("/bkt/k", "x").await;
    let doctype = "<!DOCTYPE Delete [<!ENTITY a \"aa\">]><Delete><Object><Key>&a;</Key></Object></Delete>";
    type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str, u16, &'static str);
    let table: &[Case] = &[
        ("POST", "/bkt?delete", &[], doctype, 400, "MalformedXML"),
        ("POST", "/bkt?delete", &[], "<Delete/>", 400, "MalformedXML"),
        ("PUT", "/bkt?acl", &[], "<x", 400, "MalformedACLError"),
        ("PUT", "/bkt2", &[], "<CreateBucketConfiguration>", 400, "MalformedXML"),
        ("GET", "/bkt?frobnicate", &[], "", 501, "NotImplemented"),
        ("PUT", "/bkt/k", &[("x-amz-server-side-encryption", "aws:kms")], "", 501, "NotImplemented"),
        ("PUT", "/bkt/k", &[("x-amz-server-side-encryption", "ROT13")], "", 400, "InvalidArgument"),
        ("PUT", "/bkt/k", &[("x-amz-object-lock-legal-hold", "ON")], "", 400, "InvalidRequest"),
        (
            "PUT",
            "/bkt?versioning",
            &[],
            "<VersioningConfiguration><Status>On</Status></VersioningConfiguration>",
            400,
            "MalformedXML",
        ),
        (
            "PUT",
            "/bkt?versioning",
            &[],
            "<VersioningConfiguration><Status>Enabled</Status><MfaDelete>Enabled</MfaDelete></VersioningConfiguration>",
            501,
            "NotImplemented",
        ),
        ("GET", "/bkt?lifecycle", &[], "", 404, "NoSuchLifecycleConfiguration"),
        ("GET", "/bkt?object-lock", &[], "", 404, "ObjectLockConfigurationNotFoundError"),
        (
            "PUT",
            "/bkt?object-lock",
            &[],
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
            409,
            "InvalidBucketState",
        ),
        ("GET", "/bkt/k?retention", &[], "", 400, "InvalidRequest"),
        ("PUT", "/bkt/k", &[("x-amz-storage-class", "BEST")], "", 400, "InvalidStorageClass"),
        ("PUT", "/bkt/k", &[("x-amz-acl", "open")], "", 400, "InvalidArgument"),
        ("PUT", "/bkt/k", &[("x-amz-tagging", "a=1&a=2")], "", 400, "InvalidArgument"),
        ("PUT", "/bkt/k", &[("x-amz-copy-source", "")], "", 400, "InvalidArgument"),
        ("PUT", "/bkt/k", &[("x-amz-copy-source", "/bkt/%zz")], "", 400, "InvalidArgument"),
        ("PUT", "/bkt/%00", &[], "", 400, "InvalidURI"),
        ("GET", "/bkt/k?response-content-disposition=a%0d%0aX-Evil:%201", &[], "", 400, "InvalidArgument"),
        ("GET", "/bkt/k?partNumber=0", &[], "", 400, "InvalidArgument"),
        ("GET", "/bkt/k?partNumber=2", &[], "", 416, "InvalidPartNumber"),
        ("GET", "/bkt/k?uploadId=../x", &[], "", 404, "NoSuchUpload"),
        ("GET", "/bkt/k?versionId=7", &[], "", 400, "InvalidArgument"),
        ("GET", "/bkt/k?versionId=00000000000000000000000000000000", &[], "", 404, "NoSuchVersion"),
        ("GET", "/bkt?versions&version-id-marker=null", &[], "", 400, "InvalidArgument"),
        ("GET", "/bkt?max-keys=x", &[], "", 400, "InvalidArgument"),
        ("GET", "/bkt?list-type=2&continuation-token=!", &[], "", 400, "InvalidArgument"),
        ("PATCH", "/bkt/k", &[], "", 405, "MethodNotAllowed"),
        ("POST", "/bkt/k", &[], "", 501, "NotImplemented"),
        ("POST", "/", &[], "Action=DescribeInstances", 501, "NotImplemented"),
        ("GET", "/bkt?replication", &[], "", 404, "ReplicationConfigurationNotFoundError"),
        ("GET", "/bkt?inventory&id=x", &[], "", 404, "NoSuchConfiguration"),
    ];
    for (method, path, headers, body, status, code) in table {
        let answer = s3.call(method, path, headers, *body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (*status, *code), "{method} {path}");
        assert!(answer.text().contains("<RequestId>"), "{method} {path}");
    }
    let head = s3.call("HEAD", "/bkt/none", &[], "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (404, 0));
    assert_eq!(s3.get("/bkt/k").await.body, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_bytes_are_never_sent() {
    let (dir, running, s3) = walrus().await;
    s3.put("/bkt/first", noise(600_000, 1)).await;
    let path = files(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[300_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // The first block is whole, so the answer begins; it must not end as if it were complete.
    let got = s3.get("/bkt/first").await;
    assert!(got.cut && got.body.len() < 600_000);
    // The damaged block is the first one asked for.
    let got = s3.call("GET", "/bkt/first", &[("range", "bytes=300000-300010")], "").await;
    assert_eq!((got.status.as_u16(), got.code().as_str()), (500, "InternalError"));
    let operator = mallee_tiers::Peer::operator();
    let asked = mallee_tiers::StatusAsked::default();
    let faults = mallee_tiers::Walrus::status(&*running.walrus, &operator, asked).await.unwrap().faults;
    assert!(faults.iter().any(|fault| fault.what.contains("/bkt/first")), "{faults:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_upload_moves_no_bytes_and_can_be_asked_again() {
    let (dir, _running, s3) = walrus().await;
    let upload = s3.call("POST", "/bkt/big?uploads", &[], "").await.text();
    let id = between(&upload, "<UploadId>", "<").unwrap();
    let parts = [noise(5 << 20, 1), noise(5 << 20, 2), noise(100, 3)];
    let mut listed = String::new();
    // In any order, and the second one twice.
    for n in [3, 2, 1, 2] {
        let put = s3.put(&format!("/bkt/big?partNumber={n}&uploadId={id}"), parts[n - 1].clone()).await;
        assert_eq!(put.status, StatusCode::OK);
    }
    for (at, part) in parts.iter().enumerate() {
        let md5 = hex::encode(openssl::hash::hash(openssl::hash::MessageDigest::md5(), part).unwrap());
        listed.push_str(&format!("<Part><PartNumber>{}</PartNumber><ETag>\"{md5}\"</ETag></Part>", at + 1));
    }
    let document = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    let path = format!("/bkt/big?uploadId={id}");
    let (one, two) =
        tokio::join!(s3.call("POST", &path, &[], document.clone()), s3.call("POST", &path, &[], document.clone()));
    assert_eq!((one.status, two.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(between(&one.text(), "<ETag>", "<"), between(&two.text(), "<ETag>", "<"));
    assert_eq!(s3.get("/bkt/big").await.body, Bytes::from(parts.concat()));
    files_become(dir.path(), 2).await;
    // A copy shares the bytes; they go with the last one that refers to them.
    assert_eq!(s3.call("PUT", "/bkt/copy", &[("x-amz-copy-source", "/bkt/big")], "").await.status, StatusCode::OK);
    assert_eq!(s3.call("DELETE", "/bkt/big", &[], "").await.status, StatusCode::NO_CONTENT);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(s3.get("/bkt/copy").await.body, Bytes::from(parts.concat()));
    s3.call("DELETE", "/bkt/copy", &[], "").await;
    files_become(dir.path(), 0).await;
    assert_eq!(s3.call("DELETE", "/bkt", &[], "").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presigned_url_does_what_was_signed_and_no_more() {
    let (_dir, _running, s3) = walrus().await;
    let now = time::OffsetDateTime::now_utc();
    let request = |method: &str, uri: http::Uri| {
        http::Request::builder().method(method).uri(uri).body(http_body_util::Full::from("hello")).unwrap()
    };
    // SDKs move such headers into the URL.
    let put = s3.presigned("PUT", "/bkt/k?x-amz-acl=public-read&x-amz-meta-a=b", now);
    assert_eq!(s3.send(request("PUT", put.clone())).await.status, StatusCode::OK);
    let bare = format!("http://{}/bkt/k", s3.address);
    let got = s3.send(request("GET", bare.parse().unwrap())).await;
    assert_eq!((got.body.as_ref(), got.header("x-amz-meta-a")), (&b"hello"[..], "b"));
    let changed = put.to_string().replace("public-read", "private");
    assert_eq!(s3.send(request("PUT", changed.parse().unwrap())).await.code(), "SignatureDoesNotMatch");
    assert_eq!(s3.send(request("DELETE", put)).await.code(), "SignatureDoesNotMatch");
    let old = s3.presigned("GET", "/bkt/k", now - time::Duration::minutes(2));
    assert_eq!(s3.send(request("GET", old)).await.code(), "AccessDenied");
}
