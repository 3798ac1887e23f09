//! Key pairs: public keys by name, which instances are given through their metadata. The cloud keeps no private key.

use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_aws::{
    AwsError,
    filter::{Attribute, Filter, Filters, Tagged},
    id::KeyPairId,
};
use mallee_store::{Error as StoreError, Tx, params};
use openssl::{hash::MessageDigest, pkey::PKey, rsa::Rsa};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id,
        tag::{self, Tag, TagSpecification},
        unique_is, unless_dry_run,
    },
    service::Call,
};

actions![
    CreateKeyPair => create,
    DeleteKeyPair => delete,
    DescribeKeyPairs => describe,
    ImportKeyPair => import,
];

pub const TABLES: &str = "
CREATE TABLE key_pair (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    kind TEXT NOT NULL,
    public_key TEXT NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (account, name)
);
";

/// A key pair as its row is.
#[derive(Debug, Clone)]
pub struct KeyPair {
    pub id: KeyPairId,
    pub name: String,
    pub fingerprint: String,
    /// `rsa` or `ed25519`.
    pub kind: String,
    /// One line as `authorized_keys` wants it, without a comment.
    pub public_key: String,
    pub created: i64,
}

const COLUMNS: &str = "id, name, fingerprint, kind, public_key, created";

fn read(row: &mallee_store::Row<'_>) -> Result<KeyPair, StoreError> {
    Ok(KeyPair {
        id: row.get::<Id<_>>(0)?.0,
        name: row.get(1)?,
        fingerprint: row.get(2)?,
        kind: row.get(3)?,
        public_key: row.get(4)?,
        created: row.get(5)?,
    })
}

/// The key pair of this name, for a launch.
pub fn named(tx: &mut Tx<'_>, account: &str, name: &str) -> Outcome<KeyPair> {
    tx.query_opt(
        &format!("SELECT {COLUMNS} FROM key_pair WHERE account = ?1 AND name = ?2"),
        params![account, name],
        read,
    )?
    .ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> Refusal {
    Refusal::new("InvalidKeyPair.NotFound", format!("The key pair '{name}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateKeyPair {
    dry_run: Option<bool>,
    key_name: String,
    key_type: Option<String>,
    key_format: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedKeyPair {
    key_name: String,
    key_fingerprint: String,
    key_material: String,
    key_pair_id: KeyPairId,
    tag_set: Vec<Tag>,
}

/// Makes the pair here, keeps its public half and answers with the private one, once.
async fn create(call: &Call, input: CreateKeyPair) -> Outcome<CreatedKeyPair> {
    if let Some(format) = input.key_format.as_deref().filter(|f| *f != "pem") {
        return Err(AwsError::unsupported(format!("KeyFormat '{format}' is not made here; use 'pem'")).into());
    }
    let kind = input.key_type.clone().unwrap_or_else(|| "rsa".into());
    let made = match kind.as_str() {
        // An RSA key takes tens of milliseconds to find: not on the reactor.
        "rsa" => tokio::task::spawn_blocking(new_rsa).await.map_err(|e| Refusal::internal(e.to_string()))??,
        "ed25519" => new_ed25519()?,
        other => return Err(AwsError::invalid_parameter_value(format!("Invalid value '{other}' for keyType.")).into()),
    };
    let pair = KeyPair {
        id: KeyPairId::from_random(rand::random()),
        name: input.key_name,
        fingerprint: made.fingerprint,
        kind,
        public_key: made.public_key,
        created: call.now,
    };
    let (pair, tag_set) = insert(call, pair, &input.tag_specification, input.dry_run).await?;
    Ok(CreatedKeyPair {
        key_name: pair.name,
        key_fingerprint: pair.fingerprint,
        key_material: made.private_key,
        key_pair_id: pair.id,
        tag_set,
    })
}

async fn insert(
    call: &Call,
    pair: KeyPair,
    specifications: &[TagSpecification],
    dry_run: Option<bool>,
) -> Outcome<(KeyPair, Vec<Tag>)> {
    let name_length = pair.name.chars().count();
    if name_length == 0 || name_length > 255 {
        return Err(AwsError::invalid_parameter_value("KeyName must have 1 to 255 characters").into());
    }
    let tags = tag::specified(specifications, &["key-pair"])?.remove("key-pair").unwrap_or_default();
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("insert a key pair", move |tx| {
            tx.execute(
                "INSERT INTO key_pair (id, account, name, fingerprint, kind, public_key, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    pair.id.as_str(),
                    account,
                    pair.name,
                    pair.fingerprint,
                    pair.kind,
                    pair.public_key,
                    pair.created
                ],
            )
            .map_err(|e| {
                unique_is(e, || {
                    Refusal::new("InvalidKeyPair.Duplicate", format!("The keypair '{}' already exists.", pair.name))
                })
            })?;
            tag::put(tx, &account, pair.id.as_str(), &tags)?;
            unless_dry_run(dry_run)?;
            Ok((pair.clone(), tags.clone()))
        })
        .await
}

struct Made {
    public_key: String,
    private_key: String,
    fingerprint: String,
}

/// The fingerprint of an RSA key AWS made is the SHA-1 of the private key's DER (PKCS#8).
fn new_rsa() -> Outcome<Made> {
    let failed = |e: openssl::error::ErrorStack| Refusal::internal(e.to_string());
    let rsa = Rsa::generate(2048).map_err(failed)?;
    let key = PKey::from_rsa(rsa.clone()).map_err(failed)?;
    let der = key.private_key_to_pkcs8().map_err(failed)?;
    let digest = openssl::hash::hash(MessageDigest::sha1(), &der).map_err(failed)?;
    let pem = rsa.private_key_to_pem().map_err(failed)?;
    Ok(Made {
        public_key: format!("ssh-rsa {}", STANDARD.encode(rsa_blob(&rsa.e().to_vec(), &rsa.n().to_vec()))),
        private_key: String::from_utf8_lossy(&pem).into_owned(),
        fingerprint: colons(&digest),
    })
}

/// Ed25519 in OpenSSH's own format (PROTOCOL.key); its fingerprint is the SHA-256 of the public blob in base64.
fn new_ed25519() -> Outcome<Made> {
    let failed = |e: openssl::error::ErrorStack| Refusal::internal(e.to_string());
    let key = PKey::generate_ed25519().map_err(failed)?;
    let (public, seed) = (key.raw_public_key().map_err(failed)?, key.raw_private_key().map_err(failed)?);
    let mut blob = Vec::new();
    put_string(&mut blob, b"ssh-ed25519");
    put_string(&mut blob, &public);
    let check: [u8; 4] = rand::random();
    let mut private = [check, check].concat();
    put_string(&mut private, b"ssh-ed25519");
    put_string(&mut private, &public);
    put_string(&mut private, &[seed, public].concat());
    put_string(&mut private, b"");
    private.extend((1..).take((8 - private.len() % 8) % 8));
    let mut whole = b"openssh-key-v1\0".to_vec();
    for part in [&b"none"[..], b"none", b""] {
        put_string(&mut whole, part);
    }
    whole.extend(1u32.to_be_bytes());
    put_string(&mut whole, &blob);
    put_string(&mut whole, &private);
    let lines: Vec<String> =
        STANDARD.encode(whole).as_bytes().chunks(70).map(|l| String::from_utf8_lossy(l).into_owned()).collect();
    Ok(Made {
        public_key: format!("ssh-ed25519 {}", STANDARD.encode(&blob)),
        private_key: format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
            lines.join("\n")
        ),
        fingerprint: STANDARD.encode(Sha256::digest(&blob)),
    })
}

fn rsa_blob(exponent: &[u8], modulus: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    put_string(&mut blob, b"ssh-rsa");
    for number in [exponent, modulus] {
        // An mpint is signed: a leading zero keeps a number with its top bit set positive.
        let lead: &[u8] = if number.first().is_some_and(|b| b & 0x80 != 0) { &[0] } else { &[] };
        put_string(&mut blob, &[lead, number].concat());
    }
    blob
}

fn put_string(out: &mut Vec<u8>, part: &[u8]) {
    out.extend((part.len() as u32).to_be_bytes());
    out.extend_from_slice(part);
}

fn colons(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImportKeyPair {
    dry_run: Option<bool>,
    key_name: String,
    /// Base64 of an OpenSSH public key line (or of its bare base64 blob, as some old tools send).
    public_key_material: String,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImportedKeyPair {
    key_name: String,
    key_fingerprint: String,
    key_pair_id: KeyPairId,
    tag_set: Vec<Tag>,
}

async fn import(call: &Call, input: ImportKeyPair) -> Outcome<ImportedKeyPair> {
    let (kind, public_key, fingerprint) = read_public_key(&input.public_key_material)
        .ok_or_else(|| Refusal::new("InvalidKey.Format", "Key is not in valid OpenSSH public key format"))?;
    let pair = KeyPair {
        id: KeyPairId::from_random(rand::random()),
        name: input.key_name,
        fingerprint,
        kind,
        public_key,
        created: call.now,
    };
    let (pair, tag_set) = insert(call, pair, &input.tag_specification, input.dry_run).await?;
    Ok(ImportedKeyPair { key_name: pair.name, key_fingerprint: pair.fingerprint, key_pair_id: pair.id, tag_set })
}

/// Kind, line and fingerprint of an imported key. AWS fingerprints an imported RSA key by the MD5 of its public DER.
fn read_public_key(material: &str) -> Option<(String, String, String)> {
    let compact: String = material.split_whitespace().collect();
    let line = String::from_utf8(STANDARD.decode(compact).ok()?).ok()?;
    let mut words = line.split_whitespace();
    let (algorithm, base64) = (words.next()?, words.next()?);
    let blob = STANDARD.decode(base64).ok()?;
    let mut rest = blob.as_slice();
    if take_string(&mut rest)? != algorithm.as_bytes() {
        return None;
    }
    let (kind, fingerprint) = match algorithm {
        "ssh-rsa" => {
            let (e, n) = (take_string(&mut rest)?, take_string(&mut rest)?);
            let number = |bytes| openssl::bn::BigNum::from_slice(bytes).ok();
            let key = PKey::from_rsa(Rsa::from_public_components(number(n)?, number(e)?).ok()?).ok()?;
            let digest = openssl::hash::hash(MessageDigest::md5(), &key.public_key_to_der().ok()?).ok()?;
            ("rsa", colons(&digest))
        }
        "ssh-ed25519" if take_string(&mut rest)?.len() == 32 => ("ed25519", STANDARD.encode(Sha256::digest(&blob))),
        _ => return None,
    };
    Some((kind.into(), format!("{algorithm} {base64}"), fingerprint))
}

fn take_string<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *from = rest;
    Some(part)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteKeyPair {
    dry_run: Option<bool>,
    key_name: Option<String>,
    key_pair_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedKeyPair {
    #[serde(rename = "return")]
    done: bool,
    key_pair_id: Option<String>,
}

/// Deleting what is not there succeeds, as it does at AWS.
async fn delete(call: &Call, input: DeleteKeyPair) -> Outcome<DeletedKeyPair> {
    if input.key_name.is_none() && input.key_pair_id.is_none() {
        return Err(AwsError::missing_parameter("KeyName").into());
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a key pair", move |tx| {
            let found: Option<String> = tx.query_opt(
                "SELECT id FROM key_pair WHERE account = ?1 AND (name = ?2 OR id = ?3)",
                params![account, input.key_name, input.key_pair_id],
                |row| row.get(0),
            )?;
            if let Some(id) = &found {
                tx.execute("DELETE FROM key_pair WHERE id = ?1", params![id])?;
                tag::drop_all(tx, id)?;
            }
            unless_dry_run(input.dry_run)?;
            Ok(DeletedKeyPair { done: true, key_pair_id: found })
        })
        .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeKeyPairs {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    key_name: Vec<String>,
    #[serde(default)]
    key_pair_id: Vec<String>,
    include_public_key: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedKeyPairs {
    key_set: Vec<KeyPairInfo>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyPairInfo {
    key_pair_id: KeyPairId,
    key_fingerprint: String,
    key_name: String,
    key_type: String,
    tag_set: Vec<Tag>,
    public_key: Option<String>,
    create_time: String,
}

impl Tagged for KeyPairInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<KeyPairInfo>] = &[
    ("fingerprint", |key| vec![(&key.key_fingerprint).into()]),
    ("key-name", |key| vec![(&key.key_name).into()]),
    ("key-pair-id", |key| vec![key.key_pair_id.as_str().into()]),
];

async fn describe(call: &Call, input: DescribeKeyPairs) -> Outcome<DescribedKeyPairs> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, ATTRIBUTES)?;
    let account = call.account().to_owned();
    let (pairs, mut tags) = call
        .cloud
        .store
        .read("describe key pairs", move |tx| {
            let pairs = tx.query(
                &format!("SELECT {COLUMNS} FROM key_pair WHERE account = ?1 ORDER BY name"),
                params![account],
                read,
            )?;
            Ok::<_, StoreError>((pairs, tag::of_kind(tx, &account, KeyPairId::PREFIX)?))
        })
        .await?;
    for name in &input.key_name {
        if !pairs.iter().any(|p| p.name == *name) {
            return Err(not_found(name));
        }
    }
    for id in &input.key_pair_id {
        if !pairs.iter().any(|p| p.id.as_str() == id) {
            return Err(not_found(id));
        }
    }
    let named = |p: &KeyPair| {
        (input.key_name.is_empty() && input.key_pair_id.is_empty())
            || input.key_name.contains(&p.name)
            || input.key_pair_id.iter().any(|id| id == p.id.as_str())
    };
    let key_set = pairs
        .into_iter()
        .filter(named)
        .map(|p| KeyPairInfo {
            tag_set: tags.take(p.id.as_str()),
            key_pair_id: p.id,
            key_fingerprint: p.fingerprint,
            key_type: p.kind,
            public_key: (input.include_public_key == Some(true)).then(|| format!("{} {}", p.public_key, p.name)),
            key_name: p.name,
            create_time: mallee_aws::answer::timestamp(p.created),
        })
        .filter(|k| filters.matches(k))
        .collect();
    Ok(DescribedKeyPairs { key_set })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_keygen_reads_the_private_keys_made_here() {
        for made in [new_rsa().unwrap(), new_ed25519().unwrap()] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("key");
            std::fs::write(&path, &made.private_key).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let out = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            assert!(String::from_utf8_lossy(&out.stdout).starts_with(&made.public_key));
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        for text in ["", "!!", &STANDARD.encode("ssh-rsa AAAA"), &STANDARD.encode("ssh-dss AAAAB3NzaC1kc3M= x")] {
            assert!(read_public_key(text).is_none(), "{text}");
        }
        let made = new_ed25519().unwrap();
        assert_eq!(read_public_key(&STANDARD.encode(format!("{} me@host", made.public_key))).unwrap().0, "ed25519");
    }
}
