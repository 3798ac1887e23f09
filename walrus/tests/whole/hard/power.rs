//! The power goes: the process ends, and what it did not sync is lost or comes back in part. Nothing that was
//! acknowledged may be among it.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    disk::{Disk, Loss, Trouble},
    kill::BUSY,
    load::{Load, no_orphans, nothing_left},
    server::{Server, rounds, seed},
};

#[tokio::test(flavor = "multi_thread")]
async fn without_power_it_loses_nothing_it_acknowledged() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("disk");
    let state = at.join("lib/walrus");
    let disk = Disk::new(8 << 30);
    let mut mounted = Some(disk.mount(&at));
    let mut server = Server::start(dir.path(), &state, BUSY).await;
    // The first cut comes as soon as there is something to lose.
    let mut load = Load::new(&server.s3, seed).await;
    let rounds = rounds(4, 50);
    for round in 0..rounds {
        let moment = match round {
            0 => 0,
            1 => 1200,
            _ => random.random_range(20..1200),
        };
        let moment = Duration::from_millis(moment);
        // Some disks fail before they are gone: then nobody knows what was written.
        let failing = round > 0 && random.random_bool(0.3);
        load.until(async {
            tokio::time::sleep(moment).await;
            if failing {
                disk.trouble(Some(Trouble::Syncs("")));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            disk.power_off();
            server.kill();
        })
        .await;
        mounted.take();
        disk.trouble(None);
        let loss = if round % 2 == 0 { Loss::All } else { Loss::Some };
        disk.power_on(loss, random.random());
        mounted.replace(disk.mount(&at));
        server.start_again().await;
        load.settle(&server.s3).await;
        no_orphans(&server, &state).await;
        println!("cut {}: {} requests acknowledged and found, {:?} syncs", round + 1, load.done(), disk.syncs());
    }
    assert!(load.done() > rounds, "{} requests", load.done());
    load.delete_everything(&server.s3).await;
    nothing_left(&server, &state).await;
    drop(server);
    drop(mounted);
}

/// The first start makes folders, keys and tables, and can be cut short in the middle of any of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_without_power_can_be_made_again() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut begun = 0;
    for round in 0..rounds(6, 100) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("disk");
        let disk = Disk::new(1 << 30);
        let mounted = disk.mount(&at);
        let mut server = Server::new(dir.path(), &at.join("lib/walrus"), "");
        server.launch();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
        disk.power_off();
        server.kill();
        drop(mounted);
        disk.power_on(if round % 2 == 0 { Loss::All } else { Loss::Some }, random.random());
        let _mounted = disk.mount(&at);
        begun += usize::from(at.join("lib").exists());
        server.start_again().await;
        let sealed = [("x-amz-server-side-encryption", "AES256")];
        assert!(server.s3.put("/bkt", "").await.status.is_success());
        assert!(server.s3.call("PUT", "/bkt/k", &sealed, vec![7; 50_000]).await.status.is_success());
        assert_eq!(server.s3.get("/bkt/k").await.body, vec![7; 50_000]);
    }
    println!("cut short in its first start, {begun} times with something left of it, and started again");
}
