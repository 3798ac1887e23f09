//! Binds a tier's trait to a transport: one method is one JSON message each way.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::Peer;

/// Carries one call to one other tier. The implementation in `mallee-service` is HTTP/1.1 over mutual TLS.
pub trait Transport: Send + Sync + 'static {
    /// Sends `body` to `method`; the answer is the other side's JSON.
    fn call(&self, method: &'static str, body: Bytes) -> BoxFuture<'_, Result<Bytes, TierError>>;
}

/// The serving half of a tier's trait, as its HTTP front needs it.
pub trait Dispatch: Send + Sync + 'static {
    /// Answers one call; an unknown method is refused by name.
    fn dispatch<'a>(&'a self, method: &'a str, peer: &'a Peer, body: Bytes) -> BoxFuture<'a, Result<Bytes, TierError>>;
}

/// Why a tier did not do what it was asked.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{kind:?}: {message}")]
pub struct TierError {
    pub kind: TierErrorKind,
    /// For a person: what was refused and what to do next.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierErrorKind {
    /// No answer: down, unreachable, or the TLS handshake failed. The call may or may not have been carried out.
    Unreachable,
    /// The caller's role may not make this call.
    Forbidden,
    /// The list comes from another incarnation of the sender's store than the one this tier belongs to.
    OtherIncarnation,
    /// The list is older than the one held: the sender's store was put back.
    Stale,
    NotFound,
    /// The method, or something in the message, is of a release this tier does not know.
    Unsupported,
    Malformed,
    /// A token, name or request that is not valid (any more).
    Refused,
    Internal,
    #[serde(other)]
    Unknown,
}

impl TierError {
    pub fn new(kind: TierErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(TierErrorKind::Unreachable, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(TierErrorKind::NotFound, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(TierErrorKind::Internal, message)
    }
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(TierErrorKind::Refused, message)
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, TierError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| TierError::internal(format!("cannot encode a message: {e}")))
}

pub(crate) fn decode<T: DeserializeOwned>(method: &str, body: &[u8]) -> Result<T, TierError> {
    serde_json::from_slice(body).map_err(|e| TierError::new(TierErrorKind::Malformed, format!("{method}: {e}")))
}

/// Declares a tier: its trait, the roles that may call each method, a client over any [`Transport`], and a server.
///
/// One more method is one more line here and its implementation in the tier.
macro_rules! tier {
    (
        $(#[$doc:meta])*
        $name:ident, client $client:ident, server $server:ident {
            $( $(#[$mdoc:meta])* $method:ident($input:ty) -> $output:ty, from [$($role:ident),*]; )*
        }
    ) => {
        $(#[$doc])*
        #[async_trait::async_trait]
        pub trait $name: Send + Sync + 'static {
            $( $(#[$mdoc])* async fn $method(&self, from: &$crate::Peer, input: $input) -> Result<$output, $crate::TierError>; )*
        }

        /// Calls the tier over a transport.
        #[derive(Clone)]
        pub struct $client { transport: std::sync::Arc<dyn $crate::Transport> }

        impl $client {
            pub fn new(transport: std::sync::Arc<dyn $crate::Transport>) -> Self { Self { transport } }
            $(
                $(#[$mdoc])*
                pub async fn $method(&self, input: &$input) -> Result<$output, $crate::TierError> {
                    let answer = self.transport.call(stringify!($method), $crate::binding::encode(input)?).await?;
                    $crate::binding::decode(stringify!($method), &answer)
                }
            )*
        }

        /// Serves the tier: decodes, checks the caller's role, calls, encodes.
        pub struct $server<T: $name>(pub std::sync::Arc<T>);

        impl<T: $name> $crate::Dispatch for $server<T> {
            fn dispatch<'a>(&'a self, method: &'a str, peer: &'a $crate::Peer, body: bytes::Bytes)
                -> futures_util::future::BoxFuture<'a, Result<bytes::Bytes, $crate::TierError>>
            {
                Box::pin(async move {
                    match method {
                        $( stringify!($method) => {
                            if ![$($crate::Role::$role),*].contains(&peer.role) {
                                return Err($crate::TierError::new($crate::TierErrorKind::Forbidden,
                                    format!("{} may not be called by a {}", method, peer.role)));
                            }
                            let input: $input = $crate::binding::decode(stringify!($method), &body)?;
                            $crate::binding::encode(&self.0.$method(peer, input).await?)
                        } )*
                        other => Err($crate::TierError::new($crate::TierErrorKind::Unsupported,
                            format!("{} has no method {other}", stringify!($name)))),
                    }
                })
            }
        }
    };
}
pub(crate) use tier;
