//! One attribute of a volume at a time: shown and changed; and EnableVolumeIO.
//!
//! No volume's I/O is ever disabled here, so `autoEnableIO` is kept as it is told and never acted on.

use mallee_aws::{AwsError, id::VolumeId};
use serde::{Deserialize, Serialize};

use super::{not_found, row};
use crate::{Outcome, Refusal, actions, ec2::unless_dry_run, service::Call};

actions![
    DescribeVolumeAttribute => describe,
    EnableVolumeIO => enable_io,
    ModifyVolumeAttribute => modify,
];

pub const COLUMN: &str = "ALTER TABLE volume ADD COLUMN auto_enable_io BIGINT NOT NULL DEFAULT 0;";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVolumeAttribute {
    dry_run: Option<bool>,
    volume_id: VolumeId,
    attribute: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedVolumeAttribute {
    volume_id: VolumeId,
    #[serde(rename = "autoEnableIO")]
    auto_enable_io: Option<Flag>,
    product_codes: Option<[(); 0]>,
}

#[derive(Serialize)]
struct Flag {
    value: bool,
}

async fn describe(call: &Call, input: DescribeVolumeAttribute) -> Outcome<DescribedVolumeAttribute> {
    let (account, id) = (call.account().to_owned(), input.volume_id.clone());
    let volume = call
        .cloud
        .store
        .read("describe a volume's attribute", move |tx| row::get(tx, &account, id.as_str()))
        .await
        .map_err(Refusal::from)?
        .ok_or_else(|| not_found(input.volume_id.as_str()))?;
    let (auto_enable_io, product_codes) = match input.attribute.as_str() {
        "autoEnableIO" => (Some(Flag { value: volume.auto_enable_io }), None),
        "productCodes" => (None, Some([])),
        other => {
            let message = format!("Value ({other}) for parameter attribute is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    };
    unless_dry_run(input.dry_run)?;
    Ok(DescribedVolumeAttribute { volume_id: input.volume_id, auto_enable_io, product_codes })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyVolumeAttribute {
    dry_run: Option<bool>,
    volume_id: VolumeId,
    #[serde(rename = "AutoEnableIO")]
    auto_enable_io: Option<Switch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Switch {
    value: bool,
}

async fn modify(call: &Call, input: ModifyVolumeAttribute) -> Outcome<()> {
    let yes = input.auto_enable_io.ok_or_else(|| AwsError::missing_parameter("AutoEnableIO"))?.value;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify a volume's attribute", move |tx| {
            let id = input.volume_id.as_str();
            row::get(tx, &account, id)?.ok_or_else(|| not_found(id))?;
            row::set_auto_enable_io(tx, id, yes)?;
            unless_dry_run(input.dry_run)
        })
        .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EnableVolumeIO {
    dry_run: Option<bool>,
    volume_id: VolumeId,
}

/// It is enabled: see above.
async fn enable_io(call: &Call, input: EnableVolumeIO) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .read("enable a volume's I/O", move |tx| {
            let id = input.volume_id.as_str();
            let volume = row::get(tx, &account, id)?.ok_or_else(|| not_found(id))?;
            let attachment = row::attachment_of(tx, id)?;
            if !matches!(super::state(&volume, attachment.as_ref()), "available" | "in-use") {
                let message = format!("Volume '{id}' is neither 'available' nor 'in-use'.");
                return Err(Refusal::new("IncorrectState", message));
            }
            unless_dry_run(input.dry_run)
        })
        .await
}
