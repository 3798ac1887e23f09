//! kill -9 under mixed load: what was acknowledged is there and whole, what was not is whole or absent, and no bytes are
//! left that nothing refers to.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    load::{Load, no_orphans, nothing_left},
    server::{Server, rounds, seed},
};

pub const BUSY: &str = "lifecycle_every_ms = 200\nscrub_mib_per_second = 64";

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_line_it_has_what_it_acknowledged() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut server = Server::start(dir.path(), &state, BUSY).await;
    let mut load = Load::new(&server.s3, seed).await;
    let rounds = rounds(4, 100);
    for round in 0..rounds {
        // The first is long enough for something to be lost.
        let moment = Duration::from_millis(if round == 0 { 1000 } else { random.random_range(20..900) });
        load.until(async {
            tokio::time::sleep(moment).await;
            server.kill();
        })
        .await;
        server.start_again().await;
        load.settle(&server.s3).await;
        no_orphans(&server, &state).await;
        println!("kill {}: {} requests acknowledged and found", round + 1, load.done());
    }
    assert!(load.done() > rounds, "{} requests", load.done());
    load.delete_everything(&server.s3).await;
    nothing_left(&server, &state).await;
}
