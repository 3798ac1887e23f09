//! Claims about what buckets can be set to do, tried over HTTP against a walrus in this process.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;

use crate::client::{Answer, BOB, S3, between, config};

pub struct World {
    _dir: tempfile::TempDir,
    pub s3: S3,
    pub bob: S3,
}

/// A fresh walrus with the bucket `bkt`, and lines for its configuration.
pub async fn world_with(lines: &str) -> World {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{lines}\n{}", config(dir.path(), "127.0.0.1:0"));
    let running = mallee_walrus::start(toml::from_str(&text).unwrap()).await.unwrap();
    let s3 = S3::new(running.addresses[0]);
    assert_eq!(s3.put("/bkt", "").await.status, StatusCode::OK);
    World { _dir: dir, bob: s3.with(BOB), s3 }
}

pub async fn world() -> World {
    world_with("").await
}

impl World {
    pub async fn anonymous(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.s3.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.s3.send(request.body(Full::default()).unwrap()).await
    }

    pub async fn policy(&self, statements: &str) -> Answer {
        self.s3.put("/bkt?policy", format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)).await
    }

    pub async fn put_ok(&self, path: &str, body: &str) {
        let answer = self.s3.put(path, body.to_owned()).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
    }
}

/// Asks again until it is so.
pub async fn soon<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..300 {
        if let Some(found) = ask().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not become so in 30 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_come_back_as_they_were_set_and_go_with_their_bucket() {
    let world = world().await;
    // Path, document, what must be in the answer, the code when there is none.
    let table = [
        (
            "policy",
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::bkt/no"}]}"#,
            "\"Deny\"",
            "NoSuchBucketPolicy",
        ),
        (
            "publicAccessBlock",
            "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>",
            "<BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>false</IgnorePublicAcls>",
            "NoSuchPublicAccessBlockConfiguration",
        ),
        (
            "ownershipControls",
            "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerPreferred</ObjectOwnership></Rule></OwnershipControls>",
            "<Rule><ObjectOwnership>BucketOwnerPreferred</ObjectOwnership></Rule>",
            "OwnershipControlsNotFoundError",
        ),
        (
            "tagging",
            "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>",
            "<TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet>",
            "NoSuchTagSet",
        ),
        (
            "cors",
            "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>",
            "<AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin>",
            "NoSuchCORSConfiguration",
        ),
        (
            "website",
            "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument></WebsiteConfiguration>",
            "<IndexDocument><Suffix>index.html</Suffix></IndexDocument>",
            "NoSuchWebsiteConfiguration",
        ),
        (
            "encryption",
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>",
            "<SSEAlgorithm>AES256</SSEAlgorithm>",
            "ServerSideEncryptionConfigurationNotFoundError",
        ),
    ];
    for (name, body, shown, none) in table {
        let path = format!("/bkt?{name}");
        assert_eq!(world.s3.get(&path).await.code(), none);
        world.put_ok(&path, body).await;
        let got = world.s3.get(&path).await;
        assert!(got.text().contains(shown), "{name}: {}", got.text());
        for other in ["GET", "PUT", "DELETE"] {
            assert_eq!(world.bob.call(other, &path, &[], body).await.code(), "AccessDenied", "{other} {name}");
            assert_eq!(world.anonymous(other, &path, &[]).await.code(), "AccessDenied", "{other} {name}");
        }
        assert_eq!(world.s3.call("DELETE", &path, &[], "").await.status, StatusCode::NO_CONTENT, "{name}");
        assert_eq!(world.s3.get(&path).await.code(), none);
        world.put_ok(&path, body).await;
    }
    assert_eq!(world.s3.call("DELETE", "/bkt", &[], "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.s3.put("/bkt", "").await.status, StatusCode::OK);
    for (name, _, _, none) in table {
        assert_eq!(world.s3.get(&format!("/bkt?{name}")).await.code(), none);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_or_is_not_done_is_refused() {
    let world = world().await;
    let tags = format!("<Tagging><TagSet>{}</TagSet></Tagging>", "<Tag><Key>a</Key><Value/></Tag>".repeat(2));
    let large = format!(r#"{{"Version":"2012-10-17","Id":"{}","Statement":[]}}"#, "x".repeat(20_480));
    let table: &[(&str, &str, u16, &str)] = &[
        ("policy", "{}", 400, "MalformedPolicy"),
        ("policy", "<x/>", 400, "MalformedPolicy"),
        ("policy", &large, 400, "MalformedPolicy"),
        ("tagging", &tags, 400, "InvalidTag"),
        ("publicAccessBlock", "<x/>", 400, "MalformedXML"),
        ("ownershipControls", "<OwnershipControls/>", 400, "MalformedXML"),
        ("cors", "<CORSConfiguration/>", 400, "MalformedXML"),
        ("website", "<WebsiteConfiguration/>", 400, "InvalidArgument"),
        (
            "encryption",
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>",
            501,
            "NotImplemented",
        ),
        (
            "notification",
            "<NotificationConfiguration><QueueConfiguration><Queue>arn:aws:sqs:r:1:q</Queue><Event>s3:ObjectCreated:*</Event></QueueConfiguration></NotificationConfiguration>",
            501,
            "NotImplemented",
        ),
        (
            "notification",
            "<NotificationConfiguration><TopicConfiguration><Topic>arn:mallee:webhook:::none</Topic><Event>s3:ObjectCreated:*</Event></TopicConfiguration></NotificationConfiguration>",
            400,
            "InvalidArgument",
        ),
        (
            "logging",
            "<BucketLoggingStatus><LoggingEnabled><TargetBucket>none</TargetBucket><TargetPrefix/></LoggingEnabled></BucketLoggingStatus>",
            400,
            "InvalidTargetBucketForLogging",
        ),
        (
            "logging",
            "<BucketLoggingStatus><LoggingEnabled><TargetBucket>bkt</TargetBucket><TargetPrefix/></LoggingEnabled></BucketLoggingStatus>",
            400,
            "InvalidTargetBucketForLogging",
        ),
        (
            "requestPayment",
            "<RequestPaymentConfiguration><Payer>Nobody</Payer></RequestPaymentConfiguration>",
            400,
            "MalformedXML",
        ),
        ("accelerate", "<AccelerateConfiguration/>", 501, "NotImplemented"),
        ("replication", "<ReplicationConfiguration/>", 501, "NotImplemented"),
        ("inventory&id=x", "<InventoryConfiguration/>", 501, "NotImplemented"),
    ];
    for (name, body, status, code) in table {
        let answer = world.s3.put(&format!("/bkt?{name}"), body.to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (*status, *code), "{name} {body:.80}");
    }
    for (path, inside) in [
        ("accelerate", "<AccelerateConfiguration"),
        ("logging", "<BucketLoggingStatus"),
        ("notification", "<NotificationConfiguration"),
        ("requestPayment", "<Payer>BucketOwner</Payer>"),
    ] {
        assert!(world.s3.get(&format!("/bkt?{path}")).await.text().contains(inside), "{path}");
    }
    assert_eq!(world.s3.get("/bkt?inventory&id=x").await.code(), "NoSuchConfiguration");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_lets_in_and_keeps_out_over_the_wire() {
    let world = world().await;
    for key in ["open/a", "shut/a"] {
        world.put_ok(&format!("/bkt/{key}"), key).await;
    }
    let answer = world
        .policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bkt/open/*"},
               {"Effect":"Allow","Principal":{"AWS":"000000000002"},"Action":"s3:ListBucket","Resource":"arn:aws:s3:::bkt",
                "Condition":{"StringEquals":{"s3:prefix":"open/"},"NumericLessThanEquals":{"s3:max-keys":"10"}}},
               {"Effect":"Allow","Principal":{"AWS":"000000000002"},"Action":["s3:PutObject","s3:PutObjectTagging"],"Resource":"arn:aws:s3:::bkt/drop/*",
                "Condition":{"StringEquals":{"s3:RequestObjectTag/from":"bob"}}},
               {"Effect":"Allow","Principal":{"AWS":"000000000002"},"Action":"s3:DeleteObject","Resource":"arn:aws:s3:::bkt/drop/*"},
               {"Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::bkt/safe/*","Condition":{"StringNotEquals":{"s3:x-amz-server-side-encryption":"AES256"}}},
               {"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::bkt/tls/*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}"#,
        )
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
    assert!(world.s3.get("/bkt?policyStatus").await.text().contains("<IsPublic>true</IsPublic>"));
    assert_eq!(world.anonymous("GET", "/bkt/open/a", &[]).await.body, "open/a");
    assert_eq!(world.anonymous("GET", "/bkt/shut/a", &[]).await.code(), "AccessDenied");
    assert_eq!(world.anonymous("GET", "/bkt/open/a?acl", &[]).await.code(), "AccessDenied");
    assert_eq!(world.anonymous("PUT", "/bkt/open/a", &[]).await.code(), "AccessDenied");

    assert_eq!(world.bob.get("/bkt?prefix=open/&max-keys=10").await.status, StatusCode::OK);
    for refused in [
        "/bkt?prefix=open/",
        "/bkt?prefix=&max-keys=10",
        "/bkt?max-keys=10",
        "/bkt?prefix=open/&max-keys=11",
        "/bkt?prefix=shut/&prefix=open/&max-keys=1",
        "/bkt?versions&prefix=open/&max-keys=1",
    ] {
        assert_eq!(world.bob.get(refused).await.code(), "AccessDenied", "{refused}");
    }
    assert_eq!(world.bob.put("/bkt/drop/a", "x").await.code(), "AccessDenied");
    assert_eq!(
        world.bob.call("PUT", "/bkt/drop/a", &[("x-amz-tagging", "from=bob")], "x").await.status,
        StatusCode::OK
    );
    // Each key of many is asked about.
    let many = "<Delete><Object><Key>drop/a</Key></Object><Object><Key>open/a</Key></Object></Delete>";
    let answer = world.bob.call("POST", "/bkt?delete", &[], many).await.text();
    assert!(answer.contains("<Deleted><Key>drop/a</Key>"), "{answer}");
    assert!(answer.contains("<Error><Key>open/a</Key>") && answer.contains("<Code>AccessDenied</Code>"), "{answer}");
    assert_eq!(world.s3.get("/bkt/open/a").await.status, StatusCode::OK);

    assert_eq!(world.s3.put("/bkt/safe/a", "x").await.code(), "AccessDenied");
    assert_eq!(world.s3.put("/bkt/tls/a", "x").await.code(), "AccessDenied");
    // The owner gets out again.
    assert_eq!(world.s3.call("DELETE", "/bkt?policy", &[], "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.s3.put("/bkt/tls/a", "x").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn ownership_and_the_public_access_block_overrule_lists() {
    let world = world().await;
    let block = |switch: &str| {
        format!("<PublicAccessBlockConfiguration><{switch}>true</{switch}></PublicAccessBlockConfiguration>")
    };
    world.s3.call("PUT", "/bkt/k", &[("x-amz-acl", "public-read")], "seen").await;
    assert_eq!(world.anonymous("GET", "/bkt/k", &[]).await.status, StatusCode::OK);
    world.put_ok("/bkt?publicAccessBlock", &block("IgnorePublicAcls")).await;
    assert_eq!(world.anonymous("GET", "/bkt/k", &[]).await.code(), "AccessDenied");
    world.put_ok("/bkt?publicAccessBlock", &block("BlockPublicAcls")).await;
    assert_eq!(world.anonymous("GET", "/bkt/k", &[]).await.status, StatusCode::OK);
    for (method, path) in [("PUT", "/bkt/l"), ("PUT", "/bkt/k?acl"), ("PUT", "/bkt?acl"), ("POST", "/bkt/l?uploads")] {
        assert_eq!(
            world.s3.call(method, path, &[("x-amz-acl", "public-read")], "").await.code(),
            "AccessDenied",
            "{method} {path}"
        );
    }
    world.put_ok("/bkt?publicAccessBlock", &block("BlockPublicPolicy")).await;
    let open = r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bkt/*"}"#;
    assert_eq!(world.policy(open).await.code(), "AccessDenied");
    world.put_ok("/bkt?publicAccessBlock", &block("RestrictPublicBuckets")).await;
    assert_eq!(world.policy(open).await.status, StatusCode::NO_CONTENT);
    world.s3.put("/bkt/m", "x").await;
    assert_eq!(world.anonymous("GET", "/bkt/m", &[]).await.code(), "AccessDenied");
    assert_eq!(world.bob.get("/bkt/m").await.code(), "AccessDenied");
    world.s3.call("DELETE", "/bkt?publicAccessBlock", &[], "").await;
    assert_eq!(world.bob.get("/bkt/m").await.status, StatusCode::OK);
    world.s3.call("DELETE", "/bkt?policy", &[], "").await;

    // Bob writes; whose it is depends.
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "public-read-write")], "").await;
    world.bob.put("/bkt/bobs", "his").await;
    assert_eq!(world.s3.get("/bkt/bobs").await.code(), "AccessDenied");
    let rule = |ownership: &str| {
        format!("<OwnershipControls><Rule><ObjectOwnership>{ownership}</ObjectOwnership></Rule></OwnershipControls>")
    };
    assert_eq!(
        world.s3.put("/bkt?ownershipControls", rule("BucketOwnerEnforced")).await.code(),
        "InvalidBucketAclWithObjectOwnership"
    );
    world.put_ok("/bkt?ownershipControls", &rule("BucketOwnerPreferred")).await;
    world.bob.call("PUT", "/bkt/given", &[("x-amz-acl", "bucket-owner-full-control")], "hers").await;
    assert!(!world.bob.get("/bkt/given").await.status.is_success());
    world.s3.call("PUT", "/bkt?acl", &[("x-amz-acl", "private")], "").await;
    world.put_ok("/bkt?ownershipControls", &rule("BucketOwnerEnforced")).await;
    // Lists no longer count, and the bucket's owner has everything.
    assert_eq!(world.s3.get("/bkt/bobs").await.body, "his");
    assert_eq!(world.bob.get("/bkt/bobs").await.code(), "AccessDenied");
    assert_eq!(world.anonymous("GET", "/bkt/k", &[]).await.code(), "AccessDenied");
    for path in ["/bkt/n", "/bkt/k?acl", "/bkt?acl"] {
        let answer = world.s3.call("PUT", path, &[("x-amz-acl", "public-read")], "").await;
        assert_eq!(answer.code(), "AccessControlListNotSupported", "{path}");
    }
    assert_eq!(
        world.s3.call("PUT", "/bkt/n", &[("x-amz-acl", "bucket-owner-full-control")], "").await.status,
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requesters_must_say_that_they_know() {
    let world = world().await;
    world.s3.call("PUT", "/bkt/k", &[("x-amz-acl", "public-read")], "x").await;
    world
        .put_ok(
            "/bkt?requestPayment",
            "<RequestPaymentConfiguration><Payer>Requester</Payer></RequestPaymentConfiguration>",
        )
        .await;
    assert_eq!(world.bob.get("/bkt/k").await.code(), "AccessDenied");
    assert_eq!(
        world.bob.call("GET", "/bkt/k", &[("x-amz-request-payer", "requester")], "").await.status,
        StatusCode::OK
    );
    assert_eq!(world.anonymous("GET", "/bkt/k", &[("x-amz-request-payer", "requester")]).await.code(), "AccessDenied");
    assert_eq!(world.s3.get("/bkt/k").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_allowed_origins_may_use_a_bucket() {
    let world = world().await;
    world.put_ok("/bkt/k", "x").await;
    let ask = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "X-Amz-Date, authorization"),
    ];
    assert_eq!(world.anonymous("OPTIONS", "/bkt/k", &ask).await.code(), "AccessForbidden");
    world
        .put_ok(
            "/bkt?cors",
            "<CORSConfiguration><CORSRule><AllowedOrigin>https://*.example</AllowedOrigin><AllowedMethod>PUT</AllowedMethod><AllowedMethod>GET</AllowedMethod><AllowedHeader>*</AllowedHeader><ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>600</MaxAgeSeconds></CORSRule></CORSConfiguration>",
        )
        .await;
    // Also where the request that follows is presigned: the preflight is not.
    for path in [
        "/bkt/k",
        "/bkt/none",
        "/bkt/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00&X-Amz-Credential=a&X-Amz-Date=b&X-Amz-Expires=1&X-Amz-SignedHeaders=host",
    ] {
        let answer = world.anonymous("OPTIONS", path, &ask).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
        assert_eq!(answer.header("access-control-allow-methods"), "PUT, GET");
        assert_eq!(answer.header("access-control-allow-headers"), "x-amz-date, authorization");
        assert_eq!(
            (answer.header("access-control-max-age"), answer.header("access-control-expose-headers")),
            ("600", "ETag")
        );
        assert!(answer.header("vary").contains("Origin"));
        assert!(answer.headers.get("access-control-allow-credentials").is_none());
    }
    assert_eq!(
        world.anonymous("OPTIONS", "/bkt/k", &[("origin", "https://evil.test"), ask[1]]).await.code(),
        "AccessForbidden"
    );
    assert_eq!(
        world.anonymous("OPTIONS", "/bkt/k", &[ask[0], ("access-control-request-method", "DELETE")]).await.code(),
        "AccessForbidden"
    );
    assert_eq!(world.anonymous("OPTIONS", "/bkt/k", &[]).await.code(), "BadRequest");
    // Answers are for the page too, refusals as well.
    for (path, origin, told) in [
        ("/bkt/k", "https://app.example", true),
        ("/bkt/none", "https://app.example", true),
        ("/bkt/k", "https://evil.test", false),
    ] {
        let answer = world.s3.call("GET", path, &[("origin", origin)], "").await;
        assert_eq!(answer.header("access-control-allow-origin") == origin, told, "{path} {origin}");
        assert!(answer.header("vary").contains("Origin"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_website_shows_what_the_public_may_read() {
    let world = world_with("website_suffixes = ['web.example']").await;
    let site = async |host: &str, method: &str, path: &str| world.anonymous(method, path, &[("host", host)]).await;
    let at = "bkt.web.example:8777";
    assert!(site(at, "GET", "/").await.text().contains("<li>Code: NoSuchWebsiteConfiguration</li>"));
    assert!(site("none.web.example", "GET", "/").await.text().contains("<li>Code: NoSuchBucket</li>"));
    for (key, body, headers) in [
        ("index.html", "home", &[("x-amz-acl", "public-read"), ("content-type", "text/html")][..]),
        ("docs/index.html", "docs", &[("x-amz-acl", "public-read")]),
        ("oops.html", "oops", &[("x-amz-acl", "public-read")]),
        ("moved", "", &[("x-amz-acl", "public-read"), ("x-amz-website-redirect-location", "/there")]),
        ("secret", "secret", &[]),
    ] {
        assert_eq!(world.s3.call("PUT", &format!("/bkt/{key}"), headers, body).await.status, StatusCode::OK);
    }
    world
        .put_ok(
            "/bkt?website",
            "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument><ErrorDocument><Key>oops.html</Key></ErrorDocument><RoutingRules>\
             <RoutingRule><Condition><KeyPrefixEquals>old/</KeyPrefixEquals></Condition><Redirect><ReplaceKeyPrefixWith>new/</ReplaceKeyPrefixWith></Redirect></RoutingRule>\
             <RoutingRule><Condition><KeyPrefixEquals>app/</KeyPrefixEquals><HttpErrorCodeReturnedEquals>403</HttpErrorCodeReturnedEquals></Condition><Redirect><HostName>app.example</HostName><Protocol>https</Protocol><HttpRedirectCode>302</HttpRedirectCode></Redirect></RoutingRule>\
             </RoutingRules></WebsiteConfiguration>",
        )
        .await;
    let home = site(at, "GET", "/").await;
    assert_eq!((home.status, home.text().as_str(), home.header("content-type")), (StatusCode::OK, "home", "text/html"));
    assert_eq!(site(at, "GET", "/docs/").await.text(), "docs");
    let moved = |answer: Answer| (answer.status.as_u16(), answer.header("location").to_owned());
    assert_eq!(moved(site(at, "GET", "/docs").await), (302, "/docs/".into()));
    assert_eq!(moved(site(at, "GET", "/moved").await), (301, "/there".into()));
    assert_eq!(moved(site(at, "GET", "/old/a%20b").await), (301, "http://bkt.web.example:8777/new/a%20b".into()));
    assert_eq!(moved(site(at, "GET", "/app/x").await), (302, "https://app.example/app/x".into()));
    // Nobody may list the bucket, so nobody is told what is there.
    for path in ["/secret", "/none"] {
        let answer = site(at, "GET", path).await;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::FORBIDDEN, "oops"), "{path}");
    }
    assert_eq!(site(at, "PUT", "/x").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(site(at, "HEAD", "/").await.status, StatusCode::OK);
    // The API is elsewhere.
    assert!(site(at, "GET", "/?policy").await.text() == "home");
    world.put_ok("/bkt?website", "<WebsiteConfiguration><RedirectAllRequestsTo><HostName>www.example</HostName><Protocol>https</Protocol></RedirectAllRequestsTo></WebsiteConfiguration>").await;
    assert_eq!(
        moved(site(at, "GET", "/%3Cscript%3E%0d%0aX:1").await),
        (301, "https://www.example/%3Cscript%3E%0D%0AX%3A1".into())
    );
    world.s3.call("DELETE", "/bkt?website", &[], "").await;
    let page = site(at, "GET", "/%3Cscript%3E").await.text();
    assert!(!page.contains("<script>"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_logs_are_delivered_into_a_bucket_that_lets_them_in() {
    let world = world_with("log_delivery_ms = 100").await;
    world.put_ok("/logs", "").await;
    let logging = "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket><TargetPrefix>of-bkt/</TargetPrefix></LoggingEnabled></BucketLoggingStatus>";
    assert_eq!(world.s3.put("/bkt?logging", logging).await.code(), "InvalidTargetBucketForLogging");
    world.s3.call("PUT", "/logs?acl", &[("x-amz-acl", "log-delivery-write")], "").await;
    world.put_ok("/bkt?logging", logging).await;
    assert!(world.s3.get("/bkt?logging").await.text().contains("<TargetPrefix>of-bkt/</TargetPrefix>"));
    world.put_ok("/bkt/k", "hello").await;
    world.s3.call("GET", "/bkt/k", &[("user-agent", "agent \"x\"")], "").await;
    world.anonymous("GET", "/bkt/k", &[]).await;
    let mut log = String::new();
    soon(async || {
        let list = world.s3.get("/logs?prefix=of-bkt/").await.text();
        log.clear();
        for key in list.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next()) {
            log.push_str(&world.s3.get(&format!("/logs/{key}")).await.text());
        }
        (log.lines().count() >= 3).then_some(())
    })
    .await;
    let line =
        |wanted: &str| log.lines().find(|line| line.contains(wanted)).unwrap_or_else(|| panic!("{wanted}: {log}"));
    assert!(line("REST.PUT.OBJECT k ").contains("\"PUT /bkt/k HTTP/1.1\" 200 - - "), "{log}");
    assert!(line("\"agent %22x%22\"").contains("REST.GET.OBJECT k \"GET /bkt/k HTTP/1.1\" 200 - 5 5 "), "{log}");
    assert!(line("403 AccessDenied").contains(" 127.0.0.1 - "), "{log}");
    // Nothing is logged twice.
    assert_eq!(log.lines().filter(|line| line.contains("REST.PUT.OBJECT")).count(), 1);
    world.put_ok("/bkt?logging", "<BucketLoggingStatus/>").await;
    assert!(!world.s3.get("/bkt?logging").await.text().contains("LoggingEnabled"));
}

/// A receiver of events that fails as often as it is told to before it takes one.
async fn receiver(failures: usize) -> (std::net::SocketAddr, Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = taken.clone();
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(failures));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (told, left) = (told.clone(), left.clone());
            tokio::spawn(async move {
                let mut text = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let n = stream.read(&mut buffer).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    text.extend_from_slice(&buffer[..n]);
                    let all = String::from_utf8_lossy(&text).into_owned();
                    let Some((head, body)) = all.split_once("\r\n\r\n") else { continue };
                    let length: usize =
                        between(&head.to_lowercase(), "content-length: ", "\r").unwrap_or("0").parse().unwrap();
                    if body.len() < length {
                        continue;
                    }
                    use std::sync::atomic::Ordering::SeqCst;
                    let fails = left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
                    let status = if fails { "302 Found\r\nLocation: http://127.0.0.1:1/" } else { "200 OK" };
                    if !fails {
                        told.lock().unwrap().push(body.to_owned());
                    }
                    let _ =
                        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
                    text.clear();
                }
            });
        }
    });
    (address, taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_their_webhook_though_it_fails_at_first() {
    let (address, taken) = receiver(2).await;
    let world = world_with(&format!("webhooks = {{ audit = 'http://{address}/events' }}")).await;
    world
        .put_ok(
            "/bkt?notification",
            "<NotificationConfiguration><TopicConfiguration><Id>n1</Id><Topic>arn:mallee:webhook:::audit</Topic><Event>s3:ObjectCreated:*</Event><Event>s3:ObjectRemoved:*</Event>\
             <Filter><S3Key><FilterRule><Name>prefix</Name><Value>in/</Value></FilterRule></S3Key></Filter></TopicConfiguration></NotificationConfiguration>",
        )
        .await;
    let shown = world.s3.get("/bkt?notification").await.text();
    assert!(
        shown.contains("<Topic>arn:mallee:webhook:::audit</Topic>") && shown.contains("<Value>in/</Value>"),
        "{shown}"
    );
    world.put_ok("/bkt/in/a%20b", "hello").await;
    world.put_ok("/bkt/out/a", "hello").await;
    world.s3.call("PUT", "/bkt/in/copy", &[("x-amz-copy-source", "/bkt/out/a")], "").await;
    world.s3.call("DELETE", "/bkt/in/copy", &[], "").await;
    // A refused write tells nothing.
    world.s3.call("PUT", "/bkt/in/copy", &[("if-match", "\"none\"")], "x").await;
    let events = soon(async || {
        let taken = taken.lock().unwrap().clone();
        (taken.len() >= 4).then_some(taken)
    })
    .await;
    let all = events.join("\n");
    assert!(all.contains("\"Event\":\"s3:TestEvent\""), "{all}");
    let put = events.iter().find(|e| e.contains("ObjectCreated:Put")).unwrap();
    for inside in [
        "\"key\":\"in/a+b\"",
        "\"size\":5",
        "\"eTag\":\"5d41402abc4b2a76b9719d911017c592\"",
        "\"name\":\"bkt\"",
        "\"configurationId\":\"n1\"",
        "\"sourceIPAddress\":\"127.0.0.1\"",
        "\"principalId\":\"000000000001\"",
    ] {
        assert!(put.contains(inside), "{inside} in {put}");
    }
    assert!(all.contains("ObjectCreated:Copy") && all.contains("ObjectRemoved:Delete"), "{all}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let all = taken.lock().unwrap().join("\n");
    assert!(!all.contains("out/a") && all.matches("ObjectCreated:Put").count() == 1, "{all}");
}

/// Parts of a form, as a browser sends them.
pub fn form(fields: &[(&str, &str)], file: &[u8]) -> (String, Bytes) {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(
            format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").as_bytes(),
        );
    }
    body.extend_from_slice(b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\n");
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n--XX--\r\n");
    ("multipart/form-data; boundary=XX".into(), body.into())
}
