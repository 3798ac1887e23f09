//! Letting machines in: one-time tokens, and the certificates they are exchanged for.

use mallee_service::{join::Token, pki};
use mallee_store::{Error as StoreError, params};
use mallee_tiers::{Join, Millis, Peer, Role, Secret, SignedCertificate, SigningRequest, TierError};
use sha2::{Digest, Sha256};

use crate::Cloud;

pub const TABLES: &str = "
CREATE TABLE join_token (
    secret_hash TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    expires BIGINT NOT NULL,
    used_by TEXT
);
";

/// How long a token is good for when nobody says otherwise.
const DEFAULT_SECONDS: u64 = 3600;

/// Makes a token for one machine. Only its hash is kept.
pub async fn issue(cloud: &Cloud, peer: Peer, seconds: u64) -> Result<(Secret, Millis), TierError> {
    let letters = |s: &str| !s.is_empty() && s.len() <= 48 && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if peer.role == Role::Operator || peer.role == Role::CloudController || !letters(&peer.name) {
        return Err(TierError::refused(
            "a token is for a tier other than the cloud-controller, with a name of letters, digits and dashes",
        ));
    }
    if peer.role != Role::Walrus && !cloud.config.zones.contains(&peer.zone) {
        return Err(TierError::refused(format!(
            "no zone {:?}: this region has {}",
            peer.zone,
            cloud.config.zones.join(", ")
        )));
    }
    let secret = hex::encode(rand::random::<[u8; 32]>());
    let seconds = if seconds == 0 { DEFAULT_SECONDS } else { seconds.min(7 * 24 * 3600) };
    let expires = cloud.now() + seconds as i64 * 1000;
    let ca = cloud.ca.fingerprint().map_err(|e| TierError::internal(e.to_string()))?;
    let token = Token {
        address: cloud.config.daemon.announced(),
        ca,
        role: peer.role,
        zone: peer.zone,
        name: peer.name,
        secret: secret.clone(),
        southbound: cloud.config.network.southbound.clone(),
    };
    let row = (hash(&secret), token.role, token.zone.clone(), token.name.clone());
    cloud
        .store
        .write("issue a join token", move |tx| {
            tx.execute(
                "INSERT INTO join_token (secret_hash, role, zone, name, expires, used_by) VALUES (?1, ?2, ?3, ?4, ?5, NULL)",
                params![row.0, row.1.as_str(), row.2, row.3, expires],
            )
            .map(|_| ())
        })
        .await
        .map_err(internal)?;
    Ok((token.encode(), expires))
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

fn internal(e: StoreError) -> TierError {
    TierError::internal(e.to_string())
}

enum Redeemed {
    For(Peer),
    No(&'static str),
}

/// Exchanges a token for a certificate. Used is used, except by the same key again: its first answer may have been lost.
pub async fn redeem(cloud: &Cloud, asked: &Join) -> Result<SignedCertificate, TierError> {
    let token = Token::decode(&asked.token.0).ok_or_else(|| TierError::refused("this is no join token"))?;
    let key = key_of(&asked.request)?;
    let (secret, now) = (hash(&token.secret), cloud.now());
    let redeemed = cloud
        .store
        .write("redeem a join token", move |tx| {
            let row: Option<(String, String, String, i64, Option<String>)> = tx.query_opt(
                "SELECT role, zone, name, expires, used_by FROM join_token WHERE secret_hash = ?1",
                params![secret],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
            )?;
            Ok::<_, StoreError>(match row {
                None => Redeemed::No("this token is not of this cloud"),
                Some((.., Some(by))) if by != key => {
                    Redeemed::No("this token was used already: make a new one with `mallee node token`")
                }
                Some((_, _, _, expires, _)) if expires < now => {
                    Redeemed::No("this token is too old: make a new one with `mallee node token`")
                }
                Some((role, zone, name, ..)) => {
                    tx.execute("UPDATE join_token SET used_by = ?2 WHERE secret_hash = ?1", params![secret, key])?;
                    match role.parse() {
                        Ok(role) => Redeemed::For(Peer::new(role, zone, name)),
                        Err(_) => Redeemed::No("this token is for a role of another release"),
                    }
                }
            })
        })
        .await
        .map_err(internal)?;
    match redeemed {
        Redeemed::No(why) => Err(TierError::refused(why)),
        Redeemed::For(peer) => {
            tracing::info!(peer.role = %peer.role, peer.zone, peer.name, "joined");
            sign(cloud, &peer, &asked.request)
        }
    }
}

/// A certificate for `peer`, over the public key of `request`.
pub fn sign(cloud: &Cloud, peer: &Peer, request: &SigningRequest) -> Result<SignedCertificate, TierError> {
    // Users reach walrus as they reach us; nobody but tiers has business with the others.
    let names = if peer.role == Role::Walrus { public_names(&cloud.config) } else { Vec::new() };
    let signed = cloud.ca.sign_front(peer, &request.pem, &names);
    let certificate_pem = signed.map_err(|e| TierError::refused(e.to_string()))?;
    Ok(SignedCertificate { certificate_pem, ca_pem: cloud.ca.certificate_pem.clone() })
}

/// SHA-256 of the request's public key.
fn key_of(request: &SigningRequest) -> Result<String, TierError> {
    let bad = |e: openssl::error::ErrorStack| TierError::refused(format!("the signing request is not readable: {e}"));
    let csr = openssl::x509::X509Req::from_pem(request.pem.as_bytes()).map_err(bad)?;
    let key = csr.public_key().map_err(bad)?;
    if !csr.verify(&key).map_err(bad)? {
        return Err(TierError::refused("the signing request is not signed by its own key"));
    }
    Ok(hex::encode(Sha256::digest(key.public_key_to_der().map_err(bad)?)))
}

/// The cloud-controller's own identity: it signs for itself, at the first start and when half of the life is over.
pub fn own_identity(config: &crate::Config, ca: &pki::Ca) -> Result<mallee_service::Identity, TierError> {
    let failed = |e: &dyn std::fmt::Display| TierError::internal(e.to_string());
    let dir = config.daemon.tls_dir();
    std::fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
    let peer = Peer::new(Role::CloudController, "", "cloud-controller");
    let ensure_key = |name: &str| -> Result<String, TierError> {
        let path = dir.join(name);
        if !path.exists() {
            pki::write_secret(&path, pki::new_key_pem().map_err(|e| failed(&e))?.as_bytes()).map_err(|e| failed(&e))?;
        }
        std::fs::read_to_string(&path).map_err(|e| failed(&e))
    };
    let key = ensure_key("key.pem")?;
    let fresh = mallee_service::Identity::load(&dir)
        .ok()
        .and_then(|i| i.not_after().ok())
        .is_some_and(|end| end - time::OffsetDateTime::now_utc().unix_timestamp() > pki::LIFE.whole_seconds() / 2);
    if !fresh {
        let request = pki::signing_request(&key).map_err(|e| failed(&e))?;
        pki::write_public(&dir.join("ca.pem"), ca.certificate_pem.as_bytes()).map_err(|e| failed(&e))?;
        let certificate = ca.sign(&peer, &request).map_err(|e| failed(&e))?;
        pki::write_public(&dir.join("cert.pem"), certificate.as_bytes()).map_err(|e| failed(&e))?;
    }
    if !dir.join("public.pem").exists() {
        let key = ensure_key("public.key")?;
        let certificate = ca.issue_public(&key, &public_names(config)).map_err(|e| failed(&e))?;
        pki::write_public(&dir.join("public.pem"), certificate.as_bytes()).map_err(|e| failed(&e))?;
    }
    pki::show_to_switches(&dir).map_err(|e| failed(&e))?;
    mallee_service::Identity::load(&dir).map_err(|e| failed(&e))
}

/// What users may call the fronts, beside the operator's choice always what they call them on this machine.
fn public_names(config: &crate::Config) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    names.extend(config.public_names.iter().filter(|n| !["localhost", "127.0.0.1"].contains(&n.as_str())).cloned());
    names
}
