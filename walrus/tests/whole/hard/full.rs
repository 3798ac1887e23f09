//! A disk without room, and one that fails: the client is told, nothing that was told no is kept, and once the disk is
//! well again so is walrus.

use http::StatusCode;

use super::{
    disk::{Disk, Mounted, Trouble},
    load::{content, no_orphans},
    server::Server,
};
use crate::{buckets::soon, client::Answer};

const MIB: usize = 1 << 20;

struct World {
    server: Server,
    disk: Disk,
    state: std::path::PathBuf,
    _mounted: Mounted,
    _dir: tempfile::TempDir,
}

async fn world(room: usize, lines: &str) -> World {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("disk");
    let disk = Disk::new(room as u64);
    let mounted = disk.mount(&at);
    let server = Server::start(dir.path(), &at.join("state"), lines).await;
    assert_eq!(server.s3.put("/bkt", "").await.status, StatusCode::OK);
    World { server, disk, state: at.join("state"), _mounted: mounted, _dir: dir }
}

impl World {
    async fn put(&self, n: usize, size: usize) -> Answer {
        self.server.s3.put(&format!("/bkt/{n}"), content(n as u64, size)).await
    }
    async fn is_whole(&self, n: usize, size: usize) -> bool {
        let answer = self.server.s3.get(&format!("/bkt/{n}")).await;
        if answer.status == StatusCode::NOT_FOUND {
            return false;
        }
        assert!(!answer.cut && answer.body == content(n as u64, size), "object {n}: {}", answer.status);
        true
    }
}

/// An error as S3 tells it.
fn told(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{}", answer.text());
    assert!(answer.text().contains("<RequestId>") && answer.header("content-type") == "application/xml");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_room_is_used_again() {
    let world = world(24 * MIB, "reserve_mib = 6").await;
    let mut kept = 0;
    let refused = loop {
        let answer = world.put(kept, 2 * MIB).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        kept += 1;
        assert!(kept < 24, "the reserve was written into");
    };
    told(&refused, 507, "InsufficientStorage");
    assert!(kept > 4, "{kept} objects in 24 MiB");
    assert!(!world.is_whole(kept, 2 * MIB).await);
    told(&world.put(100, 100).await, 507, "InsufficientStorage");
    let upload = world.server.s3.call("POST", "/bkt/parts?uploads", &[], "").await;
    assert_eq!(upload.status, StatusCode::OK, "a row goes into the reserve: {}", upload.text());
    // What takes no room goes on, and what makes some.
    for n in 0..kept {
        assert!(world.is_whole(n, 2 * MIB).await);
    }
    for n in 0..3 {
        let gone = world.server.s3.call("DELETE", &format!("/bkt/{n}"), &[], "").await;
        assert_eq!(gone.status, StatusCode::NO_CONTENT, "{}", gone.text());
    }
    soon(async || (world.put(200, MIB).await.status == StatusCode::OK).then_some(())).await;
    // One that would fit into nothing, and fails on its way in.
    told(&world.put(300, 20 * MIB).await, 507, "InsufficientStorage");
    assert!(!world.is_whole(300, 20 * MIB).await && world.is_whole(200, MIB).await);
    no_orphans(&world.server, &world.state).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_keeps_nothing_and_recovers() {
    const SIZE: usize = 15_000;
    let world = world(64 * MIB, "reserve_mib = 0").await;
    world.disk.set_room(world.disk.used() + MIB as u64);
    let (mut kept, mut refused) = (Vec::new(), Vec::new());
    for n in 0..400 {
        let answer = world.put(n, SIZE).await;
        if answer.status == StatusCode::OK {
            kept.push(n);
        } else {
            told(&answer, 507, "InsufficientStorage");
            refused.push(n);
            if refused.len() > 3 {
                break;
            }
        }
    }
    assert!(!kept.is_empty() && refused.len() > 3, "{} kept, {} refused", kept.len(), refused.len());
    told(&world.put(1000, 100_000).await, 507, "InsufficientStorage");
    for n in &kept {
        assert!(world.is_whole(*n, SIZE).await, "object {n} is lost");
    }
    world.disk.set_room(64 * MIB as u64);
    for n in &refused {
        assert!(!world.is_whole(*n, SIZE).await, "object {n} was refused, and is there");
    }
    assert!(!world.is_whole(1000, 100_000).await);
    assert_eq!(world.put(2000, 100_000).await.status, StatusCode::OK);
    for n in kept {
        let gone = world.server.s3.call("DELETE", &format!("/bkt/{n}"), &[], "").await;
        assert_eq!(gone.status, StatusCode::NO_CONTENT, "{}", gone.text());
    }
    no_orphans(&world.server, &world.state).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_is_told_and_nothing_it_lost_is_acknowledged() {
    let mut world = world(256 * MIB, "").await;
    assert_eq!(world.put(0, 300_000).await.status, StatusCode::OK);
    let mut n = 1;
    for (trouble, certain) in [
        (Trouble::Writes("/blobs/"), true),
        (Trouble::Syncs("/blobs/"), true),
        // A commit whose sync failed is there or is not.
        (Trouble::Writes("store.db-wal"), true),
        (Trouble::Syncs("store.db-wal"), false),
    ] {
        let in_blobs = matches!(trouble, Trouble::Writes(part) | Trouble::Syncs(part) if part == "/blobs/");
        let failures = world.disk.failed();
        world.disk.trouble(Some(trouble));
        let mut refused = Vec::new();
        for size in [300_000, 100, 3 * MIB, 20_000] {
            let answer = world.put(n, size).await;
            if in_blobs && size == 100 {
                assert_eq!(answer.status, StatusCode::OK, "{trouble:?}: {}", answer.text());
                assert!(world.is_whole(n, size).await);
            } else {
                told(&answer, 500, "InternalError");
                refused.push((n, size));
            }
            n += 1;
        }
        assert!(world.disk.failed() > failures, "{trouble:?} troubled nothing");
        assert!(world.is_whole(0, 300_000).await, "what was there before can be read");
        world.disk.trouble(None);
        for (n, size) in refused {
            // Whole, or not at all.
            let there = world.is_whole(n, size).await;
            assert!(!(there && certain), "{trouble:?}: object {n} was refused, and is there");
        }
        for size in [300_000, 100] {
            assert_eq!(world.put(n, size).await.status, StatusCode::OK, "after {trouble:?}");
            assert!(world.is_whole(n, size).await);
            n += 1;
        }
        no_orphans(&world.server, &world.state).await;
    }
    world.server.start_again().await;
    assert!(world.is_whole(0, 300_000).await);
    no_orphans(&world.server, &world.state).await;
}
