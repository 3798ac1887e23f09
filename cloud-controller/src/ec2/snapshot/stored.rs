//! What snapshots have in walrus, read and written: blocks, pages of blocks, manifests of pages.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use mallee_service::{DiskKey, TierHttp, body, disk_key::BLOCK_OVERHEAD};
use mallee_store::Error as StoreError;
use mallee_tiers::{Manifest, Page, SNAPSHOT_BLOCK, blob_path};
use sha2::{Digest, Sha256};

use crate::{Cloud, ec2::image::fetch::put_bytes};

/// A walrus that takes longer is taken for gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// As large as a manifest of 16 TiB, and more.
const DOCUMENT_MAX: usize = 8 << 20;

/// Why something could not be read or written.
#[derive(Debug)]
pub enum Trouble {
    /// It is not in walrus.
    Missing(String),
    /// It is not what it should be; trying again changes nothing.
    Wrong(String),
    Later(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Missing(why) | Trouble::Wrong(why) | Trouble::Later(why) => f.write_str(why),
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(e: StoreError) -> Self {
        Trouble::Later(e.to_string())
    }
}

/// Walrus' blobs.
pub struct Stored(pub TierHttp);

impl Stored {
    pub async fn open(cloud: &Cloud) -> Result<Self, Trouble> {
        cloud.tiers.walrus_http(&cloud.store).await.map(Self).map_err(|e| Trouble::Later(e.message))
    }

    /// A whole blob of at most so many bytes, checked against its name.
    async fn get(&self, digest: &str, limit: usize) -> Result<Bytes, Trouble> {
        let got = tokio::time::timeout(PATIENCE, self.fetch(digest, limit)).await;
        got.unwrap_or_else(|_| Err(Trouble::Later(format!("walrus does not answer for blob {digest}"))))
    }

    async fn fetch(&self, digest: &str, limit: usize) -> Result<Bytes, Trouble> {
        let later = |e: &dyn fmt::Display| Trouble::Later(format!("blob {digest}: {e}"));
        let request = Request::get("/").body(body::empty()).map_err(|e| later(&e))?;
        let response = self.0.send(request, &blob_path(digest)).await.map_err(|e| later(&e))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Trouble::Missing(format!("walrus has no blob {digest}"))),
            status => return Err(later(&format!("walrus answered {status}"))),
        }
        let bytes = body::collect(response.into_body(), limit).await.map_err(|e| later(&e))?;
        let bytes = bytes.ok_or_else(|| Trouble::Wrong(format!("blob {digest} has more than {limit} bytes")))?;
        if digest_of(&bytes) != digest {
            return Err(later(&"what walrus sent is something else"));
        }
        Ok(bytes)
    }

    pub async fn manifest(&self, digest: &str) -> Result<Manifest, Trouble> {
        Manifest::read(&self.get(digest, DOCUMENT_MAX).await?).map_err(Trouble::Wrong)
    }

    pub async fn page(&self, digest: &str) -> Result<Page, Trouble> {
        Page::read(&self.get(digest, DOCUMENT_MAX).await?).map_err(Trouble::Wrong)
    }

    /// A block, deciphered when it is sealed.
    pub async fn block(&self, digest: &str, key: Option<&DiskKey>) -> Result<Bytes, Trouble> {
        let sealed = self.get(digest, SNAPSHOT_BLOCK as usize + BLOCK_OVERHEAD).await?;
        let block = match key {
            Some(key) => key.open_block(&sealed).map_err(|e| Trouble::Wrong(e.to_string()))?.into(),
            None => sealed,
        };
        match block.len() as u64 {
            SNAPSHOT_BLOCK => Ok(block),
            other => Err(Trouble::Wrong(format!("block {digest} has {other} bytes"))),
        }
    }

    /// Safe when this returns.
    pub async fn put(&self, digest: &str, bytes: Vec<u8>) -> Result<(), Trouble> {
        let put = tokio::time::timeout(PATIENCE, put_bytes(&self.0, digest, bytes)).await;
        let put = put.map_err(|_| Trouble::Later(format!("walrus does not take blob {digest}")))?;
        put.map_err(|e| Trouble::Later(e.text().to_owned()))
    }
}

pub fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
