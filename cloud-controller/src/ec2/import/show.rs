//! Import tasks as EC2 shows them; and CancelImportTask.

use mallee_aws::filter::{Attribute, Filter, Tagged};
use mallee_store::Error as StoreError;
use serde::{Deserialize, Serialize};

use super::task::{self, IMAGE_PREFIX, SNAPSHOT_PREFIX, State, Task};
use crate::{
    Cloud, Outcome, Refusal, actions,
    ec2::{
        encryption,
        listing::{self, Wanted},
        snapshot,
        tag::{self, Tag},
        unless_dry_run,
    },
    service::Call,
};

actions![
    CancelImportTask => cancel,
    DescribeImportImageTasks => describe_images,
    DescribeImportSnapshotTasks => describe_snapshots,
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotTask {
    import_task_id: String,
    description: String,
    snapshot_task_detail: TaskDetail,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TaskDetail {
    #[serde(flatten)]
    detail: Detail,
    encrypted: bool,
    kms_key_id: Option<String>,
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

fn kms_key_id(cloud: &Cloud, task: &Task) -> Option<String> {
    task.disk_key.as_deref().map(|key| encryption::arn(cloud, &task.account, key))
}

pub fn snapshot_task(cloud: &Cloud, task: &Task, tag_set: Vec<Tag>) -> SnapshotTask {
    SnapshotTask {
        import_task_id: task.id.clone(),
        description: task.description.clone(),
        snapshot_task_detail: TaskDetail {
            detail: detail(task),
            encrypted: task.disk_key.is_some(),
            kms_key_id: kms_key_id(cloud, task),
        },
        tag_set,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageTask {
    import_task_id: String,
    architecture: String,
    description: String,
    encrypted: bool,
    kms_key_id: Option<String>,
    image_id: Option<String>,
    platform: &'static str,
    progress: Option<String>,
    status: &'static str,
    status_message: Option<String>,
    snapshot_detail_set: [SnapshotDetail; 1],
    tag_set: Vec<Tag>,
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

pub fn image_task(cloud: &Cloud, task: &Task, tag_set: Vec<Tag>) -> ImageTask {
    ImageTask {
        import_task_id: task.id.clone(),
        architecture: task.architecture.clone(),
        description: task.description.clone(),
        encrypted: task.disk_key.is_some(),
        kms_key_id: kms_key_id(cloud, task),
        image_id: task.image.clone(),
        platform: "Linux",
        progress: (task.state == State::Active).then(|| task.progress.to_string()),
        status: status(task),
        status_message: Some(task.message.clone()).filter(|m| !m.is_empty()),
        snapshot_detail_set: [SnapshotDetail { device_name: ROOT_DEVICE, detail: detail(task) }],
        tag_set,
    }
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidConversionTaskId", format!("The task ID '{id}' does not exist"))
}

/// Unlike others, these say `Filters.N`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeImportTasks {
    dry_run: Option<bool>,
    #[serde(default)]
    import_task_id: Vec<String>,
    #[serde(default, rename = "Filters")]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

type DescribeImportSnapshotTasks = DescribeImportTasks;
type DescribeImportImageTasks = DescribeImportTasks;

/// A task with its tags.
struct Found(Task, Vec<Tag>);

impl Tagged for Found {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.1.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<Found>] = &[("task-state", |found| vec![status(&found.0).into()])];

/// The account's tasks of a kind, or those named.
async fn tasks(call: &Call, prefix: &'static str, input: DescribeImportTasks) -> Outcome<(Vec<Found>, Option<String>)> {
    let account = call.account().to_owned();
    let read = call.cloud.store.read("describe import tasks", move |tx| {
        let mut tags = tag::of_kind(tx, &account, prefix)?;
        let tasks = task::of_account(tx, &account, prefix)?;
        Ok::<_, StoreError>(tasks.into_iter().map(|t| (tags.take(&t.id), t)).map(|(tags, t)| Found(t, tags)).collect())
    });
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.import_task_id.iter().map(String::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    listing::page(call, &wanted, ATTRIBUTES, |found| found.0.id.as_str(), not_found, read.await?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedSnapshotTasks {
    import_snapshot_task_set: Vec<SnapshotTask>,
    next_token: Option<String>,
}

async fn describe_snapshots(call: &Call, input: DescribeImportTasks) -> Outcome<DescribedSnapshotTasks> {
    let (found, next_token) = tasks(call, SNAPSHOT_PREFIX, input).await?;
    let shown = found.into_iter().map(|Found(task, tags)| snapshot_task(&call.cloud, &task, tags));
    Ok(DescribedSnapshotTasks { import_snapshot_task_set: shown.collect(), next_token })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedImageTasks {
    import_image_task_set: Vec<ImageTask>,
    next_token: Option<String>,
}

async fn describe_images(call: &Call, input: DescribeImportTasks) -> Outcome<DescribedImageTasks> {
    let (found, next_token) = tasks(call, IMAGE_PREFIX, input).await?;
    let shown = found.into_iter().map(|Found(task, tags)| image_task(&call.cloud, &task, tags));
    Ok(DescribedImageTasks { import_image_task_set: shown.collect(), next_token })
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
            let task = task::any(tx, id)?.filter(|t| t.account == account).ok_or_else(|| not_found(id))?;
            if task.state != State::Active {
                let message = format!("The task '{id}' is {}, and cannot be cancelled", status(&task));
                return Err(Refusal::new("IncorrectState", message));
            }
            let why = input.cancel_reason.as_deref().filter(|r| !r.is_empty()).map(|r| format!(": {r}"));
            task::set_ended(tx, id, State::Deleted, &format!("cancelled{}", why.unwrap_or_default()))?;
            snapshot::withdraw(tx, task.snapshot.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok(Cancelled { import_task_id: id.clone(), previous_state: "active", state: "deleted" })
        })
        .await?;
    call.cloud.pokes.imports.poke();
    call.cloud.pokes.kept.poke();
    Ok(cancelled)
}
