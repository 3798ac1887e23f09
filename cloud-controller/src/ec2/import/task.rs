//! Import tasks: their rows, and how EC2 asks for them and shows them.

use mallee_aws::{AwsError, id::SnapshotId};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use super::disk::Format;
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, client_token,
        instance::{unword, word},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![
    CancelImportTask => cancel,
    DescribeImportImageTasks => describe_images,
    DescribeImportSnapshotTasks => describe_snapshots,
    ImportImage => import_image,
    ImportSnapshot => import_snapshot,
];

pub const TABLES: &str = "
CREATE TABLE import_task (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    description TEXT NOT NULL,
    format TEXT NOT NULL,
    location TEXT NOT NULL,
    architecture TEXT NOT NULL,
    created BIGINT NOT NULL,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    progress BIGINT NOT NULL,
    size BIGINT NOT NULL,
    snapshot TEXT NOT NULL,
    image TEXT
);
CREATE INDEX import_task_of ON import_task (account, id);
CREATE INDEX import_task_state ON import_task (state);
";

pub const SNAPSHOT_PREFIX: &str = "import-snap-";
pub const IMAGE_PREFIX: &str = "import-ami-";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Active,
    Completed,
    /// Cancelled, or failed: the message says which.
    Deleted,
}

/// A task as its row is.
#[derive(Debug, Clone)]
pub struct Task {
    /// `import-snap-…`, `import-ami-…`.
    pub id: String,
    pub account: String,
    pub description: String,
    pub format: Format,
    /// `bucket/key`.
    pub location: String,
    pub architecture: String,
    pub created: i64,
    pub state: State,
    pub message: String,
    pub progress: u32,
    /// Bytes of the object.
    pub size: u64,
    /// The one it makes.
    pub snapshot: SnapshotId,
    pub image: Option<String>,
}

impl Task {
    pub fn is_of_image(&self) -> bool {
        self.id.starts_with(IMAGE_PREFIX)
    }
}

const COLUMNS: &str = "id, account, description, format, location, architecture, created, state, message, progress, size, \
     snapshot, image";

fn read(row: &Row<'_>) -> Result<Task, StoreError> {
    Ok(Task {
        id: row.get(0)?,
        account: row.get(1)?,
        description: row.get(2)?,
        format: unword(row.get(3)?)?,
        location: row.get(4)?,
        architecture: row.get(5)?,
        created: row.get(6)?,
        state: unword(row.get(7)?)?,
        message: row.get(8)?,
        progress: row.get(9)?,
        size: row.get(10)?,
        snapshot: row.get::<Id<_>>(11)?.0,
        image: row.get(12)?,
    })
}

fn insert(tx: &mut Tx<'_>, t: &Task) -> Result<(), StoreError> {
    tx.execute(
        &format!("INSERT INTO import_task ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"),
        params![
            t.id,
            t.account,
            t.description,
            word(t.format),
            t.location,
            t.architecture,
            t.created,
            word(t.state),
            t.message,
            t.progress,
            t.size,
            t.snapshot.as_str(),
            t.image,
        ],
    )
    .map(|_| ())
}

pub fn active(tx: &mut Tx<'_>) -> Result<Vec<Task>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM import_task WHERE state = 'active' ORDER BY created, id");
    tx.query(&sql, params![], read)
}

pub fn any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Task>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM import_task WHERE id = ?1"), params![id], read)
}

fn of_account(tx: &mut Tx<'_>, account: &str, prefix: &str) -> Result<Vec<Task>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM import_task WHERE account = ?1 ORDER BY id");
    Ok(tx.query(&sql, params![account], read)?.into_iter().filter(|t| t.id.starts_with(prefix)).collect())
}

/// How far it is; False: nobody wants it any more.
pub fn set_progress(tx: &mut Tx<'_>, id: &str, progress: u32, size: u64, message: &str) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE import_task SET progress = ?2, size = CASE WHEN ?3 = 0 THEN size ELSE ?3 END, message = ?4
         WHERE id = ?1 AND state = 'active'",
        params![id, progress, size, message],
    )?;
    Ok(changed > 0)
}

pub fn set_ended(tx: &mut Tx<'_>, id: &str, state: State, message: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE import_task SET state = ?2, message = ?3 WHERE id = ?1 AND state = 'active'",
        params![id, word(state), message],
    )
    .map(|_| ())
}

pub fn set_image(tx: &mut Tx<'_>, id: &str, image: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE import_task SET image = ?2 WHERE id = ?1", params![id, image]).map(|_| ())
}

/// `DiskContainer`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DiskContainer {
    description: Option<String>,
    format: Option<String>,
    url: Option<String>,
    user_bucket: Option<UserBucket>,
    device_name: Option<Unsupported>,
    snapshot_id: Option<Unsupported>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UserBucket {
    #[serde(rename = "S3Bucket")]
    s3_bucket: String,
    #[serde(rename = "S3Key")]
    s3_key: String,
}

/// Where the bytes are, and what they are: both as the request says it.
fn source(container: &DiskContainer) -> Outcome<(Format, String)> {
    unsupported::refuse(&[
        ("DiskContainer.DeviceName", container.device_name),
        ("DiskContainer.SnapshotId", container.snapshot_id),
    ])?;
    let name = container.format.as_deref().ok_or_else(|| AwsError::missing_parameter("DiskContainer.Format"))?;
    let format = Format::named(name).ok_or_else(|| {
        AwsError::unsupported(format!(
            "The disk format {name} is not supported by this cloud: it can be RAW, QCOW2 or VMDK"
        ))
    })?;
    let location = match (&container.user_bucket, container.url.as_deref()) {
        (Some(bucket), None) => format!("{}/{}", bucket.s3_bucket, bucket.s3_key),
        // Nothing is fetched from anywhere but this cloud's own walrus.
        (None, Some(url)) => url
            .strip_prefix("s3://")
            .map(Into::into)
            .ok_or_else(|| AwsError::invalid_parameter_value(format!("The URL {url} is not s3://BUCKET/KEY")))?,
        _ => return Err(AwsError::invalid_parameter_combination("A disk is a UserBucket or a Url").into()),
    };
    Ok((format, location))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImportSnapshot {
    dry_run: Option<bool>,
    client_token: Option<String>,
    description: Option<String>,
    disk_container: DiskContainer,
    encrypted: Option<bool>,
    kms_key_id: Option<Unsupported>,
    /// AWS reads the object in this role; here it is read as the caller may read it.
    #[allow(dead_code)]
    role_name: Option<String>,
    client_data: Option<Unsupported>,
    tag_specification: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotTask {
    import_task_id: String,
    description: String,
    snapshot_task_detail: Detail,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    description: String,
    disk_image_size: f64,
    format: &'static str,
    progress: Option<String>,
    status: &'static str,
    status_message: Option<String>,
    snapshot_id: Option<String>,
    user_bucket: ShownBucket,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownBucket {
    #[serde(rename = "s3Bucket")]
    s3_bucket: String,
    #[serde(rename = "s3Key")]
    s3_key: String,
}

fn status(task: &Task) -> &'static str {
    match task.state {
        State::Active => "active",
        State::Completed => "completed",
        State::Deleted => "deleted",
    }
}

fn detail(task: &Task) -> Detail {
    let (bucket, key) = task.location.split_once('/').unwrap_or((&task.location, ""));
    Detail {
        description: task.description.clone(),
        disk_image_size: task.size as f64,
        format: task.format.shown(),
        progress: (task.state == State::Active).then(|| task.progress.to_string()),
        status: status(task),
        status_message: Some(task.message.clone()).filter(|m| !m.is_empty()),
        snapshot_id: (task.state == State::Completed).then(|| task.snapshot.to_string()),
        user_bucket: ShownBucket { s3_bucket: bucket.to_owned(), s3_key: key.to_owned() },
    }
}

fn snapshot_task(task: &Task) -> SnapshotTask {
    SnapshotTask {
        import_task_id: task.id.clone(),
        description: task.description.clone(),
        snapshot_task_detail: detail(task),
    }
}

/// Writes a task, or finds the one that this client token made.
async fn begin(call: &Call, task: Task, token: Option<&str>, dry_run: Option<bool>) -> Outcome<Task> {
    let token = client_token::Given::of(call, token)?;
    let task = call
        .cloud
        .store
        .write("begin an import", move |tx| {
            let made = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            if let Some(id) = made {
                return any(tx, &id)?.ok_or_else(|| not_found(&id));
            }
            insert(tx, &task)?;
            unless_dry_run(dry_run)?;
            if let Some(token) = &token {
                token.remember(tx, &task.id)?;
            }
            Ok::<_, Refusal>(task.clone())
        })
        .await?;
    call.cloud.pokes.imports.poke();
    Ok(task)
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidConversionTaskId", format!("The task ID '{id}' does not exist"))
}

fn new(call: &Call, prefix: &str, (format, location): (Format, String), description: Option<&str>) -> Task {
    let random: [u8; 9] = rand::random();
    // The digits of any other id, behind a prefix of its own.
    let digits = SnapshotId::from_random(random);
    Task {
        id: format!("{prefix}{}", digits.as_str().trim_start_matches(SnapshotId::PREFIX)),
        account: call.account().to_owned(),
        description: description.unwrap_or_default().to_owned(),
        format,
        location,
        architecture: "x86_64".into(),
        created: call.now,
        state: State::Active,
        message: "pending".into(),
        progress: 0,
        size: 0,
        snapshot: SnapshotId::from_random(rand::random()),
        image: None,
    }
}

async fn import_snapshot(call: &Call, input: ImportSnapshot) -> Outcome<SnapshotTask> {
    unsupported::refuse(&[
        ("ClientData", input.client_data),
        ("KmsKeyId", input.kms_key_id),
        ("TagSpecification", input.tag_specification),
    ])?;
    unsupported::refuse_set("Encrypted", input.encrypted)?;
    let description = input.description.or(input.disk_container.description.clone());
    let task = new(call, SNAPSHOT_PREFIX, source(&input.disk_container)?, description.as_deref());
    let task = begin(call, task, input.client_token.as_deref(), input.dry_run).await?;
    Ok(snapshot_task(&task))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImportImage {
    dry_run: Option<bool>,
    architecture: Option<String>,
    client_token: Option<String>,
    description: Option<String>,
    #[serde(default)]
    disk_container: Vec<DiskContainer>,
    encrypted: Option<bool>,
    #[allow(dead_code)]
    role_name: Option<String>,
    platform: Option<String>,
    hypervisor: Option<Unsupported>,
    kms_key_id: Option<Unsupported>,
    license_type: Option<Unsupported>,
    license_specifications: Option<Unsupported>,
    client_data: Option<Unsupported>,
    tag_specification: Option<Unsupported>,
    usage_operation: Option<Unsupported>,
    boot_mode: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageTask {
    import_task_id: String,
    architecture: String,
    description: String,
    image_id: Option<String>,
    platform: &'static str,
    progress: Option<String>,
    status: &'static str,
    status_message: Option<String>,
    snapshot_detail_set: [SnapshotDetail; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotDetail {
    device_name: &'static str,
    #[serde(flatten)]
    detail: Detail,
}

/// The device of an imported image's root.
pub const ROOT_DEVICE: &str = "/dev/sda1";

fn image_task(task: &Task) -> ImageTask {
    ImageTask {
        import_task_id: task.id.clone(),
        architecture: task.architecture.clone(),
        description: task.description.clone(),
        image_id: task.image.clone(),
        platform: "Linux",
        progress: (task.state == State::Active).then(|| task.progress.to_string()),
        status: status(task),
        status_message: Some(task.message.clone()).filter(|m| !m.is_empty()),
        snapshot_detail_set: [SnapshotDetail { device_name: ROOT_DEVICE, detail: detail(task) }],
    }
}

async fn import_image(call: &Call, input: ImportImage) -> Outcome<ImageTask> {
    unsupported::refuse(&[
        ("BootMode", input.boot_mode),
        ("ClientData", input.client_data),
        ("Hypervisor", input.hypervisor),
        ("KmsKeyId", input.kms_key_id),
        ("LicenseSpecifications", input.license_specifications),
        ("LicenseType", input.license_type),
        ("TagSpecification", input.tag_specification),
        ("UsageOperation", input.usage_operation),
    ])?;
    unsupported::refuse_set("Encrypted", input.encrypted)?;
    let architecture = input.architecture.unwrap_or_else(|| "x86_64".into());
    for (name, sent, fits) in
        [("Platform", input.platform.as_deref().unwrap_or("Linux"), "Linux"), ("Architecture", &architecture, "x86_64")]
    {
        if sent != fits {
            return Err(AwsError::unsupported(format!(
                "{name}={sent} is not supported by this cloud; it can be {fits}"
            ))
            .into());
        }
    }
    let [container] = input.disk_container.as_slice() else {
        return Err(AwsError::unsupported(
            "An image is imported of one disk: import the others as snapshots, and register an image on all of them",
        )
        .into());
    };
    let description = input.description.or(container.description.clone());
    let task = Task { architecture, ..new(call, IMAGE_PREFIX, source(container)?, description.as_deref()) };
    let task = begin(call, task, input.client_token.as_deref(), input.dry_run).await?;
    Ok(image_task(&task))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeImportTasks {
    dry_run: Option<bool>,
    #[serde(default)]
    import_task_id: Vec<String>,
    #[serde(rename = "Filters")]
    filters: Option<Unsupported>,
    max_results: Option<Unsupported>,
    next_token: Option<Unsupported>,
}

type DescribeImportSnapshotTasks = DescribeImportTasks;
type DescribeImportImageTasks = DescribeImportTasks;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedSnapshotTasks {
    import_snapshot_task_set: Vec<SnapshotTask>,
}

/// The account's tasks of a kind, or those named.
async fn tasks(call: &Call, prefix: &'static str, input: DescribeImportTasks) -> Outcome<Vec<Task>> {
    unsupported::refuse(&[
        ("Filters", input.filters),
        ("MaxResults", input.max_results),
        ("NextToken", input.next_token),
    ])?;
    let ids = input.import_task_id;
    let account = call.account().to_owned();
    let mut all = call
        .cloud
        .store
        .read("describe import tasks", move |tx| of_account(tx, &account, prefix))
        .await
        .map_err(Refusal::from)?;
    if let Some(missing) = ids.iter().find(|id| !all.iter().any(|t| t.id == **id)) {
        return Err(not_found(missing));
    }
    unless_dry_run(input.dry_run)?;
    all.retain(|t| ids.is_empty() || ids.contains(&t.id));
    Ok(all)
}

async fn describe_snapshots(call: &Call, input: DescribeImportTasks) -> Outcome<DescribedSnapshotTasks> {
    let all = tasks(call, SNAPSHOT_PREFIX, input).await?;
    Ok(DescribedSnapshotTasks { import_snapshot_task_set: all.iter().map(snapshot_task).collect() })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedImageTasks {
    import_image_task_set: Vec<ImageTask>,
}

async fn describe_images(call: &Call, input: DescribeImportTasks) -> Outcome<DescribedImageTasks> {
    let all = tasks(call, IMAGE_PREFIX, input).await?;
    Ok(DescribedImageTasks { import_image_task_set: all.iter().map(image_task).collect() })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CancelImportTask {
    dry_run: Option<bool>,
    import_task_id: String,
    cancel_reason: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cancelled {
    import_task_id: String,
    previous_state: &'static str,
    state: &'static str,
}

async fn cancel(call: &Call, input: CancelImportTask) -> Outcome<Cancelled> {
    let account = call.account().to_owned();
    let cancelled = call
        .cloud
        .store
        .write("cancel an import", move |tx| {
            let id = &input.import_task_id;
            let task = any(tx, id)?.filter(|t| t.account == account).ok_or_else(|| not_found(id))?;
            if task.state != State::Active {
                let message = format!("The task '{id}' is {}, and cannot be cancelled", status(&task));
                return Err(Refusal::new("IncorrectState", message));
            }
            let why = input.cancel_reason.as_deref().filter(|r| !r.is_empty()).map(|r| format!(": {r}"));
            set_ended(tx, id, State::Deleted, &format!("cancelled{}", why.unwrap_or_default()))?;
            crate::ec2::snapshot::withdraw(tx, task.snapshot.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok(Cancelled { import_task_id: id.clone(), previous_state: "active", state: "deleted" })
        })
        .await?;
    call.cloud.pokes.kept.poke();
    Ok(cancelled)
}
