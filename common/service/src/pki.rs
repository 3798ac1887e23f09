//! The cloud's private CA: RSA keys, because QEMU and libvirt use the same certificates (plumbing.md §0.8).
//!
//! The cloud-controller holds it. A certificate carries the tier's identity as SAN URI `mallee://ROLE/ZONE/NAME` and the
//! DNS name other tiers ask for; it is backdated by an hour, so that a slow clock does not refuse it, and lives 30 days.

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use mallee_tiers::Peer;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    #[error("certificates: {0}")]
    Rcgen(#[from] rcgen::Error),
    #[error("keys: {0}")]
    OpenSsl(#[from] openssl::error::ErrorStack),
    #[error("{0}")]
    Refused(String),
}

/// How long a tier's certificate lives; it is renewed at half of it.
pub const LIFE: Duration = Duration::days(30);

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub certificate_pem: String,
}

/// A new RSA key of 2,048 bits as PKCS#8 PEM.
pub fn new_key_pem() -> Result<String, PkiError> {
    let key = openssl::pkey::PKey::from_rsa(openssl::rsa::Rsa::generate(2048)?)?;
    Ok(String::from_utf8_lossy(&key.private_key_to_pem_pkcs8()?).into_owned())
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

impl Ca {
    /// The CA kept in `dir` (`ca.pem`, `ca.key`); made when there is none.
    pub fn open_or_create(dir: &Path, cloud: &str) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !cert_path.exists() {
            std::fs::create_dir_all(dir).map_err(|e| PkiError::File(dir.display().to_string(), e))?;
            let key_pem = new_key_pem()?;
            let key = KeyPair::from_pem(&key_pem)?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, format!("Mallee CA of {cloud}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
            params.serial_number = Some(serial());
            params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
            params.not_after = OffsetDateTime::now_utc() + Duration::days(3650);
            let cert = params.self_signed(&key)?;
            // The key first: a CA certificate without its key would never be mended by a second start.
            write_secret(&key_path, key_pem.as_bytes())?;
            write_public(&cert_path, cert.pem().as_bytes())?;
        }
        let read = |p: &Path| std::fs::read_to_string(p).map_err(|e| PkiError::File(p.display().to_string(), e));
        let certificate_pem = read(&cert_path)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(&read(&key_path)?)?)?;
        Ok(Self { issuer, certificate_pem })
    }

    /// SHA-256 of the CA's certificate in hex: what a join token carries.
    pub fn fingerprint(&self) -> Result<String, PkiError> {
        fingerprint(&self.certificate_pem)
    }

    /// Signs the public key of `csr_pem` for `peer`. Nothing else of the request is believed. The answer is the chain with
    /// the CA at its end: a joiner, which knows only the CA's fingerprint, must be shown it.
    pub fn sign(&self, peer: &Peer, csr_pem: &str) -> Result<String, PkiError> {
        self.sign_front(peer, csr_pem, &[])
    }

    /// The same for a tier that users reach, too, by these names.
    pub fn sign_front(&self, peer: &Peer, csr_pem: &str, names: &[String]) -> Result<String, PkiError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let mut params = tier_params(peer)?;
        params.subject_alt_names.extend(CertificateParams::new(names)?.subject_alt_names);
        Ok(format!("{}{}", params.signed_by(&csr.public_key, &self.issuer)?.pem(), self.certificate_pem))
    }

    /// A server certificate for the names users reach the cloud by.
    pub fn issue_public(&self, key_pem: &str, names: &[String]) -> Result<String, PkiError> {
        let key = KeyPair::from_pem(key_pem)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("mallee", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        finish(&mut params);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(365);
        Ok(params.signed_by(&key, &self.issuer)?.pem())
    }
}

fn finish(params: &mut CertificateParams) {
    params.serial_number = Some(serial());
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + LIFE;
}

fn tier_params(peer: &Peer) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(vec![peer.server_name()])?;
    params.subject_alt_names.push(SanType::URI(peer.uri().as_str().try_into()?));
    params.distinguished_name.push(DnType::CommonName, peer.server_name());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    finish(&mut params);
    Ok(params)
}

/// A PKCS#10 request for `key_pem`; the CA takes only the public key from it.
pub fn signing_request(key_pem: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem)?;
    Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
}

/// SHA-256 over the DER of a PEM certificate, in hex.
pub fn fingerprint(pem: &str) -> Result<String, PkiError> {
    use sha2::Digest;
    let cert = openssl::x509::X509::from_pem(pem.as_bytes())?;
    Ok(hex::encode(sha2::Sha256::digest(cert.to_der()?)))
}

/// Writes a file only root may read, durably: to a new name, synced, then renamed over the old.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write_mode(path, bytes, 0o600)
}

pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write_mode(path, bytes, 0o644)
}

/// Makes `DIR/key.pem` newer than `DIR/cert.pem`. Open vSwitch's daemons were told of both files when they started, perhaps
/// before there was a certificate, and look at the certificate again only when the key changed, too.
pub fn show_to_switches(dir: &Path) -> Result<(), PkiError> {
    let path = dir.join("key.pem");
    let failed = |e| PkiError::File(path.display().to_string(), e);
    let key = std::fs::OpenOptions::new().write(true).open(&path).map_err(failed)?;
    let written = std::fs::metadata(dir.join("cert.pem")).and_then(|cert| cert.modified()).map_err(failed)?;
    if key.metadata().and_then(|key| key.modified()).map_err(failed)? <= written {
        key.set_modified(std::time::SystemTime::now()).map_err(failed)?;
    }
    Ok(())
}

fn write_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed = |e| PkiError::File(path.display().to_string(), e);
    let new = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)?;
    if let Some(dir) = path.parent() {
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_tiers::Role;

    #[test]
    fn the_request_cannot_choose_its_own_identity() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), "test").unwrap();
        let key = new_key_pem().unwrap();
        let mut liar =
            CertificateParams::new(vec!["cloud-controller.cloud-controller.mallee.internal".to_owned()]).unwrap();
        liar.distinguished_name.push(DnType::CommonName, "cloud-controller");
        let csr = liar.serialize_request(&KeyPair::from_pem(&key).unwrap()).unwrap().pem().unwrap();
        let node = Peer::new(Role::NodeController, "z", "n1");
        let cert = ca.sign(&node, &csr).unwrap();
        let der = openssl::x509::X509::from_pem(cert.as_bytes()).unwrap().to_der().unwrap();
        assert_eq!(crate::tls::peer_of(&der), Some(node));
        assert!(!String::from_utf8_lossy(&der).contains("cloud-controller.mallee.internal"));
    }
}
