//! ListSnapshotBlocks, ListChangedBlocks and GetSnapshotBlock: of complete snapshots that the caller owns, or that were shared.
//!
//! A list walks the snapshot's pages from where it is asked to begin, and reads so many of them at a time that neither a
//! sparse snapshot nor two that differ little keep a caller waiting: the answer is then short, with a token to go on.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use mallee_aws::id::SnapshotId;
use mallee_service::DiskKey;
use mallee_store::Tx;
use mallee_tiers::{Manifest, Page, SNAPSHOT_BLOCK, SNAPSHOT_PAGE};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Answer,
    token::Tokens,
    words::{denied, failed, invalid, invalid_value, not_found},
};
use crate::{
    Outcome, Refusal, disk_key,
    ec2::snapshot::{
        self, Snapshot,
        direct::lineage,
        stored::{Stored, Trouble},
    },
    service::Call,
};

/// How many blocks a list may have at once, and has where it is not said.
const MOST: u64 = 10_000;
const FEWEST: u64 = 100;
/// Pages that are read for one answer.
const PAGES_AT_ONCE: usize = 32;

pub(super) const OCTETS: &str = "application/octet-stream";

/// The checksum of a block, as clients spell it.
pub(super) fn checksum(block: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(block))
}

pub(super) fn parsed(id: &str) -> Outcome<SnapshotId> {
    id.parse().map_err(|_| invalid("INVALID_SNAPSHOT_ID", "A snapshot's id is snap- and 17 hexadecimal digits"))
}

/// A complete snapshot that the caller may read.
fn readable(tx: &mut Tx<'_>, account: &str, id: &SnapshotId) -> Outcome<Snapshot> {
    let found = snapshot::visible(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))?;
    if found.accepted && found.manifest.is_some() {
        // None is shared, but a row of an earlier release might be.
        if found.disk_key.is_some() && found.account != account {
            return Err(denied("The key of this snapshot is another account's"));
        }
        return Ok(found);
    }
    let message = format!("The snapshot {id} is {}; it must be completed", snapshot::state(&found));
    Err(invalid("INVALID_SNAPSHOT_ID", message))
}

impl From<Trouble> for Refusal {
    fn from(e: Trouble) -> Self {
        failed(e.to_string())
    }
}

/// What the lists have in common of a request.
struct Range {
    /// The first block that may be in the answer.
    from: u64,
    most: usize,
}

impl Range {
    fn of(
        tokens: &Tokens,
        about: &[&str],
        next_token: Option<&str>,
        starting: Option<i64>,
        max_results: Option<i64>,
    ) -> Outcome<Self> {
        let most = match max_results.map(u64::try_from) {
            None => MOST,
            Some(Ok(most)) if (FEWEST..=MOST).contains(&most) => most,
            Some(_) => return Err(invalid_value(format!("MaxResults is {FEWEST} to {MOST}"))),
        };
        let from = match (next_token.filter(|token| !token.is_empty()), starting) {
            (Some(token), _) => tokens.page(about, token).ok_or_else(|| {
                invalid("INVALID_PAGE_TOKEN", "The page token is not valid for this request, or has expired")
            })?,
            (None, Some(starting)) => {
                u64::try_from(starting).map_err(|_| invalid_value("StartingBlockIndex is not negative"))?
            }
            (None, None) => 0,
        };
        Ok(Self { from, most: usize::try_from(most).unwrap_or(usize::MAX) })
    }
}

/// Seconds, as a document has them.
pub(super) fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListSnapshotBlocks {
    snapshot_id: String,
    next_token: Option<String>,
    max_results: Option<i64>,
    starting_block_index: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<B> {
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Vec<B>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_blocks: Option<Vec<B>>,
    expiry_time: f64,
    volume_size: u64,
    block_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Block {
    block_index: u64,
    block_token: String,
}

pub(super) async fn list(call: &Call, input: ListSnapshotBlocks, _: &Bytes) -> Outcome<Answer> {
    let (id, account) = (parsed(&input.snapshot_id)?, call.account().to_owned());
    let tokens = Tokens::new(&call.cloud.sealing, call.now);
    let about = ["list", id.as_str()];
    let range = Range::of(&tokens, &about, input.next_token.as_deref(), input.starting_block_index, input.max_results)?;
    let asked = id.clone();
    let found = call.cloud.store.read("find a snapshot to list", move |tx| readable(tx, &account, &asked)).await?;
    let walrus = Stored::open(&call.cloud).await?;
    let manifest = manifest_of(&walrus, &found).await?;
    let walk = Walk { walrus: &walrus, first: None, second: &manifest };
    let (blocks, next) = walk.blocks(&range).await?;
    let blocks = blocks.into_iter().map(|block| Block {
        block_token: tokens.of_block(id.as_str(), block.number, block.second.as_deref()),
        block_index: block.number,
    });
    Answer::document(
        200,
        &Listed {
            blocks: Some(blocks.collect()),
            changed_blocks: None,
            expiry_time: seconds(tokens.expiry()),
            volume_size: found.size_gib,
            block_size: SNAPSHOT_BLOCK,
            next_token: next.map(|next| tokens.of_page(&about, next)),
        },
    )
}

async fn manifest_of(walrus: &Stored, snapshot: &Snapshot) -> Outcome<Manifest> {
    Ok(walrus.manifest(snapshot.manifest.as_deref().unwrap_or_default()).await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListChangedBlocks {
    first_snapshot_id: Option<String>,
    second_snapshot_id: String,
    next_token: Option<String>,
    max_results: Option<i64>,
    starting_block_index: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ChangedBlock {
    block_index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_block_token: Option<String>,
    second_block_token: String,
}

pub(super) async fn list_changed(call: &Call, input: ListChangedBlocks, _: &Bytes) -> Outcome<Answer> {
    let first = input.first_snapshot_id.as_deref();
    let first = parsed(first.ok_or_else(|| invalid_value("FirstSnapshotId is needed to compare with"))?)?;
    let (second, account) = (parsed(&input.second_snapshot_id)?, call.account().to_owned());
    let tokens = Tokens::new(&call.cloud.sealing, call.now);
    let about = ["changed", first.as_str(), second.as_str()];
    let range = Range::of(&tokens, &about, input.next_token.as_deref(), input.starting_block_index, input.max_results)?;
    let asked = (first.clone(), second.clone());
    let (before, after) = call
        .cloud
        .store
        .read("find snapshots to compare", move |tx| {
            let (before, after) = (readable(tx, &account, &asked.0)?, readable(tx, &account, &asked.1)?);
            if !lineage::is_shared(tx, asked.0.as_str(), asked.1.as_str())? {
                let message = format!("The snapshots {} and {} are not of one lineage", asked.0, asked.1);
                return Err(invalid("UNRELATED_SNAPSHOTS", message));
            }
            Ok::<_, Refusal>((before, after))
        })
        .await?;
    let walrus = Stored::open(&call.cloud).await?;
    let (old, new) = (manifest_of(&walrus, &before).await?, manifest_of(&walrus, &after).await?);
    let walk = Walk { walrus: &walrus, first: Some(&old), second: &new };
    let (blocks, next) = walk.blocks(&range).await?;
    let changed = blocks.into_iter().map(|block| ChangedBlock {
        block_index: block.number,
        first_block_token: block.first.map(|digest| tokens.of_block(first.as_str(), block.number, Some(&digest))),
        // Of one that the second has no more: a token of zeros, so that whoever copies what it reads copies what is there.
        second_block_token: tokens.of_block(second.as_str(), block.number, block.second.as_deref()),
    });
    Answer::document(
        200,
        &Listed {
            blocks: None,
            changed_blocks: Some(changed.collect()),
            expiry_time: seconds(tokens.expiry()),
            volume_size: after.size_gib,
            block_size: SNAPSHOT_BLOCK,
            next_token: next.map(|next| tokens.of_page(&about, next)),
        },
    )
}

/// A block that is in the answer, with the digests of its blobs; none where it is all zero.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    number: u64,
    first: Option<String>,
    second: Option<String>,
}

/// Through a snapshot's pages; or through those of two that differ.
struct Walk<'a> {
    walrus: &'a Stored,
    first: Option<&'a Manifest>,
    second: &'a Manifest,
}

/// Numbers of the pages to look at, from the one with this block on: all that one of the two has and the other has not.
fn pages(first: Option<&Manifest>, second: &Manifest, from: u64) -> Vec<u64> {
    let begin = from / SNAPSHOT_PAGE;
    let of = |m: &Manifest| m.pages.range(begin..).map(|(number, _)| *number).collect::<Vec<_>>();
    let all: BTreeSet<u64> = of(second).into_iter().chain(first.into_iter().flat_map(of)).collect();
    let differs = |n: &u64| first.is_none_or(|first| first.pages.get(n) != second.pages.get(n));
    all.into_iter().filter(differs).collect()
}

/// The blocks of a page that are in the answer.
fn in_page(number: u64, first: Option<&Page>, second: &Page) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let within: BTreeSet<u64> =
        second.blocks.keys().chain(first.into_iter().flat_map(|page| page.blocks.keys())).copied().collect();
    for block in within {
        let (old, new) = (first.and_then(|page| page.blocks.get(&block)), second.blocks.get(&block));
        if first.is_none() || old != new {
            let number = number * SNAPSHOT_PAGE + block;
            found.push(Found { number, first: old.cloned(), second: new.cloned() });
        }
    }
    found
}

impl Walk<'_> {
    async fn page(&self, manifest: &Manifest, number: u64) -> Outcome<Page> {
        match manifest.pages.get(&number) {
            Some(digest) => Ok(self.walrus.page(digest).await?),
            None => Ok(Page::default()),
        }
    }

    /// Those of the range, and where the next one goes on.
    async fn blocks(&self, range: &Range) -> Outcome<(Vec<Found>, Option<u64>)> {
        let mut found: Vec<Found> = Vec::new();
        for (at, number) in pages(self.first, self.second, range.from).into_iter().enumerate() {
            if at == PAGES_AT_ONCE {
                return Ok((found, Some(number * SNAPSHOT_PAGE)));
            }
            let second = self.page(self.second, number).await?;
            let first = match self.first {
                Some(first) => Some(self.page(first, number).await?),
                None => None,
            };
            for block in in_page(number, first.as_ref(), &second) {
                if block.number < range.from {
                    continue;
                }
                if found.len() == range.most {
                    return Ok((found, Some(block.number)));
                }
                found.push(block);
            }
        }
        Ok((found, None))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GetSnapshotBlock {
    snapshot_id: String,
    block_index: i64,
    block_token: Option<String>,
}

/// The key a snapshot's blocks are sealed with.
pub(super) fn key_of(call: &Call, sealed: Option<(String, Vec<u8>)>) -> Outcome<Option<Arc<DiskKey>>> {
    let opened = sealed.map(|(id, sealed)| disk_key::open(&call.cloud.sealing, &id, &sealed).map(Arc::new));
    opened.transpose()
}

/// As it is in the store.
pub(super) fn sealed_key(tx: &mut Tx<'_>, id: Option<&str>) -> Outcome<Option<(String, Vec<u8>)>> {
    let Some(id) = id else { return Ok(None) };
    let sealed = disk_key::sealed(tx, id)?.ok_or_else(|| Refusal::internal(format!("there is no disk key {id}")))?;
    Ok(Some((id.to_owned(), sealed)))
}

pub(super) async fn get(call: &Call, input: GetSnapshotBlock, _: &Bytes) -> Outcome<Answer> {
    let (id, account) = (parsed(&input.snapshot_id)?, call.account().to_owned());
    let asked = id.clone();
    let sealed = call
        .cloud
        .store
        .read("find a snapshot to read", move |tx| {
            let found = readable(tx, &account, &asked)?;
            sealed_key(tx, found.disk_key.as_deref())
        })
        .await?;
    let tokens = Tokens::new(&call.cloud.sealing, call.now);
    let wrong = || invalid("INVALID_BLOCK_TOKEN", "The block token is not that of this block, or has expired");
    let token = input.block_token.ok_or_else(wrong)?;
    let number = u64::try_from(input.block_index).map_err(|_| invalid_value("BlockIndex is not negative"))?;
    let block = match tokens.block(id.as_str(), number, &token).ok_or_else(wrong)? {
        None => Bytes::from(vec![0; SNAPSHOT_BLOCK as usize]),
        Some(digest) => {
            let key = key_of(call, sealed)?;
            Stored::open(&call.cloud).await?.block(&digest, key.as_deref()).await?
        }
    };
    Ok(Answer {
        status: 200,
        content_type: OCTETS,
        headers: vec![
            ("x-amz-data-length", block.len().to_string()),
            ("x-amz-checksum", checksum(&block)),
            ("x-amz-checksum-algorithm", "SHA256".into()),
        ],
        body: block,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(pages: &[(u64, &str)]) -> Manifest {
        let mut manifest = Manifest::new(16 << 30, None);
        manifest.pages = pages.iter().map(|(number, digest)| (*number, (*digest).to_owned())).collect();
        manifest
    }

    fn page(blocks: &[(u64, &str)]) -> Page {
        Page { blocks: blocks.iter().map(|(number, digest)| (*number, (*digest).to_owned())).collect() }
    }

    #[test]
    fn only_pages_that_differ_are_looked_at() {
        let (old, new) = (manifest(&[(0, "a"), (1, "b"), (3, "c")]), manifest(&[(0, "a"), (1, "x"), (2, "y")]));
        assert_eq!(pages(Some(&old), &new, 0), [1, 2, 3]);
        assert_eq!(pages(Some(&old), &new, 2 * SNAPSHOT_PAGE + 5), [2, 3]);
        assert_eq!(pages(None, &new, 1), [0, 1, 2]);
        assert_eq!(pages(None, &new, SNAPSHOT_PAGE), [1, 2]);
        assert!(pages(Some(&new), &new, 0).is_empty());
    }

    #[test]
    fn a_changed_block_is_new_or_other_or_gone() {
        let (old, new) = (page(&[(0, "a"), (1, "b"), (9, "c")]), page(&[(0, "a"), (1, "x"), (5, "y")]));
        let found = |number, first: Option<&str>, second: Option<&str>| Found {
            number,
            first: first.map(Into::into),
            second: second.map(Into::into),
        };
        let base = 2 * SNAPSHOT_PAGE;
        assert_eq!(
            in_page(2, Some(&old), &new),
            [found(base + 1, Some("b"), Some("x")), found(base + 5, None, Some("y")), found(base + 9, Some("c"), None)]
        );
        assert_eq!(in_page(0, None, &new).iter().map(|f| f.number).collect::<Vec<_>>(), [0, 1, 5]);
    }
}
