//! walrus as the node knows it: blobs by digest, over mutual TLS, wherever the cloud says it is.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use http::{Request, StatusCode};
use http_body_util::BodyDataStream;
use mallee_service::{TierHttp, body};
use mallee_tiers::{Role, TierError};

use super::{Blobs, ImageError};
use crate::cluster::Cloud;

pub struct Walrus {
    cloud: Arc<Cloud>,
    /// Where it answered last.
    place: tokio::sync::Mutex<Option<TierHttp>>,
}

impl Walrus {
    pub fn new(cloud: Arc<Cloud>) -> Self {
        Self { cloud, place: tokio::sync::Mutex::default() }
    }

    async fn place(&self) -> Result<TierHttp, TierError> {
        let mut place = self.place.lock().await;
        if let Some(known) = place.as_ref() {
            return Ok(known.clone());
        }
        let found = self.cloud.find(Role::Walrus).await?;
        *place = Some(found.clone());
        Ok(found)
    }
}

#[async_trait::async_trait]
impl Blobs for Walrus {
    async fn open(&self, digest: &str) -> Result<BoxStream<'static, io::Result<Bytes>>, ImageError> {
        let unavailable = |e: &dyn std::fmt::Display| ImageError::Unavailable(format!("image {digest}: {e}"));
        let walrus = self.place().await.map_err(|e| unavailable(&e))?;
        let request = Request::get("/").body(body::empty()).map_err(|e| unavailable(&e))?;
        let path = mallee_tiers::blob_path(digest);
        let answered = tokio::time::timeout(super::SILENCE, walrus.send(request, &path)).await;
        let answered = answered.unwrap_or_else(|_| Err(TierError::unreachable("walrus does not answer")));
        let response = match answered {
            Ok(response) => response,
            Err(e) => {
                // It may have moved: ask again where it is.
                *self.place.lock().await = None;
                return Err(unavailable(&e));
            }
        };
        match response.status() {
            StatusCode::OK => {
                Ok(BodyDataStream::new(response.into_body()).map(|chunk| chunk.map_err(io::Error::other)).boxed())
            }
            StatusCode::NOT_FOUND => {
                Err(unavailable(&"walrus does not have it (was the image deregistered and its bytes removed?)"))
            }
            status => Err(unavailable(&format!("walrus answered {status}"))),
        }
    }
}
