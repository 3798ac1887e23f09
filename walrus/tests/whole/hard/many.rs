//! A bucket of a million keys: a page, a prefix, and one object cost what they cost in a bucket of a thousand. Counted in
//! SQLite's own instructions, so that neither the machine nor what else it does is measured.

use http::StatusCode;
use mallee_store::{Store, params};

use super::server::rounds;
use crate::client::{S3, config};

/// Requests, and what must be in their answers for them to have done something.
const ASKED: [(&str, &str, &str); 10] = [
    ("GET", "?max-keys=100", "<Key>00/"),
    ("GET", "?max-keys=100&marker=25/", "<Key>25/"),
    ("GET", "?list-type=2&max-keys=100", "<KeyCount>100<"),
    ("GET", "?list-type=2&max-keys=100&start-after=25/", "<KeyCount>100<"),
    ("GET", "?list-type=2&delimiter=/", "<KeyCount>51<"),
    ("GET", "?delimiter=/&marker=20/", "<Prefix>49/</Prefix>"),
    ("GET", "?list-type=2&prefix=30/&delimiter=/&max-keys=10", "<KeyCount>10<"),
    ("GET", "?versions&max-keys=100", "<Key>00/"),
    ("GET", "?versions&delimiter=/", "<Prefix>49/</Prefix>"),
    ("HEAD", "/25/00000003", ""),
];

/// Puts `count` keys in 50 folders, each with an older version, as copies of one object's rows.
async fn seed(store: &Store, bucket: &str, count: i64) {
    let bucket = bucket.to_owned();
    store
        .write("seed a bucket", move |tx| {
            let id: i64 = tx.query_one("SELECT id FROM bucket WHERE name = ?1", params![bucket], |row| row.get(0))?;
            for table in ["object", "old_version"] {
                let mut columns =
                    tx.query("SELECT name FROM pragma_table_info(?1)", params![table], |row| row.get::<String>(0))?;
                columns.retain(|name| !["key", "content", "version"].contains(&name.as_str()));
                let columns = columns.join(", ");
                let sql = format!(
                    "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?2)
                     INSERT INTO {table} (key, content, version, {columns})
                     SELECT printf('%02d/%08d', n / (?2 / 50), n % (?2 / 50)), printf('%032x', n), printf('%020d', n), {columns}
                     FROM n, {table} WHERE bucket = ?1 AND key = 'pattern'"
                );
                assert_eq!(tx.execute(&sql, params![id, count])?, count as u64);
            }
            Ok::<_, mallee_store::Error>(())
        })
        .await
        .unwrap();
}

/// What each of the requests costs; the least of several, for reconcilers ask as well.
async fn costs(s3: &S3, store: &Store, bucket: &str) -> Vec<u64> {
    let mut costs = Vec::new();
    for (method, what, expected) in ASKED {
        let mut least = u64::MAX;
        for _ in 0..4 {
            let before = store.figures().steps;
            let answer = s3.call(method, &format!("/{bucket}{what}"), &[], "").await;
            least = least.min(store.figures().steps - before);
            assert_eq!(answer.status, StatusCode::OK, "{what}: {}", answer.text());
            assert!(answer.text().contains(expected), "{what}: {}", answer.text());
        }
        costs.push(least);
    }
    costs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_costs_the_same_whatever_the_bucket_holds() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("scrub_mib_per_second = 0\n{}", config(dir.path(), "127.0.0.1:0"));
    let running = mallee_walrus::start(toml::from_str(&text).unwrap()).await.unwrap();
    let s3 = S3::new(running.addresses[0]);
    let many = rounds(100_000, 1_000_000) as i64;
    for (bucket, count) in [("few", 1000), ("many", many)] {
        assert_eq!(s3.put(&format!("/{bucket}"), "").await.status, StatusCode::OK);
        let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        assert_eq!(s3.put(&format!("/{bucket}?versioning"), versioning).await.status, StatusCode::OK);
        for body in ["older", "newer"] {
            assert_eq!(s3.put(&format!("/{bucket}/pattern"), body).await.status, StatusCode::OK);
        }
        let begun = std::time::Instant::now();
        seed(&running.store, bucket, count).await;
        println!("{count} keys with two versions each: seeded in {:?}", begun.elapsed());
    }
    let (few, many) = (costs(&s3, &running.store, "few").await, costs(&s3, &running.store, "many").await);
    for ((method, what, _), (few, many)) in ASKED.into_iter().zip(few.into_iter().zip(many)) {
        println!("{method} {what}: {few} steps among 1,000 keys, {many} among many");
        assert!(few > 10, "{what}: nothing was counted");
        assert!(many <= few + few / 50, "{what}: {few} steps among 1,000 keys, {many} among many");
    }
}
