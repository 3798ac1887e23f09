use time::macros::datetime;

use super::*;
use crate::signature::{Presented, Rules, Signer};
use crate::{AccessKeyId, SecretKey};

/// Feeds `body` in pieces of `step` bytes.
fn decode(
    framing: Framing,
    length: u64,
    trailers: &[&str],
    body: &[u8],
    step: usize,
) -> Result<(Vec<u8>, Trailers), AwsError> {
    let mut decoder = Decoder::new(framing, length, trailers.iter().map(|name| name.to_string()).collect());
    let mut data = Vec::new();
    for piece in body.chunks(step) {
        decoder.decode(Bytes::copy_from_slice(piece), &mut data)?;
    }
    let trailers = decoder.finish()?;
    Ok((data.concat(), trailers))
}

const BOTO: &[u8] = b"b\r\nhello world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n";
const CRC32: &[&str] = &["x-amz-checksum-crc32"];

#[test]
fn boto3s_body_decodes_however_it_is_cut() {
    for step in 1..=BOTO.len() {
        let (data, trailers) = decode(Framing::Unsigned, 11, CRC32, BOTO, step).unwrap();
        assert_eq!((data.as_slice(), trailers.get("x-amz-checksum-crc32")), (&b"hello world"[..], Some("DUoRhQ==")));
    }
}

#[test]
fn lies_about_framing_are_refused() {
    let table: &[(&[u8], u64, &[&str], &str)] = &[
        (b"b\r\nhello world\r\n0\r\n\r\n", 10, &[], "IncompleteBody"),
        (b"b\r\nhello world\r\n0\r\n\r\n", 12, &[], "IncompleteBody"),
        (b"b\r\nhello world\r\n0\r\n", 11, &[], "IncompleteBody"),
        (b"b\r\nhello wor", 11, &[], "IncompleteBody"),
        (b"", 0, &[], "IncompleteBody"),
        (b"a\r\nhello world\r\n0\r\n\r\n", 11, &[], "InvalidRequest"),
        (b"b\nhello world\r\n0\r\n\r\n", 11, &[], "InvalidRequest"),
        (b"+b\r\nhello world\r\n0\r\n\r\n", 11, &[], "InvalidRequest"),
        (b"\r\n", 0, &[], "InvalidRequest"),
        (b"b;chunk-signature=00\r\nhello world\r\n0\r\n\r\n", 11, &[], "InvalidRequest"),
        (b"ffffffffffffffffff\r\n", 11, &[], "InvalidRequest"),
        (b"0\r\n\r\nGET / HTTP/1.1\r\n", 0, &[], "InvalidRequest"),
        (b"0\r\nx-amz-acl:public-read\r\n\r\n", 0, &[], "MalformedTrailerError"),
        (b"0\r\n\r\n", 0, &["x-amz-checksum-crc32"], "MalformedTrailerError"),
        (
            b"0\r\nx-amz-checksum-crc32:a\r\nx-amz-checksum-crc32:b\r\n\r\n",
            0,
            &["x-amz-checksum-crc32"],
            "MalformedTrailerError",
        ),
    ];
    for (body, length, trailers, code) in table {
        for step in [1, 3, 1000] {
            let error = decode(Framing::Unsigned, *length, trailers, body, step).unwrap_err();
            assert_eq!(error.code, *code, "{}", String::from_utf8_lossy(body));
        }
    }
    let endless = vec![b'0'; 100_000];
    assert_eq!(decode(Framing::Unsigned, 1, &[], &endless, 1).unwrap_err().code, "InvalidRequest");
}

#[test]
fn after_an_error_nothing_more_comes() {
    let mut decoder = Decoder::new(Framing::Unsigned, 11, vec![]);
    let mut data = Vec::new();
    assert!(decoder.decode(Bytes::from_static(b"zz\r\n"), &mut data).is_err());
    assert!(decoder.decode(Bytes::from_static(b"b\r\nhello world\r\n0\r\n\r\n"), &mut data).is_err());
    assert!(data.is_empty() && decoder.finish().is_err());
}

/// AWS' "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks", PUT
/// examplebucket/chunkObject.txt: 65 KiB of `a` in chunks of 64 KiB, 1 KiB and nothing.
#[test]
fn aws_manual_chunked_upload_example() {
    let secret = SecretKey::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    let request = http::Request::put("https://s3.amazonaws.com/examplebucket/chunkObject.txt")
        .header("host", "s3.amazonaws.com")
        .header("x-amz-date", "20130524T000000Z")
        .header("x-amz-storage-class", "REDUCED_REDUNDANCY")
        .header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", "66560")
        .header("content-length", "66824")
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=\
             content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;\
             x-amz-storage-class,Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        )
        .body(())
        .unwrap();
    let (parts, ()) = request.into_parts();
    let presented = Presented::from_request(&parts, None, &Rules::new(Route::S3)).unwrap().unwrap();
    let verified = presented.verify(&secret, None, datetime!(2013-05-24 00:00:00 UTC)).unwrap();
    let mut body = Vec::new();
    for (size, signature) in [
        (65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ] {
        body.extend_from_slice(format!("{size:x};chunk-signature={signature}\r\n").as_bytes());
        body.extend(std::iter::repeat_n(b'a', size));
        body.extend_from_slice(b"\r\n");
    }
    assert_eq!(body.len(), 66824);
    let run = |body: &[u8], step| {
        let mut decoder = Decoder::for_request(&verified, &parts.headers).unwrap().unwrap();
        let mut data = Vec::new();
        for piece in body.chunks(step) {
            decoder.decode(Bytes::copy_from_slice(piece), &mut data)?;
        }
        decoder.finish().map(|_| data.concat())
    };
    for step in [1, 7, 4096, 100_000] {
        assert_eq!(run(&body, step).unwrap(), vec![b'a'; 66560]);
    }
    let mut swapped = body.clone();
    swapped[70_00] = b'b';
    assert_eq!(run(&swapped, 4096).unwrap_err().code, "SignatureDoesNotMatch");
    // Cutting the stream after a whole chunk must not look like an end.
    assert!(run(&body[..65536 + 85 + 4], 4096).is_err());
}

fn chunk_key(payload: Payload) -> ChunkKey {
    let key: AccessKeyId = "AKID".parse().unwrap();
    let secret = SecretKey::new("secret");
    let signer = Signer { access_key: &key, secret: &secret, session_token: None, region: "r", service: "s3" };
    let mut request = http::Request::put("http://h/b/k").body(()).unwrap();
    signer.sign(&mut request, payload, datetime!(2026-11-20 01:02:03 UTC)).unwrap()
}

#[test]
fn signed_trailers_are_bound_to_the_chain() {
    let mut signing = chunk_key(Payload::SignedChunksTrailer);
    let reading = signing.clone();
    let first = hex::encode(signing.sign_chunk(Sha256::digest(b"hello").into()));
    let last = hex::encode(signing.sign_chunk(Sha256::digest(b"").into()));
    let trailer = hex::encode(signing.sign_trailer(Sha256::digest(b"x-amz-checksum-crc32:NhCmhg==\n").into()));
    let head = format!("5;chunk-signature={first}\r\nhello\r\n0;chunk-signature={last}\r\n");
    let good = format!("{head}x-amz-checksum-crc32:NhCmhg==\r\nx-amz-trailer-signature:{trailer}\r\n\r\n");
    let minio = format!("{head}x-amz-checksum-crc32:NhCmhg==\n\r\nx-amz-trailer-signature:{trailer}\r\n\r\n");
    let changed = format!("{head}x-amz-checksum-crc32:AAAAAA==\r\nx-amz-trailer-signature:{trailer}\r\n\r\n");
    let unsigned = format!("{head}x-amz-checksum-crc32:NhCmhg==\r\n\r\n");
    let read = |body: &str, step| decode(Framing::SignedWithTrailers(reading.clone()), 5, CRC32, body.as_bytes(), step);
    for step in [1, 10, 1000] {
        assert_eq!(read(&good, step).unwrap().0, b"hello");
        assert_eq!(read(&minio, step).unwrap().0, b"hello");
        assert_eq!(read(&changed, step).unwrap_err().code, "SignatureDoesNotMatch");
        assert!(read(&unsigned, step).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn no_body_panics_or_yields_more_than_announced(
        body in "([0-9a-f]{1,3}(;chunk-signature=[0-9a-f]{64})?\r\n|\r\n|0\r\n|x-amz-checksum-crc32:a|[a-z]{0,9}|\n){0,12}",
        length in 0_u64..20,
        step in 1_usize..9,
    ) {
        for framing in [Framing::Unsigned, Framing::Signed(chunk_key(Payload::SignedChunks))] {
            let mut decoder = Decoder::new(framing, length, vec!["x-amz-checksum-crc32".into()]);
            let mut data = Vec::new();
            for piece in body.as_bytes().chunks(step) {
                let _ = decoder.decode(Bytes::copy_from_slice(piece), &mut data);
            }
            proptest::prop_assert!(data.concat().len() as u64 <= length);
            if decoder.finish().is_ok() {
                proptest::prop_assert_eq!(data.concat().len() as u64, length);
            }
        }
    }
}
