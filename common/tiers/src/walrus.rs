//! What walrus does for the other tiers. Bodies stream, so these are paths and not messages:
//!
//! | method and path (mutual TLS) | who | what |
//! |---|---|---|
//! | `PUT /-/tiers/blobs/SHA256` | cloud-, storage-controller | store bytes under their own digest; refused when they do not have it |
//! | `GET`, `HEAD /-/tiers/blobs/SHA256` | node-, cloud-, storage-controller | read them; ranges allowed |
//! | `DELETE /-/tiers/blobs/SHA256` | cloud-controller | they are not needed any more |
//! | `GET`, `HEAD /-/tiers/objects/BUCKET/KEY?account=ACCOUNT` | cloud-controller | read a user's object as that account would, so that what it may not read cannot be imported; `aws-exec-read` is enough |
//! | `HEAD /-/tiers/flow-logs/BUCKET/KEY?account=ACCOUNT` | cloud-controller | would that account's flow log be let in there |
//! | `PUT /-/tiers/flow-logs/BUCKET/KEY?account=ACCOUNT` | node-controller | bring an object of that account's flow logs, as AWS' delivery service would |

use serde::{Deserialize, Serialize};

use crate::{StatusAsked, TierStatus, binding::tier};

/// Path of a blob, given its SHA-256 in hex.
pub fn blob_path(digest: &str) -> String {
    format!("{}blobs/{digest}", crate::CALL_PREFIX)
}

/// Path (not yet percent-encoded) of a user's object.
pub const OBJECTS_PREFIX: &str = "/-/tiers/objects/";

/// Path (not yet percent-encoded) of an object of a flow log.
pub const FLOW_LOGS_PREFIX: &str = "/-/tiers/flow-logs/";

/// What the key of every object of an account's flow logs has in it: nodes may bring nothing else.
pub fn flow_log_folder(account: &str) -> String {
    format!("AWSLogs/{account}/vpcflowlogs/")
}

tier! {
    /// The calls of walrus that are not streams.
    Walrus, client WalrusClient, server WalrusServer {
        status(StatusAsked) -> TierStatus, from [CloudController];
        /// Which of these blobs are there.
        blobs_present(Digests) -> Digests, from [CloudController, StorageController];
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Digests {
    pub digests: Vec<String>,
}
