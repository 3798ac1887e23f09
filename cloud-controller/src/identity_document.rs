//! The key that instances' identity documents are signed with. Whoever holds the cloud's certificate (`identity.pem` in the state
//! folder) can tell that a document came from this cloud, whoever hands it over.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_service::pki::PkiError;
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    pkcs7::{Pkcs7, Pkcs7Flags},
    pkey::{PKey, Private},
    sign::Signer,
    stack::Stack,
    x509::X509,
};

use crate::bundling;

pub struct IdentityKey {
    key: PKey<Private>,
    certificate: X509,
}

/// A document's signatures, as the metadata shows them. The same document always has the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signatures {
    /// RSA and SHA-256 over the document, in base64.
    pub signature: String,
    /// PKCS #7 with the document in it: PEM without its first and last line.
    pub pkcs7: String,
}

impl IdentityKey {
    /// The pair in `dir` (`identity.pem`, `identity.key`); made when there is none. It is no key that decrypts anything: who
    /// could have a key decrypt what they choose could have it sign.
    pub fn open_or_create(dir: &Path) -> Result<Self, PkiError> {
        let (key, certificate_pem) = bundling::pair(dir, "identity", "mallee instance identity")?;
        Ok(Self { key, certificate: X509::from_pem(certificate_pem.as_bytes())? })
    }

    pub fn certificate_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        self.certificate.to_pem()
    }

    /// Without signed attributes, of which one is the time: a body that is rendered again must not look changed.
    pub fn sign(&self, document: &str) -> Result<Signatures, ErrorStack> {
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key)?;
        let signature = STANDARD.encode(signer.sign_oneshot_to_vec(document.as_bytes())?);
        let flags = Pkcs7Flags::BINARY | Pkcs7Flags::NOATTR;
        let signed = Pkcs7::sign(&self.certificate, &self.key, &*Stack::new()?, document.as_bytes(), flags)?;
        let pem = String::from_utf8_lossy(&signed.to_pem()?).into_owned();
        let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        Ok(Signatures { signature, pkcs7: lines.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// With the commands of AWS' own manual ("Verify the instance identity document").
    #[test]
    fn openssl_verifies_what_is_signed_and_refuses_what_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let key = IdentityKey::open_or_create(dir.path()).unwrap();
        let document = "{\n  \"instanceId\" : \"i-1\"\n}";
        let signed = key.sign(document).unwrap();
        assert_eq!(IdentityKey::open_or_create(dir.path()).unwrap().sign(document).unwrap(), signed);
        let openssl =
            |arguments: &str| Command::new("openssl").args(arguments.split(' ')).current_dir(&dir).output().unwrap();
        let write = |name: &str, what: &[u8]| std::fs::write(dir.path().join(name), what).unwrap();
        write("document", document.as_bytes());
        write("rsa2048", format!("-----BEGIN PKCS7-----\n{}\n-----END PKCS7-----\n", signed.pkcs7).as_bytes());
        let verify =
            "smime -verify -in rsa2048 -inform PEM -content document -certfile identity.pem -CAfile identity.pem";
        let verified = openssl(verify);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
        assert_eq!(verified.stdout, document.as_bytes());
        write("signature", &STANDARD.decode(&signed.signature).unwrap());
        write("public", &openssl("x509 -pubkey -noout -in identity.pem").stdout);
        let check = "dgst -sha256 -verify public -signature signature document";
        assert!(openssl(check).status.success());
        write("document", document.replace("i-1", "i-2").as_bytes());
        assert!(!openssl(check).status.success() && !openssl(verify).status.success());
    }
}
