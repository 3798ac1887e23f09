//! Who may make volumes of a snapshot: createVolumePermission, shown, changed, reset.

use mallee_aws::{AwsError, id::SnapshotId};
use serde::{Deserialize, Serialize};

use super::{
    own,
    row::{self, EVERYBODY},
};
use crate::{Outcome, Refusal, actions, ec2::unless_dry_run, service::Call};

actions![
    DescribeSnapshotAttribute => describe,
    ModifySnapshotAttribute => modify,
    ResetSnapshotAttribute => reset,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSnapshotAttribute {
    dry_run: Option<bool>,
    snapshot_id: SnapshotId,
    attribute: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedAttribute {
    snapshot_id: SnapshotId,
    create_volume_permission: Option<Vec<Permission>>,
    product_codes: Option<[(); 0]>,
}

/// An account, or `all` as a group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"))]
struct Permission {
    user_id: Option<String>,
    group: Option<String>,
}

fn unknown(name: &str) -> Refusal {
    AwsError::invalid_parameter_value(format!("Value ({name}) for parameter attribute is invalid. Unknown attribute."))
        .into()
}

async fn describe(call: &Call, input: DescribeSnapshotAttribute) -> Outcome<DescribedAttribute> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .read("describe a snapshot's attribute", move |tx| {
            let snapshot = own(tx, &account, &input.snapshot_id)?;
            let mut shown = DescribedAttribute {
                snapshot_id: snapshot.id.clone(),
                create_volume_permission: None,
                product_codes: None,
            };
            match input.attribute.as_str() {
                "createVolumePermission" => {
                    let permitted =
                        row::permissions(tx, snapshot.id.as_str())?.into_iter().map(|who| match who.as_str() {
                            EVERYBODY => Permission { user_id: None, group: Some(who) },
                            _ => Permission { user_id: Some(who), group: None },
                        });
                    shown.create_volume_permission = Some(permitted.collect());
                }
                "productCodes" => shown.product_codes = Some([]),
                other => return Err(unknown(other)),
            }
            unless_dry_run(input.dry_run)?;
            Ok(shown)
        })
        .await
}

/// Both spellings: `CreateVolumePermission.Add.1.UserId=…`, and the older `OperationType=add&UserId.1=…`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifySnapshotAttribute {
    dry_run: Option<bool>,
    snapshot_id: SnapshotId,
    attribute: Option<String>,
    operation_type: Option<String>,
    #[serde(default)]
    user_id: Vec<String>,
    #[serde(default)]
    user_group: Vec<String>,
    create_volume_permission: Option<Permissions>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Permissions {
    #[serde(default)]
    add: Vec<Permission>,
    #[serde(default)]
    remove: Vec<Permission>,
}

fn whom(permission: &Permission) -> Outcome<String> {
    match (&permission.user_id, permission.group.as_deref()) {
        (Some(id), None) => {
            let digits: String = id.chars().filter(|c| *c != '-').collect();
            if digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit()) {
                return Ok(digits);
            }
            Err(AwsError::invalid_parameter_value(format!("Value ({id}) for parameter userId is invalid.")).into())
        }
        (None, Some(EVERYBODY)) => Ok(EVERYBODY.into()),
        (None, Some(other)) => {
            Err(AwsError::invalid_parameter_value(format!("Invalid group '{other}': it can be 'all'")).into())
        }
        _ => Err(AwsError::invalid_parameter_combination("A permission names a UserId or a Group").into()),
    }
}

/// Whom to add and whom to remove.
fn the_change(input: &ModifySnapshotAttribute) -> Outcome<(Vec<String>, Vec<String>)> {
    if let Some(other) = input.attribute.as_deref().filter(|a| *a != "createVolumePermission") {
        return Err(unknown(other));
    }
    let older = input.user_id.iter().map(|id| Permission { user_id: Some(id.clone()), group: None });
    let older = older.chain(input.user_group.iter().map(|g| Permission { user_id: None, group: Some(g.clone()) }));
    let older: Vec<String> = older.map(|p| whom(&p)).collect::<Outcome<_>>()?;
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    if let Some(asked) = &input.create_volume_permission {
        add = asked.add.iter().map(whom).collect::<Outcome<_>>()?;
        remove = asked.remove.iter().map(whom).collect::<Outcome<_>>()?;
    }
    match input.operation_type.as_deref() {
        Some("add") => add.extend(older),
        Some("remove") => remove.extend(older),
        None if older.is_empty() => {}
        other => {
            let other = other.unwrap_or_default();
            return Err(AwsError::invalid_parameter_value(format!(
                "Value ({other}) for parameter operationType is invalid."
            ))
            .into());
        }
    }
    if add.is_empty() && remove.is_empty() {
        return Err(AwsError::invalid_parameter_combination("No attributes specified.").into());
    }
    Ok((add, remove))
}

async fn modify(call: &Call, input: ModifySnapshotAttribute) -> Outcome<()> {
    let (add, remove) = the_change(&input)?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify a snapshot's attribute", move |tx| {
            let snapshot = own(tx, &account, &input.snapshot_id)?;
            if snapshot.disk_key.is_some() && !add.is_empty() {
                let message = "Encrypted snapshots are of their account's own key, and cannot be shared";
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            for who in &add {
                row::permit(tx, snapshot.id.as_str(), who)?;
            }
            for who in &remove {
                row::forbid(tx, snapshot.id.as_str(), who)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResetSnapshotAttribute {
    dry_run: Option<bool>,
    snapshot_id: SnapshotId,
    attribute: String,
}

async fn reset(call: &Call, input: ResetSnapshotAttribute) -> Outcome<()> {
    if input.attribute != "createVolumePermission" {
        return Err(unknown(&input.attribute));
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("reset a snapshot's attribute", move |tx| {
            let snapshot = own(tx, &account, &input.snapshot_id)?;
            row::forbid_all(tx, snapshot.id.as_str())?;
            unless_dry_run(input.dry_run)
        })
        .await
}
