//! `mallee image register`: the bundle becomes an image; done when EC2 has opened and checked all of it.

use std::time::Duration;

use serde::Deserialize;

use crate::aws::Client;
use crate::error::{Error, Result};
use crate::needs;
use crate::output::out;
use crate::progress::step;
use crate::state::State;

const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// Where the manifest is, as `upload` printed it
    #[arg(value_name = "BUCKET/MANIFEST")]
    pub location: String,
    #[arg(long)]
    pub name: String,
    #[arg(long)]
    pub description: Option<String>,
    /// Kernel image that it boots with
    #[arg(long, value_name = "AKI")]
    pub kernel: Option<String>,
    /// Ramdisk image that it boots with
    #[arg(long, value_name = "ARI")]
    pub ramdisk: Option<String>,
    /// Return as soon as the image has its id
    #[arg(long)]
    pub no_wait: bool,
    #[arg(long, default_value = crate::account::FIRST, value_name = "NAME")]
    pub account: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    image_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    images_set: Set,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    item: Vec<Image>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    image_state: String,
    state_reason: Option<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    message: String,
}

/// Prints the image's id.
pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let client = Client::of_account(state, &choices.account).await?;
    out!("{}", register(&client, choices).await?);
    Ok(())
}

pub async fn register(client: &Client, choices: &Choices) -> Result<String> {
    let mut parameters = vec![("Name", choices.name.as_str()), ("ImageLocation", choices.location.as_str())];
    let optional =
        [("Description", &choices.description), ("KernelId", &choices.kernel), ("RamdiskId", &choices.ramdisk)];
    parameters.extend(optional.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
    let registered: Registered = client.ec2("RegisterImage", &parameters).await?;
    let id = registered.image_id;
    if !choices.no_wait {
        wait(client, &id).await?;
    }
    Ok(id)
}

async fn wait(client: &Client, id: &str) -> Result<()> {
    let step = step(&format!("importing {id}"));
    loop {
        let described: Described = client.ec2("DescribeImages", &[("ImageId.1", id)]).await?;
        let image = described.images_set.item.into_iter().next();
        let image = image.ok_or_else(|| Error::refused(format!("{id} is gone: somebody deregistered it")))?;
        let reason = image.state_reason.map(|reason| reason.message).unwrap_or_default();
        match image.image_state.as_str() {
            "available" => {
                step.done("available");
                return Ok(());
            }
            "pending" => step.at(if reason.is_empty() { "pending" } else { &reason }),
            state => return Err(Error::refused(format!("{id} is {state}: {reason}"))),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
