//! Images: what instances boot from.
//!
//! Registered from the manifest of a bundle that lies in walrus (`register`), imported in the background (`import`:
//! `manifest` reads, `fetch` streams, `unbundle` verifies and decrypts), and kept as plain bytes named by their digest.

pub mod attribute;
pub mod describe;
mod fetch;
mod import;
mod manifest;
pub mod register;
mod row;
mod unbundle;

use std::sync::Arc;

use mallee_aws::{AwsError, id::ImageId};
use mallee_service::Driven;
use mallee_store::Tx;

pub use fetch::delete_blob;
pub use row::{Image, Kind, Proof, State, TABLES, any, has_bytes, insert, with_bytes};

use crate::{Cloud, Outcome, Refusal};

/// Starts the imports.
pub fn drive(cloud: &Arc<Cloud>) -> Driven {
    import::start(cloud)
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
    if image.state != State::Available || image.digest.is_none() {
        let message = match image.state {
            State::Failed => format!("The image ID '{id}' failed to be imported: {}", image.reason),
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
