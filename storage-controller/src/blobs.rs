//! Blobs of walrus: bytes under their own SHA-256. What comes is checked against its name.

use bytes::Bytes;
use http::{Request, StatusCode};
use mallee_service::{Identity, TierHttp, body, steps::TARGET};
use mallee_tiers::{CloudClient, Digests, Locate, Role, TierError, TierErrorKind, WalrusClient, blob_path};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};

/// A walrus that says nothing for this long is taken for gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where blobs are kept.
pub struct Blobs {
    identity: Identity,
    /// `host:port` of the cloud-controller, which says where walrus is.
    cloud: String,
    fixed: Option<Place>,
    place: tokio::sync::Mutex<Option<TierHttp>>,
}

/// Where walrus is, when it is told in the configuration instead of asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// `host:port`.
    pub address: String,
    /// The name in its certificate.
    pub name: String,
}

pub fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Blobs {
    pub fn new(identity: Identity, cloud: String, fixed: Option<Place>) -> Self {
        Self { identity, cloud, fixed, place: tokio::sync::Mutex::default() }
    }

    async fn walrus(&self) -> Result<TierHttp, TierError> {
        let mut place = self.place.lock().await;
        if let Some(known) = place.as_ref() {
            return Ok(known.clone());
        }
        let found = match &self.fixed {
            Some(place) => TierHttp::new(&self.identity, &place.address, Role::Walrus, &place.name)?,
            None if self.cloud.is_empty() => return Err(TierError::unreachable("nobody says where walrus is")),
            None => {
                let cloud = TierHttp::new(&self.identity, &self.cloud, Role::CloudController, "cloud-controller")?;
                let asked = Locate { role: Role::Walrus, zone: String::new() };
                let located = CloudClient::new(Arc::new(cloud)).locate(&asked).await?;
                TierHttp::new(&self.identity, &located.address, Role::Walrus, &located.name)?
            }
        };
        *place = Some(found.clone());
        Ok(found)
    }

    /// After a call that did not get through: walrus may have moved.
    async fn lost<T>(&self, outcome: Result<T, TierError>) -> Result<T, TierError> {
        if matches!(&outcome, Err(e) if e.kind == TierErrorKind::Unreachable) {
            *self.place.lock().await = None;
        }
        outcome
    }

    /// Which of these are there.
    pub async fn present(&self, digests: Vec<String>) -> Result<Vec<String>, TierError> {
        if digests.is_empty() {
            return Ok(digests);
        }
        let client = WalrusClient::new(Arc::new(self.walrus().await?));
        let answer = client.blobs_present(&Digests { digests }).await.map(|d| d.digests);
        self.lost(answer).await
    }

    pub async fn put(&self, digest: &str, bytes: Bytes) -> Result<(), TierError> {
        let sent = async {
            let request = Request::put("/")
                .header(http::header::CONTENT_LENGTH, bytes.len())
                .body(body::full(bytes))
                .map_err(|e| TierError::internal(e.to_string()))?;
            self.answered(request, digest).await.map(drop)
        };
        tracing::trace!(target: TARGET, "before blob: put");
        let outcome = sent.await;
        tracing::trace!(target: TARGET, "after blob: put");
        self.lost(outcome).await
    }

    /// The whole blob, which has at most `limit` bytes.
    pub async fn get(&self, digest: &str, limit: usize) -> Result<Bytes, TierError> {
        let got = async {
            let request = Request::get("/").body(body::empty()).map_err(|e| TierError::internal(e.to_string()))?;
            let response = self.answered(request, digest).await?;
            let read = tokio::time::timeout(PATIENCE, body::collect(response.into_body(), limit)).await;
            let read = read.map_err(|_| TierError::unreachable(format!("walrus stopped sending blob {digest}")))?;
            let bytes = read.map_err(|e| TierError::unreachable(format!("blob {digest} was cut off: {e}")))?;
            let bytes =
                bytes.ok_or_else(|| TierError::refused(format!("blob {digest} has more than {limit} bytes")))?;
            if digest_of(&bytes) != digest {
                return Err(TierError::internal(format!("what walrus sent is not blob {digest}")));
            }
            Ok(bytes)
        };
        tracing::trace!(target: TARGET, "before blob: get");
        let outcome = got.await;
        tracing::trace!(target: TARGET, "after blob: get");
        self.lost(outcome).await
    }

    async fn answered(
        &self,
        request: Request<mallee_service::Body>,
        digest: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, TierError> {
        let walrus = self.walrus().await?;
        let path = blob_path(digest);
        let answer = tokio::time::timeout(PATIENCE, walrus.send(request, &path)).await;
        let response =
            answer.map_err(|_| TierError::unreachable(format!("walrus does not answer for blob {digest}")))??;
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(TierError::not_found(format!("walrus has no blob {digest}"))),
            status => Err(TierError::internal(format!("walrus answered {status} for blob {digest}"))),
        }
    }
}
