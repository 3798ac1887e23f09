//! The power goes: the process ends, and what it did not sync is lost or comes back in part. Nothing that was
//! acknowledged may be among it.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    disk::{Disk, Loss},
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
        let moment = Duration::from_millis(if round == 0 { 0 } else { random.random_range(20..1200) });
        load.until(async {
            tokio::time::sleep(moment).await;
            disk.power_off();
            server.kill();
        })
        .await;
        mounted.take();
        let loss = if round % 2 == 0 { Loss::All } else { Loss::Some };
        disk.power_on(loss, random.random());
        mounted.replace(disk.mount(&at));
        server.start_again().await;
        load.settle(&server.s3).await;
        no_orphans(&server, &state).await;
        println!("cut {}: {} requests acknowledged and found, {:?} syncs", round + 1, load.done(), disk.syncs());
    }
    assert!(load.done() > rounds * 3, "{} requests", load.done());
    load.delete_everything(&server.s3).await;
    nothing_left(&server, &state).await;
    drop(server);
    drop(mounted);
}
