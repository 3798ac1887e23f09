//! Images: what instances boot from.
//!
//! Registered from the manifest of a bundle that lies in walrus (`register`), imported in the background (`import`:
//! `manifest` reads, `fetch` streams, `unbundle` verifies and decrypts), and kept as plain bytes named by their digest. Or on
//! snapshots: registered on one (`register`), or made of an instance (`create`); such an image has no bytes of its own.

pub mod attribute;
pub mod copy;
pub mod create;
pub mod describe;
pub mod fetch;
mod import;
mod manifest;
pub mod register;
mod row;
mod unbundle;

use std::sync::Arc;

use mallee_aws::{AwsError, id::ImageId};
use mallee_service::Driven;
use mallee_store::{Error as StoreError, Tx};

pub use fetch::{NotRead, delete_blob};
pub use row::{
    IMDS_COLUMN, Image, Kind, Proof, SNAPSHOT_TABLES, State, TABLES, any, has_bytes, insert, launchable, on_snapshot,
};

use crate::{Cloud, Outcome, Refusal, zone::event};

#[cfg(test)]
mod tests;

/// Starts the imports.
pub fn drive(cloud: &Arc<Cloud>) -> Driven {
    import::start(cloud)
}

/// The snapshots of an image that is being made could not be taken; why. Nothing happens to what is no image.
pub fn not_made(tx: &mut Tx<'_>, id: &str, why: &str) -> Result<(), StoreError> {
    row::set_failed(tx, id, why)
}

/// They are stored so far, in percent.
pub fn set_making(tx: &mut Tx<'_>, id: &str, percent: u32) -> Result<(), StoreError> {
    row::set_progress(tx, id, percent, &format!("its snapshots are stored, {percent} %"))
}

/// They are complete.
pub fn made(tx: &mut Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    row::set_made(tx, id)?;
    event::note(tx, id, now, event::Kind::Observed, "all its snapshots are complete")
}

fn name_taken(image: &Image) -> Refusal {
    Refusal::new(
        "InvalidAMIName.Duplicate",
        format!("AMI name {} is already in use by another image of this account", image.name),
    )
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidAMIID.NotFound", format!("The image id '[{id}]' does not exist"))
}

/// An image this account may see.
fn get(tx: &mut Tx<'_>, account: &str, id: &ImageId) -> Outcome<Image> {
    row::get(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))
}

/// An image of this account's own.
fn own(tx: &mut Tx<'_>, account: &str, id: &ImageId) -> Outcome<Image> {
    let image = get(tx, account, id)?;
    if image.account != account {
        return Err(AwsError::new("AuthFailure", 403, format!("Not authorized for image:{id}")).into());
    }
    Ok(image)
}

/// An image of this kind that an instance of this account may boot from now.
pub fn for_launch(tx: &mut Tx<'_>, account: &str, id: &ImageId, kind: Kind) -> Outcome<Image> {
    let image = get(tx, account, id)?;
    if image.state != State::Available || (image.digest.is_none() && image.root_volume().is_none()) {
        let message = match image.state {
            State::Failed => format!("The image ID '{id}' failed to be made: {}", image.reason),
            _ => format!("The image ID '{id}' is not available yet"),
        };
        return Err(Refusal::new("InvalidAMIID.Unavailable", message));
    }
    if image.kind != kind {
        return Err(Refusal::new(
            "InvalidParameterValue",
            format!("The image ID '{id}' is not a {} image", row::word(kind)),
        ));
    }
    Ok(image)
}
