//! Image bundles in the classic format, made here by other code than the product's (clients.md §1): tar, gzip, AES-128-CBC,
//! parts, and a manifest that tells a cloud how to put them together.

use std::io::Write;

use http::{HeaderMap, HeaderValue, Method};
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    rsa::Padding,
    sign::Signer,
    symm::{Cipher, encrypt},
    x509::X509,
};
use sha1::{Digest, Sha1};

use crate::client::{Client, Signed};

/// Small, so that there are several parts of a small image.
const PART: usize = 300_000;

/// An image on its way to a bucket.
pub struct Bundle {
    /// Object name and bytes, the parts in order.
    pub parts: Vec<(String, Vec<u8>)>,
    pub manifest_name: String,
    pub manifest: String,
}

/// What is said of the image.
pub struct Wrapping<'a> {
    pub name: &'a str,
    pub account: &'a str,
    /// Of the cloud: PEM.
    pub certificate: &'a str,
    /// Signs the manifest; without one it says UNSIGNED.
    pub signed_by: Option<&'a PKey<Private>>,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A raw disk image of a megabyte, the same for the same name. No guest is in it.
pub fn disk(name: &str) -> Vec<u8> {
    let mut bytes = vec![0u8; 1 << 20];
    let mut block = Sha1::digest(name).to_vec();
    for place in bytes[..600_000].chunks_mut(20) {
        block = Sha1::digest(&block).to_vec();
        place.copy_from_slice(&block[..place.len()]);
    }
    bytes
}

pub fn wrap(image: &[u8], wrapping: &Wrapping<'_>) -> Result<Bundle, Failed> {
    let name = wrapping.name;
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(image.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, image)?;
    let tar = tar.into_inner()?;
    let digest = hex::encode(Sha1::digest(&tar));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar)?;
    let (key, iv): ([u8; 16], [u8; 16]) = (rand::random(), rand::random());
    let sealed = encrypt(Cipher::aes_128_cbc(), &key, Some(&iv), &gzip.finish()?)?;
    let parts: Vec<(String, Vec<u8>)> =
        sealed.chunks(PART).enumerate().map(|(at, part)| (format!("{name}.part.{at:02}"), part.to_vec())).collect();
    let listed: Vec<String> = parts.iter().enumerate().map(|(at, (name, bytes))| part(at, name, bytes)).collect();
    let certificate = X509::from_pem(wrapping.certificate.as_bytes())?;
    let lock = |secret: &[u8]| -> Result<String, Failed> {
        let rsa = certificate.public_key()?.rsa()?;
        let mut locked = vec![0; rsa.size() as usize];
        let length = rsa.public_encrypt(hex::encode(secret).as_bytes(), &mut locked, Padding::PKCS1)?;
        Ok(hex::encode(&locked[..length]))
    };
    let machine = "<machine_configuration><architecture>x86_64</architecture></machine_configuration>";
    let described = format!(
        "<image><name>{name}</name><user>{account}</user><type>machine</type><digest algorithm=\"SHA1\">{digest}</digest>\
         <size>{size}</size><bundled_size>{bundled}</bundled_size>\
         <ec2_encrypted_key algorithm=\"AES-128-CBC\">{key}</ec2_encrypted_key>\
         <user_encrypted_key algorithm=\"AES-128-CBC\"></user_encrypted_key>\
         <ec2_encrypted_iv>{iv}</ec2_encrypted_iv><user_encrypted_iv></user_encrypted_iv>\
         <parts count=\"{count}\">{listed}</parts></image>",
        account = wrapping.account,
        size = image.len(),
        bundled = sealed.len(),
        key = lock(&key)?,
        iv = lock(&iv)?,
        count = parts.len(),
        listed = listed.concat(),
    );
    let signature = match wrapping.signed_by {
        None => "UNSIGNED".to_owned(),
        Some(key) => {
            let mut signer = Signer::new(MessageDigest::sha1(), key)?;
            signer.update(format!("{machine}{described}").as_bytes())?;
            hex::encode(signer.sign_to_vec()?)
        }
    };
    let manifest = format!(
        "<?xml version='1.0' encoding='ASCII'?>\n<manifest><version>2007-10-10</version><bundler><name>tests</name>\
         <version>1</version><release>0</release></bundler>{machine}{described}<signature>{signature}</signature></manifest>"
    );
    Ok(Bundle { parts, manifest_name: format!("{name}.manifest.xml"), manifest })
}

fn part(at: usize, name: &str, bytes: &[u8]) -> String {
    let digest = hex::encode(Sha1::digest(bytes));
    format!("<part index=\"{at}\"><filename>{name}</filename><digest algorithm=\"SHA1\">{digest}</digest></part>")
}

impl Bundle {
    /// Puts everything into a bucket, which is made, readable for the cloud as upload tools do it. Answers the location.
    pub async fn upload(&self, client: &Client, bucket: &str) -> String {
        let made = client.s3(Method::PUT, &format!("/{bucket}"), "").await;
        assert!(made.status == 200 || made.code() == "BucketAlreadyOwnedByYou", "{}", made.text());
        let manifest = (self.manifest_name.clone(), self.manifest.clone().into_bytes());
        for (name, bytes) in self.parts.iter().chain([&manifest]) {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-acl", HeaderValue::from_static("aws-exec-read"));
            let target = format!("/{bucket}/{name}");
            let put = client.send(
                client.objects,
                "s3",
                Method::PUT,
                &target,
                headers,
                bytes.clone().into(),
                Signed::Properly,
            );
            put.await.unwrap_or_else(|e| panic!("{target}: {e}")).ok();
        }
        format!("{bucket}/{}", self.manifest_name)
    }
}
