//! `mallee image add`: bundle, upload and register in one go.

use std::path::{Path, PathBuf};

use super::manifest::Kind;
use super::{build, bundle, register, upload};
use crate::aws::Client;
use crate::error::{Error, Result};
use crate::needs;
use crate::output::out;
use crate::state::State;

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// A raw whole-disk image, or `mini`, which is built first
    pub file: PathBuf,
    /// [default: the file's name without its ending]
    #[arg(long)]
    pub name: Option<String>,
    /// Bucket that the bundle goes to
    #[arg(long, default_value = "images")]
    pub bucket: String,
    #[arg(long, default_value = crate::account::FIRST, value_name = "NAME")]
    pub account: String,
}

/// Prints the image's id.
pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let client = Client::of_account(state, &choices.account).await?;
    let scratch = Scratch::new()?;
    let file = if choices.file == Path::new("mini") && !choices.file.exists() {
        let out = scratch.0.join("mini");
        build::build(build::Recipe::Mini, &out, false).await?;
        out.join("mini-disk.raw")
    } else {
        choices.file.clone()
    };
    let name = choices.name.clone().or_else(|| {
        let file = if choices.file == Path::new("mini") { &choices.file } else { &file };
        file.file_stem().map(|name| name.to_string_lossy().into_owned())
    });
    let name = name.ok_or_else(|| Error::refused(format!("{} is no file", file.display())))?;
    let manifest = bundle::bundle(
        state,
        &bundle::Choices {
            file,
            account: choices.account.clone(),
            kind: Kind::Machine,
            kernel: None,
            ramdisk: None,
            architecture: "x86_64".to_owned(),
            prefix: None,
            out: scratch.0.join("bundle"),
        },
    )
    .await?;
    let location = upload::upload(&client, &manifest, &format!("{}/{name}", choices.bucket)).await?;
    let registering = register::Choices {
        location,
        name,
        description: None,
        kernel: None,
        ramdisk: None,
        no_wait: false,
        account: choices.account.clone(),
    };
    out!("{}", register::register(&client, &registering).await?);
    Ok(())
}

/// Large files, so not on a /tmp that may be memory.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = Path::new("/var/tmp").join(format!("mallee-image-{}", std::process::id()));
        crate::state::make_private(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in /var/tmp is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
