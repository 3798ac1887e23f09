//! Bad input at the fronts: whatever comes, the answer is an error of the protocol (or a closed connection), never a 5xx,
//! never a panic, and the next request is served.

// The exemption of clippy.toml covers test functions, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mallee_tests_cloud::{Client, Cloud, Signed, Tier, actions::SERVICES};
use mallee_walrus::operation::OPERATIONS;
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Panics in the tiers, which run on threads of their own.
static PANICS: AtomicUsize = AtomicUsize::new(0);
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_for_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            let of_a_tier =
                ["cloud-controller", "walrus", "cluster-controller", "storage-controller", "node-controller"];
            if of_a_tier.contains(&thread.as_str()) {
                PANICS.fetch_add(1, Ordering::SeqCst);
                TOLD.lock().unwrap_or_else(|e| e.into_inner()).push(format!("{thread}: {panic}"));
            }
            before(panic);
        }));
    });
}

fn nobody_panicked() {
    let told = TOLD.lock().unwrap_or_else(|e| e.into_inner()).join("\n");
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "{told}");
}

/// `MALLEE_FUZZ=10` tries ten times as many.
fn cases(number: u32) -> ProptestConfig {
    let times = std::env::var("MALLEE_FUZZ").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    ProptestConfig { cases: number * times, failure_persistence: None, ..ProptestConfig::default() }
}

/// Writes the bytes and reads what comes until the other side closes, or for two seconds.
async fn raw(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream =
        tokio::net::TcpStream::connect(to).await.unwrap_or_else(|e| panic!("{to}: the front is gone: {e}"));
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
    answer
}

/// The statuses of all answers on a connection.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// 501 is S3's way to refuse by name.
fn check(what: &str, statuses: &[u16]) {
    assert!(statuses.iter().all(|status| *status < 500 || *status == 501), "{what}: {statuses:?}");
}

/// Pieces that mean something to a parser, beside bytes that mean nothing.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&'static str> = vec![
        "GET / HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\n",
        "PUT /b/k HTTP/1.1\r\n",
        "Host: a\r\n",
        "Host: \r\n",
        "\r\n",
        "\n",
        "\0",
        "\r",
        "Content-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "Authorization: AWS4-HMAC-SHA256 Credential=/////, SignedHeaders=, Signature=\r\n",
        "Authorization: AWS4-HMAC-SHA256\r\n",
        "Authorization: AWS :\r\n",
        "Authorization: AWS4-HMAC-SHA256 Credential=A/20200101/r/s3/aws4_request, SignedHeaders=host;;x, Signature=zz\r\n",
        "X-Amz-Date: 99999999T999999Z\r\n",
        "x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\r\n",
        "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\n",
        "x-amz-decoded-content-length: -5\r\n",
        "x-amz-decoded-content-length: 18446744073709551615\r\n",
        "x-amz-trailer: x-amz-checksum-crc32\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: multipart/form-data; boundary=\r\n",
        "Content-Type: application/json\r\n",
        "x-amz-target: a\r\n",
        "Range: bytes=-18446744073709551615\r\n",
        "Range: bytes=5-1,0-\r\n",
        "x-amz-copy-source: \r\n",
        "x-amz-copy-source: /%00/%\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: h2c\r\n",
        " folded\r\n",
        "Action=%",
        "Action=RunInstances&Filter.99999999999999999999.Name=x",
        "&Tag.0.Key&&=",
        "GET /?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=%2F%2F%2F%2F&X-Amz-Date=x&X-Amz-Expires=-1&X-Amz-Signature=1&X-Amz-SignedHeaders=host HTTP/1.1\r\n",
        "GET /?AWSAccessKeyId=&Signature=&Expires=99999999999999999999 HTTP/1.1\r\n",
        "GET /%ff%00/..%2f/ HTTP/1.1\r\n",
        "GET //////?list-type=2&max-keys=-1 HTTP/1.1\r\n",
        "POST /-/join HTTP/1.1\r\n",
        "POST /-/tiers/intend HTTP/1.1\r\n",
        "PUT /-/tiers/blobs/../../etc HTTP/1.1\r\n",
        "{\"token\":\"mallee1.\",\"request\":{\"pem\":\"\"}}",
        "\u{16}\u{3}\u{1}\0\u{5}hello",
    ];
    prop_oneof![
        8 => prop::sample::select(known).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
        1 => "[ -~]{0,80}".prop_map(String::into_bytes),
    ]
}

#[test]
fn any_bytes_at_the_fronts_get_an_error_and_no_panic() {
    watch_for_panics();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cloud = runtime.block_on(Cloud::start());
    let fronts = [Tier::CloudController, Tier::Walrus, Tier::Cluster(0), Tier::Storage(0), Tier::Node(0, 0)];
    let mut runner = TestRunner::new(cases(400));
    let strategy = prop::collection::vec(piece(), 1..12);
    let outcome = runner.run(&strategy, |pieces| {
        let bytes = pieces.concat();
        for tier in fronts {
            let answer = runtime.block_on(raw(cloud.address_of(tier), &bytes));
            check(&format!("{tier:?} {:?}", String::from_utf8_lossy(&bytes)), &statuses(&answer));
        }
        Ok(())
    });
    nobody_panicked();
    outcome.unwrap();
    runtime.block_on(async {
        cloud.ec2("Action=DescribeRegions").await.ok();
        cloud.user().await.s3(Method::GET, "/", "").await.ok();
        cloud.wait_for_everybody().await;
    });
}

/// Values that are the wrong kind for something.
fn value() -> impl Strategy<Value = String> {
    let known: Vec<&'static str> = vec![
        "",
        "0",
        "-1",
        "1",
        "99999999999999999999",
        "true",
        "perhaps",
        "i-0123456789abcdef0",
        "vol-0123456789abcdef0",
        "ami-1",
        "*",
        "\\",
        "?*?*?*?*",
        "0.0.0.0/0",
        "10.0.0.0/99",
        "::/0",
        "tcp",
        "-1",
        "%",
        "\u{0}",
        "<a>&b;</a>",
        "'; DROP TABLE instance; --",
        "mallee-1a",
        "mini.nano",
        "/dev/sdf",
        "aGVsbG8=",
        "ü",
        "2020-01-01T00:00:00Z",
        "all",
        "self",
        "../../etc/passwd",
        "stop",
    ];
    prop_oneof![6 => prop::sample::select(known).prop_map(str::to_owned), 1 => "\\PC{0,60}", 1 => "[a]{0,3000}"]
}

fn query_request() -> impl Strategy<Value = (String, Vec<(String, String)>)> {
    let actions: Vec<_> = SERVICES[0].1.tables.iter().flat_map(|table| table.iter()).collect();
    (0..actions.len(), prop::collection::vec((any::<prop::sample::Index>(), 0..8usize, value()), 0..8)).prop_map(
        move |(at, given)| {
            let action = actions[at];
            let names = (action.parameters)();
            let tails = ["", ".1", ".1", ".2", ".1.Name", ".1.Value.1", ".0", ".1.Tag.1.Key"];
            let pairs = given
                .into_iter()
                .filter(|_| !names.is_empty())
                .map(|(name, tail, value)| (format!("{}{}", name.get(names), tails[tail]), value))
                .collect();
            (action.name.to_owned(), pairs)
        },
    )
}

#[test]
fn well_signed_nonsense_gets_an_error_of_the_caller() {
    watch_for_panics();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cloud = runtime.block_on(Cloud::start());
    let user = runtime.block_on(cloud.user()).clone();
    let mut runner = TestRunner::new(cases(1500));
    let outcome = runner.run(&query_request(), |(action, pairs)| {
        let mut all = vec![("Action", action.as_str())];
        all.extend(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let answer = runtime.block_on(user.ec2(&mallee_tests_cloud::form(&all)));
        prop_assert!(answer.status < 500, "{:?}: {} {}", all, answer.status, answer.text());
        prop_assert!(mallee_tests_cloud::xml::parse(&answer.text()).is_ok(), "{:?}: {}", all, answer.text());
        Ok(())
    });
    nobody_panicked();
    outcome.unwrap();
}

#[test]
fn well_signed_nonsense_to_s3_gets_an_error_of_the_caller() {
    watch_for_panics();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cloud = runtime.block_on(Cloud::start());
    let user = runtime.block_on(cloud.user()).clone();
    runtime.block_on(user.s3(Method::PUT, "/fuzz", "")).ok();
    runtime.block_on(user.s3(Method::PUT, "/fuzz/there", "something")).ok();
    let path = prop::sample::select(vec![
        "/",
        "/fuzz",
        "/fuzz/",
        "/fuzz/there",
        "/fuzz/new%20key",
        "/fuzz/%00",
        "/fuzz//a/../b",
        "/UPPER",
        "/a.b..c",
        "/fuzz/%F0%9F%8D%8B",
    ]);
    let query = prop::sample::select(vec![
        "",
        "acl",
        "uploads",
        "uploadId=x",
        "uploadId=x&partNumber=0",
        "partNumber=99999999999",
        "list-type=2",
        "list-type=2&max-keys=-1",
        "list-type=2&continuation-token=%00",
        "max-keys=99999999999999999999",
        "delimiter=%F0%9F%8D%8B&prefix=%00",
        "encoding-type=url",
        "encoding-type=odd",
        "versionId=x",
        "delete",
        "tagging",
        "location",
        "versions",
        "attributes",
        "response-content-type=%0d%0aX:%201",
        "x-id=GetObject",
        "marker=%ff",
        "unknown",
    ]);
    let headers = prop::collection::vec(
        prop::sample::select(vec![
            ("range", "bytes=0-0"),
            ("range", "bytes=99-"),
            ("range", "bytes=a-b"),
            ("if-match", "*"),
            ("if-none-match", "*"),
            ("if-modified-since", "yesterday"),
            ("x-amz-copy-source", "/fuzz/there"),
            ("x-amz-copy-source", "fuzz"),
            ("x-amz-copy-source", "/fuzz/%zz"),
            ("x-amz-copy-source-range", "bytes=5-1"),
            ("content-md5", "x"),
            ("x-amz-checksum-crc32", "AAAA"),
            ("x-amz-checksum-sha256", "x"),
            ("x-amz-acl", "everybody"),
            ("x-amz-tagging", "a=b&a=c"),
            ("x-amz-tagging", "%"),
            ("x-amz-metadata-directive", "REPLACE"),
            ("x-amz-storage-class", "GLACIER"),
            ("x-amz-server-side-encryption", "aws:kms"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-grant-read", "id=1"),
            ("x-amz-object-lock-mode", "GOVERNANCE"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("x-amz-object-attributes", "ETag,Odd"),
        ]),
        0..3,
    );
    let body = prop::sample::select(vec![
        "",
        "hello",
        "<",
        "<Delete>",
        "<Delete><Object><Key/></Object></Delete>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><Delete>&b;</Delete>",
        "<CompleteMultipartUpload><Part><PartNumber>0</PartNumber></Part></CompleteMultipartUpload>",
        "<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>",
        "<AccessControlPolicy/>",
        "<CreateBucketConfiguration><LocationConstraint>mars</LocationConstraint></CreateBucketConfiguration>",
        "\u{0}\u{1}",
    ]);
    let methods: Vec<&'static str> =
        OPERATIONS.iter().map(|row| row.method).chain(["OPTIONS", "PATCH", "TRACE"]).collect();
    let strategy = (prop::sample::select(methods), path, query, headers, body);
    let mut runner = TestRunner::new(cases(1500));
    let outcome = runner.run(&strategy, |(method, path, query, headers, body)| {
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let what = format!("{method} {target} {headers:?} {body:?}");
        let answer = runtime.block_on(send(&user, method, &target, &headers, body));
        prop_assert!(answer.status < 500 || answer.status == 501, "{what}: {} {}", answer.status, answer.text());
        prop_assert!(!answer.headers.contains_key("x"), "{what}: a header was smuggled into the answer");
        Ok(())
    });
    nobody_panicked();
    outcome.unwrap();
}

async fn send(
    user: &Client,
    method: &str,
    target: &str,
    headers: &[(&'static str, &'static str)],
    body: &'static str,
) -> mallee_tests_cloud::Answer {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let sent = user.send(user.objects, "s3", method.parse().unwrap(), target, map, body.into(), Signed::Properly);
    sent.await.unwrap_or_else(|e| panic!("{method} {target}: {e}"))
}
