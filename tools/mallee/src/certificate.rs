//! The signing certificate of an account: RSA 2048, self-signed, kept beside the account's name on this machine. Image
//! bundles are signed with it, and encrypted for it, so that their owner can open them again.

use std::path::PathBuf;

use mallee_service::pki::{write_public, write_secret};
use mallee_tiers::{AccountKeys, CertificateAdd};
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::{X509, X509Name};

use crate::admin;
use crate::error::{Error, Result};
use crate::state::{State, make_private};

const BITS: u32 = 2048;
const DAYS: u32 = 3650;

/// The files of an account on this machine.
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The cloud's, for which bundles are encrypted.
    pub cloud: PathBuf,
}

pub fn files(state: &State, account: &str) -> Files {
    let directory = state.account(account);
    Files {
        certificate: directory.join("cert.pem"),
        key: directory.join("pk.pem"),
        cloud: directory.join("cloud-cert.pem"),
    }
}

/// Makes the account's certificate and registers it, as far as that has not happened.
pub async fn ensure(state: &State, keys: &AccountKeys) -> Result<Files> {
    let files = files(state, &keys.name);
    make_private(&state.account(&keys.name))?;
    write_public(&files.cloud, keys.cloud_certificate_pem.as_bytes())?;
    let known = files.certificate.exists() && files.key.exists();
    if !known {
        let (certificate, key) = make(&keys.account, &keys.name)?;
        // The key first: a certificate without its key would never be mended.
        write_secret(&files.key, &key.private_key_to_pem_pkcs8()?)?;
        write_public(&files.certificate, &certificate.to_pem()?)?;
    }
    if !known || keys.signing_certificates == 0 {
        let pem = std::fs::read_to_string(&files.certificate).map_err(Error::file("reading", &files.certificate))?;
        admin::client(state).certificate_add(&CertificateAdd { account: keys.name.clone(), pem }).await?;
    }
    Ok(files)
}

fn make(account: &str, name: &str) -> Result<(X509, PKey<Private>)> {
    let key = PKey::from_rsa(Rsa::generate(BITS)?)?;
    let mut subject = X509Name::builder()?;
    subject.append_entry_by_text("CN", &name.chars().take(64).collect::<String>())?;
    subject.append_entry_by_text("OU", account)?;
    let subject = subject.build();
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&subject)?;
    builder.set_pubkey(&key)?;
    builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    builder.set_not_after(&*Asn1Time::days_from_now(DAYS)?)?;
    builder.sign(&key, MessageDigest::sha256())?;
    Ok((builder.build(), key))
}
