//! StartSnapshot, PutSnapshotBlock and CompleteSnapshot: a snapshot that a client writes itself.
//!
//! A block is in walrus, and its row in the store, before PutSnapshotBlock answers. The row that holds its blob is written
//! before the blob is sent, so that nobody takes away what is just coming.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use mallee_aws::id::SnapshotId;
use mallee_store::Tx;
use mallee_tiers::SNAPSHOT_BLOCK;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Answer,
    read::{OCTETS, checksum, key_of, parsed, sealed_key, seconds},
    words::{denied, invalid, invalid_value, not_found, throttled},
};
use crate::{
    Outcome, Refusal,
    ec2::{
        client_token::Given,
        encryption,
        snapshot::{
            self, Snapshot,
            direct::{self, Begun, Direct, lineage},
            stored::{Stored, digest_of},
        },
        tag::{self, Tag, TagSpecification},
    },
    service::Call,
    zone::event::{self, Kind},
};

/// GiB; what a volume of this cloud can have.
const LARGEST: u64 = 16_384;
/// Minutes.
const TIMEOUTS: std::ops::RangeInclusive<i64> = 10..=4_320;
const TIMEOUT: i64 = 60;
const LONGEST_TOKEN: usize = 255;
const LONGEST_DESCRIPTION: usize = 255;
/// How long garbage of the same bytes is waited for.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: usize = 30;
/// Checksums that are read at once.
const AT_ONCE: u64 = 4_096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StartSnapshot {
    volume_size: i64,
    parent_snapshot_id: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
    description: Option<String>,
    client_token: Option<String>,
    encrypted: Option<bool>,
    kms_key_arn: Option<String>,
    timeout: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Started {
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    snapshot_id: String,
    owner_id: String,
    status: &'static str,
    start_time: f64,
    volume_size: u64,
    block_size: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_snapshot_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kms_key_arn: Option<String>,
}

/// A tag as this service spells it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    value: String,
}

/// StartSnapshot, looked through.
struct Beginning {
    size_gib: u64,
    parent: Option<SnapshotId>,
    tags: Vec<Tag>,
    description: String,
    timeout_ms: i64,
    encryption: encryption::Asked,
    /// A key, or whether to encrypt, was said.
    says_encryption: bool,
}

impl Beginning {
    fn of(call: &Call, input: StartSnapshot) -> Outcome<Self> {
        let size = u64::try_from(input.volume_size).ok().filter(|gib| (1..=LARGEST).contains(gib));
        let size_gib = size
            .ok_or_else(|| invalid("INVALID_VOLUME_SIZE", format!("VolumeSize is 1 to {LARGEST} GiB in this cloud")))?;
        let minutes = input.timeout.unwrap_or(TIMEOUT);
        if !TIMEOUTS.contains(&minutes) {
            return Err(invalid_value("Timeout is 10 to 4320 minutes"));
        }
        let description = input.description.unwrap_or_default();
        if description.chars().count() > LONGEST_DESCRIPTION {
            return Err(invalid_value("Description has at most 255 characters"));
        }
        let says_encryption = input.encrypted.is_some() || input.kms_key_arn.is_some();
        if input.parent_snapshot_id.is_some() && says_encryption {
            return Err(invalid_value(
                "ParentSnapshotId decides of the encryption: no Encrypted, no KmsKeyArn beside it",
            ));
        }
        if input.kms_key_arn.as_deref().is_some_and(|arn| !arn.starts_with("arn:")) {
            return Err(invalid("INVALID_CUSTOMER_KEY", "KmsKeyArn is the ARN of a key"));
        }
        let specified = [TagSpecification { resource_type: "snapshot".into(), tag: input.tags }];
        let tags = tag::specified(&specified, &["snapshot"]);
        let mut tags = tags.map_err(|e| invalid("INVALID_TAG", e.answer.message))?;
        Ok(Self {
            size_gib,
            parent: input.parent_snapshot_id.as_deref().map(parsed).transpose()?,
            tags: tags.remove("snapshot").unwrap_or_default(),
            description,
            timeout_ms: minutes * 60_000,
            encryption: encryption::Asked::of(call, input.encrypted, input.kms_key_arn.as_deref())?,
            says_encryption,
        })
    }

    /// The snapshot it begins on, which must be complete.
    fn parent(&self, tx: &mut Tx<'_>, account: &str) -> Outcome<Option<Snapshot>> {
        let Some(id) = &self.parent else { return Ok(None) };
        let parent = snapshot::visible(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))?;
        if !parent.accepted {
            let message = format!("The parent {id} is {}; it must be completed", snapshot::state(&parent));
            return Err(invalid("INVALID_SNAPSHOT_ID", message));
        }
        if parent.size_gib > self.size_gib {
            let message = format!("VolumeSize is at least that of the parent, {} GiB", parent.size_gib);
            return Err(invalid("INVALID_VOLUME_SIZE", message));
        }
        match parent.disk_key {
            Some(_) if parent.account != account => Err(denied("The key of the parent is another account's")),
            None if self.encryption.is_default(tx)? => {
                Err(invalid_value("This account encrypts by default, and the parent is not encrypted: copy it first"))
            }
            _ => Ok(Some(parent)),
        }
    }

    fn disk_key(&self, tx: &mut Tx<'_>, parent: Option<&Snapshot>) -> Outcome<Option<String>> {
        match parent {
            Some(parent) => Ok(parent.disk_key.clone()),
            None => self.encryption.key(tx, false).map_err(|refused| match refused.cause {
                None if self.says_encryption => invalid("INVALID_CUSTOMER_KEY", refused.answer.message),
                _ => refused,
            }),
        }
    }

    fn write(&self, tx: &mut Tx<'_>, account: &str, id: &SnapshotId, now: i64) -> Outcome<Snapshot> {
        let parent = self.parent(tx, account)?;
        let begun = Snapshot {
            description: self.description.clone(),
            disk_key: self.disk_key(tx, parent.as_ref())?,
            ..Snapshot::asked_for(id.clone(), account, self.size_gib, now)
        };
        snapshot::insert(tx, &begun)?;
        let parent = parent.map(|parent| parent.id.to_string());
        if let Some(parent) = &parent {
            lineage::inherit(tx, parent, id.as_str())?;
        }
        direct::insert(tx, &Direct::new(id.as_str(), parent, self.timeout_ms, now))?;
        tag::put(tx, account, id.as_str(), &self.tags)?;
        event::note(tx, id.as_str(), now, Kind::Asked, "a snapshot to be written through the EBS direct API")?;
        Ok(begun)
    }
}

/// What a request said but its token, whatever order it said it in.
fn hash_of(document: &Bytes) -> [u8; 32] {
    let mut said: serde_json::Value = serde_json::from_slice(document).unwrap_or_default();
    if let Some(members) = said.as_object_mut() {
        members.remove("ClientToken");
        members.sort_keys();
    }
    Sha256::digest(said.to_string()).into()
}

pub(super) async fn start(call: &Call, input: StartSnapshot, document: &Bytes) -> Outcome<Answer> {
    let token = input.client_token.clone().filter(|token| !token.is_empty());
    if token.as_ref().is_some_and(|t| t.len() > LONGEST_TOKEN || !t.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(invalid_value("ClientToken has at most 255 characters, and no space"));
    }
    let given = token.map(|token| Given::of_hash(call, "StartSnapshot", &token, hash_of(document)));
    let beginning = Beginning::of(call, input)?;
    let (account, now, id) = (call.account().to_owned(), call.now, SnapshotId::from_random(rand::random()));
    let (made, tags, parent) = call
        .cloud
        .store
        .write("start a snapshot", move |tx| {
            let before = given.as_ref().map(|given| given.made(tx)).transpose()?.flatten();
            let made = match before {
                Some(id) => snapshot::any(tx, &id)?.ok_or_else(|| not_found(&id))?,
                None => {
                    let made = beginning.write(tx, &account, &id, now)?;
                    if let Some(given) = &given {
                        given.remember(tx, made.id.as_str())?;
                    }
                    made
                }
            };
            let parent = direct::find(tx, made.id.as_str())?.and_then(|direct| direct.parent);
            let tags = tag::of(tx, made.id.as_str())?;
            Ok::<_, Refusal>((made, tags, parent))
        })
        .await?;
    let pair = |tag: Tag| Pair { key: tag.key, value: tag.value };
    Answer::document(
        201,
        &Started {
            status: snapshot::state(&made),
            start_time: seconds(made.created),
            volume_size: made.size_gib,
            block_size: SNAPSHOT_BLOCK,
            tags: tags.into_iter().map(pair).collect(),
            parent_snapshot_id: parent,
            kms_key_arn: made.disk_key.as_deref().map(|key| encryption::arn(&call.cloud, &made.account, key)),
            snapshot_id: made.id.to_string(),
            owner_id: made.account,
            description: Some(made.description).filter(|text| !text.is_empty()),
        },
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PutSnapshotBlock {
    snapshot_id: String,
    block_index: i64,
    data_length: Option<i64>,
    progress: Option<i64>,
    checksum: Option<String>,
    checksum_algorithm: Option<String>,
    content_encoding: Option<String>,
}

/// A snapshot of the account's own that was begun here, and is there.
fn own(tx: &mut Tx<'_>, account: &str, id: &SnapshotId) -> Outcome<(Snapshot, Direct)> {
    let found = snapshot::visible(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))?;
    if found.account != account {
        return Err(denied("The snapshot is another account's"));
    }
    match direct::find(tx, id.as_str())? {
        Some(direct) => Ok((found, direct)),
        None => Err(not_pending(&found)),
    }
}

fn not_pending(found: &Snapshot) -> Refusal {
    let state = snapshot::state(found);
    invalid("INVALID_SNAPSHOT_ID", format!("The snapshot {} is not one that is being written; it is {state}", found.id))
}

/// Of those, one that takes blocks now.
fn open(tx: &mut Tx<'_>, account: &str, id: &SnapshotId, now: i64) -> Outcome<(Snapshot, Direct)> {
    let (found, direct) = own(tx, account, id)?;
    if direct.takes_blocks(now) { Ok((found, direct)) } else { Err(not_pending(&found)) }
}

impl PutSnapshotBlock {
    /// Everything that can be told without looking at the snapshot; the block's number and how far the client is.
    fn look_through(&self, block: &Bytes) -> Outcome<(u64, Option<u32>)> {
        let encoding = self.content_encoding.as_deref().unwrap_or_default();
        if !matches!(encoding, "" | "identity") {
            return Err(invalid("INVALID_CONTENT_ENCODING", "A block is sent as it is"));
        }
        if self.data_length != Some(SNAPSHOT_BLOCK as i64) || block.len() as u64 != SNAPSHOT_BLOCK {
            return Err(invalid("INVALID_BLOCK", "A block has 524288 bytes, and x-amz-Data-Length says so"));
        }
        if self.checksum_algorithm.as_deref() != Some("SHA256") {
            return Err(invalid_value("The checksum's algorithm is SHA256"));
        }
        let percent = self.progress.map(u32::try_from).transpose().ok().filter(|p| p.is_none_or(|p| p <= 100));
        let percent = percent.ok_or_else(|| invalid_value("Progress is 0 to 100"))?;
        let number = u64::try_from(self.block_index).map_err(|_| invalid_value("BlockIndex is not negative"))?;
        Ok((number, percent))
    }
}

pub(super) async fn put(call: &Call, input: PutSnapshotBlock, block: &Bytes) -> Outcome<Answer> {
    let (number, percent) = input.look_through(block)?;
    let computed = checksum(block);
    if input.checksum.as_deref() != Some(computed.as_str()) {
        return Err(invalid("INVALID_BLOCK", "The block is not what its checksum says"));
    }
    let (id, store, now) = (parsed(&input.snapshot_id)?, &call.cloud.store, call.now);
    let (account, asked) = (call.account().to_owned(), id.clone());
    let read = store.read("find a snapshot to write", move |tx| {
        let (found, _) = open(tx, &account, &asked, now)?;
        if number >= (found.size_gib << 30) / SNAPSHOT_BLOCK {
            return Err(invalid("INVALID_BLOCK", format!("The snapshot's volume has no block {number}")));
        }
        sealed_key(tx, found.disk_key.as_deref())
    });
    let key = key_of(call, read.await?)?;
    let bytes = block.clone();
    let sealed = tokio::task::spawn_blocking(move || match key {
        // Nothing is kept of it: what is in no page is zero.
        _ if bytes.iter().all(|b| *b == 0) => Ok((String::new(), Vec::new())),
        Some(key) => key.seal_block(&bytes).map(|sealed| (digest_of(&sealed), sealed)),
        None => Ok((digest_of(&bytes), bytes.to_vec())),
    });
    let sealed = sealed.await.map_err(|e| Refusal::internal(e.to_string()))?;
    let (digest, blob) = sealed.map_err(|e| Refusal::internal(e.to_string()))?;
    let write = Write { call, id: &id, number, digest: &digest, checksum: &computed };
    write.hold().await?;
    if !digest.is_empty() {
        // Sent whether walrus has it or not: who is answered sooner would know what others have.
        Stored::open(&call.cloud).await?.put(&digest, blob).await?;
    }
    write.is_safe(percent).await?;
    Ok(Answer {
        status: 201,
        content_type: OCTETS,
        headers: vec![("x-amz-checksum", computed), ("x-amz-checksum-algorithm", "SHA256".into())],
        body: Bytes::new(),
    })
}

/// One block that is being written.
struct Write<'a> {
    call: &'a Call,
    id: &'a SnapshotId,
    number: u64,
    /// Of its blob; empty where it is all zero.
    digest: &'a str,
    checksum: &'a str,
}

impl Write<'_> {
    /// From here on the blob is kept.
    async fn hold(&self) -> Outcome<()> {
        for _ in 0..LOOKS {
            let (id, account, now) = (self.id.clone(), self.call.account().to_owned(), self.call.now);
            let (number, digest, checksum) = (self.number, self.digest.to_owned(), self.checksum.to_owned());
            let begun = self.call.cloud.store.write("begin a block", move |tx| {
                open(tx, &account, &id, now)?;
                Ok::<_, Refusal>(direct::begin_block(tx, id.as_str(), number, &digest, &checksum)?)
            });
            if begun.await? == Begun::Held {
                return Ok(());
            }
            self.call.cloud.pokes.kept.poke();
            tokio::time::sleep(LOOK).await;
        }
        Err(throttled("The same bytes are being removed from a deleted snapshot; try again"))
    }

    async fn is_safe(&self, percent: Option<u32>) -> Outcome<()> {
        let (id, account, now) = (self.id.clone(), self.call.account().to_owned(), self.call.cloud.now());
        let (number, digest) = (self.number, self.digest.to_owned());
        let written = self.call.cloud.store.write("a block is written", move |tx| {
            open(tx, &account, &id, now)?;
            if !direct::set_written(tx, id.as_str(), number, &digest, now)? {
                return Err(invalid("CONFLICTING_BLOCK_UPDATE", "Another write of the block was later"));
            }
            if let Some(percent) = percent {
                snapshot::set_percent(tx, id.as_str(), percent.min(99))?;
            }
            Ok::<_, Refusal>(())
        });
        written.await
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CompleteSnapshot {
    snapshot_id: String,
    changed_blocks_count: i64,
    checksum: Option<String>,
    checksum_algorithm: Option<String>,
    checksum_aggregation_method: Option<String>,
}

/// What was written: how many blocks, and the checksum of their checksums in order.
struct Sum {
    count: u64,
    checksum: String,
}

async fn sum(call: &Call, id: &SnapshotId) -> Outcome<Sum> {
    let (mut count, mut from, mut hash) = (0, 0, Sha256::new());
    loop {
        let id = id.to_string();
        let read = call.cloud.store.read("read checksums", move |tx| direct::checksums(tx, &id, from, AT_ONCE));
        let some = read.await?;
        let Some((last, _)) = some.last() else { break };
        from = last + 1;
        for (_, checksum) in &some {
            count += 1;
            hash.update(STANDARD.decode(checksum).map_err(|e| Refusal::internal(e.to_string()))?);
        }
    }
    Ok(Sum { count, checksum: STANDARD.encode(hash.finalize()) })
}

pub(super) async fn complete(call: &Call, input: CompleteSnapshot, _: &Bytes) -> Outcome<Answer> {
    let told =
        u64::try_from(input.changed_blocks_count).map_err(|_| invalid_value("ChangedBlocksCount is not negative"))?;
    for (name, given, only) in [
        ("ChecksumAlgorithm", &input.checksum_algorithm, "SHA256"),
        ("ChecksumAggregationMethod", &input.checksum_aggregation_method, "LINEAR"),
    ] {
        if given.as_deref().is_some_and(|given| given != only) {
            return Err(invalid_value(format!("{name} can be {only}")));
        }
    }
    let (id, store) = (parsed(&input.snapshot_id)?, &call.cloud.store);
    let (account, asked) = (call.account().to_owned(), id.clone());
    let (found, direct) = store.read("find a snapshot to complete", move |tx| own(tx, &account, &asked)).await?;
    // Said before, and the answer was lost on its way: it is said again.
    let state = snapshot::state(&found);
    if direct.state != direct::OPEN {
        return if state != "error" && direct.told == told { status(state) } else { Err(not_pending(&found)) };
    }
    let sum = sum(call, &id).await?;
    if sum.count != told {
        let message = format!("ChangedBlocksCount is {told}, and {} blocks were written", sum.count);
        return Err(invalid_value(message));
    }
    if input.checksum.is_some_and(|given| given != sum.checksum) {
        return Err(invalid_value("The checksum is not that of the blocks that were written"));
    }
    let (account, now) = (call.account().to_owned(), call.now);
    store
        .write("complete a snapshot", move |tx| {
            let (_, again) = open(tx, &account, &id, now)?;
            if again.changes != direct.changes {
                return Err(invalid("CONFLICTING_BLOCK_UPDATE", "A block was written meanwhile; complete it again"));
            }
            direct::seal(tx, id.as_str(), told)?;
            let text = format!("complete, with {told} blocks that were written");
            event::note(tx, id.as_str(), now, Kind::Asked, &text)?;
            Ok::<_, Refusal>(())
        })
        .await?;
    call.cloud.pokes.direct.poke();
    status(state)
}

fn status(state: &str) -> Outcome<Answer> {
    Answer::document(202, &json!({ "Status": state }))
}
