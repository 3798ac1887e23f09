use http::request::Parts;
use proptest::prelude::*;
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-20 01:02:03 UTC);
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn secret() -> SecretKey {
    SecretKey::new(SECRET)
}

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn present(parts: &Parts, route: Route) -> Result<Presented, AwsError> {
    Presented::from_request(parts, None, &Rules::new(route)).map(|presented| presented.expect("credentials"))
}

fn check(parts: &Parts, route: Route, now: OffsetDateTime) -> Result<Verified, AwsError> {
    present(parts, route)?.verify(&secret(), Some(sha256(b"")), now)
}

fn code(result: Result<Verified, AwsError>) -> String {
    result.unwrap_err().code.into_owned()
}

fn signed(service: &str, method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let key = "AKIDEXAMPLE".parse().unwrap();
    let signer = Signer { access_key: &key, secret: &secret(), session_token: None, region: "mallee-1", service };
    let mut request = http::Request::from_parts(parts(method, uri, headers), ());
    let payload = Payload::SignedHash(sha256(b""));
    signer.sign(&mut request, payload, NOW).unwrap();
    request.into_parts().0
}

fn presigned(uri: &str, expires: i64) -> Parts {
    let key = "AKIDEXAMPLE".parse().unwrap();
    let signer = Signer { access_key: &key, secret: &secret(), session_token: None, region: "r", service: "s3" };
    let url = signer.presign(http::Method::GET, &uri.parse().unwrap(), Duration::seconds(expires), NOW).unwrap();
    parts("GET", &url.to_string(), &[("host", "h:8777")])
}

mod aws_manual {
    use super::*;

    type Example<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

    const S3_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const MAY_2013: OffsetDateTime = datetime!(2013-05-24 00:00:00 UTC);
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn s3(method: &str, uri: &str, extra: &[(&str, &str)], signed: &str, hash: &str, signature: &str) {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders={signed},Signature={signature}"
        );
        let mut headers = vec![
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-content-sha256", hash),
            ("x-amz-date", "20130524T000000Z"),
            ("authorization", &authorization),
        ];
        headers.extend_from_slice(extra);
        let presented = present(&parts(method, uri, &headers), Route::S3).unwrap();
        presented.verify(&SecretKey::new(S3_SECRET), None, MAY_2013).unwrap();
    }

    #[test]
    fn s3_get_object() {
        s3(
            "GET",
            "/test.txt",
            &[("range", "bytes=0-9")],
            "host;range;x-amz-content-sha256;x-amz-date",
            EMPTY,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        );
    }

    #[test]
    fn s3_put_object() {
        s3(
            "PUT",
            "/test%24file.text",
            &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        );
    }

    #[test]
    fn s3_get_bucket_lifecycle() {
        s3(
            "GET",
            "/?lifecycle",
            &[],
            "host;x-amz-content-sha256;x-amz-date",
            EMPTY,
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        );
    }

    #[test]
    fn s3_list_objects() {
        s3(
            "GET",
            "/?max-keys=2&prefix=J",
            &[],
            "host;x-amz-content-sha256;x-amz-date",
            EMPTY,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        );
    }

    #[test]
    fn s3_presigned_url() {
        let parts = parts(
            "GET",
            "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3\
             %2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=\
             aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
            &[("host", "examplebucket.s3.amazonaws.com")],
        );
        let presented = present(&parts, Route::S3).unwrap();
        let verify = |now| presented.verify(&SecretKey::new(S3_SECRET), None, now);
        verify(MAY_2013 + Duration::hours(24)).unwrap();
        assert_eq!(verify(MAY_2013 + Duration::hours(25)).unwrap_err().message, "Request has expired");
    }

    /// RESTAuthentication.html: "Object GET", "Object PUT", "List" and "Fetch".
    #[test]
    fn s3_signature_version_2() {
        let host = ("host", "awsexamplebucket1.us-west-1.s3.amazonaws.com");
        let table: [Example<'_>; 4] = [
            (
                "GET",
                "/photos/puppy.jpg",
                &[
                    ("date", "Tue, 27 Mar 2007 19:36:42 +0000"),
                    ("authorization", "AWS AKIAIOSFODNN7EXAMPLE:qgk2+6Sv9/oM7G3qLEjTH1a1l1g="),
                ],
            ),
            (
                "PUT",
                "/photos/puppy.jpg",
                &[
                    ("content-type", "image/jpeg"),
                    ("content-length", "94328"),
                    ("date", "Tue, 27 Mar 2007 21:15:45 +0000"),
                    ("authorization", "AWS AKIAIOSFODNN7EXAMPLE:iqRzw+ileNPu1fhspnRs8nOjjIA="),
                ],
            ),
            (
                "GET",
                "/?prefix=photos&max-keys=50&marker=puppy",
                &[
                    ("date", "Tue, 27 Mar 2007 19:42:41 +0000"),
                    ("authorization", "AWS AKIAIOSFODNN7EXAMPLE:m0WP8eCtspQl5Ahe6L1SozdX9YA="),
                ],
            ),
            (
                "GET",
                "/?acl",
                &[
                    ("date", "Tue, 27 Mar 2007 19:44:46 +0000"),
                    ("authorization", "AWS AKIAIOSFODNN7EXAMPLE:82ZHiFIjc+WbcwFKGUVEQspPn+0="),
                ],
            ),
        ];
        for (method, uri, headers) in table {
            let headers: Vec<_> = headers.iter().copied().chain([host]).collect();
            let rules = Rules { bucket_in_host: Some("awsexamplebucket1"), ..Rules::new(Route::S3) };
            let presented = Presented::from_request(&parts(method, uri, &headers), None, &rules).unwrap().unwrap();
            presented.verify(&SecretKey::new(S3_SECRET), None, presented.signed_at).unwrap();
        }
    }
}

mod botocore {
    use super::*;

    #[test]
    fn sigv2_query_post() {
        // As botocore printed it at that time.
        let good = Params::parse(
            b"Action=DescribeInstances&Filter.1.Value.1=a+b%7E%2A%C3%A9&Version=2012-08-15&AWSAccessKeyId=AKIDEXAMPLE\
              &SignatureVersion=2&SignatureMethod=HmacSHA256&Timestamp=2026-11-20T01%3A02%3A03Z&SecurityToken=tok%2Fen%2B%3D\
              &Signature=opZ1w4n2F7gtgP%2Be8rx0qjMneNjm%2F%2BRZFwPo1EGNKrc%3D",
        )
        .unwrap();
        let signature = good.get("Signature").unwrap().to_string();
        let with = |signature: &str, extra: &str| {
            let mut form = String::new();
            for (name, value) in good.iter().filter(|(name, _)| *name != "Signature") {
                form.push_str(&format!("{name}={}&", canonical::encode(value.as_bytes())));
            }
            Params::parse(format!("{form}Signature={}{extra}", canonical::encode(signature.as_bytes())).as_bytes())
                .unwrap()
        };
        let at = |uri: &str, form: &Params, now| {
            let parts = parts("POST", uri, &[("host", "127.0.0.1:8773")]);
            let presented = Presented::from_request(&parts, Some(form), &Rules::new(Route::Ec2))?.unwrap();
            assert_eq!(presented.session_token.as_deref(), Some("tok/en+="));
            presented.verify(&secret(), None, now)
        };
        let form = with(&signature, "");
        at("/services/compute/", &form, NOW).unwrap();
        assert_eq!(code(at("/services/compute/", &form, NOW + Duration::minutes(16))), "RequestExpired");
        assert_eq!(code(at("/", &form, NOW)), "AuthFailure");
        assert_eq!(code(at("/services/compute/?DryRun=false", &form, NOW)), "AuthFailure");
        assert_eq!(code(at("/services/compute/", &with(&signature, "&DryRun=true"), NOW)), "AuthFailure");
        let parts = parts("POST", "/services/compute/", &[("host", "127.0.0.1:8773")]);
        let rules = Rules { sigv2: SigV2::Refused, ..Rules::new(Route::Ec2) };
        assert_eq!(Presented::from_request(&parts, Some(&form), &rules).unwrap_err().code, "IncompleteSignature");
    }

    #[test]
    fn sigv2_s3_header() {
        let headers = [
            ("content-type", "text/plain"),
            ("x-amz-meta-b", " two "),
            ("x-amz-acl", "private"),
            ("content-md5", "rL0Y20zC+Fzt72VPzMSk2A=="),
            ("x-amz-security-token", "tok/en+="),
            ("date", "Fri, 20 Nov 2026 01:02:03 GMT"),
            ("authorization", "AWS AKIDEXAMPLE:ii/dVQNLrfMgvJu3gu9P0+5NqSQ="),
        ];
        let uri = "/b/a%20k%C3%A9y?partNumber=1&uploadId=a%2Bb%3D&x-id=UploadPart";
        check(&parts("PUT", uri, &headers), Route::S3, NOW).unwrap();
        assert_eq!(
            code(check(&parts("PUT", uri, &headers), Route::S3, NOW - Duration::minutes(16))),
            "RequestTimeTooSkewed"
        );
        for changed in
            [uri.replace("partNumber=1", "partNumber=2"), uri.replace("upload", "%75pload"), format!("{uri}&acl")]
        {
            let result = check(&parts("PUT", &changed, &headers), Route::S3, NOW);
            // An encoded name is the same name; the others are other requests.
            assert_eq!(result.is_ok(), changed.contains("%75"), "{changed}");
        }
        let more: Vec<_> = headers.iter().copied().chain([("x-amz-copy-source", "/x/y")]).collect();
        assert_eq!(code(check(&parts("PUT", uri, &more), Route::S3, NOW)), "SignatureDoesNotMatch");
    }

    /// boto3's `signature_version="s3"`: the bucket's path is signed with a slash that it is not asked with.
    #[test]
    fn sigv2_s3_bucket() {
        let authorization = "AWS AKIDEXAMPLE:3Bphr8/RX/WoJS+X0iyvybUD0Jo=";
        let headers = [("date", "Fri, 20 Nov 2026 01:02:03 GMT"), ("authorization", authorization)];
        for (uri, good) in [("/b?acl", true), ("/b/?acl", true), ("/b/k?acl", false), ("/c?acl", false), ("/b", false)]
        {
            assert_eq!(check(&parts("GET", uri, &headers), Route::S3, NOW).is_ok(), good, "{uri}");
        }
    }

    #[test]
    fn sigv2_s3_presigned() {
        let urls = [
            "/b/k?AWSAccessKeyId=AKIDEXAMPLE&Signature=A3amDGTImna5c%2F720oNIy%2BJQJbA%3D&Expires=1795136583",
            "/b/k?response-content-type=text%2Fplain%3B%20x&versionId=3&AWSAccessKeyId=AKIDEXAMPLE&Signature=\
             Rz%2FLE5SXEmxgqRBwSrNgDxWq8%2Fo%3D&x-amz-security-token=tok%2Fen%2B%3D&Expires=1795136583",
        ];
        for url in urls {
            check(&parts("GET", url, &[]), Route::S3, NOW).unwrap();
            assert_eq!(code(check(&parts("GET", url, &[]), Route::S3, NOW + Duration::seconds(61))), "AccessDenied");
            for more in ["&acl", "&encryption", "&Expires=1", "&versionId=4", "&x-amz-acl=public-read"] {
                assert!(check(&parts("GET", &format!("{url}{more}"), &[]), Route::S3, NOW).is_err(), "{more}");
            }
            assert!(check(&parts("PUT", url, &[]), Route::S3, NOW).is_err());
            // Farther than there are years is a date all the same: what is wrong is the signature.
            for far in ["99999999999", "99999999999999999999999"] {
                let url = url.replace("1795136583", far);
                assert_eq!(code(check(&parts("GET", &url, &[]), Route::S3, NOW)), "SignatureDoesNotMatch");
            }
        }
    }
}

#[test]
fn a_signature_holds_for_one_request_only() {
    let good = signed("s3", "PUT", "http://h:8777/b/k?partNumber=1", &[("content-type", "text/plain")]);
    check(&good, Route::S3, NOW).unwrap();
    type Change = (&'static str, fn(&mut Parts));
    let changes: [Change; 9] = [
        ("method", |parts| parts.method = http::Method::DELETE),
        ("path", |parts| parts.uri = "http://h:8777/b/K?partNumber=1".parse().unwrap()),
        ("dots", |parts| parts.uri = "http://h:8777/b/./k?partNumber=1".parse().unwrap()),
        ("query", |parts| parts.uri = "http://h:8777/b/k?partNumber=1&acl".parse().unwrap()),
        ("host", |parts| set(parts, "host", "evil:8777")),
        ("content-type", |parts| set(parts, "content-type", "text/html")),
        ("x-amz-copy-source", |parts| set(parts, "x-amz-copy-source", "/other/secret")),
        ("x-amz-acl", |parts| set(parts, "x-amz-acl", "public-read")),
        ("date", |parts| set(parts, "x-amz-date", "20261120T010204Z")),
    ];
    for (name, change) in changes {
        let mut changed = signed("s3", "PUT", "http://h:8777/b/k?partNumber=1", &[("content-type", "text/plain")]);
        change(&mut changed);
        let error = check(&changed, Route::S3, NOW).unwrap_err();
        assert_eq!(error.status, 403, "{name}: {error}");
    }
    let wrong = present(&good, Route::S3).unwrap().verify(&SecretKey::new("other"), None, NOW).unwrap_err();
    let expected = good.headers["authorization"].to_str().unwrap().rsplit_once('=').unwrap().1;
    assert!(!format!("{wrong:?} {wrong} {:?}", wrong.fields).contains(expected));
}

fn set(parts: &mut Parts, name: &'static str, value: &'static str) {
    parts.headers.insert(name, http::HeaderValue::from_static(value));
}

#[test]
fn a_swapped_body_is_caught_by_its_hash() {
    let parts = signed("s3", "PUT", "http://h/b/k", &[]);
    let presented = present(&parts, Route::S3).unwrap();
    let error = presented.verify(&secret(), Some(sha256(b"evil")), NOW).unwrap_err();
    assert_eq!(error.code, "XAmzContentSHA256Mismatch");
    let verified = presented.verify(&secret(), None, NOW).unwrap();
    assert_eq!(verified.check_body(sha256(b"evil")).unwrap_err().code, "XAmzContentSHA256Mismatch");
    verified.check_body(sha256(b"")).unwrap();
}

#[test]
fn clocks_are_checked_on_both_sides_and_fail_closed() {
    let parts = signed("s3", "GET", "http://h/b/k", &[]);
    check(&parts, Route::S3, NOW + Duration::minutes(15)).unwrap();
    for minutes in [16, -16, 60 * 24] {
        assert_eq!(code(check(&parts, Route::S3, NOW + Duration::minutes(minutes))), "RequestTimeTooSkewed");
    }
    for junk in
        ["", "x", "20261120T010203", "2026-11-20T01:02:03Z", "20261320T010203Z", "20261120T010203Zx", "2026112éT0102Z"]
    {
        let mut parts = signed("s3", "GET", "http://h/b/k", &[]);
        parts.headers.insert("x-amz-date", http::HeaderValue::from_bytes(junk.as_bytes()).unwrap());
        assert_eq!(check(&parts, Route::S3, NOW).unwrap_err().status, 403, "{junk}");
    }
}

#[test]
fn presigned_urls_live_as_long_as_they_say() {
    let good = presigned("http://h:8777/b/k%20x?versionId=1", 60);
    check(&good, Route::S3, NOW + Duration::seconds(60)).unwrap();
    assert_eq!(check(&good, Route::S3, NOW + Duration::seconds(61)).unwrap_err().message, "Request has expired");
    assert_eq!(check(&good, Route::S3, NOW - Duration::minutes(16)).unwrap_err().message, "Request is not yet valid");
    let uri = good.uri.to_string();
    let table = [
        (uri.replace("X-Amz-Expires=60", "X-Amz-Expires=604801"), 403),
        (uri.replace("X-Amz-Expires=60", "X-Amz-Expires=0"), 403),
        (uri.replace("X-Amz-Expires=60", "X-Amz-Expires=-1"), 403),
        (uri.replace("X-Amz-Expires=60", "X-Amz-Expires=61"), 403),
        (uri.replace("X-Amz-Date=", "X-Amz-Date=x"), 400),
        (format!("{uri}&X-Amz-Expires=600"), 400),
        (format!("{uri}&x-amz-expires=600"), 400),
        (format!("{uri}&acl"), 403),
        (uri.replace("versionId=1", "versionId=2"), 403),
        (format!("{uri}&AWSAccessKeyId=x"), 400),
    ];
    for (uri, status) in table {
        assert_eq!(
            check(&parts("GET", &uri, &[("host", "h:8777")]), Route::S3, NOW).unwrap_err().status,
            status,
            "{uri}"
        );
    }
}

#[test]
fn one_set_of_credentials_only() {
    let mut both = signed("s3", "GET", "http://h/b/k", &[]);
    both.uri = format!("http://h/b/k?{}", presigned("http://h/b/k", 60).uri.query().unwrap()).parse().unwrap();
    assert_eq!(present(&both, Route::S3).unwrap_err().code, "AuthorizationHeaderMalformed");
    let mut twice = signed("s3", "GET", "http://h/b/k", &[]);
    twice.headers.append("authorization", twice.headers["authorization"].clone());
    assert_eq!(present(&twice, Route::S3).unwrap_err().code, "AuthorizationHeaderMalformed");
    assert!(Presented::from_request(&parts("GET", "/b/k", &[]), None, &Rules::new(Route::S3)).unwrap().is_none());
}

/// MinIO GHSA-hv4r-mvr4-25vw: credentials in the URL without a signature, and a body that says it is unsigned.
#[test]
fn an_unsigned_trailer_needs_a_signature_all_the_same() {
    let streaming = [("host", "h:8777"), ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")];
    let credential = "X-Amz-Credential=AKID%2F20261120%2Fr%2Fs3%2Faws4_request";
    assert!(present(&parts("PUT", &format!("/b/k?{credential}"), &streaming), Route::S3).is_err());
    let url = presigned("http://h:8777/b/k", 60).uri.to_string();
    assert_eq!(present(&parts("PUT", &url, &streaming), Route::S3).unwrap_err().status, 403);
    let signed_too = url.replace("SignedHeaders=host", "SignedHeaders=host%3Bx-amz-content-sha256");
    assert_eq!(present(&parts("PUT", &signed_too, &streaming), Route::S3).unwrap_err().status, 403);
}

#[test]
fn host_and_amz_headers_must_be_signed() {
    let header = |signed: &str| {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKID/20261120/0/127/aws4_request, SignedHeaders={signed}, Signature={}",
            "0".repeat(64)
        );
        let headers = [("host", "h"), ("x-amz-date", "20261120T010203Z"), ("authorization", authorization.as_str())];
        present(&parts("POST", "/", &headers), Route::Query).map(|presented| presented.scope)
    };
    assert_eq!(header("host;x-amz-date").unwrap().unwrap().region, "0");
    for bad in ["x-amz-date", "host", "host;x-amz-date;x-gone", "Host;x-amz-date", "host;host;x-amz-date", ""] {
        assert!(header(bad).is_err(), "{bad}");
    }
}

#[test]
fn wrong_key_and_wrong_signature_look_alike_on_ec2() {
    let parts = signed("ec2", "POST", "http://h/", &[]);
    let wrong = present(&parts, Route::Ec2).unwrap().verify(&SecretKey::new("x"), Some(sha256(b"")), NOW).unwrap_err();
    assert_eq!(wrong, Route::Ec2.unknown_key());
}

/// Signs with AWS' own crate, with the settings facts/wire.md §3.6 measured.
fn oracle(
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
    service: &str,
    body: &[u8],
    expires: Option<u64>,
) -> Parts {
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    let identity =
        aws_credential_types::Credentials::new("AKIDEXAMPLE", SECRET, Some("to/k+en=".into()), None, "t").into();
    let mut settings = SigningSettings::default();
    settings.excluded_headers = None;
    if service == "s3" {
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    }
    if let Some(expires) = expires {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.payload_checksum_kind = PayloadChecksumKind::NoHeader;
        settings.expires_in = Some(std::time::Duration::from_secs(expires));
    }
    let params = aws_sigv4::sign::v4::SigningParams::builder()
        .identity(&identity)
        .region("undefined-42")
        .name(service)
        .time(NOW.into())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let payload =
        if expires.is_some() && service == "s3" { SignableBody::UnsignedPayload } else { SignableBody::Bytes(body) };
    let signable = SignableRequest::new(method, uri, headers.iter().copied(), payload).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    let mut request = http::Request::from_parts(parts(method, uri, headers), ());
    instructions.apply_to_request_http1x(&mut request);
    let mut parts = request.into_parts().0;
    if !parts.headers.contains_key("host") {
        let host = parts.uri.authority().unwrap().as_str().parse().unwrap();
        parts.headers.insert("host", host);
    }
    parts
}

fn segment() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 /.~_+&='(*!,:;@$éü-]{0,12}".prop_map(|text| {
        let mut out = String::new();
        for piece in text.split('/') {
            out.push_str(&canonical::encode(piece.as_bytes()));
            out.push('/');
        }
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn aws_sigv4_headers_verify(
        path in segment(),
        names in proptest::collection::btree_map("[a-zA-Z é+.~-]{1,5}", "[a-zA-Z0-9 /+&=é~*]{0,6}", 0..4),
        meta in "[a-z][a-z  ,=;/]{0,10}[a-z]",
        body in "[a-z&=%]{0,20}",
        s3 in any::<bool>(),
    ) {
        let query: Vec<String> = names
            .iter()
            .map(|(name, value)| format!("{}={}", canonical::encode(name.as_bytes()), canonical::encode(value.as_bytes())))
            .collect();
        let uri = format!("http://127.0.0.1:8777/{path}?{}", query.join("&"));
        let headers = [("x-amz-meta-a", meta.as_str()), ("content-type", "a/b"), ("user-agent", "x  y"), ("accept-encoding", "identity")];
        let (service, route) = if s3 { ("s3", Route::S3) } else { ("ec2", Route::Ec2) };
        let signed = oracle("POST", &uri, &headers, service, body.as_bytes(), None);
        let presented = present(&signed, route).unwrap();
        prop_assert_eq!(presented.session_token.as_deref(), Some("to/k+en="));
        prop_assert!(presented.verify(&secret(), Some(sha256(body.as_bytes())), NOW).is_ok(), "{}", uri);
        prop_assert!(presented.verify(&secret(), Some(sha256(b"another body")), NOW).is_err());
        prop_assert!(presented.verify(&SecretKey::new("wrong"), Some(sha256(body.as_bytes())), NOW).is_err());
        if s3 {
            let url = oracle("GET", &uri, &[], "s3", b"", Some(600));
            prop_assert!(check(&url, Route::S3, NOW + Duration::minutes(9)).is_ok(), "{}", url.uri);
        }
    }

    #[test]
    fn no_authorization_panics(
        header in "(AWS4-HMAC-SHA256 |AWS )?(Credential=|Signature=|SignedHeaders=|[a-z0-9/:;,= ]){0,12}",
        query in "(X-Amz-(Algorithm|Credential|Date|Signature|Expires|SignedHeaders)=|AWSAccessKeyId=|Signature=|&|%|[a-zA-Z0-9/+-]){0,20}",
        date in "\\PC{0,17}",
    ) {
        for route in [Route::S3, Route::Ec2, Route::Query] {
            let Ok(uri) = format!("/b/%zz?{query}").parse::<http::Uri>() else { continue };
            let mut parts = parts("GET", "/", &[("host", "h")]);
            parts.uri = uri;
            if let Ok(value) = http::HeaderValue::from_bytes(date.as_bytes()) {
                parts.headers.insert("x-amz-date", value);
            }
            let _ = Presented::from_request(&parts, None, &Rules::new(route));
            parts.headers.insert("authorization", header.parse().unwrap());
            let _ = Presented::from_request(&parts, None, &Rules::new(route));
        }
    }
}

#[test]
fn dates_of_mail_and_of_go_are_the_same_moment() {
    let at = super::v4::parse_mail_date("Fri, 20 Nov 2026 01:02:03 GMT").unwrap();
    for text in ["Fri, 20 Nov 2026 01:02:03 UTC", "Fri, 20 Nov 2026 01:02:03 +0000", "Fri, 20 Nov 2026 02:02:03 +0100"]
    {
        assert_eq!(super::v4::parse_mail_date(text), Some(at), "{text}");
    }
    assert_eq!(super::v4::parse_mail_date("Fri, 20 Nov 2026 01:02:03 UTCX"), None);
}
