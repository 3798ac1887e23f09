//! The EBS direct APIs: blocks of snapshots, read and written by clients themselves, without a volume and without a guest.
//!
//! The one service here that speaks REST-JSON. What is read and written lies in walrus, whichever zone a snapshot came from, so
//! no zone is asked and none has to be up (decision 19). [`read`] lists and reads, [`write`] begins, fills and completes; what
//! is kept of a snapshot that is not complete yet is in [`crate::ec2::snapshot::direct`].

pub mod read;
mod token;
mod words;
pub mod write;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, request::Parts};
use mallee_aws::{
    AwsError,
    rest_json::{CONTENT_TYPE, Member, Shape},
    signature::{Payload, Route},
};
use serde::Serialize;

use crate::{Outcome, Refusal, principal, service::Call};

/// In a signature's scope, in ARNs, and before the colon of a policy's action.
pub const NAME: &str = "ebs";

/// What is answered.
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Answer {
    fn document(status: u16, document: &impl Serialize) -> Outcome<Self> {
        let body = serde_json::to_vec(document).map_err(|e| Refusal::internal(e.to_string()))?;
        Ok(Self { status, content_type: CONTENT_TYPE, headers: Vec::new(), body: body.into() })
    }
}

/// A request, before it is read.
struct Asked<'a> {
    parts: &'a Parts,
    body: &'a Bytes,
}

/// One action: its shape on the wire, and its rule.
pub struct Action {
    pub name: &'static str,
    pub shape: Shape,
    run: for<'a> fn(&'a Call, &'a Shape, Asked<'a>) -> BoxFuture<'a, Outcome<Answer>>,
}

/// `action!(read::ListSnapshotBlocks => list, GET "/snapshots/{SnapshotId}/blocks", [...])`, where `read::list` is
/// `async fn(&Call, ListSnapshotBlocks, &Bytes) -> Outcome<Answer>`.
macro_rules! action {
    ($module:ident::$name:ident => $rule:ident, $method:ident $path:literal, [$($member:expr),* $(,)?]) => {
        Action {
            name: stringify!($name),
            shape: Shape { method: Method::$method, path: $path, members: &[$($member),*] },
            run: |call, shape, asked| Box::pin(async move {
                let input: $module::$name = shape.read(asked.parts, asked.body).map_err(words::unreadable)?;
                $module::$rule(call, input, asked.body).await
            }),
        }
    };
}

/// Every action, in the order of the API reference.
pub const ACTIONS: &[Action] = &[
    action!(write::CompleteSnapshot => complete, POST "/snapshots/completion/{SnapshotId}", [
        Member::text_in_path("SnapshotId"),
        Member::number_in_header("ChangedBlocksCount", "x-amz-changedblockscount"),
        Member::text_in_header("Checksum", "x-amz-checksum"),
        Member::text_in_header("ChecksumAlgorithm", "x-amz-checksum-algorithm"),
        Member::text_in_header("ChecksumAggregationMethod", "x-amz-checksum-aggregation-method"),
    ]),
    action!(read::GetSnapshotBlock => get, GET "/snapshots/{SnapshotId}/blocks/{BlockIndex}", [
        Member::text_in_path("SnapshotId"),
        Member::number_in_path("BlockIndex"),
        Member::text_in_query("BlockToken", "blockToken"),
    ]),
    action!(read::ListChangedBlocks => list_changed, GET "/snapshots/{SecondSnapshotId}/changedblocks", [
        Member::text_in_path("SecondSnapshotId"),
        Member::text_in_query("FirstSnapshotId", "firstSnapshotId"),
        Member::text_in_query("NextToken", "pageToken"),
        Member::number_in_query("MaxResults", "maxResults"),
        Member::number_in_query("StartingBlockIndex", "startingBlockIndex"),
    ]),
    action!(read::ListSnapshotBlocks => list, GET "/snapshots/{SnapshotId}/blocks", [
        Member::text_in_path("SnapshotId"),
        Member::text_in_query("NextToken", "pageToken"),
        Member::number_in_query("MaxResults", "maxResults"),
        Member::number_in_query("StartingBlockIndex", "startingBlockIndex"),
    ]),
    action!(write::PutSnapshotBlock => put, PUT "/snapshots/{SnapshotId}/blocks/{BlockIndex}", [
        Member::text_in_path("SnapshotId"),
        Member::number_in_path("BlockIndex"),
        Member::number_in_header("DataLength", "x-amz-data-length"),
        Member::number_in_header("Progress", "x-amz-progress"),
        Member::text_in_header("Checksum", "x-amz-checksum"),
        Member::text_in_header("ChecksumAlgorithm", "x-amz-checksum-algorithm"),
        Member::text_in_header("ContentEncoding", "content-encoding"),
    ]),
    action!(write::StartSnapshot => start, POST "/snapshots", [
        Member::in_document("VolumeSize"),
        Member::in_document("ParentSnapshotId"),
        Member::in_document("Tags"),
        Member::in_document("Description"),
        Member::in_document("ClientToken"),
        Member::in_document("Encrypted"),
        Member::in_document("KmsKeyArn"),
        Member::in_document("Timeout"),
    ]),
];

/// Whether a request is for this service: by its path, unless it was signed for S3, or by the scope it was signed for.
pub fn is_for(parts: &Parts, scope: Option<&str>) -> bool {
    let path = parts.uri.path();
    scope == Some(NAME) || (scope != Some("s3") && (path == "/snapshots" || path.starts_with("/snapshots/")))
}

/// The action that is asked for.
pub fn asked(parts: &Parts) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.shape.is_asked_by(parts))
}

/// Runs the action: authorises it, then hands it to its rule.
pub async fn run(call: &Call, parts: &Parts, body: &Bytes, signed: Payload) -> Outcome<Answer> {
    let Some(action) = asked(parts) else {
        let text = format!("The EBS direct APIs have no {} of this path", parts.method);
        return Err(AwsError::new("UnknownOperationException", 404, text).into());
    };
    // A block is proved by its checksum, which is signed; whatever else has a body says in it what to do.
    if signed == Payload::Unsigned && action.name != "PutSnapshotBlock" && !body.is_empty() {
        return Err(Route::RestJson.unsigned_body().into());
    }
    principal::allow(&call.principal, &format!("{NAME}:{}", action.name)).map_err(words::of)?;
    (action.run)(call, &action.shape, Asked { parts, body }).await.map_err(words::of)
}
