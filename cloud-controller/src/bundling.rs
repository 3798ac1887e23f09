//! The key pair image bundles are encrypted for: the cloud opens what users (or `mallee image bundle`) sealed with its
//! certificate. Kept in the state folder, readable by root only; losing it makes old bundles unreadable, nothing else.

use std::path::Path;

use mallee_service::pki::{self, PkiError};
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::{PKey, Private},
    rsa::Padding,
    x509::{X509, X509NameBuilder},
};

pub struct Bundling {
    key: PKey<Private>,
    certificate_pem: String,
}

impl Bundling {
    /// The pair in `dir` (`bundling.pem`, `bundling.key`); made when there is none.
    pub fn open_or_create(dir: &Path) -> Result<Self, PkiError> {
        let (key, certificate_pem) = pair(dir, "bundling", "mallee image bundling")?;
        Ok(Self { key, certificate_pem })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Opens what was encrypted with the certificate, RSA PKCS#1 v1.5 as the bundle format has it.
    pub fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, PkiError> {
        let rsa = self.key.rsa()?;
        let mut plain = vec![0; rsa.size() as usize];
        let length = rsa.private_decrypt(sealed, &mut plain, Padding::PKCS1)?;
        plain.truncate(length);
        Ok(plain)
    }
}

/// The key in `dir/NAME.key` and its own certificate in `dir/NAME.pem`; made when there are none.
pub fn pair(dir: &Path, name: &str, subject: &str) -> Result<(PKey<Private>, String), PkiError> {
    let (cert_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| PkiError::File(path.display().to_string(), e));
    if !key_path.exists() {
        pki::write_secret(&key_path, pki::new_key_pem()?.as_bytes())?;
    }
    let key = PKey::private_key_from_pem(read(&key_path)?.as_bytes())?;
    if !cert_path.exists() {
        pki::write_public(&cert_path, &self_signed(&key, subject)?.to_pem()?)?;
    }
    Ok((key, read(&cert_path)?))
}

fn self_signed(key: &PKey<Private>, subject: &str) -> Result<X509, PkiError> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_text("CN", subject)?;
    let name = name.build();
    let serial: [u8; 8] = rand::random();
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    let serial = BigNum::from_slice(&[&[1], &serial[..]].concat())?.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    builder.set_subject_name(&name)?;
    builder.set_issuer_name(&name)?;
    builder.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    builder.set_not_after(Asn1Time::days_from_now(3650)?.as_ref())?;
    builder.set_pubkey(key)?;
    builder.sign(key, MessageDigest::sha256())?;
    Ok(builder.build())
}
