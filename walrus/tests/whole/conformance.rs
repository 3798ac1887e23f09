//! What suites of conformance ask of an S3, and AWS' reference says: each test is about one part of the protocol.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;

use crate::{
    buckets::{World, soon, world, world_with},
    client::{ALICE, Answer, BOB, S3, between, config},
};

const VERSIONED: &str = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
const MIB: usize = 1 << 20;

const CUSTOMER: &str = "x-amz-server-side-encryption-customer-algorithm";

type Headers = &'static [(&'static str, &'static str)];

fn told(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.code())
}

fn no(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

async fn owner(s3: &S3) -> String {
    between(&s3.get("/").await.text(), "<ID>", "<").unwrap().to_owned()
}

/// The elements with this name, as text.
fn all<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    text.split(begin.as_str())
        .skip(1)
        .filter_map(|rest| rest.split_once(end.as_str()))
        .map(|(inner, _)| inner)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_markers_are_listed_among_each_other_in_the_order_of_keys() {
    let world = world().await;
    world.put_ok("/bkt?versioning", VERSIONED).await;
    for key in ["a", "b", "c"] {
        world.put_ok(&format!("/bkt/{key}"), key).await;
    }
    world.s3.call("DELETE", "/bkt/b", &[], "").await;
    let text = world.s3.get("/bkt?versions").await.text();
    let elements = text.split('<').filter_map(|tag| match tag.split_once('>')? {
        ("Version", _) => Some("V".to_owned()),
        ("DeleteMarker", _) => Some("D".to_owned()),
        ("Key", key) => Some(key.to_owned()),
        _ => None,
    });
    assert_eq!(elements.collect::<String>(), "VaDbVbVc", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_say_where_to_go_on_as_s3_does() {
    let world = world().await;
    for key in ["a b", "c/1", "d"] {
        world.put_ok(&format!("/bkt/{}", key.replace(' ', "%20")), "").await;
    }
    let plain = world.s3.get("/bkt?max-keys=1&encoding-type=url").await.text();
    assert_eq!((all(&plain, "Key"), all(&plain, "NextMarker")), (vec!["a%20b"], vec![]), "{plain}");
    let folders = world.s3.get("/bkt?max-keys=2&delimiter=/").await.text();
    assert_eq!(all(&folders, "NextMarker"), ["c/"], "{folders}");
    let second = world.s3.get("/bkt?list-type=2&continuation-token=").await.text();
    assert!(second.contains("<ContinuationToken></ContinuationToken>") || second.contains("<ContinuationToken/>"));
    assert_eq!(all(&second, "KeyCount"), ["3"], "{second}");
    assert_eq!(told(&world.s3.get("/bkt?list-type=2&continuation-token=junk").await), no(400, "InvalidArgument"));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_buckets_and_their_owners_are_checked() {
    let world = world().await;
    for name in ["a.-b", "a-.b", "192.168.001.999", "ab", "Upper", "a..b"] {
        assert_eq!(told(&world.s3.put(&format!("/{name}"), "").await), no(400, "InvalidBucketName"), "{name}");
    }
    assert_eq!(told(&world.s3.put("/bkt", "").await), no(409, "BucketAlreadyOwnedByYou"));
    assert_eq!(told(&world.bob.put("/bkt", "").await), no(409, "BucketAlreadyExists"));
    let both = [("x-amz-object-ownership", "BucketOwnerEnforced"), ("x-amz-acl", "public-read")];
    assert_eq!(told(&world.s3.call("PUT", "/new", &both, "").await), no(400, "InvalidBucketAclWithObjectOwnership"));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_make_no_sense_are_refused_by_their_own_codes() {
    let world = world().await;
    world.put_ok("/bkt/k", "bytes").await;
    let table: &[(&str, &str, Headers, u16, &str)] = &[
        ("PUT", "/bkt/n", &[("content-md5", "")], 400, "InvalidDigest"),
        ("PUT", "/bkt/n", &[("x-amz-checksum-sha256", "bad")], 400, "BadDigest"),
        (
            "PUT",
            "/bkt/n",
            &[("x-amz-checksum-sha256", "bad"), ("x-amz-checksum-crc32", "AAAAAA==")],
            400,
            "InvalidRequest",
        ),
        ("PUT", "/bkt/n?partNumber=1", &[], 400, "InvalidArgument"),
        ("PUT", "/bkt/n", &[("x-amz-grant-read", "emailAddress=a@b.c")], 400, "UnresolvableGrantByEmailAddress"),
        ("PUT", "/bkt/n", &[("x-amz-server-side-encryption-aws-kms-key-id", "k")], 400, "InvalidArgument"),
        ("PUT", "/bkt/n", &[(CUSTOMER, "AES256"), ("x-amz-server-side-encryption", "AES256")], 400, "InvalidArgument"),
        ("GET", "/bkt/k", &[("x-amz-server-side-encryption", "AES256")], 400, "InvalidArgument"),
        ("GET", "/bkt/k?attributes", &[("x-amz-object-attributes", "")], 400, "InvalidRequest"),
        ("GET", "/bkt/k?attributes", &[("x-amz-object-attributes", "ETag,Age")], 400, "InvalidArgument"),
        ("POST", "/bkt/k?uploads", &[("x-amz-checksum-type", "COMPOSITE")], 400, "InvalidRequest"),
        (
            "PUT",
            "/bkt/k",
            &[("if-none-match", "\"x\", \"4b3a6218bb3e3a7303e8a171a60fcf92\"")],
            412,
            "PreconditionFailed",
        ),
    ];
    for (method, path, headers, status, code) in table {
        let answer = world.s3.call(method, path, headers, "").await;
        assert_eq!(told(&answer), no(*status, code), "{method} {path} {headers:?}: {}", answer.text());
    }
    assert_eq!(world.s3.call("PUT", "/bkt/k", &[("if-none-match", "\"x\"")], "").await.status, StatusCode::OK);
    assert_eq!(told(&world.s3.put("/bkt?acl", "<AccessControlPolicy><Owner>").await), no(400, "MalformedACLError"));
    let nameless = "<Delete><Object><Key>k</Key></Object><Object><Key/></Object></Delete>";
    assert_eq!(told(&world.s3.call("POST", "/bkt?delete", &[], nameless).await), no(400, "MalformedXML"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_shown_every_refusal_also_of_its_signature() {
    let world = world().await;
    let rule = "<CORSConfiguration><CORSRule><AllowedOrigin>http://page</AllowedOrigin><AllowedMethod>PUT</AllowedMethod></CORSRule></CORSConfiguration>";
    world.put_ok("/bkt?cors", rule).await;
    let stranger = world.s3.with((ALICE.0, "not her secret"));
    for (s3, code) in [(&stranger, "SignatureDoesNotMatch"), (&world.bob, "AccessDenied")] {
        let answer = s3.call("PUT", "/bkt/k", &[("origin", "http://page")], "").await;
        assert_eq!(told(&answer), no(403, code));
        assert_eq!(answer.header("access-control-allow-origin"), "http://page", "{code}");
        let elsewhere = s3.call("PUT", "/bkt/k", &[("origin", "http://other")], "").await;
        assert_eq!(elsewhere.header("access-control-allow-origin"), "", "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pays_is_told_so() {
    let world = world().await;
    world.put_ok("/bkt/k", "x").await;
    let all =
        r#"{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::bkt","arn:aws:s3:::bkt/*"]}"#;
    assert_eq!(world.policy(all).await.status, StatusCode::NO_CONTENT);
    let pays = [("x-amz-request-payer", "requester")];
    assert_eq!(world.bob.call("GET", "/bkt/k", &pays, "").await.header("x-amz-request-charged"), "");
    world
        .put_ok(
            "/bkt?requestPayment",
            "<RequestPaymentConfiguration><Payer>Requester</Payer></RequestPaymentConfiguration>",
        )
        .await;
    for (method, path) in [("GET", "/bkt/k"), ("PUT", "/bkt/n"), ("GET", "/bkt?list-type=2"), ("DELETE", "/bkt/n")] {
        let answer = world.bob.call(method, path, &pays, "").await;
        assert_eq!(answer.header("x-amz-request-charged"), "requester", "{method} {path}: {}", answer.status);
    }
    assert_eq!(world.s3.call("GET", "/bkt/k", &pays, "").await.header("x-amz-request-charged"), "");
    assert_eq!(told(&world.bob.get("/bkt/k").await), no(403, "AccessDenied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_put_may_not_lock_tag_or_list_by_the_way() {
    let world = world().await;
    let lockable = [("x-amz-bucket-object-lock-enabled", "true")];
    assert_eq!(world.s3.call("PUT", "/locked", &lockable, "").await.status, StatusCode::OK);
    let until =
        [("x-amz-object-lock-mode", "GOVERNANCE"), ("x-amz-object-lock-retain-until-date", "2099-01-01T00:00:00Z")];
    let table: [(&[(&str, &str)], &str); 4] = [
        (&until, "s3:PutObjectRetention"),
        (&[("x-amz-object-lock-legal-hold", "ON")], "s3:PutObjectLegalHold"),
        (&[("x-amz-tagging", "a=b")], "s3:PutObjectTagging"),
        (&[("x-amz-acl", "bucket-owner-read")], "s3:PutObjectAcl"),
    ];
    for (headers, action) in table {
        for (allowed, status) in [("s3:PutObject\"", 403), (&format!("s3:PutObject\",\"{action}\""), 200)] {
            let policy = format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":["{allowed}],"Resource":"arn:aws:s3:::locked/*"}}]}}"#
            );
            world.put_ok("/locked?policy", &policy).await;
            // Without the lists, whose WRITE lets anybody say what is to become of their own object.
            let answer = world.bob.call("PUT", "/locked/k", headers, "x").await;
            let expected = if action == "s3:PutObjectAcl" { 200 } else { status };
            assert_eq!(answer.status.as_u16(), expected, "{action} {allowed}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_only_made_stronger_without_the_right_to_weaken_them() {
    let world = world().await;
    let lockable = [("x-amz-bucket-object-lock-enabled", "true")];
    assert_eq!(world.s3.call("PUT", "/locked", &lockable, "").await.status, StatusCode::OK);
    let rule = |inner: &str| {
        format!(
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode>{inner}</DefaultRetention></Rule></ObjectLockConfiguration>"
        )
    };
    for (inner, code) in [
        ("<Days>0</Days>", "InvalidRetentionPeriod"),
        ("<Years>-1</Years>", "InvalidRetentionPeriod"),
        ("<Days>1</Days><Years>1</Years>", "MalformedXML"),
    ] {
        assert_eq!(told(&world.s3.put("/locked?object-lock", rule(inner)).await), no(400, code), "{inner}");
    }
    world.put_ok("/locked/k", "x").await;
    let retention = |mode: &str, year: u32| {
        format!("<Retention><Mode>{mode}</Mode><RetainUntilDate>{year}-01-01T00:00:00Z</RetainUntilDate></Retention>")
    };
    world.put_ok("/locked/k?retention", &retention("GOVERNANCE", 2090)).await;
    world.put_ok("/locked/k?retention", &retention("GOVERNANCE", 2091)).await;
    for (mode, year) in [("GOVERNANCE", 2090), ("COMPLIANCE", 2092)] {
        let answer = world.s3.put("/locked/k?retention", retention(mode, year)).await;
        assert_eq!(told(&answer), no(403, "AccessDenied"), "{mode} {year}");
    }
    let bypass = [("x-amz-bypass-governance-retention", "true")];
    let answer = world.s3.call("PUT", "/locked/k?retention", &bypass, retention("GOVERNANCE", 2089)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_shown_groups_first_and_ruled_out_where_the_bucket_owns_everything() {
    let world = world().await;
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "public-read")], "").await;
    let text = world.s3.get("/bkt?acl").await.text();
    assert_eq!(all(&text, "Permission"), ["READ", "FULL_CONTROL"], "{text}");
    assert!(world.s3.get("/bkt?policyStatus").await.text().contains("<IsPublic>true</IsPublic>"));
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "private")], "").await;
    assert!(world.s3.get("/bkt?policyStatus").await.text().contains("<IsPublic>false</IsPublic>"));
    world
        .put_ok(
            "/bkt?ownershipControls",
            "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>",
        )
        .await;
    let off = no(400, "AccessControlListNotSupported");
    for (path, canned) in [("/bkt?acl", "private"), ("/bkt/k", "private"), ("/bkt/k", "public-read")] {
        assert_eq!(told(&world.s3.call("PUT", path, &[("x-amz-acl", canned)], "").await), off, "{path} {canned}");
    }
    let full = [("x-amz-acl", "bucket-owner-full-control")];
    assert_eq!(world.s3.call("PUT", "/bkt/k", &full, "").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_composite_checksum_bring_their_own_to_the_end() {
    let world = world().await;
    let algorithm = [("x-amz-checksum-algorithm", "CRC32")];
    let begun = world.s3.call("POST", "/bkt/k?uploads", &algorithm, "").await;
    assert_eq!(begun.header("x-amz-checksum-type"), "COMPOSITE");
    let id = between(&begun.text(), "<UploadId>", "<").unwrap().to_owned();
    let mut parts = Vec::new();
    for number in [1, 2] {
        let path = format!("/bkt/k?partNumber={number}&uploadId={id}");
        let part = world.s3.put(&path, Bytes::from(vec![number; 5 * MIB])).await;
        parts.push((part.header("etag").to_owned(), part.header("x-amz-checksum-crc32").to_owned()));
    }
    let listed = |checksums: [&str; 2]| {
        let part = |number: usize| {
            let (etag, checksum) = (&parts[number - 1].0, checksums[number - 1]);
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>")
        };
        format!("<CompleteMultipartUpload>{}{}</CompleteMultipartUpload>", part(1), part(2))
    };
    let [one, two] = [0, 1].map(|at: usize| format!("<ChecksumCRC32>{}</ChecksumCRC32>", parts[at].1));
    let done = format!("/bkt/k?uploadId={id}");
    let sha = "<ChecksumSHA1>2jmj7l5rSw0yVb/vlWAYkK/YBwk=</ChecksumSHA1>";
    let gone = listed([&one, &two]).replace("<PartNumber>2<", "<PartNumber>9<");
    for (body, headers, code) in [
        (listed([&one, ""]), [("x-a", "")], "InvalidRequest"),
        (listed([&one, sha]), [("x-a", "")], "BadDigest"),
        (listed([&two, &one]), [("x-a", "")], "InvalidPart"),
        (gone, [("x-a", "")], "InvalidPart"),
        ("<CompleteMultipartUpload/>".to_owned(), [("x-a", "")], "InvalidRequest"),
        (listed([&one, &two]), [("x-amz-checksum-crc32", "AAAAAA==-2")], "BadDigest"),
        (listed([&one, &two]), [("x-amz-checksum-crc32", "bad")], "BadDigest"),
        (listed([&one, &two]), [("x-amz-checksum-type", "FULL_OBJECT")], "InvalidRequest"),
        (listed([&one, &two]), [("x-amz-mp-object-size", "5")], "InvalidRequest"),
    ] {
        let answer = world.s3.call("POST", &done, &headers, body.clone()).await;
        assert_eq!(told(&answer), no(400, code), "{headers:?} {body}: {}", answer.text());
    }
    let answer = world.s3.call("POST", &done, &[], listed([&one, &two])).await;
    let text = answer.text();
    assert!(between(&text, "<ChecksumCRC32>", "<").is_some_and(|sum| sum.ends_with("-2")), "{text}");
    let range = [("x-amz-copy-source", "/bkt/k"), ("x-amz-copy-source-range", "bytes=0-99999999")];
    let begun = world.s3.call("POST", "/bkt/n?uploads", &[], "").await.text();
    let path = format!("/bkt/n?partNumber=1&uploadId={}", between(&begun, "<UploadId>", "<").unwrap());
    assert_eq!(told(&world.s3.call("PUT", &path, &range, "").await), no(416, "InvalidRange"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_customer_locked_away_opens_to_no_other_key() {
    let world = world().await;
    let headers = |key: &[u8; 32]| {
        let md5 = openssl::hash::hash(openssl::hash::MessageDigest::md5(), key).unwrap();
        [
            ("x-amz-server-side-encryption-customer-algorithm", "AES256".to_owned()),
            ("x-amz-server-side-encryption-customer-key", STANDARD.encode(key)),
            ("x-amz-server-side-encryption-customer-key-md5", STANDARD.encode(md5)),
        ]
    };
    let (mine, other) = (headers(b"0123456789abcdef0123456789abcdef"), headers(b"fedcba9876543210fedcba9876543210"));
    let with = |headers: &[(&'static str, String); 3]| headers.clone();
    let call = async |method: &str, headers: Option<&[(&'static str, String); 3]>, body: &'static str| {
        let headers = headers.map(with);
        let headers: Vec<(&str, &str)> =
            headers.iter().flatten().map(|(name, value)| (*name, value.as_str())).collect();
        world.s3.call(method, "/bkt/k", &headers, body).await
    };
    assert_eq!(call("PUT", Some(&mine), "secret").await.status, StatusCode::OK);
    assert_eq!(call("GET", Some(&mine), "").await.body, "secret");
    assert_eq!(told(&call("GET", None, "").await), no(400, "InvalidRequest"));
    assert_eq!(told(&call("GET", Some(&other), "").await), no(400, "InvalidRequest"));
    assert_eq!(call("HEAD", Some(&other), "").await.status, StatusCode::BAD_REQUEST);
}

type Fields<'f> = &'f [(&'f str, &'f str)];

/// A form as browsers send it.
async fn form(world: &World, policy: &str, fields: Fields<'_>) -> Answer {
    let policy = STANDARD.encode(policy);
    let key = openssl::pkey::PKey::hmac(ALICE.1.as_bytes()).unwrap();
    let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha1(), &key).unwrap();
    signer.update(policy.as_bytes()).unwrap();
    let signature = STANDARD.encode(signer.sign_to_vec().unwrap());
    let signed = [("AWSAccessKeyId", ALICE.0), ("policy", &policy), ("signature", &signature)];
    let mut body = String::new();
    for (name, value) in signed.iter().chain(fields).chain(&[("file", "bar")]) {
        body.push_str(&format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"));
    }
    body.push_str("--b--\r\n");
    let request = Request::post(format!("http://{}/bkt", world.s3.address))
        .header("content-type", "multipart/form-data; boundary=b")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    world.s3.send(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_may_bring_less_than_its_policy_but_not_more() {
    let world = world().await;
    let policy = |conditions: &str| format!(r#"{{"expiration":"2099-01-01T00:00:00Z","conditions":[{conditions}]}}"#);
    let usual = policy(r#"{"bucket":"bkt"},["starts-with","$key","foo"],["starts-with","$x-amz-meta-a",""]"#);
    let bar = "/N4rLtula1+qI8bZ8PbT0uMpb5t1XKqIAO5nPSlS/Yk=";
    let table: &[(&str, Fields<'_>, u16, &str)] = &[
        (&usual, &[("key", "foo1")], 204, ""),
        (&usual, &[("key", "bar")], 403, "AccessDenied"),
        (&usual, &[("key", "foo"), ("x-amz-meta-b", "1")], 403, "AccessDenied"),
        (&usual, &[("key", "foo"), ("x-amz-checksum-sha256", bar)], 400, "BadDigest"),
        (&usual, &[("key", "foo"), ("x-amz-checksum-sha256", "sailor")], 400, "BadDigest"),
        (&policy(r#"{"bucket":"bkt"},["starts-with","$key",""],{}"#), &[("key", "foo")], 400, "InvalidPolicyDocument"),
    ];
    for (policy, fields, status, code) in table {
        let answer = form(&world, policy, fields).await;
        assert_eq!(told(&answer), no(*status, code), "{policy} {fields:?}: {}", answer.text());
    }
    let sum = STANDARD.encode(openssl::sha::sha256(b"bar"));
    assert_eq!(form(&world, &usual, &[("key", "foo2"), ("x-amz-checksum-sha256", &sum)]).await.status.as_u16(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_in_the_log_before_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let own = "log_delivery_ms = 3600000\nwebsite_suffixes = ['site.test']";
    let text = format!("{own}\n{}", config(dir.path(), "127.0.0.1:0"));
    let running = mallee_walrus::start(toml::from_str(&text).unwrap()).await.unwrap();
    let s3 = S3::new(running.addresses[0]);
    let logging = "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket><TargetPrefix/></LoggingEnabled></BucketLoggingStatus>";
    for (path, canned, body) in
        [("/bkt", "private", ""), ("/logs", "log-delivery-write", ""), ("/bkt?logging", "private", logging)]
    {
        assert_eq!(s3.call("PUT", path, &[("x-amz-acl", canned)], body).await.status, StatusCode::OK, "{path}");
    }
    let logged = async |wanted: &str| {
        let lines = running.store.read("read lines", |tx| {
            tx.query("SELECT line FROM access_log", mallee_store::params![], |row| row.get::<String>(0))
        });
        let lines = lines.await.unwrap();
        assert!(lines.iter().any(|line| line.contains(wanted)), "{wanted}: {lines:?}");
    };
    for n in 0..20 {
        s3.put(&format!("/bkt/{n}"), "x").await;
        logged(&format!("REST.PUT.OBJECT {n} \"PUT /bkt/{n} HTTP/1.1\" 200 - ")).await;
    }
    // Also who is nobody that walrus knows, and who comes as to a website.
    s3.with(("AKIASTRANGER", "x")).get("/bkt/secret?versionId=1").await;
    logged("REST.GET.OBJECT secret \"GET /bkt/secret?versionId=1 HTTP/1.1\" 403 InvalidAccessKeyId ").await;
    let visit = Request::get(format!("http://{}/page", s3.address)).header("host", "bkt.site.test");
    s3.send(visit.body(Full::default()).unwrap()).await;
    logged("WEBSITE.GET.OBJECT page \"GET /page HTTP/1.1\" 404 NoSuchWebsiteConfiguration ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_filed_by_the_day_of_the_request_and_shared_as_the_owner_wants() {
    let world = world_with("log_delivery_ms = 50").await;
    world.put_ok("/logs", "").await;
    let bob = owner(&world.bob).await;
    let logging = |grants: &str, source: &str| {
        format!(
            "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket>{grants}<TargetPrefix>p/</TargetPrefix><TargetObjectKeyFormat><PartitionedPrefix><PartitionDateSource>{source}</PartitionDateSource></PartitionedPrefix></TargetObjectKeyFormat></LoggingEnabled></BucketLoggingStatus>"
        )
    };
    let grants = |permission: &str| {
        format!(
            r#"<TargetGrants><Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>{bob}</ID></Grantee><Permission>{permission}</Permission></Grant></TargetGrants>"#
        )
    };
    // The policy lets in the log of this bucket, and no other's.
    let policy = |bucket: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"Service":"logging.s3.amazonaws.com"}},"Action":"s3:PutObject","Resource":"arn:aws:s3:::logs/p/*","Condition":{{"ArnLike":{{"aws:SourceArn":"arn:aws:s3:::{bucket}"}},"StringEquals":{{"aws:SourceAccount":"000000000001"}}}}}}]}}"#
        )
    };
    let good = logging(&grants("READ"), "EventTime");
    world.put_ok("/logs?policy", &policy("other")).await;
    assert_eq!(world.s3.put("/bkt?logging", good.clone()).await.code(), "InvalidTargetBucketForLogging");
    world.put_ok("/logs?policy", &policy("bkt")).await;
    for wrong in [logging("", "kaboom"), logging(&grants("READ_ACP"), "EventTime")] {
        assert_eq!(told(&world.s3.put("/bkt?logging", wrong.clone()).await), no(400, "MalformedXML"), "{wrong}");
    }
    world.put_ok("/bkt?logging", &good).await;
    let shown = world.s3.get("/bkt?logging").await.text();
    assert!(shown.contains("EventTime") && shown.contains(&bob) && shown.contains("<Permission>READ<"), "{shown}");
    world.put_ok("/bkt/k", "hello").await;
    let key = soon(async || {
        let list = world.s3.get("/logs?prefix=p/000000000001/").await.text();
        all(&list, "Key").first().map(|key| (*key).to_owned())
    })
    .await;
    let parts: Vec<&str> = key.split('/').collect();
    let day = format!("{}-{}-{}-00-00-00-", parts[4], parts[5], parts[6]);
    assert!(parts[2] == "mallee-1" && parts[3] == "bkt" && parts[7].starts_with(&day), "{key}");
    assert!(world.s3.with(BOB).get(&format!("/logs/{key}")).await.text().contains("REST.PUT."), "{key}");
}
