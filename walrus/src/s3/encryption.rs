//! Server-side encryption: SSE-S3, under walrus' own master key, and SSE-C, under a key the client brings with each
//! request and walrus never keeps. Both wrap the object's random data key, which is all a row has; a wrong key is known by
//! the wrapped one not opening. What is done with the data key is in [`crate::blob`].

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Response;
use mallee_service::{Body, seal::SealingKey};
use mallee_store::{Store, params};
use openssl::{
    hash::{MessageDigest, hash},
    symm::{Cipher, decrypt_aead, encrypt_aead},
};
use serde::{Deserialize, Serialize};

use super::set;
use crate::{Error, Walrus, blob::DataKey, call::Call, error::refuse};

/// Which master key this store's objects are under, so that a lost key file is noticed before anything is written.
pub const TABLES: &str = "
    CREATE TABLE master_key (
        one BIGINT PRIMARY KEY CHECK (one = 1),
        fingerprint TEXT NOT NULL
    );
";

const ABOUT: &str = "an object's data key";

/// The key file; made when the store has never had one.
pub async fn master_key(store: &Store, path: &Path) -> Result<SealingKey, Error> {
    let known = store
        .read("find the master key", |tx| {
            Ok::<_, Error>(tx.query_opt("SELECT fingerprint FROM master_key", params![], |row| row.get::<String>(0))?)
        })
        .await?;
    let failed = |e: &dyn std::fmt::Display| Error::Internal(format!("the master key {}: {e}", path.display()));
    if known.is_some() && !path.exists() {
        return Err(failed(&"the file is gone, and encrypted objects cannot be read without it; put it back"));
    }
    let key = SealingKey::open_or_create(path).map_err(|e| failed(&e))?;
    let mine = hex::encode(key.derive("fingerprint of walrus' master key"));
    let kept = mine.clone();
    let known = store
        .write("note the master key", move |tx| {
            tx.execute(
                "INSERT INTO master_key (one, fingerprint) VALUES (1, ?1) ON CONFLICT DO NOTHING",
                params![kept],
            )?;
            Ok::<_, Error>(tx.query_one("SELECT fingerprint FROM master_key", params![], |row| row.get::<String>(0))?)
        })
        .await?;
    if known != mine {
        return Err(failed(&"it is another key than the one this store's objects are encrypted under"));
    }
    Ok(key)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "S3")]
    S3,
    #[serde(rename = "C")]
    Customer,
}

/// An object's data key as its row keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub kind: Kind,
    wrapped: String,
}

/// A key that came with a request.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey {
    key: [u8; 32],
    /// In base64, as it came: it is sent back.
    md5: String,
}

impl std::fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CustomerKey(…)")
    }
}

/// Headers that mean something with KMS only.
const OF_KMS: [&str; 2] = ["x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-context"];

/// How an object is encrypted is said when it is put; a read can only bring a key.
pub fn refuse_on_read(call: &Call) -> Result<(), Error> {
    for name in ["x-amz-server-side-encryption"].into_iter().chain(OF_KMS) {
        if let Some(value) = call.header(name)? {
            return Err(refuse::argument(name, value, &format!("{name} header is not supported for this operation.")));
        }
    }
    Ok(())
}

const CUSTOMER: &str = "server-side-encryption-customer-";

impl CustomerKey {
    /// `prefix` is `x-amz-`, or `x-amz-copy-source-` for the source of a copy.
    pub fn of(call: &Call, prefix: &str) -> Result<Option<Self>, Error> {
        let header = |name: &str| call.header(&format!("{prefix}{CUSTOMER}{name}"));
        let (algorithm, key, md5) = (header("algorithm")?, header("key")?, header("key-md5")?);
        if algorithm.is_none() && key.is_none() && md5.is_none() {
            return Ok(None);
        }
        let argument = |name: &str, value: &str, message: &str| {
            refuse::argument(&format!("{prefix}{CUSTOMER}{name}"), value, message)
        };
        let Some(algorithm) = algorithm else {
            return Err(argument(
                "algorithm",
                "",
                "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm.",
            ));
        };
        if algorithm != "AES256" {
            return Err(refuse::coded(
                "InvalidEncryptionAlgorithmError",
                400,
                "The Encryption request you specified is not valid. Supported value: AES256.",
            ));
        }
        let Some(key) = key else {
            return Err(argument(
                "key",
                "",
                "Requests specifying Server Side Encryption with Customer provided keys must provide an appropriate secret key.",
            ));
        };
        let Some(md5) = md5 else {
            return Err(argument(
                "key-md5",
                "",
                "Requests specifying Server Side Encryption with Customer provided keys must provide the client calculated MD5 of the secret key.",
            ));
        };
        let bytes: [u8; 32] = STANDARD
            .decode(key)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| argument("key", "", "The secret key was invalid for the specified algorithm."))?;
        let computed = hash(MessageDigest::md5(), &bytes).map_err(|e| Error::Internal(format!("MD5: {e}")))?;
        if STANDARD.decode(md5).ok().as_deref() != Some(&computed[..]) {
            return Err(argument(
                "key-md5",
                "",
                "The calculated MD5 hash of the key did not match the hash that was provided.",
            ));
        }
        // The header says so as loudly as AWS does: a key in clear is everybody's. Within one machine nobody listens.
        if !call.wire.tls && !call.wire.remote.is_some_and(|remote| remote.to_canonical().is_loopback()) {
            return Err(refuse::request(
                "Requests specifying Server Side Encryption with Customer provided keys must be made over a secure connection.",
            ));
        }
        Ok(Some(Self { key: bytes, md5: md5.to_owned() }))
    }

    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, Error> {
        let (nonce, mut tag) = (rand::random::<[u8; 12]>(), [0; 16]);
        let sealed = encrypt_aead(Cipher::aes_256_gcm(), &self.key, Some(&nonce), ABOUT.as_bytes(), secret, &mut tag)
            .map_err(|e| Error::Internal(format!("wrapping a key: {e}")))?;
        Ok([&nonce[..], &tag, &sealed].concat())
    }

    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(12)?;
        let (tag, sealed) = rest.split_at_checked(16)?;
        decrypt_aead(Cipher::aes_256_gcm(), &self.key, Some(nonce), ABOUT.as_bytes(), sealed, tag).ok()
    }
}

/// What a request wants for what it stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    Plain,
    S3,
    Customer(CustomerKey),
}

impl Wish {
    /// From the request's headers, or else as its bucket has it by default.
    pub fn of(call: &Call, by_default: Wish) -> Result<Self, Error> {
        let customer = CustomerKey::of(call, "x-amz-")?;
        let named = call.header("x-amz-server-side-encryption")?;
        let of_kms = OF_KMS.iter().find(|name| call.headers.contains_key(**name));
        match (named, customer) {
            (Some("aws:kms" | "aws:kms:dsse"), None) => {
                Err(refuse::not_implemented("Server-side encryption with KMS keys"))
            }
            (Some("AES256") | None, None) if of_kms.is_some() => Err(refuse::argument(
                of_kms.copied().unwrap_or_default(),
                "",
                "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms",
            )),
            (Some("AES256"), None) => Ok(Wish::S3),
            (Some(_), Some(_)) => Err(refuse::argument(
                "x-amz-server-side-encryption",
                named.unwrap_or_default(),
                "Server Side Encryption with Customer provided key is incompatible with the encryption method specified",
            )),
            (Some(other), None) => Err(refuse::argument(
                "x-amz-server-side-encryption",
                other,
                "The encryption method specified is not supported",
            )),
            (None, Some(key)) => Ok(Wish::Customer(key)),
            (None, None) => Ok(by_default),
        }
    }

    pub fn kind(&self) -> Option<Kind> {
        match self {
            Wish::Plain => None,
            Wish::S3 => Some(Kind::S3),
            Wish::Customer(_) => Some(Kind::Customer),
        }
    }

    /// A fresh data key, and how a row keeps it.
    pub fn key(&self, walrus: &Walrus) -> Result<Option<(DataKey, Seal)>, Error> {
        let data = DataKey::random();
        let (kind, wrapped) = match self {
            Wish::Plain => return Ok(None),
            Wish::S3 => {
                let wrapped = walrus.master.seal(ABOUT, data.as_bytes());
                (Kind::S3, wrapped.map_err(|e| Error::Internal(e.to_string()))?)
            }
            Wish::Customer(key) => (Kind::Customer, key.seal(data.as_bytes())?),
        };
        Ok(Some((data, Seal { kind, wrapped: STANDARD.encode(wrapped) })))
    }

    /// The headers that answer what was asked.
    pub fn show(&self, response: &mut Response<Body>) -> Result<(), Error> {
        match self {
            Wish::Plain => Ok(()),
            Wish::S3 => set(response, "x-amz-server-side-encryption", "AES256"),
            Wish::Customer(key) => {
                set(response, "x-amz-server-side-encryption-customer-algorithm", "AES256")?;
                set(response, "x-amz-server-side-encryption-customer-key-md5", &key.md5)
            }
        }
    }
}

/// What data keys are unwrapped with: walrus' own, and the one a request brought.
#[derive(Clone)]
pub struct Keys {
    master: SealingKey,
    customer: Option<CustomerKey>,
}

impl Keys {
    /// `prefix` as in [`CustomerKey::of`].
    pub fn of(walrus: &Walrus, call: &Call, prefix: &str) -> Result<Self, Error> {
        Ok(Self { master: walrus.master.clone(), customer: CustomerKey::of(call, prefix)? })
    }

    /// For whoever brings none.
    pub fn own(walrus: &Walrus) -> Self {
        Self { master: walrus.master.clone(), customer: None }
    }

    /// The data key of an object, or `None` when it is not encrypted; refused for who has not the right key.
    pub fn open(&self, seal: Option<&Seal>) -> Result<Option<DataKey>, Error> {
        let Some(seal) = seal else { return self.not_needed().map(|()| None) };
        let broken = || Error::Internal("a wrapped key that cannot be one".into());
        let wrapped = STANDARD.decode(&seal.wrapped).map_err(|_| broken())?;
        let bytes = match (seal.kind, &self.customer) {
            (Kind::S3, _) => {
                self.not_needed()?;
                self.master.open(ABOUT, &wrapped).map_err(|e| Error::Internal(e.to_string()))?
            }
            (Kind::Customer, None) => {
                return Err(refuse::request(
                    "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.",
                ));
            }
            (Kind::Customer, Some(key)) => key.open(&wrapped).ok_or_else(|| {
                refuse::request(
                    "The provided encryption parameters did not match the ones used originally to encrypt the object.",
                )
            })?,
        };
        DataKey::from_bytes(&bytes).map(Some).ok_or_else(broken)
    }

    fn not_needed(&self) -> Result<(), Error> {
        match self.customer {
            None => Ok(()),
            Some(_) => Err(refuse::request("The encryption parameters are not applicable to this object.")),
        }
    }

    /// The headers of an answer about an object kept under this seal.
    pub fn show(&self, response: &mut Response<Body>, seal: Option<&Seal>) -> Result<(), Error> {
        let wish = match (seal.map(|seal| seal.kind), &self.customer) {
            (Some(Kind::S3), _) => Wish::S3,
            (Some(Kind::Customer), Some(key)) => Wish::Customer(key.clone()),
            _ => Wish::Plain,
        };
        wish.show(response)
    }
}
