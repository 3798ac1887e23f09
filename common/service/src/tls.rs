//! A tier's own certificate, and the TLS configurations made of it. Both sides of a connection between tiers show one.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use mallee_tiers::Peer;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0}: {1}")]
    Pem(PathBuf, rustls_pki_types::pem::Error),
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("{0}")]
    Other(String),
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The tier's identity on disk: `DIR/ca.pem`, `DIR/cert.pem`, `DIR/key.pem`, and for fronts of users optionally
/// `DIR/public.pem`, `DIR/public.key`. `reload` takes over what is on disk now, without a restart.
#[derive(Clone)]
pub struct Identity {
    dir: PathBuf,
    held: Arc<Held>,
    roots: Arc<RootCertStore>,
}

#[derive(Debug)]
struct Held {
    tier: RwLock<Arc<CertifiedKey>>,
    public: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Identity {
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for cert in certs(&dir.join("ca.pem"))? {
            roots.add(cert)?;
        }
        let tier = certified(&dir.join("cert.pem"), &dir.join("key.pem"))?;
        let public = load_public(dir)?;
        let held = Arc::new(Held { tier: RwLock::new(tier), public: RwLock::new(public) });
        Ok(Self { dir: dir.into(), held, roots: Arc::new(roots) })
    }

    pub fn reload(&self) -> Result<(), TlsError> {
        let tier = certified(&self.dir.join("cert.pem"), &self.dir.join("key.pem"))?;
        let public = load_public(&self.dir)?;
        *self.held.tier.write().unwrap_or_else(|p| p.into_inner()) = tier;
        *self.held.public.write().unwrap_or_else(|p| p.into_inner()) = public;
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Who this tier is, as its own certificate says.
    pub fn peer(&self) -> Result<Peer, TlsError> {
        let key = self.held.tier();
        let cert = key.cert.first().ok_or_else(|| TlsError::Other("empty certificate file".into()))?;
        peer_of(cert).ok_or_else(|| {
            TlsError::Other(format!("{}: not a tier's certificate", self.dir.join("cert.pem").display()))
        })
    }

    /// When the tier's certificate ends, in seconds since the epoch.
    pub fn not_after(&self) -> Result<i64, TlsError> {
        let key = self.held.tier();
        let cert = key.cert.first().ok_or_else(|| TlsError::Other("empty certificate file".into()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| TlsError::Other(e.to_string()))?;
        Ok(parsed.validity().not_after.timestamp())
    }

    /// For a front: a client may show a certificate of the cloud's CA (a tier does, a user does not). The certificate
    /// shown is the tier's for names under `.mallee.internal`, the public one for everybody else.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .allow_unauthenticated()
            .build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.held.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For calls to other tiers: only the cloud's CA is trusted, and the own certificate is shown.
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone())
            .with_client_cert_resolver(self.held.clone()))
    }
}

impl Held {
    fn tier(&self) -> Arc<CertifiedKey> {
        self.tier.read().unwrap_or_else(|p| p.into_inner()).clone()
    }
}

impl ResolvesServerCert for Held {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.server_name().is_some_and(|name| name.ends_with(".mallee.internal")) {
            return Some(self.tier());
        }
        Some(self.public.read().unwrap_or_else(|p| p.into_inner()).clone().unwrap_or_else(|| self.tier()))
    }
}

impl ResolvesClientCert for Held {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.tier())
    }
    fn has_certs(&self) -> bool {
        true
    }
    fn only_raw_public_keys(&self) -> bool {
        false
    }
}

/// The tier a certificate was made for.
pub fn peer_of(der: &[u8]) -> Option<Peer> {
    use x509_parser::extensions::GeneralName;
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|n| match n {
        GeneralName::URI(uri) => Peer::from_uri(uri),
        _ => None,
    })
}

fn certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |e| TlsError::Pem(path.into(), e);
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

fn certified(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certs(cert)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| TlsError::Pem(key.into(), e))?;
    let signer = provider().key_provider.load_private_key(key_der)?;
    let key = CertifiedKey::new(chain, signer);
    key.keys_match().map_err(|e| TlsError::Other(format!("{}: {e}", cert.display())))?;
    Ok(Arc::new(key))
}

fn load_public(dir: &Path) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let (cert, key) = (dir.join("public.pem"), dir.join("public.key"));
    if cert.exists() { certified(&cert, &key).map(Some) } else { Ok(None) }
}
