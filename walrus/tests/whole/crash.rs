//! The real binary, killed with -9 in the middle of its work: what was acknowledged is there and whole, what was not is
//! whole or absent, and no bytes are left that nothing refers to.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::client::{S3, config};
use bytes::Bytes;
use http::StatusCode;

fn spawn(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_walrus")).arg("--config").arg(dir.join("walrus.toml")).spawn().unwrap()
}

async fn up(address: SocketAddr) {
    for _ in 0..300 {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("walrus did not come up at {address}");
}

/// Every version of a key is one letter, repeated.
fn content(size: usize, version: usize) -> Bytes {
    vec![b'a' + (version % 26) as u8; size].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_objects_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    std::fs::write(dir.path().join("walrus.toml"), config(&dir.path().join("state"), &address.to_string())).unwrap();
    let mut process = spawn(dir.path());
    up(address).await;
    let s3 = S3::new(address);
    assert_eq!(s3.put("/bkt", "").await.status, StatusCode::OK);

    const SIZES: [usize; 4] = [100, 20_000, 300_000, 700_000];
    let mut acknowledged = [0_usize; 8];
    for round in 0..4 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8)
            .map(|n| {
                let (s3, stop, begin) = (s3.clone(), stop.clone(), acknowledged[n]);
                tokio::spawn(async move {
                    let mut done = begin;
                    while !stop.load(Ordering::Relaxed) {
                        let body = content(SIZES[n % 4], done + 1);
                        let request = s3.signed("PUT", &format!("/bkt/{n}"), &[], body);
                        match s3.try_send(request).await {
                            Some(answer) if answer.status == StatusCode::OK => done += 1,
                            _ => break,
                        }
                    }
                    done
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300 + 170 * round)).await;
        process.kill().unwrap();
        process.wait().unwrap();
        stop.store(true, Ordering::Relaxed);
        for (n, writer) in writers.into_iter().enumerate() {
            acknowledged[n] = writer.await.unwrap();
        }
        process = spawn(dir.path());
        up(address).await;
        for (n, version) in acknowledged.iter_mut().enumerate() {
            let got = s3.get(&format!("/bkt/{n}")).await;
            if *version == 0 && got.status == StatusCode::NOT_FOUND {
                continue;
            }
            let now = [*version, *version + 1].into_iter().find(|v| got.body == content(SIZES[n % 4], *v));
            // The one that was under way when it died may have been kept as well.
            *version = now.unwrap_or_else(|| panic!("object {n} is not what was acknowledged as {version}"));
        }
    }
    assert!(acknowledged.iter().sum::<usize>() > 20, "{acknowledged:?}");
    let kept = (0..8).filter(|n| SIZES[n % 4] > 16_384 && acknowledged[*n] > 0).count();
    let count = || {
        let folders = std::fs::read_dir(dir.path().join("state/blobs")).unwrap();
        folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    for _ in 0..300 {
        if count() == kept {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(count(), kept, "bytes nobody refers to are left");
    process.kill().unwrap();
    process.wait().unwrap();
}
