//! Runs `tests/transcripts`: every file in two accounts of its own, against one cloud.
//! `TRANSCRIPT=volumes` runs the files with that in their name.

// The exemption of clippy.toml covers test functions, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use mallee_tests_cloud::{
    Cloud, Options,
    pattern::Bindings,
    transcript::{self, Actors, Transcript},
};

async fn run(cloud: &Cloud, number: usize, transcript: &Transcript) -> Result<(), String> {
    let actors = Actors {
        own: cloud.account(&format!("own-{number}")).await,
        other: cloud.account(&format!("other-{number}")).await,
    };
    let mut known = Bindings::from([
        ("account".to_owned(), actors.own.key.account.clone()),
        ("other_account".to_owned(), actors.other.key.account.clone()),
        ("region".to_owned(), actors.own.region.clone()),
        ("zone".to_owned(), mallee_tests_cloud::zone_name(0)),
    ]);
    if transcript.asks_for("image") {
        let image = cloud.register(&actors.own, "ready").await;
        mallee_tests_cloud::image_settles(&actors.own, &image, "available").await;
        known.insert("image".into(), image);
    }
    transcript::run(transcript, &actors, known).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_product_says_what_the_transcripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../transcripts");
    let wanted = std::env::var("TRANSCRIPT").unwrap_or_default();
    let mut transcripts = transcript::load(&folder).unwrap();
    transcripts.retain(|transcript| transcript.name.contains(&wanted));
    assert!(!transcripts.is_empty(), "no transcript has {wanted:?} in its name");
    let cloud = Cloud::start_with(Options { nodes: 2, ..Options::default() }).await;
    // All of them, also when one fails: a change shows everything it changes at once.
    let runs = transcripts.iter().enumerate().map(|(number, transcript)| {
        let cloud = &cloud;
        async move {
            let outcome = run(cloud, number, transcript).await;
            println!(
                "{} {} ({} requests)",
                if outcome.is_ok() { "ok  " } else { "FAIL" },
                transcript.name,
                transcript.exchanges.len()
            );
            outcome.err()
        }
    });
    let failures: Vec<String> = futures_util::future::join_all(runs).await.into_iter().flatten().collect();
    println!("{} passed, {} failed", transcripts.len() - failures.len(), failures.len());
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
}
