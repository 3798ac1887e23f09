//! Attacks that were found on other servers of these protocols (the numbers are those of reliability-and-attacks.md §6.4),
//! where walrus' and common/aws' own tests do not try them through the whole front.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use mallee_aws::signature::{Payload, Signer};
use mallee_tests_cloud::{Answer, Client, Cloud, Signed, client};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const UNSIGNED_TRAILER: &[u8] = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n";

async fn unsigned(user: &Client, method: Method, target: &str, lines: &[&str], body: &'static [u8]) -> Answer {
    let headers = client::headers(lines).unwrap();
    user.send(user.objects, "s3", method, target, headers, Bytes::from_static(body), Signed::Not).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_a_trailer_does_not_stand_for_a_signature() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    user.s3(Method::PUT, "/trailers", "").await.ok();
    let streaming = [
        "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length: 5",
        "x-amz-trailer: x-amz-checksum-crc32",
        "content-encoding: aws-chunked",
    ];
    let (day, date) = now();
    let credential = format!("{}/{day}/mallee-1/s3/aws4_request", user.key.access_key);
    // 3: the credential in the query string, and no signature at all.
    let target = format!(
        "/trailers/three?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={date}&X-Amz-Expires=600&X-Amz-SignedHeaders=host",
        credential.replace('/', "%2F"),
    );
    let three = unsigned(user, Method::PUT, &target, &streaming, UNSIGNED_TRAILER).await;
    assert!((400..404).contains(&three.status), "{}", three.text());
    // 4: a signature that is none, over a trailer that is right.
    let authorization = format!(
        "authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host;x-amz-content-sha256;x-amz-date;\
         x-amz-decoded-content-length;x-amz-trailer, Signature={}",
        "0".repeat(64),
    );
    let dated = format!("x-amz-date: {date}");
    let lines: Vec<&str> = streaming.iter().copied().chain([authorization.as_str(), dated.as_str()]).collect();
    let four = unsigned(user, Method::PUT, "/trailers/four", &lines, UNSIGNED_TRAILER).await;
    four.refused_with("SignatureDoesNotMatch");
    assert!(!user.s3(Method::GET, "/trailers", "").await.ok().text().contains("<Key>"), "something was stored");
}

/// `20261120`, `20261120T010203Z`.
fn now() -> (String, String) {
    let now = OffsetDateTime::now_utc();
    let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
    (day.clone(), format!("{day}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second()))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_added_to_a_signed_request() {
    let cloud = Cloud::start().await;
    let (alice, mallory) = (cloud.user().await, cloud.account("mallory").await);
    alice.s3(Method::PUT, "/signed", "").await.ok();
    alice.s3(Method::PUT, "/signed/secret", "secret").await.ok();
    mallory.s3(Method::PUT, "/mallorys", "").await.ok();
    // 9: headers that change what is done, put in after the signature.
    for (name, value) in [("x-amz-copy-source", "/signed/secret"), ("x-amz-acl", "public-read"), ("x-amz-meta-a", "b")]
    {
        let mut request = http::Request::put(format!("http://{}/signed/new", alice.objects)).body(()).unwrap();
        let signer = Signer {
            access_key: &alice.key.access_key,
            secret: &alice.key.secret,
            session_token: None,
            region: &alice.region,
            service: "s3",
        };
        signer.sign(&mut request, Payload::Unsigned, OffsetDateTime::now_utc()).unwrap();
        let mut headers = request.headers().clone();
        headers.insert(name, HeaderValue::from_static(value));
        let sent = alice
            .send(alice.objects, "s3", Method::PUT, "/signed/new", headers, Bytes::new(), Signed::Not)
            .await
            .unwrap();
        assert_eq!(sent.status, 403, "{name}: {}", sent.text());
    }
    // 5: a presigned URL for one key, used for another; and one whose signature was changed.
    let url: http::Uri = format!("http://{}/signed/secret", alice.objects).parse().unwrap();
    let signer = Signer {
        access_key: &alice.key.access_key,
        secret: &alice.key.secret,
        session_token: None,
        region: &alice.region,
        service: "s3",
    };
    let good = signer.presign(Method::GET, &url, time::Duration::minutes(5), OffsetDateTime::now_utc()).unwrap();
    let good = good.path_and_query().unwrap().as_str();
    assert_eq!(unsigned(&mallory, Method::GET, good, &[], b"").await.ok().text(), "secret");
    for bad in [
        good.replace("/signed/secret", "/signed/other"),
        good.replace("X-Amz-Expires=300", "X-Amz-Expires=604800"),
        format!("{good}&response-content-type=text/html"),
        format!("{}{}", &good[..good.len() - 4], "0000"),
    ] {
        unsigned(&mallory, Method::GET, &bad, &[], b"").await.refused_with("SignatureDoesNotMatch");
    }
    unsigned(&mallory, Method::DELETE, good, &[], b"").await.refused_with("SignatureDoesNotMatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_needs_the_source_too() {
    let cloud = Cloud::start().await;
    let (alice, mallory) = (cloud.user().await, cloud.account("mallory").await);
    alice.s3(Method::PUT, "/alices", "").await.ok();
    alice.s3(Method::PUT, "/alices/secret", "secret").await.ok();
    mallory.s3(Method::PUT, "/mallorys", "").await.ok();
    let upload = mallory.s3(Method::POST, "/mallorys/parts?uploads", "").await.value("UploadId");
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-copy-source", HeaderValue::from_static("/alices/secret"));
    // 10: whole, and as a part.
    for target in ["/mallorys/copy".to_owned(), format!("/mallorys/parts?partNumber=1&uploadId={upload}")] {
        let sent =
            mallory.send(mallory.objects, "s3", Method::PUT, &target, headers.clone(), Bytes::new(), Signed::Properly);
        sent.await.unwrap().refused_with("AccessDenied");
    }
    headers.insert("x-amz-copy-source", HeaderValue::from_static("/alices/not-there"));
    let sent =
        mallory.send(mallory.objects, "s3", Method::PUT, "/mallorys/copy", headers, Bytes::new(), Signed::Properly);
    // Nor does it tell what is there.
    sent.await.unwrap().refused_with("AccessDenied");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_their_bucket_whatever_they_look_like() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    user.s3(Method::PUT, "/first", "").await.ok();
    user.s3(Method::PUT, "/second", "").await.ok();
    user.s3(Method::PUT, "/second/x", "untouched").await.ok();
    // 12
    let keys = [
        "../second/x",
        "a/../../second/x",
        "%2e%2e/second/x",
        "..%2fsecond%2fx",
        "/etc/passwd",
        "//x",
        "a//b",
        "./x",
        "x/.",
    ];
    for key in keys {
        let target = format!("/first/{key}");
        user.s3(Method::PUT, &target, key).await.ok();
        assert_eq!(user.s3(Method::GET, &target, "").await.ok().text(), key);
    }
    assert_eq!(user.s3(Method::GET, "/second/x", "").await.ok().text(), "untouched");
    assert_eq!(user.s3(Method::GET, "/second", "").await.ok().values("Key"), ["x"]);
    let long = "k".repeat(1025);
    user.s3(Method::PUT, &format!("/first/{long}"), "").await.refused_with("KeyTooLongError");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lengths_are_one_refusal_and_not_two_requests() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    // 22
    for head in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}", 5 + smuggled.len()),
        format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("Transfer-Encoding: xchunked\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
    ] {
        for front in [user.query, user.objects] {
            let mut stream = tokio::net::TcpStream::connect(front).await.unwrap();
            let request = format!("POST / HTTP/1.1\r\nHost: {front}\r\n{head}");
            stream.write_all(request.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{head:?} were two requests:\n{answer}");
            assert!(!answer.starts_with("HTTP/1.1 2"), "{head:?}:\n{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_header_is_made_of_what_a_request_says() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    user.s3(Method::PUT, "/headers", "").await.ok();
    user.s3(Method::PUT, "/headers/x", "x").await.ok();
    // 23
    for value in ["a%0d%0aEvil:%201", "a%0aEvil:%201", "a%0dEvil:%201", "%00"] {
        let target = format!("/headers/x?response-content-disposition={value}");
        let answer = user.s3(Method::GET, &target, "").await;
        assert!(
            answer.status == 400 && !answer.headers.contains_key("evil"),
            "{target}: {} {:?}",
            answer.status,
            answer.headers
        );
    }
    // 25: no page of another origin is let in with somebody's credentials.
    let headers = client::headers(&["origin: https://evil.example"]).unwrap();
    let sent = user.send(user.objects, "s3", Method::GET, "/headers/x", headers, Bytes::new(), Signed::Properly);
    assert!(!sent.await.unwrap().headers.contains_key("access-control-allow-credentials"));
}
