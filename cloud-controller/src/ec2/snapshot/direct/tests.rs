//! What the rows of snapshots that are being written keep, and for how long, on a real store and without walrus.

use mallee_service::Reconciler;
use mallee_store::{Error as StoreError, Tx};

use super::{Begun, begin_block, checksums, finish::Finish, row, seal, set_written};
use crate::ec2::{
    rehearsal::{Rehearsal, first},
    snapshot::{NO_VOLUME, Snapshot, blob, row as snapshot},
};

const MINUTES: i64 = 60_000;

async fn write<T: Send + 'static>(
    stage: &Rehearsal,
    what: impl Fn(&mut Tx<'_>) -> Result<T, StoreError> + Send + Sync + 'static,
) -> T {
    stage.cloud.store.write("test", what).await.unwrap()
}

/// A snapshot that is being written, with a timeout of ten minutes.
async fn begun(stage: &Rehearsal, id: &'static str, parent: Option<String>) {
    let (account, now) = (stage.account.clone(), stage.cloud.now());
    write(stage, move |tx| {
        let new = Snapshot {
            id: id.parse().map_err(|e| StoreError::Other { what: "an id", detail: format!("{e}") })?,
            account: account.clone(),
            zone: String::new(),
            volume: NO_VOLUME.into(),
            generation: Default::default(),
            size_gib: 1,
            description: String::new(),
            created: now,
            desired: mallee_tiers::SnapshotDesired::Present,
            observed: None,
            reason: String::new(),
            percent: 0,
            attempt: 0,
            accepted: false,
            manifest: None,
            sent: 0,
            disk_key: None,
            source: None,
        };
        snapshot::insert(tx, &new)?;
        row::insert(tx, &row::Direct::new(id, parent.clone(), 10 * MINUTES, now))
    })
    .await;
}

async fn put(stage: &Rehearsal, id: &'static str, number: u64, digest: &'static str) -> bool {
    let now = stage.cloud.now();
    write(stage, move |tx| {
        assert_eq!(begin_block(tx, id, number, digest, digest)?, Begun::Held);
        set_written(tx, id, number, digest, now)
    })
    .await
}

async fn pass(stage: &Rehearsal) {
    let finish = Finish { cloud: stage.cloud.clone() };
    loop {
        let report = finish.pass().await;
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        if report.changed == 0 {
            return;
        }
    }
}

async fn status(stage: &Rehearsal, id: &str) -> String {
    first(&stage.ask(&format!("DescribeSnapshots&SnapshotId.1={id}")).await.unwrap(), "status")
}

const ONE: &str = "snap-00000000000000001";
const TWO: &str = "snap-00000000000000002";

#[tokio::test]
async fn what_nobody_goes_on_with_is_an_error_after_its_timeout_and_its_blocks_are_let_go() {
    let stage = Rehearsal::new().await;
    begun(&stage, ONE, None).await;
    assert!(put(&stage, ONE, 0, "aa").await);
    stage.pass(9 * MINUTES);
    // Its time begins again with each block.
    assert!(put(&stage, ONE, 1, "bb").await);
    stage.pass(9 * MINUTES);
    pass(&stage).await;
    assert_eq!(status(&stage, ONE).await, "pending");
    assert!(write(&stage, |tx| Ok(blob::is_used(tx, "aa")? && blob::is_used(tx, "bb")?)).await);
    stage.pass(2 * MINUTES);
    pass(&stage).await;
    assert_eq!(status(&stage, ONE).await, "error");
    assert!(!write(&stage, |tx| blob::is_used(tx, "aa")).await);
    assert_eq!(write(&stage, blob::garbage).await, ["aa", "bb"]);
}

#[tokio::test]
async fn a_block_is_what_it_was_written_as_last_and_what_it_was_before_is_garbage() {
    let stage = Rehearsal::new().await;
    begun(&stage, ONE, None).await;
    for digest in ["aa", "bb", "aa"] {
        assert!(put(&stage, ONE, 7, digest).await);
    }
    assert!(put(&stage, ONE, 5, "").await, "zeros have no blob");
    let written = write(&stage, |tx| checksums(tx, ONE, 0, 10)).await;
    assert_eq!(written, [(5, String::new()), (7, "aa".to_owned())]);
    assert_eq!(write(&stage, blob::garbage).await, ["bb"]);
    // It was begun, and another write of the same block came between.
    write(&stage, |tx| begin_block(tx, ONE, 9, "cc", "cc").map(drop)).await;
    write(&stage, |tx| begin_block(tx, ONE, 9, "dd", "dd").map(drop)).await;
    let now = stage.cloud.now();
    assert!(write(&stage, move |tx| set_written(tx, ONE, 9, "cc", now)).await);
    assert!(write(&stage, move |tx| set_written(tx, ONE, 9, "dd", now)).await);
    assert!(!write(&stage, move |tx| set_written(tx, ONE, 9, "cc", now)).await);
}

#[tokio::test]
async fn bytes_on_their_way_out_of_walrus_are_waited_for_before_they_are_sent_again() {
    let stage = Rehearsal::new().await;
    begun(&stage, ONE, None).await;
    write(&stage, |tx| blob::discard(tx, "aa")).await;
    // Garbage that is not being taken yet is simply needed again.
    assert!(put(&stage, ONE, 0, "aa").await);
    assert!(write(&stage, blob::garbage).await.is_empty());
    write(&stage, |tx| blob::discard(tx, "bb")).await;
    assert_eq!(write(&stage, blob::garbage).await, ["bb"]);
    assert_eq!(write(&stage, |tx| begin_block(tx, ONE, 1, "bb", "bb")).await, Begun::BeingTaken);
    write(&stage, |tx| blob::taken(tx, "bb")).await;
    assert_eq!(write(&stage, |tx| begin_block(tx, ONE, 1, "bb", "bb")).await, Begun::Held);
}

#[tokio::test]
async fn a_parent_that_is_deleted_stays_until_its_child_has_ended() {
    let stage = Rehearsal::new().await;
    let parent = stage.snapshot(1).await;
    stage.seen_snapshot(&parent, mallee_tiers::SnapshotObserved::Gone).await;
    begun(&stage, TWO, Some(parent.clone())).await;
    stage.ask(&format!("DeleteSnapshot&SnapshotId={parent}")).await.unwrap();
    stage.seen_snapshot(&parent, mallee_tiers::SnapshotObserved::Gone).await;
    assert!(write(&stage, snapshot::to_remove).await.is_empty());
    write(&stage, |tx| seal(tx, TWO, 0)).await;
    assert!(write(&stage, snapshot::to_remove).await.is_empty());
    stage.ask(&format!("DeleteSnapshot&SnapshotId={TWO}")).await.unwrap();
    pass(&stage).await;
    let removed: Vec<String> =
        write(&stage, snapshot::to_remove).await.into_iter().map(|snapshot| snapshot.id.to_string()).collect();
    assert!(removed.contains(&parent) && removed.contains(&TWO.to_owned()), "{removed:?}");
}

#[tokio::test]
async fn a_lineage_goes_on_through_restored_volumes_and_copies_and_no_further() {
    let stage = Rehearsal::new().await;
    let (one, stranger) = (stage.snapshot(1).await, stage.snapshot(1).await);
    let copy =
        stage.ask(&format!("CopySnapshot&SourceRegion={}&SourceSnapshotId={one}", stage.cloud.region())).await.unwrap();
    let copy = first(&copy, "snapshotId");
    let made = stage.ask(&format!("CreateVolume&AvailabilityZone=z-1a&SnapshotId={copy}")).await.unwrap();
    let volume = first(&made, "volumeId");
    stage.serve(&volume).await;
    let of_restored = first(&stage.ask(&format!("CreateSnapshot&VolumeId={volume}")).await.unwrap(), "snapshotId");
    for (other, expected) in [(&copy, true), (&of_restored, true), (&stranger, false)] {
        let (one, other) = (one.clone(), other.clone());
        let shared = write(&stage, move |tx| super::lineage::is_shared(tx, &one, &other)).await;
        assert_eq!(shared, expected);
    }
}
