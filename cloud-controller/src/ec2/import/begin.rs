//! ImportSnapshot and ImportImage.

use mallee_aws::{AwsError, id::SnapshotId};
use serde::Deserialize;

use super::{
    disk::Format,
    show::{ImageTask, SnapshotTask, image_task, not_found, snapshot_task},
    task::{self, IMAGE_PREFIX, SNAPSHOT_PREFIX, State, Task},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        client_token, encryption,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![
    ImportImage => import_image,
    ImportSnapshot => import_snapshot,
];

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

/// What both actions say of the task itself.
struct Wish {
    task: Task,
    asked: encryption::Asked,
    tags: Vec<Tag>,
    token: Option<String>,
    dry_run: Option<bool>,
}

/// Writes a task, or finds the one that this client token made.
async fn begin(call: &Call, wish: Wish) -> Outcome<(Task, Vec<Tag>)> {
    let token = client_token::Given::of(call, wish.token.as_deref())?;
    let begun = call
        .cloud
        .store
        .write("begin an import", move |tx| {
            let made = token.as_ref().filter(|_| wish.dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            if let Some(id) = made {
                let found = task::any(tx, &id)?.ok_or_else(|| not_found(&id))?;
                return Ok((found, tag::of(tx, &id)?));
            }
            let task = Task { disk_key: wish.asked.key(tx, false)?, ..wish.task.clone() };
            task::insert(tx, &task)?;
            tag::put(tx, &task.account, &task.id, &wish.tags)?;
            unless_dry_run(wish.dry_run)?;
            if let Some(token) = &token {
                token.remember(tx, &task.id)?;
            }
            Ok::<_, Refusal>((task, wish.tags.clone()))
        })
        .await?;
    call.cloud.pokes.imports.poke();
    Ok(begun)
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
        disk_key: None,
    }
}

/// AWS' words for what is tagged: the task, not what comes of it.
fn tags_of(specifications: &[TagSpecification], kind: &'static str) -> Outcome<Vec<Tag>> {
    Ok(tag::specified(specifications, &[kind])?.remove(kind).unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImportSnapshot {
    dry_run: Option<bool>,
    client_token: Option<String>,
    description: Option<String>,
    disk_container: DiskContainer,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    /// AWS reads the object in this role; here it is read as the caller may read it.
    #[allow(dead_code)]
    role_name: Option<String>,
    client_data: Option<Unsupported>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

async fn import_snapshot(call: &Call, input: ImportSnapshot) -> Outcome<SnapshotTask> {
    unsupported::refuse(&[("ClientData", input.client_data)])?;
    let description = input.description.or(input.disk_container.description.clone());
    let task = new(call, SNAPSHOT_PREFIX, source(&input.disk_container)?, description.as_deref());
    let wish = Wish {
        task,
        asked: encryption::Asked::of(call, input.encrypted, input.kms_key_id.as_deref())?,
        tags: tags_of(&input.tag_specification, "import-snapshot-task")?,
        token: input.client_token,
        dry_run: input.dry_run,
    };
    let (task, tags) = begin(call, wish).await?;
    Ok(snapshot_task(&call.cloud, &task, tags))
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
    kms_key_id: Option<String>,
    #[allow(dead_code)]
    role_name: Option<String>,
    platform: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    hypervisor: Option<Unsupported>,
    license_type: Option<Unsupported>,
    license_specifications: Option<Unsupported>,
    client_data: Option<Unsupported>,
    usage_operation: Option<Unsupported>,
    boot_mode: Option<Unsupported>,
}

async fn import_image(call: &Call, input: ImportImage) -> Outcome<ImageTask> {
    unsupported::refuse(&[
        ("BootMode", input.boot_mode),
        ("ClientData", input.client_data),
        ("Hypervisor", input.hypervisor),
        ("LicenseSpecifications", input.license_specifications),
        ("LicenseType", input.license_type),
        ("UsageOperation", input.usage_operation),
    ])?;
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
    let wish = Wish {
        task,
        asked: encryption::Asked::of(call, input.encrypted, input.kms_key_id.as_deref())?,
        tags: tags_of(&input.tag_specification, "import-image-task")?,
        token: input.client_token,
        dry_run: input.dry_run,
    };
    let (task, tags) = begin(call, wish).await?;
    Ok(image_task(&call.cloud, &task, tags))
}
