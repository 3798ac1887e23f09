//! Many at once on one key: a condition lets exactly one through, and nobody ever reads half of one object and half of
//! another.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    load::content,
    server::{rounds, seed},
};
use crate::{
    buckets::{World, world_with},
    client::{Answer, S3, between},
};

const WRITERS: usize = 64;

type Headers = Vec<(&'static str, String)>;

/// Sends what `request` makes for each writer, all at once; whose answer it was that said yes.
async fn race(
    s3: &S3,
    what: &str,
    no: &[u16],
    request: impl Fn(usize) -> (&'static str, String, Headers, Bytes),
) -> usize {
    let start = Arc::new(tokio::sync::Barrier::new(WRITERS));
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| {
            let (s3, start, (method, path, headers, body)) = (s3.clone(), start.clone(), request(n));
            tokio::spawn(async move {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let request = s3.signed(method, &path, &headers, body);
                start.wait().await;
                s3.send(request).await
            })
        })
        .collect();
    let mut winner = None;
    for (n, writer) in writers.into_iter().enumerate() {
        let answer = writer.await.unwrap();
        if answer.status.is_success() {
            assert_eq!(winner.replace(n), None, "{what}: two were told yes");
        } else {
            assert!(no.contains(&answer.status.as_u16()), "{what}: {} {}", answer.status, answer.text());
        }
    }
    winner.unwrap_or_else(|| panic!("{what}: nobody was told yes"))
}

fn of_writer(n: usize, size: usize) -> Bytes {
    content(n as u64, size)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_writers_with_a_condition_one_is_told_yes() {
    const NO: [u16; 2] = [412, 409];
    let world = world_with("").await;
    let s3 = &world.s3;
    for n in 0..WRITERS {
        assert_eq!(s3.put(&format!("/bkt/source-{n}"), of_writer(n, 100)).await.status, StatusCode::OK);
    }
    let none = || vec![("if-none-match", "*".to_owned())];
    let rounds = rounds(20, 1000);
    for round in 0..rounds {
        if round == 10 {
            let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
            assert_eq!(s3.put("/bkt?versioning", versioning).await.status, StatusCode::OK);
        }
        // Contents that are rows, and contents that are files.
        let size = if round % 2 == 0 { 100 } else { 20_000 };
        let path = format!("/bkt/{round}");

        let winner = race(s3, "PUT If-None-Match", &NO, |n| ("PUT", path.clone(), none(), of_writer(n, size))).await;
        let there = s3.get(&path).await;
        assert_eq!(there.body, of_writer(winner, size), "another's bytes are there");

        let same = || vec![("if-match", there.header("etag").to_owned())];
        let winner = race(s3, "PUT If-Match", &NO, |n| ("PUT", path.clone(), same(), of_writer(n + 99, size))).await;
        let there = s3.get(&path).await;
        assert_eq!(there.body, of_writer(winner + 99, size));

        let same = || vec![("if-match", there.header("etag").to_owned())];
        race(s3, "DELETE If-Match", &[412, 409, 404], |_| ("DELETE", path.clone(), same(), Bytes::new())).await;
        assert_eq!(s3.get(&path).await.status, StatusCode::NOT_FOUND);

        let from = |n| [none(), vec![("x-amz-copy-source", format!("/bkt/source-{n}"))]].concat();
        let winner = race(s3, "copy If-None-Match", &NO, |n| ("PUT", path.clone(), from(n), Bytes::new())).await;
        assert_eq!(s3.get(&path).await.body, of_writer(winner, 100));

        if round % 4 == 0 {
            completions(s3, &format!("/bkt/parts-{round}"), size).await;
        }
    }
    println!("{rounds} times {WRITERS} writers of each kind, and each time one was told yes");
}

/// Everyone has an upload of their own for one key.
async fn completions(s3: &S3, path: &str, size: usize) {
    let mut uploads = Vec::new();
    for n in 0..WRITERS {
        let text = s3.call("POST", &format!("{path}?uploads"), &[], "").await.text();
        let id = between(&text, "<UploadId>", "<").unwrap().to_owned();
        let part = s3.put(&format!("{path}?partNumber=1&uploadId={id}"), of_writer(n, size)).await;
        let etag = part.header("etag").to_owned();
        let body = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        uploads.push((format!("{path}?uploadId={id}"), Bytes::from(body)));
    }
    let winner = race(s3, "complete If-None-Match", &[412, 409], |n| {
        let (path, body) = uploads[n].clone();
        ("POST", path, vec![("if-none-match", "*".to_owned())], body)
    })
    .await;
    let there = s3.get(path).await;
    assert_eq!(there.body, of_writer(winner, size));
    for (n, (upload, body)) in uploads.into_iter().enumerate() {
        // The winner's can be asked again; those of the others are still uploads, and can be given up.
        if n == winner {
            let again = s3.call("POST", &upload, &[], body).await;
            assert_eq!(again.status, StatusCode::OK, "{}", again.text());
        } else {
            assert_eq!(s3.call("DELETE", &upload, &[], "").await.status, StatusCode::NO_CONTENT);
        }
    }
}

/// What the writers of one key wrote, by what the answer says of it.
const SIZES: [usize; 4] = [900, 16_000, 40_000, 700_000];

async fn overwrite(s3: &S3, path: &str, n: u64) {
    let size = SIZES[n as usize % 4];
    let meta = [("x-amz-meta-n", n.to_string())];
    let meta: Vec<(&str, &str)> = meta.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let bytes = content(n, size);
    if n % 8 < 6 {
        let answer = s3.call("PUT", path, &meta, bytes).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        return;
    }
    in_parts(s3, path, &meta, [bytes]).await;
}

async fn in_parts(s3: &S3, path: &str, meta: &[(&str, &str)], parts: impl IntoIterator<Item = Bytes>) {
    let text = s3.call("POST", &format!("{path}?uploads"), meta, "").await.text();
    let id = between(&text, "<UploadId>", "<").unwrap().to_owned();
    let mut listed = String::new();
    for (n, part) in (1..).zip(parts) {
        let part = s3.put(&format!("{path}?partNumber={n}&uploadId={id}"), part).await;
        listed.push_str(&format!("<Part><PartNumber>{n}</PartNumber><ETag>{}</ETag></Part>", part.header("etag")));
    }
    let body = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    let answer = s3.call("POST", &format!("{path}?uploadId={id}"), &[], body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// Whether an answer is all of what its headers say it is.
fn untorn(answer: &Answer, range: Option<(usize, usize)>, known: &mut HashMap<String, String>) {
    let n: u64 = answer.header("x-amz-meta-n").parse().unwrap();
    let whole = content(n, SIZES[n as usize % 4]);
    let (begin, end) = range.map_or((0, whole.len()), |(begin, end)| (begin, whole.len().min(end + 1)));
    assert!(!answer.cut && answer.body == whole[begin..end], "object {n}, {range:?}: torn");
    if range.is_some() {
        assert_eq!(answer.header("content-range"), format!("bytes {begin}-{}/{}", end - 1, whole.len()));
    }
    let etag = answer.header("etag").to_owned();
    assert_eq!(*known.entry(n.to_string()).or_insert_with(|| etag.clone()), etag, "two ETags of one object");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_sees_two_objects_in_one() {
    let seed = seed();
    // Swept at once, so that a reader who comes late would find it.
    let world: World = world_with("").await;
    let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    assert_eq!(world.s3.put("/versions", "").await.status, StatusCode::OK);
    assert_eq!(world.s3.put("/versions?versioning", versioning).await.status, StatusCode::OK);
    let paths = ["/bkt/a", "/bkt/b", "/versions/a"];
    for path in paths {
        overwrite(&world.s3, path, 0).await;
    }
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let (s3, stop, reads, path) = (world.s3.clone(), stop.clone(), reads.clone(), paths[n % 3]);
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed.wrapping_add(n as u64));
                let mut known = HashMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let range = random.random_bool(0.5).then(|| {
                        let begin = random.random_range(0..900);
                        (begin, random.random_range(begin..800_000))
                    });
                    let header = range.map(|(begin, end)| format!("bytes={begin}-{end}")).unwrap_or_default();
                    let headers = if range.is_some() { vec![("range", header.as_str())] } else { Vec::new() };
                    let answer = s3.call("GET", path, &headers, "").await;
                    assert!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text());
                    untorn(&answer, range, &mut known);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let slow = tokio::spawn(slow_reader(world.s3.clone(), stop.clone()));
    let rounds = rounds(80, 1200) as u64;
    let writers: Vec<_> = paths
        .into_iter()
        .map(|path| {
            let s3 = world.s3.clone();
            tokio::spawn(async move {
                for n in 1..rounds {
                    overwrite(&s3, path, n).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    slow.await.unwrap();
    let reads = reads.load(Ordering::Relaxed);
    println!("{rounds} overwrites of each of {} keys, {reads} reads", paths.len());
    assert!(reads > 50, "{reads} reads");
}

/// Reads a large object in small bites while it is overwritten and swept under its hands.
async fn slow_reader(s3: S3, stop: Arc<AtomicBool>) {
    const SIZE: usize = 12 << 20;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let bytes = content(n, SIZE);
        if n % 2 == 0 {
            assert_eq!(s3.put("/bkt/large", bytes).await.status, StatusCode::OK);
        } else {
            // Its parts are opened one after the other, the last long after it has been overwritten.
            let parts = [bytes.slice(..5 << 20), bytes.slice(5 << 20..11 << 20), bytes.slice(11 << 20..)];
            in_parts(&s3, "/bkt/large", &[], parts).await;
        }
        let request = s3.signed("GET", "/bkt/large", &[], Bytes::new());
        let mut head = "GET /bkt/large HTTP/1.1\r\nconnection: close\r\n".to_owned();
        for (name, value) in request.headers() {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        let mut stream = TcpStream::connect(s3.address).await.unwrap();
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        let mut got = vec![0; 1 << 16];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(s3.put("/bkt/large", "small").await.status, StatusCode::OK);
        // The sweep comes by meanwhile.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.read_to_end(&mut got).await.unwrap();
        let at = got.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert!(got[at..] == content(n, SIZE)[..], "a slow reader of {n} got {} bytes", got.len() - at);
    }
}
