//! How a machine gets its first certificate, and every later one.
//!
//! A join token is one line of text a person can paste: `mallee1.` and base64url JSON with the cloud-controller's address,
//! the SHA-256 of the CA's certificate, the role, zone and name the token is bound to, and a secret. The joiner trusts
//! nothing but that fingerprint: it fetches the CA's certificate with the answer, and refuses one that does not match.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use mallee_tiers::{CloudClient, Join, Peer, Role, Secret, SignedCertificate, SigningRequest, TierError};
use serde::{Deserialize, Serialize};

use crate::{Faults, Identity, TierHttp, config::Daemon, pki};

/// What a join token carries.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token {
    /// `host:port` of the cloud-controller.
    pub address: String,
    /// SHA-256 of the CA's certificate, hex.
    pub ca: String,
    pub role: Role,
    pub zone: String,
    pub name: String,
    pub secret: String,
    /// For a node: OVN's southbound database as ovn-controller is told of it, such as `ssl:10.0.0.1:8778`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub southbound: Option<String>,
}

impl Token {
    pub fn encode(&self) -> Secret {
        Secret(format!("mallee1.{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())))
    }
    pub fn decode(text: &str) -> Option<Self> {
        let raw = URL_SAFE_NO_PAD.decode(text.trim().strip_prefix("mallee1.")?).ok()?;
        serde_json::from_slice(&raw).ok()
    }
    pub fn peer(&self) -> Peer {
        Peer::new(self.role, self.zone.clone(), self.name.clone())
    }
}

/// The identity of a daemon: what is in its `tls` folder, or what its join token gets from the cloud-controller.
/// Waits and repeats while the cloud-controller does not answer; a refused token ends it.
pub async fn identity(daemon: &Daemon) -> Result<Identity, TierError> {
    let dir = daemon.tls_dir();
    if !dir.join("cert.pem").exists() {
        let path = daemon.join_token.as_ref().ok_or_else(|| {
            TierError::refused(format!(
                "no certificate in {} and no join_token in the configuration: run `mallee join TOKEN`",
                dir.display()
            ))
        })?;
        let text = std::fs::read_to_string(path).map_err(|e| TierError::refused(format!("{}: {e}", path.display())))?;
        let token = Token::decode(&text)
            .ok_or_else(|| TierError::refused(format!("{} holds no join token", path.display())))?;
        let mut pause = Duration::from_millis(50);
        loop {
            match join(&token, &dir).await {
                Ok(()) => break,
                Err(e) if e.kind == mallee_tiers::TierErrorKind::Unreachable => {
                    tracing::info!(error = %e, "waiting for the cloud-controller");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(e) => return Err(e),
            }
        }
        let _ = std::fs::remove_file(path);
    }
    // An earlier process may have died between the two.
    pki::show_to_switches(&dir).map_err(|e| TierError::internal(e.to_string()))?;
    Identity::load(&dir).map_err(|e| TierError::internal(e.to_string()))
}

/// Exchanges a token for a certificate and writes `ca.pem`, `cert.pem`, `key.pem` to `dir`.
pub async fn join(token: &Token, dir: &Path) -> Result<(), TierError> {
    let failed = |e: &dyn std::fmt::Display| TierError::internal(e.to_string());
    std::fs::create_dir_all(dir).map_err(|e| failed(&e))?;
    // The same key for every attempt: a token whose answer was lost is answered again for the same key only.
    let key_path = dir.join("key.pem");
    if !key_path.exists() {
        pki::write_secret(&key_path, pki::new_key_pem().map_err(|e| failed(&e))?.as_bytes()).map_err(|e| failed(&e))?;
    }
    let key = std::fs::read_to_string(&key_path).map_err(|e| failed(&e))?;
    let request = Join {
        token: token.encode(),
        request: SigningRequest { pem: pki::signing_request(&key).map_err(|e| failed(&e))? },
    };
    let signed = post_join(token, &request).await?;
    store_signed(&signed, &token.ca, dir)
}

fn store_signed(signed: &SignedCertificate, expected_ca: &str, dir: &Path) -> Result<(), TierError> {
    let got = pki::fingerprint(&signed.ca_pem).map_err(|e| TierError::refused(e.to_string()))?;
    if got != expected_ca {
        return Err(TierError::refused(
            "the cloud-controller's CA is not the one the token names: somebody else answered",
        ));
    }
    let failed = |e: pki::PkiError| TierError::internal(e.to_string());
    pki::write_public(&dir.join("ca.pem"), signed.ca_pem.as_bytes()).map_err(failed)?;
    pki::write_public(&dir.join("cert.pem"), signed.certificate_pem.as_bytes()).map_err(failed)?;
    pki::show_to_switches(dir).map_err(failed)
}

/// The one call that is made before the CA is known: TLS with the server's chain checked against the token's
/// fingerprint, so that the secret is never sent to anybody else.
async fn post_join(token: &Token, join: &Join) -> Result<SignedCertificate, TierError> {
    let config = first_contact::config(&token.ca).map_err(|e| TierError::internal(e.to_string()))?;
    let sni = mallee_tiers::server_name(Role::CloudController, "cloud-controller");
    let server = rustls_pki_types::ServerName::try_from(sni).map_err(|e| TierError::internal(e.to_string()))?;
    let gone =
        |e: &dyn std::fmt::Display| TierError::unreachable(format!("cloud-controller at {}: {e}", token.address));
    let stream = tokio::net::TcpStream::connect(&token.address).await.map_err(|e| gone(&e))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(|e| {
        TierError::refused(format!("cloud-controller at {}: {e} (is the token of this cloud?)", token.address))
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.map_err(|e| gone(&e))?;
    tokio::spawn(connection);
    let message = serde_json::to_vec(join).map_err(|e| TierError::internal(e.to_string()))?;
    let request = http::Request::post(mallee_tiers::JOIN_PATH)
        .header(http::header::HOST, &token.address)
        .body(crate::body::full(message))
        .map_err(|e| TierError::internal(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(|e| gone(&e))?;
    let status = response.status();
    let answer = crate::body::collect(response.into_body(), 1 << 20)
        .await
        .map_err(|e| gone(&e))?
        .ok_or_else(|| TierError::internal("join: answer too long"))?;
    if status.is_success() {
        return serde_json::from_slice(&answer).map_err(|e| TierError::internal(format!("join: {e}")));
    }
    Err(serde_json::from_slice(&answer).unwrap_or_else(|_| TierError::internal(format!("join: HTTP {status}"))))
}

/// Renews the certificate at half of its life, for as long as the daemon runs.
pub fn keep_renewed(identity: Identity, cloud: TierHttp, faults: Faults) {
    tokio::spawn(async move {
        loop {
            let left = identity.not_after().map_or(0, |end| end - time::OffsetDateTime::now_utc().unix_timestamp());
            let half = pki::LIFE.whole_seconds() / 2;
            if left > half {
                tokio::time::sleep(Duration::from_secs(((left - half) as u64).min(3600))).await;
                continue;
            }
            match renew(&identity, &cloud).await {
                Ok(()) => faults.clear("certificate"),
                Err(e) => {
                    faults.raise(
                        "certificate",
                        format!("the tier's certificate cannot be renewed: {e}"),
                        "is the cloud-controller up?",
                    );
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            }
        }
    });
}

async fn renew(identity: &Identity, cloud: &TierHttp) -> Result<(), TierError> {
    let failed = |e: &dyn std::fmt::Display| TierError::internal(e.to_string());
    let key = std::fs::read_to_string(identity.dir().join("key.pem")).map_err(|e| failed(&e))?;
    let ca = std::fs::read_to_string(identity.dir().join("ca.pem")).map_err(|e| failed(&e))?;
    let request = SigningRequest { pem: pki::signing_request(&key).map_err(|e| failed(&e))? };
    let signed = CloudClient::new(Arc::new(cloud.clone())).renew(&request).await?;
    store_signed(&signed, &pki::fingerprint(&ca).map_err(|e| failed(&e))?, identity.dir())?;
    identity.reload().map_err(|e| failed(&e))
}

mod first_contact {
    //! Trusts exactly the chain whose CA has the token's fingerprint. The server sends that CA along with its certificate.

    use std::sync::Arc;

    use rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    };
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    use sha2::Digest;

    pub fn config(ca: &str) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Pinned { ca: ca.to_owned(), provider: provider.clone() });
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth())
    }

    #[derive(Debug)]
    struct Pinned {
        ca: String,
        provider: Arc<CryptoProvider>,
    }

    impl ServerCertVerifier for Pinned {
        fn verify_server_cert(
            &self,
            leaf: &CertificateDer<'_>,
            chain: &[CertificateDer<'_>],
            name: &ServerName<'_>,
            ocsp: &[u8],
            now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            let pinned = chain
                .iter()
                .find(|c| hex::encode(sha2::Sha256::digest(c)) == self.ca)
                .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
            let mut roots = RootCertStore::empty();
            roots.add(pinned.clone().into_owned())?;
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|e| Error::General(e.to_string()))?
                .verify_server_cert(leaf, chain, name, ocsp, now)
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    }
}
