//! `mallee image upload`: a bundle's parts, then its manifest, into a bucket that EC2 may read.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;

use crate::aws::Client;
use crate::error::{Error, Result};
use crate::output::out;
use crate::state::State;
use crate::{needs, progress};

/// EC2 reads bundles with rights of its own.
const READABLE: (&str, &str) = ("x-amz-acl", "aws-exec-read");

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// The bundle's manifest
    pub manifest: PathBuf,
    /// Bucket, and below it a prefix if there is one; the bucket is made if it is missing
    #[arg(value_name = "BUCKET[/PREFIX]")]
    pub bucket: String,
    /// Whose bucket it is
    #[arg(long, default_value = crate::account::FIRST, value_name = "NAME")]
    pub account: String,
}

#[derive(Deserialize)]
struct Manifest {
    image: Image,
}

#[derive(Deserialize)]
struct Image {
    bundled_size: u64,
    parts: Parts,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    part: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    filename: String,
}

/// Prints the location that `register` takes.
pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let client = Client::of_account(state, &choices.account).await?;
    out!("{}", upload(&client, &choices.manifest, &choices.bucket).await?);
    Ok(())
}

pub async fn upload(client: &Client, manifest: &Path, place: &str) -> Result<String> {
    let place = place.trim_matches('/');
    let bucket = place.split('/').next().unwrap_or_default();
    if bucket.is_empty() {
        return Err(Error::refused("name a bucket"));
    }
    let text = std::fs::read_to_string(manifest).map_err(Error::file("reading", manifest))?;
    let read: Manifest = quick_xml::de::from_str(&text)
        .map_err(|error| Error::refused(format!("{} is no manifest of a bundle: {error}", manifest.display())))?;
    ensure_bucket(client, bucket).await?;
    let directory = manifest.parent().unwrap_or(Path::new("."));
    let bar = progress::bytes(&format!("uploading to {place}"), read.image.bundled_size);
    for part in &read.image.parts.part {
        // A manifest from elsewhere must not name files of ours.
        if part.filename.contains('/') || part.filename.starts_with('.') {
            return Err(Error::refused(format!(
                "the manifest names a part {:?}, which is no plain file name",
                part.filename
            )));
        }
        let path = directory.join(&part.filename);
        let bytes = Bytes::from(std::fs::read(&path).map_err(Error::file("reading", &path))?);
        let length = bytes.len() as u64;
        let key = format!("/{place}/{}", part.filename);
        client.s3(Method::PUT, &key, &[READABLE, ("content-type", "application/octet-stream")], bytes).await?;
        bar.add(length);
    }
    // Last, so that a manifest that can be registered has all its parts.
    let name = manifest.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let location = format!("{place}/{name}");
    client
        .s3(Method::PUT, &format!("/{location}"), &[READABLE, ("content-type", "application/xml")], Bytes::from(text))
        .await?;
    bar.done(&progress::parts(read.image.parts.part.len()));
    Ok(location)
}

async fn ensure_bucket(client: &Client, bucket: &str) -> Result<()> {
    let path = format!("/{bucket}");
    match client.s3(Method::HEAD, &path, &[], Bytes::new()).await {
        // A HEAD's refusal has no document; 404 is all it says.
        Err(Error::Aws { code, .. }) if code == "404" => {}
        outcome => return outcome,
    }
    match client.s3(Method::PUT, &path, &[], Bytes::new()).await {
        Err(Error::Aws { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
        outcome => outcome,
    }
}
