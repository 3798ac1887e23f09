//! Bundles made with tar, gzip and openssl as euca2ools makes them, taken apart again.

use std::process::{Command, Stdio};

use openssl::{pkey::PKey, rsa::Rsa, sign::Signer};

use super::*;
use crate::ec2::image::manifest;

const KEY: &str = "00112233445566778899aabbccddeeff";
const IV: &str = "ffeeddccbbaa99887766554433221100";
const PART: usize = 64 * 1024;

/// A bundle: its manifest and its parts.
struct Bundle {
    manifest: String,
    parts: Vec<Vec<u8>>,
}

fn sha1_hex(bytes: &[u8]) -> String {
    hex::encode(openssl::hash::hash(MessageDigest::sha1(), bytes).unwrap())
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success());
    out.stdout
}

/// 300 KiB that do not compress away, so that there are several parts.
fn image() -> Vec<u8> {
    let mut x = 1u32;
    (0..300 * 1024)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        })
        .collect()
}

fn bundle(image: &[u8], tar_args: &[&str], said_size: usize, sign: Option<&PKey<openssl::pkey::Private>>) -> Bundle {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk.img"), image).unwrap();
    let mut args = vec!["-C", dir.path().to_str().unwrap(), "-c"];
    args.extend(tar_args);
    args.push("disk.img");
    let tar = run("tar", &args, b"");
    let zipped = run("gzip", &["-c"], &tar);
    let sealed = run("openssl", &["enc", "-aes-128-cbc", "-K", KEY, "-iv", IV], &zipped);
    let parts: Vec<Vec<u8>> = sealed.chunks(PART).map(<[u8]>::to_vec).collect();
    let listed: String = parts
        .iter()
        .enumerate()
        .map(|(n, part)| {
            format!("<part index=\"{n}\"><filename>disk.part.{n:02}</filename><digest algorithm=\"SHA1\">{}</digest></part>", sha1_hex(part))
        })
        .collect();
    let signed = format!(
        "<machine_configuration><architecture>x86_64</architecture></machine_configuration><image><name>disk.img</name>\
         <user>123456789012</user><type>machine</type><digest algorithm=\"SHA1\">{}</digest><size>{said_size}</size>\
         <bundled_size>{}</bundled_size><ec2_encrypted_key algorithm=\"AES-128-CBC\">00</ec2_encrypted_key>\
         <user_encrypted_key algorithm=\"AES-128-CBC\"/><ec2_encrypted_iv>00</ec2_encrypted_iv><user_encrypted_iv/>\
         <parts count=\"{}\">{listed}</parts></image>",
        sha1_hex(&tar),
        sealed.len(),
        parts.len(),
    );
    let signature = sign.map_or("UNSIGNED".to_owned(), |key| {
        let mut signer = Signer::new(MessageDigest::sha1(), key).unwrap();
        signer.update(signed.as_bytes()).unwrap();
        hex::encode(signer.sign_to_vec().unwrap())
    });
    let manifest = format!(
        "<?xml version='1.0' encoding='ASCII'?>\n<manifest><version>2007-10-10</version>{signed}<signature>{signature}</signature></manifest>"
    );
    Bundle { manifest, parts }
}

fn open(bundle: &Bundle, key: &str) -> (Result<Plain, Trouble>, Vec<u8>) {
    let manifest = manifest::parse(bundle.manifest.as_bytes()).unwrap();
    let (sender, pieces) = mpsc::channel(1024);
    for part in &bundle.parts {
        for chunk in part.chunks(10_000) {
            sender.blocking_send(Piece::Bytes(bytes::Bytes::copy_from_slice(chunk))).unwrap();
        }
        sender.blocking_send(Piece::PartEnds).unwrap();
    }
    drop(sender);
    let (key, iv) = (key_material(key.as_bytes()).unwrap(), key_material(IV.as_bytes()).unwrap());
    let mut spool = Vec::new();
    let outcome = unbundle(&manifest, key, iv, pieces, &mut spool);
    (outcome, spool)
}

fn wrong_because(bundle: &Bundle, reason: &str) {
    match open(bundle, KEY).0 {
        Err(Trouble::Wrong(said)) => assert!(said.contains(reason), "{said} / {reason}"),
        other => panic!("{other:?} / {reason}"),
    }
}

#[test]
fn a_bundle_becomes_its_image_again() {
    for tar_args in [&[][..], &["-S"], &["--format=pax"]] {
        let image = image();
        let (outcome, spool) = open(&bundle(&image, tar_args, image.len(), None), KEY);
        let digest = hex::encode(openssl::sha::sha256(&image));
        assert_eq!(outcome, Ok(Plain { digest, size: image.len() as u64 }), "{tar_args:?}");
        assert_eq!(spool, image);
    }
}

#[test]
fn a_flipped_byte_is_found_and_its_part_is_named() {
    let image = image();
    let good = bundle(&image, &[], image.len(), None);
    assert!(good.parts.len() >= 4);
    for (part, byte) in [(0, 0), (0, 5_000), (2, 17), (good.parts.len() - 1, 3)] {
        let mut parts = good.parts.clone();
        parts[part][byte] ^= 1;
        wrong_because(
            &Bundle { manifest: good.manifest.clone(), parts },
            &format!("part {part} (disk.part.{part:02}) is damaged"),
        );
    }
}

#[test]
fn what_the_manifest_does_not_say_is_not_taken() {
    let image = image();
    let good = bundle(&image, &[], image.len(), None);
    wrong_because(&bundle(&image, &[], image.len() - 1, None), "larger than");
    wrong_because(&bundle(&image, &[], image.len() + 1, None), "its manifest says");
    let manifest = manifest::parse(good.manifest.as_bytes()).unwrap();
    let other_tar = good.manifest.replace(&hex::encode(manifest.digest), &"ab".repeat(20));
    wrong_because(&Bundle { manifest: other_tar, parts: good.parts.clone() }, "digest of the whole image");
    // A bomb: ten MiB of zeros that claim to be one byte.
    wrong_because(&bundle(&vec![0; 10 * 1024 * 1024], &[], 1, None), "larger than");
    let (outcome, _) = open(&good, IV);
    assert!(matches!(outcome, Err(Trouble::Wrong(_))), "{outcome:?}");
}

#[test]
fn parts_that_stop_coming_are_no_fault_of_the_bundle() {
    let image = image();
    let mut cut = bundle(&image, &[], image.len(), None);
    cut.parts.pop();
    assert!(matches!(open(&cut, KEY).0, Err(Trouble::Later(_))));
}

#[test]
fn only_a_certificate_of_the_account_makes_a_bundle_signed() {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let certificate = |key: &PKey<openssl::pkey::Private>| {
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_not_before(&openssl::asn1::Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&openssl::asn1::Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.set_pubkey(key).unwrap();
        builder.sign(key, MessageDigest::sha256()).unwrap();
        String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
    };
    let image = image();
    let signed = manifest::parse(bundle(&image, &[], image.len(), Some(&key)).manifest.as_bytes()).unwrap();
    let signature = signed.signature.clone().unwrap();
    let stranger = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    assert!(is_signed_by(&signed, &signature, &[certificate(&stranger), certificate(&key)]));
    assert!(!is_signed_by(&signed, &signature, &[certificate(&stranger)]));
    assert!(!is_signed_by(&signed, &signature, &[]));
    let mut altered = signed;
    altered.signed[60] ^= 1;
    assert!(!is_signed_by(&altered, &signature, &[certificate(&key)]));
}
