//! The way of a snapshot on a real store, with the zone's part said by the test, and what its blocks are counted by.

use std::collections::BTreeMap;

use mallee_service::Reconciler;
use mallee_store::Error as StoreError;
use mallee_tiers::{Page, SnapshotObserved, SnapshotReport};

use super::{blob, row, together};
use crate::ec2::rehearsal::{Rehearsal, first};

async fn volume(stage: &Rehearsal) -> String {
    let id = first(&stage.ask("CreateVolume&AvailabilityZone=z-1a&Size=2").await.unwrap(), "volumeId");
    stage.serve(&id).await;
    id
}

async fn snapshot(stage: &Rehearsal, volume: &str) -> String {
    first(&stage.ask(&format!("CreateSnapshot&VolumeId={volume}&Description=d")).await.unwrap(), "snapshotId")
}

async fn report(stage: &Rehearsal, id: &str, observed: SnapshotObserved, change: impl FnOnce(&mut SnapshotReport)) {
    let (asked, now) = (id.to_owned(), stage.cloud.now());
    let row = stage
        .cloud
        .store
        .read("read", move |tx| row::any(tx, &asked))
        .await
        .unwrap_or_else(|e: StoreError| panic!("{e}"))
        .unwrap();
    let mut report = SnapshotReport {
        id: id.into(),
        generation: row.generation,
        observed,
        reason: String::new(),
        percent: 0,
        attempt: row.attempt,
        manifest: None,
        sent: 0,
        size_gib: row.size_gib,
    };
    change(&mut report);
    let (stranger, own) = (report.clone(), row.zone);
    let taken: Result<_, StoreError> = stage
        .cloud
        .store
        .write("report", move |tx| {
            // What another zone says of it is not believed, whatever it is.
            let before = row::any(tx, &stranger.id)?.map(|row| row.observed);
            super::take_report(tx, "z-of-others", &stranger, now)?;
            assert_eq!(row::any(tx, &stranger.id)?.map(|row| row.observed), before);
            super::take_report(tx, &own, &report, now)
        })
        .await;
    taken.unwrap();
}

/// Uploaded with these pages, and found whole.
async fn complete(stage: &Rehearsal, id: &str, manifest: &str, pages: &[(&str, &[&str])]) {
    report(stage, id, SnapshotObserved::Uploaded, |r| r.manifest = Some(manifest.into())).await;
    let id = id.to_owned();
    let pages: BTreeMap<String, Page> = pages
        .iter()
        .map(|(digest, blocks)| {
            let blocks = blocks.iter().enumerate().map(|(n, b)| (n as u64, (*b).to_owned())).collect();
            ((*digest).to_owned(), Page { blocks })
        })
        .collect();
    let written: Result<(), StoreError> = stage
        .cloud
        .store
        .write("complete", move |tx| {
            let digests: Vec<String> = pages.keys().cloned().collect();
            for (digest, known) in blob::need_pages(tx, &id, &digests)? {
                if known == blob::Known::New {
                    blob::count_page(tx, &digest, &pages[&digest])?;
                }
            }
            row::set_accepted(tx, &id)
        })
        .await;
    written.unwrap();
}

/// What would be taken away after this snapshot is.
async fn removed(stage: &Rehearsal, id: &str) -> Vec<String> {
    report(stage, id, SnapshotObserved::Gone, |_| {}).await;
    let garbage: Result<_, StoreError> = stage
        .cloud
        .store
        .write("remove", move |tx| {
            for snapshot in row::to_remove(tx)? {
                blob::release(tx, snapshot.id.as_str(), snapshot.manifest.as_deref())?;
                row::remove(tx, &snapshot)?;
            }
            blob::discard_pages(tx)?;
            let garbage = blob::garbage(tx)?;
            for digest in &garbage {
                blob::taken(tx, digest)?;
            }
            Ok(garbage)
        })
        .await;
    garbage.unwrap()
}

#[tokio::test]
async fn a_snapshot_is_pending_until_all_of_it_was_found_and_then_makes_volumes() {
    let stage = Rehearsal::new().await;
    let volume = volume(&stage).await;
    let id = snapshot(&stage, &volume).await;
    let status = |id: &str| format!("DescribeSnapshots&SnapshotId.1={id}");
    assert_eq!(stage.all(&status(&id), "status").await, ["pending"]);
    let restore = format!("CreateVolume&AvailabilityZone=z-1b&SnapshotId={id}");
    assert_eq!(stage.ask(&restore).await, Err("IncorrectState".into()));
    report(&stage, &id, SnapshotObserved::Frozen, |r| r.percent = 40).await;
    assert_eq!(stage.all(&status(&id), "progress").await, ["40%"]);
    report(&stage, &id, SnapshotObserved::Uploaded, |r| r.manifest = Some("m".into())).await;
    assert_eq!(stage.all(&status(&id), "status").await, ["pending"]);
    complete(&stage, &id, "m", &[("p", &["a"])]).await;
    let shown = stage.ask(&status(&id)).await.unwrap();
    for (element, value) in [
        ("status", "completed"),
        ("progress", "100%"),
        ("volumeSize", "2"),
        ("description", "d"),
        ("volumeId", volume.as_str()),
    ] {
        assert_eq!(first(&shown, element), value, "{shown}");
    }
    assert_eq!(stage.ask(&format!("{restore}&Size=1")).await, Err("InvalidParameterValue".into()));
    let restored = first(&stage.ask(&restore).await.unwrap(), "volumeId");
    let wanted = stage.wanted_volume(&restored).await;
    assert_eq!((wanted.size_gib, wanted.source.unwrap().manifest), (2, "m".into()));
    assert_eq!(
        stage.all(&format!("DescribeVolumes&Filter.1.Name=snapshot-id&Filter.1.Value.1={id}"), "volumeId").await,
        [restored]
    );
}

#[tokio::test]
async fn an_instant_that_was_lost_is_an_error_and_not_another_instant() {
    let stage = Rehearsal::new().await;
    let volume = volume(&stage).await;
    let id = snapshot(&stage, &volume).await;
    report(&stage, &id, SnapshotObserved::Frozen, |_| {}).await;
    report(&stage, &id, SnapshotObserved::Freezing, |_| {}).await;
    report(&stage, &id, SnapshotObserved::Frozen, |_| {}).await;
    let shown = stage.ask(&format!("DescribeSnapshots&SnapshotId.1={id}")).await.unwrap();
    assert_eq!(first(&shown, "status"), "error");
    assert!(first(&shown, "statusMessage").contains("lost"));
}

#[tokio::test]
async fn deleting_in_any_order_frees_what_no_other_snapshot_needs() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let stage = Rehearsal::new().await;
        let volume = volume(&stage).await;
        let pages: [&[(&str, &[&str])]; 3] =
            [&[("p1", &["a", "b"])], &[("p1", &["a", "b"]), ("p2", &["c"])], &[("p3", &["b", "d"]), ("p2", &["c"])]];
        let mut ids = Vec::new();
        for (n, pages) in pages.iter().enumerate() {
            let id = snapshot(&stage, &volume).await;
            complete(&stage, &id, &format!("m{n}"), pages).await;
            ids.push(id);
        }
        let mut left = vec![0, 1, 2];
        for n in order {
            stage.ask(&format!("DeleteSnapshot&SnapshotId={}", ids[n])).await.unwrap();
            assert_eq!(
                stage.ask(&format!("DescribeSnapshots&SnapshotId.1={}", ids[n])).await,
                Err("InvalidSnapshot.NotFound".into())
            );
            let freed = removed(&stage, &ids[n]).await;
            left.retain(|m| *m != n);
            let names = |n: usize| {
                let blobs =
                    pages[n].iter().flat_map(|(page, blocks)| blocks.iter().copied().chain([*page])).map(str::to_owned);
                blobs.chain([format!("m{n}")]).collect::<Vec<_>>()
            };
            let needed: Vec<String> = left.iter().flat_map(|m| names(*m)).collect();
            let mut expected: Vec<String> = names(n).into_iter().filter(|b| !needed.contains(b)).collect();
            expected.sort();
            assert_eq!(freed, expected, "{order:?}, deleting {n}");
        }
    }
}

#[tokio::test]
async fn a_volume_that_is_being_restored_keeps_its_snapshots_bytes() {
    let stage = Rehearsal::new().await;
    let volume = volume(&stage).await;
    let id = snapshot(&stage, &volume).await;
    complete(&stage, &id, "m", &[("p", &["a"])]).await;
    let restored =
        first(&stage.ask(&format!("CreateVolume&AvailabilityZone=z-1a&SnapshotId={id}")).await.unwrap(), "volumeId");
    stage.ask(&format!("DeleteSnapshot&SnapshotId={id}")).await.unwrap();
    assert_eq!(removed(&stage, &id).await, Vec::<String>::new());
    stage.serve(&restored).await;
    assert_eq!(removed(&stage, &id).await, ["a", "m", "p"]);
}

#[tokio::test]
async fn a_copy_and_a_share_are_what_they_say_and_nobody_else_sees_anything() {
    let stage = Rehearsal::new().await;
    let (volume, other) = (volume(&stage).await, stage.another_account().await);
    let id = snapshot(&stage, &volume).await;
    complete(&stage, &id, "m", &[("p", &["a"])]).await;
    let describe = |id: &str| format!("DescribeSnapshots&SnapshotId.1={id}");
    let copy = format!("CopySnapshot&SourceRegion=mallee-1&SourceSnapshotId={id}");
    for request in [
        describe(&id),
        copy.clone(),
        format!("DeleteSnapshot&SnapshotId={id}"),
        format!("CreateSnapshot&VolumeId={volume}"),
    ] {
        let code = stage.ask_as(&other, &request).await.unwrap_err();
        assert!(code.ends_with(".NotFound"), "{request}: {code}");
    }
    stage
        .ask(&format!("ModifySnapshotAttribute&SnapshotId={id}&Attribute=createVolumePermission&OperationType=add&UserId.1={other}"))
        .await
        .unwrap();
    let shared = format!("DescribeSnapshotAttribute&SnapshotId={id}&Attribute=createVolumePermission");
    assert_eq!(stage.all(&shared, "userId").await, std::slice::from_ref(&other));
    stage.ask_as(&other, &describe(&id)).await.unwrap();
    assert_eq!(
        stage.ask_as(&other, "DescribeSnapshots&Owner.1=self").await.unwrap().matches("<snapshotId>").count(),
        0
    );
    assert_eq!(
        stage.ask_as(&other, "DescribeSnapshots&RestorableBy.1=self").await.unwrap().matches("<snapshotId>").count(),
        1
    );
    assert_eq!(
        stage.ask_as(&other, &format!("DeleteSnapshot&SnapshotId={id}")).await,
        Err("InvalidSnapshot.NotFound".into())
    );
    let theirs = first(&stage.ask_as(&other, &copy).await.unwrap(), "snapshotId");
    stage.ask(&format!("ResetSnapshotAttribute&SnapshotId={id}&Attribute=createVolumePermission")).await.unwrap();
    assert_eq!(stage.ask_as(&other, &describe(&id)).await, Err("InvalidSnapshot.NotFound".into()));
    // The copy needs the blocks as much as its source did.
    stage.ask(&format!("DeleteSnapshot&SnapshotId={id}")).await.unwrap();
    assert_eq!(removed(&stage, &id).await, Vec::<String>::new());
    stage.ask_as(&other, &format!("CreateVolume&AvailabilityZone=z-1a&SnapshotId={theirs}")).await.unwrap();
    assert_eq!(
        stage.ask_as(&other, &format!("CopySnapshot&SourceRegion=us-east-1&SourceSnapshotId={theirs}")).await,
        Err("InvalidParameterValue".into())
    );
}

#[tokio::test]
async fn snapshots_of_an_instance_are_of_one_instant() {
    let stage = Rehearsal::new().await;
    let instance = stage.launch("").await;
    stage.seen(&instance, mallee_tiers::Observed::Running, |_| {}).await;
    let request = format!("CreateSnapshots&InstanceSpecification.InstanceId={instance}&CopyTagsFromSource=volume");
    assert_eq!(stage.ask(&request).await, Err("InvalidParameterValue".into()));
    let (one, two) = (volume(&stage).await, volume(&stage).await);
    stage.ask(&format!("CreateTags&ResourceId.1={one}&Tag.1.Key=k&Tag.1.Value=v")).await.unwrap();
    stage.ask(&format!("AttachVolume&VolumeId={one}&InstanceId={instance}&Device=/dev/sdf")).await.unwrap();
    let made = stage.ask(&request).await.unwrap();
    assert_eq!(
        (first(&made, "volumeId"), first(&made, "state"), first(&made, "value")),
        (one, "pending".into(), "v".into())
    );
    stage.ask(&format!("AttachVolume&VolumeId={two}&InstanceId={instance}&Device=/dev/sdg")).await.unwrap();
    stage.serve(&two).await;
    stage.ask(&format!("{request}&InstanceSpecification.ExcludeDataVolumeId.1={two}")).await.unwrap();
    // Of two the guest has to stand still, until both are fixed.
    let (asked, work) = (stage.ask(&request), async {
        loop {
            let body = stage.body(&instance).await;
            let Some(hold) = body.hold else { break };
            assert_eq!(hold.kind, mallee_tiers::HoldKind::Paused);
            stage.seen(&instance, mallee_tiers::Observed::Running, |r| r.held = Some(hold.id.clone())).await;
            together::Togethers { cloud: stage.cloud.clone() }.pass().await;
            for id in stage.all("DescribeSnapshots&Filter.1.Name=status&Filter.1.Value.1=pending", "snapshotId").await {
                report(&stage, &id, SnapshotObserved::Frozen, |_| {}).await;
            }
        }
    });
    let begun = async {
        while stage.body(&instance).await.hold.is_none() {
            tokio::task::yield_now().await;
        }
        work.await;
    };
    let (made, ()) = tokio::join!(asked, begun);
    assert_eq!(made.unwrap().matches("<snapshotId>").count(), 2);
}

#[tokio::test]
async fn a_copy_that_is_encrypted_is_made_by_a_zone_and_its_source_stays_until_then() {
    let stage = Rehearsal::new().await;
    let volume = volume(&stage).await;
    let source = snapshot(&stage, &volume).await;
    complete(&stage, &source, "m", &[("p", &["a"])]).await;
    let copy = |more: &str| format!("CopySnapshot&SourceRegion=mallee-1&SourceSnapshotId={source}{more}");
    let depends = stage.ask(&copy("&KmsKeyId=alias/aws/ebs")).await;
    assert_eq!(depends, Err("InvalidParameterDependency".into()));
    let clear = first(&stage.ask(&copy("")).await.unwrap(), "snapshotId");
    let status = |id: &str| format!("DescribeSnapshots&SnapshotId.1={id}");
    assert_eq!(stage.all(&status(&clear), "status").await, ["completed"]);
    let sealed = first(&stage.ask(&copy("&Encrypted=true&KmsKeyId=alias/aws/ebs")).await.unwrap(), "snapshotId");
    let shown = stage.ask(&status(&sealed)).await.unwrap();
    assert_eq!((first(&shown, "status"), first(&shown, "encrypted")), ("pending".into(), "true".into()), "{shown}");

    let asked = sealed.clone();
    let read = stage.cloud.store.read("read", move |tx| row::any(tx, &asked)).await;
    let wanted = super::wanted(&read.unwrap_or_else(|e: StoreError| panic!("{e}")).unwrap());
    let from = wanted.source.unwrap();
    assert_eq!((from.snapshot.as_str(), from.manifest.as_str(), wanted.volume.as_str()), (source.as_str(), "m", ""));
    assert!(wanted.encrypted.is_some());

    stage.ask(&format!("DeleteSnapshot&SnapshotId={clear}")).await.unwrap();
    stage.ask(&format!("DeleteSnapshot&SnapshotId={source}")).await.unwrap();
    assert_eq!(removed(&stage, &source).await, Vec::<String>::new(), "the zone still reads them");
    complete(&stage, &sealed, "m2", &[("p2", &["a2"])]).await;
    assert_eq!(stage.all(&status(&sealed), "progress").await, ["100%"]);
    let mut garbage = removed(&stage, &source).await;
    garbage.sort();
    assert_eq!(garbage, ["a", "m", "p"]);
    // Of what is encrypted a copy is, whatever was said, and it shares the blocks.
    let again = format!("CopySnapshot&SourceRegion=mallee-1&SourceSnapshotId={sealed}");
    let again = first(&stage.ask(&again).await.unwrap(), "snapshotId");
    let shown = stage.ask(&status(&again)).await.unwrap();
    assert_eq!((first(&shown, "status"), first(&shown, "encrypted")), ("completed".into(), "true".into()), "{shown}");
}

#[tokio::test]
async fn an_account_that_encrypts_everything_copies_encrypted_and_an_image_waits_for_its_copies() {
    let stage = Rehearsal::new().await;
    let image = stage.image_on_snapshot("").await;
    let copy =
        |name: &str, more: &str| format!("CopyImage&SourceRegion=mallee-1&SourceImageId={image}&Name={name}{more}");
    let at_once = first(&stage.ask(&copy("clear", "")).await.unwrap(), "imageId");
    let state = |id: &str| format!("DescribeImages&ImageId.1={id}");
    assert_eq!(stage.all(&state(&at_once), "imageState").await, ["available"]);
    let of_bundle =
        format!("CopyImage&SourceRegion=mallee-1&SourceImageId={}&Name=no-disk&Encrypted=true", stage.image);
    assert_eq!(stage.ask(&of_bundle).await, Err("InvalidParameterCombination".into()));
    stage.ask("EnableEbsEncryptionByDefault").await.unwrap();
    let by_default = first(&stage.ask(&copy("by-default", "")).await.unwrap(), "imageId");
    let fails = first(&stage.ask(&copy("fails", "&Encrypted=true")).await.unwrap(), "imageId");
    let pass = || async {
        together::Togethers { cloud: stage.cloud.clone() }.pass().await;
    };
    pass().await;
    let shown = stage.ask(&state(&by_default)).await.unwrap();
    assert_eq!((first(&shown, "imageState"), first(&shown, "encrypted")), ("pending".into(), "true".into()), "{shown}");
    let launch = format!("RunInstances&ImageId={by_default}&MinCount=1&MaxCount=1");
    assert_eq!(stage.ask(&launch).await, Err("InvalidAMIID.Unavailable".into()));

    stage.complete(&first(&shown, "snapshotId")).await;
    let lost = first(&stage.ask(&state(&fails)).await.unwrap(), "snapshotId");
    stage.seen_snapshot(&lost, SnapshotObserved::Failed).await;
    pass().await;
    assert_eq!(stage.all(&state(&by_default), "imageState").await, ["available"]);
    stage.ask(&launch).await.unwrap();
    let shown = stage.ask(&state(&fails)).await.unwrap();
    assert_eq!(first(&shown, "imageState"), "failed");
    assert!(first(&shown, "message").contains("no room"), "{shown}");
    let gone = stage.ask(&format!("DescribeSnapshots&SnapshotId.1={lost}")).await;
    assert_eq!(gone, Err("InvalidSnapshot.NotFound".into()));
}

#[tokio::test]
async fn what_somebody_holds_is_no_garbage_until_it_is_let_go() {
    let stage = Rehearsal::new().await;
    let written: Result<(), StoreError> = stage
        .cloud
        .store
        .write("hold", |tx| {
            blob::hold(tx, "import-snap-1", ["a", "b"].into_iter())?;
            blob::hold(tx, "import-snap-2", ["b"].into_iter())?;
            assert_eq!(blob::let_go(tx, "import-snap-1")?, 2);
            assert_eq!(blob::holders(tx)?, ["import-snap-2"]);
            assert_eq!(blob::garbage(tx)?, ["a"]);
            blob::taken(tx, "a")?;
            assert_eq!(blob::let_go(tx, "import-snap-2")?, 1);
            assert_eq!(blob::garbage(tx)?, ["b"]);
            Ok(())
        })
        .await;
    written.unwrap();
}
