//! 24: documents, forms and bodies with bytes changed, lost, doubled and put in: whatever comes is answered, never by a
//! panic (whose connection ends without an answer) and never as our fault.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use mallee_aws::signature::Payload;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::server::{rounds, seed};
use crate::{
    buckets::{form, world_with},
    client::between,
};

const DOORS: [(&str, &str, &str); 17] = [
    (
        "POST",
        "/bkt?delete",
        "<Delete><Quiet>true</Quiet><Object><Key>k</Key><VersionId>null</VersionId></Object></Delete>",
    ),
    (
        "POST",
        "/bkt/k?uploadId=UPLOAD",
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag></Part></CompleteMultipartUpload>",
    ),
    (
        "PUT",
        "/bkt2",
        "<CreateBucketConfiguration><LocationConstraint>mallee-1</LocationConstraint></CreateBucketConfiguration>",
    ),
    (
        "PUT",
        "/bkt?acl",
        "<AccessControlPolicy><Owner><ID>a</ID></Owner><AccessControlList><Grant><Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"Group\"><URI>http://acs.amazonaws.com/groups/global/AllUsers</URI></Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>",
    ),
    ("PUT", "/bkt/k?tagging", "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>"),
    ("PUT", "/bkt?tagging", "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>"),
    (
        "PUT",
        "/bkt?cors",
        "<CORSConfiguration><CORSRule><AllowedOrigin>https://*.a</AllowedOrigin><AllowedMethod>GET</AllowedMethod><MaxAgeSeconds>9</MaxAgeSeconds></CORSRule></CORSConfiguration>",
    ),
    (
        "PUT",
        "/bkt?website",
        "<WebsiteConfiguration><IndexDocument><Suffix>i</Suffix></IndexDocument><RoutingRules><RoutingRule><Condition><KeyPrefixEquals>a</KeyPrefixEquals></Condition><Redirect><HostName>b</HostName><HttpRedirectCode>302</HttpRedirectCode></Redirect></RoutingRule></RoutingRules></WebsiteConfiguration>",
    ),
    (
        "PUT",
        "/bkt?logging",
        "<BucketLoggingStatus><LoggingEnabled><TargetBucket>bkt</TargetBucket><TargetPrefix>l/</TargetPrefix></LoggingEnabled></BucketLoggingStatus>",
    ),
    (
        "PUT",
        "/bkt?notification",
        "<NotificationConfiguration><QueueConfiguration><Id>1</Id><Queue>arn:aws:sqs:a:1:b</Queue><Event>s3:ObjectCreated:*</Event></QueueConfiguration></NotificationConfiguration>",
    ),
    (
        "PUT",
        "/bkt?lifecycle",
        "<LifecycleConfiguration><Rule><ID>a</ID><Filter><And><Prefix>p</Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration><NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>",
    ),
    (
        "PUT",
        "/bkt?policy",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":{"AWS":["1","*"]},"Action":"s3:PutObject","Resource":"arn:aws:s3:::bkt/no","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}}}]}"#,
    ),
    (
        "PUT",
        "/bkt?encryption",
        "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>",
    ),
    (
        "PUT",
        "/bkt?publicAccessBlock",
        "<PublicAccessBlockConfiguration><BlockPublicAcls>false</BlockPublicAcls></PublicAccessBlockConfiguration>",
    ),
    ("PUT", "/bkt?versioning", "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"),
    (
        "PUT",
        "/locked?object-lock",
        "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>",
    ),
    (
        "PUT",
        "/locked/k?retention",
        "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2020-01-01T00:00:00Z</RetainUntilDate></Retention>",
    ),
];

/// What a value may be replaced by.
const VALUES: [&str; 16] = [
    "",
    "0",
    "-1",
    "1",
    "2147483648",
    "9223372036854775808",
    "18446744073709551616",
    "1.5",
    "NaN",
    "*",
    "?",
    "${a}",
    "2020-01-01T00:00:00Z",
    "99999-99-99T99:99:99Z",
    "arn:aws:s3:::",
    "\u{10ffff}",
];

const TOKENS: [&str; 22] = [
    "<",
    "</",
    ">",
    "&",
    "&#0;",
    "&#xD800;",
    "]]>",
    "<![CDATA[",
    "<!--",
    "<?",
    "\0",
    "\u{feff}",
    "-1",
    "99999999999999999999",
    "1e999",
    "{",
    "[",
    "\"",
    "\\u0000",
    "\r\n",
    "é",
    "xsi:type=",
];

fn spoilt(document: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = document.to_vec();
    if random.random_bool(0.6) {
        // Well-formed, with other values.
        let values: Vec<(usize, usize)> = values(&bytes).collect();
        for _ in 0..random.random_range(1..3) {
            let Some((begin, end)) = values.choose(random).copied().filter(|(_, end)| *end <= bytes.len()) else {
                continue;
            };
            bytes.splice(begin..end, VALUES.choose(random).unwrap().bytes());
        }
        return bytes;
    }
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..40)).min(bytes.len());
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, TOKENS.choose(random).unwrap().bytes())),
        }
    }
    bytes
}

/// Where the values are: between tags, or in quotes.
fn values(document: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let ends = |from: usize, with: u8| document[from..].iter().position(|byte| *byte == with).map(|n| (from, from + n));
    document.iter().enumerate().filter_map(move |(at, byte)| match byte {
        b'>' => ends(at + 1, b'<').filter(|(begin, end)| end > begin),
        b'"' => ends(at + 1, b'"'),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_documents_are_answered() {
    let mut random = StdRng::seed_from_u64(seed());
    let world = world_with("").await;
    let s3 = &world.s3;
    s3.put("/bkt/k", "x").await;
    let locked = s3.call("PUT", "/locked", &[("x-amz-bucket-object-lock-enabled", "true")], "").await;
    assert_eq!(locked.status, StatusCode::OK);
    s3.put("/locked/k", "x").await;
    let upload = s3.call("POST", "/bkt/k?uploads", &[], "").await.text();
    let id = between(&upload, "<UploadId>", "<").unwrap();
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds(1500, 60_000) {
        let answered = match round % 10 {
            0 => {
                let (kind, body) = form(
                    &[("key", "f/${filename}"), ("acl", "private"), ("policy", "e30="), ("x-amz-meta-a", "b")],
                    b"x",
                );
                let request = Request::post(format!("http://{}/bkt", s3.address)).header("content-type", kind);
                s3.try_send(request.body(Full::from(spoilt(&body, &mut random))).unwrap()).await
            }
            1 => {
                let body = b"5;chunk-signature=0\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n";
                let body =
                    if random.random_bool(0.5) { body.replace_all(";chunk-signature=0", "") } else { body.to_vec() };
                let headers = [
                    ("x-amz-decoded-content-length", "5"),
                    ("content-encoding", "aws-chunked"),
                    ("x-amz-trailer", "x-amz-checksum-crc32"),
                ];
                let body = Bytes::from(spoilt(&body, &mut random));
                s3.try_send(s3.signed_as("PUT", "/bkt/lie", &headers, body, Payload::UnsignedTrailer)).await
            }
            _ => {
                let (method, path, document) = DOORS.choose(&mut random).unwrap();
                let body = Bytes::from(spoilt(document.as_bytes(), &mut random));
                s3.try_send(s3.signed(method, &path.replace("UPLOAD", id), &[], body)).await
            }
        };
        let answer = answered.unwrap_or_else(|| panic!("request {round} was not answered"));
        assert!(answer.status != 500 && answer.status != 503, "request {round}: {}", answer.text());
        assert!(!answer.status.is_client_error() || !answer.code().is_empty(), "request {round}: {}", answer.text());
        *told.entry(format!("{} {}", answer.status.as_u16(), answer.code())).or_default() += 1;
    }
    println!("{told:?}");
    assert!(told.len() > 5, "what was sent came to one end: {told:?}");
    // It serves on; `bkt` itself may have been told to refuse everything.
    assert_eq!(s3.put("/fresh", "").await.status, StatusCode::OK);
    assert_eq!(s3.put("/fresh/k", "y").await.status, StatusCode::OK);
    assert_eq!(s3.get("/fresh/k").await.body, "y");
}

trait Replaced {
    fn replace_all(&self, what: &str, with: &str) -> Vec<u8>;
}

impl Replaced for [u8] {
    fn replace_all(&self, what: &str, with: &str) -> Vec<u8> {
        String::from_utf8_lossy(self).replace(what, with).into_bytes()
    }
}
