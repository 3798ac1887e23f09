//! Versions, locks, encryption and lifecycle, tried over HTTP against a walrus in this process.

use std::{path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::StatusCode;

use crate::client::{Answer, S3, between, parsed};

const DAY_MS: i64 = 24 * 3600 * 1000;
const ENABLED: &str = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
const SUSPENDED: &str = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";

async fn walrus() -> (tempfile::TempDir, mallee_walrus::Running, S3) {
    let dir = tempfile::tempdir().unwrap();
    let running = mallee_walrus::start(parsed(dir.path())).await.unwrap();
    let s3 = S3::new(running.addresses[0]);
    assert_eq!(s3.put("/bkt", "").await.status, StatusCode::OK);
    (dir, running, s3)
}

fn version(answer: &Answer) -> String {
    answer.header("x-amz-version-id").to_owned()
}

/// Everything ListObjectVersions shows, as `id` or `id*` for what is latest, markers in brackets; in pages of `most`.
async fn listed(s3: &S3, most: usize) -> Vec<String> {
    let (mut shown, mut from) = (Vec::new(), String::new());
    loop {
        let page = s3.get(&format!("/bkt?versions&max-keys={most}{from}")).await.text();
        for (element, marker) in [("<Version>", false), ("<DeleteMarker>", true)] {
            for entry in page.split(element).skip(1) {
                let id = between(entry, "<VersionId>", "<").unwrap();
                let latest = if between(entry, "<IsLatest>", "<") == Some("true") { "*" } else { "" };
                shown.push(if marker { format!("[{id}]{latest}") } else { format!("{id}{latest}") });
            }
        }
        if between(&page, "<IsTruncated>", "<") != Some("true") {
            shown.sort();
            return shown;
        }
        let (key, id) =
            (between(&page, "<NextKeyMarker>", "<").unwrap(), between(&page, "<NextVersionIdMarker>", "<").unwrap());
        from = format!("&key-marker={key}&version-id-marker={id}");
    }
}

fn sorted(mut shown: Vec<String>) -> Vec<String> {
    shown.sort();
    shown
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let folders = std::fs::read_dir(dir.join("blobs")).unwrap();
    folders.flat_map(|f| std::fs::read_dir(f.unwrap().path()).unwrap()).map(|f| f.unwrap().path()).collect()
}

async fn files_become(dir: &Path, count: usize) {
    for _ in 0..300 {
        if files(dir).len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(files(dir).len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_stays_until_it_is_destroyed_by_name() {
    let (dir, _running, s3) = walrus().await;
    let body = |n: u8| Bytes::from(vec![n; 30_000]);
    s3.put("/bkt/k", body(0)).await;
    assert_eq!(s3.put("/bkt?versioning", ENABLED).await.status, StatusCode::OK);
    let one = version(&s3.put("/bkt/k", body(1)).await);
    let two = version(&s3.put("/bkt/k", body(2)).await);
    assert!(two < one, "newer ids sort first");
    for (id, n) in [("null", 0), (&one, 1), (&two, 2)] {
        assert_eq!(s3.get(&format!("/bkt/k?versionId={id}")).await.body, body(n));
    }
    let deleted = s3.call("DELETE", "/bkt/k", &[], "").await;
    assert_eq!(deleted.header("x-amz-delete-marker"), "true");
    let marker = version(&deleted);
    let hidden = s3.get("/bkt/k").await;
    assert_eq!((hidden.code().as_str(), hidden.header("x-amz-version-id")), ("NoSuchKey", marker.as_str()));
    let itself = s3.get(&format!("/bkt/k?versionId={marker}")).await;
    assert_eq!((itself.status.as_u16(), itself.header("x-amz-delete-marker")), (405, "true"));
    assert_eq!(between(&s3.get("/bkt?list-type=2").await.text(), "<KeyCount>", "<"), Some("0"));
    for most in 1..=5 {
        let all = vec!["null".into(), one.clone(), two.clone(), format!("[{marker}]*")];
        assert_eq!(listed(&s3, most).await, sorted(all), "{most}");
    }
    // The newest that is left is what the key shows.
    s3.call("DELETE", &format!("/bkt/k?versionId={two}"), &[], "").await;
    assert_eq!(s3.get("/bkt/k").await.status, StatusCode::NOT_FOUND);
    s3.call("DELETE", &format!("/bkt/k?versionId={marker}"), &[], "").await;
    assert_eq!(s3.get("/bkt/k").await.body, body(1));
    assert_eq!(listed(&s3, 9).await, sorted(vec!["null".into(), format!("{one}*")]));
    files_become(dir.path(), 2).await;
    assert_eq!(s3.call("DELETE", "/bkt", &[], "").await.code(), "BucketNotEmpty");
    for id in ["null", &one, &one] {
        assert_eq!(s3.call("DELETE", &format!("/bkt/k?versionId={id}"), &[], "").await.status, StatusCode::NO_CONTENT);
    }
    files_become(dir.path(), 0).await;
    assert_eq!(s3.call("DELETE", "/bkt", &[], "").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_bucket_has_one_null_version_a_key() {
    let (dir, _running, s3) = walrus().await;
    let body = |n: u8| Bytes::from(vec![n; 30_000]);
    s3.put("/bkt/k", body(0)).await;
    s3.put("/bkt?versioning", ENABLED).await;
    let one = version(&s3.put("/bkt/k", body(1)).await);
    s3.put("/bkt?versioning", SUSPENDED).await;
    assert_eq!(version(&s3.put("/bkt/k", body(2)).await), "", "nothing new that could be named");
    assert_eq!(listed(&s3, 1).await, sorted(vec!["null*".into(), one.clone()]));
    files_become(dir.path(), 2).await;
    // Bringing back the null version by a copy of itself must not lose its bytes.
    s3.put("/bkt?versioning", ENABLED).await;
    let three = version(&s3.put("/bkt/k", body(3)).await);
    s3.put("/bkt?versioning", SUSPENDED).await;
    let copied = s3.call("PUT", "/bkt/k", &[("x-amz-copy-source", "/bkt/k?versionId=null")], "").await;
    assert_eq!((copied.status, copied.header("x-amz-copy-source-version-id")), (StatusCode::OK, "null"));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(s3.get("/bkt/k").await.body, body(2));
    assert_eq!(version(&s3.call("DELETE", "/bkt/k", &[], "").await), "null");
    assert_eq!(listed(&s3, 9).await, sorted(vec!["[null]*".into(), one.clone(), three.clone()]));
    assert_eq!(version(&s3.call("DELETE", "/bkt/k", &[], "").await), "null");
    assert_eq!(listed(&s3, 9).await, sorted(vec!["[null]*".into(), one, three]));
    files_become(dir.path(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_conditional_writers_one_wins_in_a_versioned_bucket_too() {
    let (_dir, _running, s3) = walrus().await;
    s3.put("/bkt?versioning", ENABLED).await;
    for round in 0..3 {
        let path = format!("/bkt/race-{round}");
        if round == 1 {
            s3.put(&path, "gone").await;
            s3.call("DELETE", &path, &[], "").await;
        }
        let tasks: Vec<_> = (0..16_u8)
            .map(|n| {
                let (s3, path) = (s3.clone(), path.clone());
                tokio::spawn(async move { s3.call("PUT", &path, &[("if-none-match", "*")], vec![n; 50]).await.status })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            won += usize::from(task.await.unwrap() == StatusCode::OK);
        }
        assert_eq!(won, 1);
        // Of as many compare-and-swaps, one too.
        let etag = s3.get(&path).await.header("etag").to_owned();
        let tasks: Vec<_> = (0..16_u8)
            .map(|n| {
                let (s3, path, etag) = (s3.clone(), path.clone(), etag.clone());
                tokio::spawn(
                    async move { s3.call("PUT", &path, &[("if-match", &etag)], vec![100 + n; 50]).await.status },
                )
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            won += usize::from(task.await.unwrap() == StatusCode::OK);
        }
        assert_eq!(won, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_locked_can_be_hidden_but_not_destroyed() {
    let (_dir, running, s3) = walrus().await;
    let made = s3.call("PUT", "/locked", &[("x-amz-bucket-object-lock-enabled", "true")], "").await;
    assert_eq!(made.status, StatusCode::OK);
    let until = "2100-01-01T00:00:00Z";
    let headers = [("x-amz-object-lock-mode", "COMPLIANCE"), ("x-amz-object-lock-retain-until-date", until)];
    let put = s3.call("PUT", "/locked/k", &headers, "kept").await;
    let path = format!("/locked/k?versionId={}", version(&put));
    let head = s3.call("HEAD", "/locked/k", &[], "").await;
    assert_eq!(head.header("x-amz-object-lock-mode"), "COMPLIANCE");
    assert_eq!(
        s3.call("DELETE", &path, &[("x-amz-bypass-governance-retention", "true")], "").await.code(),
        "AccessDenied"
    );
    assert_eq!(s3.put("/locked?versioning", SUSPENDED).await.code(), "InvalidBucketState");
    assert_eq!(s3.call("DELETE", "/locked/k", &[], "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(s3.get(&path).await.body, "kept");
    // Nor does a lifecycle destroy it.
    let rule = "<LifecycleConfiguration><Rule><Filter/><Status>Enabled</Status><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>";
    assert_eq!(s3.put("/locked?lifecycle", rule).await.status, StatusCode::OK);
    let now = time::OffsetDateTime::now_utc().unix_timestamp() * 1000;
    assert_eq!(running.lifecycle.apply(now + 10 * DAY_MS).await.unwrap(), 0);
    assert_eq!(s3.get(&path).await.body, "kept");
    let held = s3.put("/locked/h", "held").await;
    let path = format!("/locked/h?versionId={}", version(&held));
    let hold = format!("{path}&legal-hold");
    assert_eq!(s3.put(&hold, "<LegalHold><Status>ON</Status></LegalHold>").await.status, StatusCode::OK);
    assert_eq!(s3.call("DELETE", &path, &[], "").await.code(), "AccessDenied");
    s3.put(&hold, "<LegalHold><Status>OFF</Status></LegalHold>").await;
    assert_eq!(s3.call("DELETE", &path, &[], "").await.status, StatusCode::NO_CONTENT);
}

/// Whether the text stands in any file under the folder, also in those of the store.
fn found_on_disk(dir: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return found_on_disk(&path, text);
        }
        std::fs::read(&path).unwrap_or_default().windows(text.len()).any(|window| window == text)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_bytes_are_nowhere_on_the_disk_as_they_were() {
    let (dir, _running, s3) = walrus().await;
    let key = STANDARD.encode([7_u8; 32]);
    let md5 = STANDARD.encode(openssl::hash::hash(openssl::hash::MessageDigest::md5(), &[7; 32]).unwrap());
    let customer = [
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-server-side-encryption-customer-key", key.as_str()),
        ("x-amz-server-side-encryption-customer-key-md5", md5.as_str()),
    ];
    let own = [("x-amz-server-side-encryption", "AES256")];
    let marker = b"a marker that must not be found in any file ";
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let table: [(&str, usize, Headers, Headers); 4] = [
        ("small", 3, &own, &[]),
        ("large", 20_000, &own, &[]),
        ("customers-small", 3, &customer, &customer),
        ("customers-large", 20_000, &customer, &customer),
    ];
    for (name, times, put, get) in table {
        let (path, body) = (format!("/bkt/{name}"), Bytes::from(marker.repeat(times)));
        let answer = s3.call("PUT", &path, put, body.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(s3.call("GET", &path, get, "").await.body, body);
        let (begin, end) = (body.len() / 2, body.len() - 7);
        let range = format!("bytes={begin}-{end}");
        let headers = [get, &[("range", range.as_str())]].concat();
        assert_eq!(s3.call("GET", &path, &headers, "").await.body, body.slice(begin..=end));
        if !get.is_empty() {
            assert_eq!(s3.get(&path).await.code(), "InvalidRequest");
            assert_eq!(s3.call("HEAD", &path, &[], "").await.status, StatusCode::BAD_REQUEST);
        }
    }
    assert!(!found_on_disk(dir.path(), marker));
    assert!(!found_on_disk(dir.path(), &[7; 32]) && !found_on_disk(dir.path(), key.as_bytes()));
    s3.put("/bkt/plain", Bytes::from(marker.repeat(20_000))).await;
    assert!(found_on_disk(dir.path(), marker), "the search finds what there is");
    // Without its key file the store is not opened, and says so.
    std::fs::remove_file(dir.path().join("master.key")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lifecycle_ends_what_is_due_and_nothing_else() {
    let (_dir, running, s3) = walrus().await;
    let rules = "<LifecycleConfiguration>
        <Rule><ID>tmp</ID><Filter><Prefix>tmp/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>2</Days></Expiration></Rule>
        <Rule><ID>old</ID><Filter/><Status>Enabled</Status>
          <Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>
          <NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays><NewerNoncurrentVersions>1</NewerNoncurrentVersions></NoncurrentVersionExpiration>
          <AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
        </LifecycleConfiguration>";
    assert_eq!(s3.put("/bkt?lifecycle", rules).await.status, StatusCode::OK);
    let now = time::OffsetDateTime::now_utc().unix_timestamp() * 1000;
    s3.put("/bkt/tmp/a", "a").await;
    s3.put("/bkt/keep", "k").await;
    assert!(s3.get("/bkt/tmp/a").await.header("x-amz-expiration").contains("rule-id=\"tmp\""));
    assert_eq!(s3.get("/bkt/keep").await.header("x-amz-expiration"), "");
    s3.call("POST", "/bkt/up?uploads", &[], "").await;
    assert_eq!(running.lifecycle.apply(now).await.unwrap(), 0);
    assert_eq!(running.lifecycle.apply(now + 4 * DAY_MS).await.unwrap(), 2);
    assert_eq!((s3.get("/bkt/tmp/a").await.status.as_u16(), s3.get("/bkt/keep").await.status.as_u16()), (404, 200));
    assert!(!s3.get("/bkt?uploads").await.text().contains("<Upload>"));
    s3.put("/bkt?versioning", ENABLED).await;
    for n in 0..4 {
        s3.put("/bkt/tmp/v", format!("{n}")).await;
    }
    // It is hidden, and of its four versions the newest stays.
    assert_eq!(running.lifecycle.apply(now + 4 * DAY_MS).await.unwrap(), 1 + 3);
    let left = listed(&s3, 9).await;
    assert_eq!(left.iter().filter(|id| id.starts_with('[')).count(), 1, "{left:?}");
    // A version and the marker of tmp/v, and keep.
    assert_eq!(left.len(), 3, "{left:?}");
    for id in left.iter().filter(|id| !id.starts_with('[') && !id.ends_with('*')) {
        s3.call("DELETE", &format!("/bkt/tmp/v?versionId={id}"), &[], "").await;
    }
    // A marker that hides nothing goes.
    assert_eq!(running.lifecycle.apply(now).await.unwrap(), 1);
    assert_eq!(listed(&s3, 9).await, ["null*"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrubber_names_what_is_damaged() {
    let (dir, running, s3) = walrus().await;
    s3.put("/bkt?versioning", ENABLED).await;
    let old = version(&s3.put("/bkt/k", vec![1; 300_000]).await);
    let path = files(dir.path()).pop().unwrap();
    s3.put("/bkt/k", vec![2; 300_000]).await;
    s3.call("PUT", "/bkt/sealed", &[("x-amz-server-side-encryption", "AES256")], vec![3; 300_000]).await;
    let faults = async || {
        let (operator, asked) = (mallee_tiers::Peer::operator(), mallee_tiers::StatusAsked::default());
        mallee_tiers::Walrus::status(&*running.walrus, &operator, asked).await.unwrap().faults
    };
    for _ in 0..8 {
        running.scrub.some().await.unwrap();
    }
    assert!(faults().await.is_empty());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[270_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    for _ in 0..8 {
        running.scrub.some().await.unwrap();
    }
    let found = faults().await;
    let [fault] = &found[..] else { panic!("{found:?}") };
    assert!(fault.what.contains(&format!("/bkt/k?versionId={old}")), "{}", fault.what);
    s3.call("DELETE", &format!("/bkt/k?versionId={old}"), &[], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_does_not_visit_old_versions() {
    let (_dir, _running, s3) = walrus().await;
    s3.put("/bkt?versioning", ENABLED).await;
    for n in 0..40 {
        s3.put(&format!("/bkt/hidden-{n:02}"), "x").await;
        s3.call("DELETE", &format!("/bkt/hidden-{n:02}"), &[], "").await;
    }
    s3.put("/bkt/shown", "x").await;
    let page = s3.get("/bkt?list-type=2&max-keys=1").await.text();
    assert_eq!(between(&page, "<Key>", "<"), Some("shown"));
    assert_eq!(between(&page, "<IsTruncated>", "<"), Some("false"));
}
