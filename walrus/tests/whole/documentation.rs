//! `docs/s3.md` is written from the table of operations.

use std::{fmt::Write, path::Path};

use mallee_walrus::operation::{By, Does, OPERATIONS, On, Operation};

fn asked(row: &Operation) -> String {
    let path = match row.on {
        On::Service => "/",
        On::Bucket => "/BUCKET",
        On::Object => "/BUCKET/KEY",
    };
    let how = match row.by {
        By::Nothing => String::new(),
        By::Query(name) => format!("?{name}"),
        By::Value(name, value) => format!("?{name}={value}"),
        By::QueryAndHeader(name, header) => format!("?{name}` with `{header}"),
        By::QueryAndId(name) => format!("?{name}&id=ID"),
        By::Header(name) => format!("` with `{name}"),
        By::Form => "` with a form".to_owned(),
    };
    let text = format!("`{} {path}{how}", row.method);
    if how.ends_with("form") { text } else { format!("{text}`") }
}

fn said(row: &Operation) -> String {
    match row.does {
        Does::This(_) => "done".to_owned(),
        Does::Refused => "refused: `NotImplemented`".to_owned(),
        Does::Absent { code, .. } => format!("there is never one: `{code}`"),
        Does::Document { .. } => "there is never one: an empty document".to_owned(),
        Does::NothingThere => "there is never one: nothing is taken away".to_owned(),
    }
}

fn page() -> String {
    let mut page = String::from(
        "# S3, operation by operation\n\n\
         Written from the table in `walrus/src/operation.rs`, which is the router: what is not here is not done. A test keeps\n\
         this page true; `MALLEE_WRITE_DOCS=1 cargo test -p mallee-walrus --test whole documentation` writes it.\n\n\
         What walrus does not do, it refuses by name. Where clients read a configuration that cannot be set here, they get\n\
         what AWS says where none was set. `OPTIONS` on any address is a CORS preflight.\n",
    );
    let done = OPERATIONS.iter().filter(|row| matches!(row.does, Does::This(_))).count();
    let _ = writeln!(page, "\n{done} of {} operations are done.", OPERATIONS.len());
    for (title, on) in [("The service", On::Service), ("Buckets", On::Bucket), ("Objects", On::Object)] {
        let _ = writeln!(page, "\n## {title}\n\n| operation | request | |\n|---|---|---|");
        let mut rows: Vec<_> = OPERATIONS.iter().filter(|row| row.on == on).collect();
        rows.sort_by_key(|row| (!matches!(row.does, Does::This(_)), row.name));
        for row in rows {
            let _ = writeln!(page, "| {} | {} | {} |", row.name, asked(row), said(row));
        }
    }
    page.push_str(EXTENSIONS);
    page
}

/// What is Mallee's own about them.
const EXTENSIONS: &str = "
## Where walrus differs

- **Notifications** go to webhooks. The operator names them in walrus' configuration (`webhooks = { audit = \"https://…\" }`);
  clients write `arn:mallee:webhook:::audit` where they would write the ARN of a topic or a queue. Events are POSTed as the
  JSON that S3 would send, at least once, for seven days. Real topics, queues, functions and EventBridge are refused.
- **Websites** answer under `BUCKET.SUFFIX` for each of `website_suffixes`.
- **Access logs** are delivered every five minutes (`log_delivery_ms`) into a bucket of the same owner that lets the log
  delivery group, or `logging.s3.amazonaws.com`, write. A line is kept before the answer goes out, so a crash loses none.
- **New buckets** have access control lists in force and no public access block, as S3 had before 2023: old clients rely on
  them. `x-amz-object-ownership` and the usual operations change that.
- **Policies** may only use condition keys that requests have here: a denial by a key nobody sets would have no effect.
- **CORS** answers never carry `Access-Control-Allow-Credentials`.
- **SSE-KMS** is refused; SSE-S3 and SSE-C are done.
";

/// `MALLEE_WRITE_DOCS=1` writes it.
#[test]
fn s3_md_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/s3.md");
    let page = page();
    if std::env::var_os("MALLEE_WRITE_DOCS").is_some() {
        std::fs::write(&path, page).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/s3.md is not what the table says: MALLEE_WRITE_DOCS=1 cargo test -p mallee-walrus --test whole documentation"
    );
}
