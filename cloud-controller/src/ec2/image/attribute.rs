//! One attribute of an image at a time: shown, changed, reset.

use mallee_aws::{AwsError, id::ImageId};
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::row::{self, EVERYBODY, Image};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        block_device::{self, Mapping},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![
    DescribeImageAttribute => describe,
    ModifyImageAttribute => modify,
    ResetImageAttribute => reset,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeImageAttribute {
    dry_run: Option<bool>,
    image_id: ImageId,
    attribute: String,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct DescribedAttribute {
    image_id: Option<ImageId>,
    block_device_mapping: Option<Vec<block_device::Shown>>,
    boot_mode: Option<Value>,
    description: Option<Value>,
    imds_support: Option<Value>,
    kernel: Option<Value>,
    launch_permission: Option<Vec<LaunchPermission>>,
    product_codes: Option<[(); 0]>,
    ramdisk: Option<Value>,
    sriov_net_support: Option<Value>,
}

#[derive(Serialize)]
struct Value {
    value: Option<String>,
}

/// An account, or `all` as a group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"))]
struct LaunchPermission {
    user_id: Option<String>,
    group: Option<String>,
}

async fn describe(call: &Call, input: DescribeImageAttribute) -> Outcome<DescribedAttribute> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .read("describe an image's attribute", move |tx| {
            let image = super::own(tx, &account, &input.image_id)?;
            let shown = attribute(tx, &image, &input.attribute)?;
            unless_dry_run(input.dry_run)?;
            Ok(DescribedAttribute { image_id: Some(image.id), ..shown })
        })
        .await
}

fn attribute(tx: &mut Tx<'_>, image: &Image, name: &str) -> Outcome<DescribedAttribute> {
    let mut shown = DescribedAttribute::default();
    let value = |value: Option<String>| Some(Value { value });
    match name {
        "blockDeviceMapping" => {
            shown.block_device_mapping = Some(image.mappings.iter().map(Into::into).collect());
        }
        "bootMode" => shown.boot_mode = value(Some("legacy-bios".into())),
        "description" => shown.description = value(image.description.clone()),
        "imdsSupport" => shown.imds_support = value(image.tokens_required.then(|| "v2.0".into())),
        "kernel" => shown.kernel = value(image.kernel.clone()),
        "launchPermission" => {
            let permitted = row::permissions(tx, image.id.as_str())?;
            shown.launch_permission = Some(
                permitted
                    .into_iter()
                    .map(|who| match who.as_str() {
                        EVERYBODY => LaunchPermission { user_id: None, group: Some(who) },
                        _ => LaunchPermission { user_id: Some(who), group: None },
                    })
                    .collect(),
            );
        }
        "productCodes" => shown.product_codes = Some([]),
        "ramdisk" => shown.ramdisk = value(image.ramdisk.clone()),
        "sriovNetSupport" => shown.sriov_net_support = value(None),
        other => return Err(unknown(other)),
    }
    Ok(shown)
}

fn unknown(name: &str) -> Refusal {
    AwsError::invalid_parameter_value(format!("Value ({name}) for parameter attribute is invalid. Unknown attribute."))
        .into()
}

/// Both spellings: `LaunchPermission.Add.1.UserId=…`, and the older `Attribute=launchPermission&OperationType=add&UserId.1=…`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyImageAttribute {
    dry_run: Option<bool>,
    image_id: ImageId,
    attribute: Option<String>,
    operation_type: Option<String>,
    #[serde(default)]
    user_id: Vec<String>,
    #[serde(default)]
    user_group: Vec<String>,
    value: Option<String>,
    launch_permission: Option<LaunchPermissions>,
    description: Option<TextValue>,
    imds_support: Option<TextValue>,
    organization_arn: Option<Unsupported>,
    organizational_unit_arn: Option<Unsupported>,
    product_code: Option<Unsupported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LaunchPermissions {
    #[serde(default)]
    add: Vec<LaunchPermission>,
    #[serde(default)]
    remove: Vec<LaunchPermission>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TextValue {
    value: String,
}

/// A change of one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Permissions { add: Vec<String>, remove: Vec<String> },
    Description(String),
    TokensRequired,
}

fn whom(permission: &LaunchPermission) -> Outcome<String> {
    match (&permission.user_id, permission.group.as_deref()) {
        (Some(id), None) => account_number(id),
        (None, Some(EVERYBODY)) => Ok(EVERYBODY.into()),
        (None, Some(other)) => {
            Err(AwsError::invalid_parameter_value(format!("Invalid group '{other}': it can be 'all'")).into())
        }
        _ => Err(AwsError::invalid_parameter_combination("A launch permission names a UserId or a Group").into()),
    }
}

/// 12 digits; dashes as people write them are taken.
fn account_number(text: &str) -> Outcome<String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(digits);
    }
    Err(Refusal::new(
        "InvalidAMIAttributeItemValue",
        format!("Invalid attribute item value \"{text}\" for userId item type."),
    ))
}

fn the_change(input: &ModifyImageAttribute) -> Outcome<Change> {
    let mut changes = Vec::new();
    if let Some(asked) = &input.launch_permission {
        changes.push(Change::Permissions {
            add: asked.add.iter().map(whom).collect::<Outcome<_>>()?,
            remove: asked.remove.iter().map(whom).collect::<Outcome<_>>()?,
        });
    }
    changes.extend(input.description.as_ref().map(|d| Change::Description(d.value.clone())));
    if let Some(support) = &input.imds_support {
        if support.value != "v2.0" {
            return Err(AwsError::invalid_parameter_value(format!(
                "Value ({}) for parameter imdsSupport is invalid.",
                support.value
            ))
            .into());
        }
        changes.push(Change::TokensRequired);
    }
    match input.attribute.as_deref() {
        None => {}
        // The newer spelling may name its attribute too.
        Some("launchPermission") if input.launch_permission.is_some() => {}
        Some("description") if input.description.is_some() => {}
        Some("launchPermission") => changes.push(older_permissions(input)?),
        Some("description") => changes.push(Change::Description(input.value.clone().unwrap_or_default())),
        Some("productCodes") => {
            return Err(AwsError::unsupported("Product codes are not supported by this cloud").into());
        }
        Some(other) => return Err(unknown(other)),
    }
    match changes.len() {
        1 => changes.pop().ok_or_else(|| Refusal::internal("one change is none")),
        0 => Err(AwsError::invalid_parameter_combination("No attributes specified.").into()),
        _ => Err(AwsError::invalid_parameter_combination(
            "Fields for multiple attribute types specified: one attribute per call.",
        )
        .into()),
    }
}

fn older_permissions(input: &ModifyImageAttribute) -> Outcome<Change> {
    let users = input.user_id.iter().map(|id| account_number(id));
    let groups = input.user_group.iter().map(|g| whom(&LaunchPermission { user_id: None, group: Some(g.clone()) }));
    let whom: Vec<String> = users.chain(groups).collect::<Outcome<_>>()?;
    match input.operation_type.as_deref() {
        Some("add") => Ok(Change::Permissions { add: whom, remove: Vec::new() }),
        Some("remove") => Ok(Change::Permissions { add: Vec::new(), remove: whom }),
        other => {
            let other = other.unwrap_or_default();
            Err(AwsError::invalid_parameter_value(format!("Value ({other}) for parameter operationType is invalid."))
                .into())
        }
    }
}

async fn modify(call: &Call, input: ModifyImageAttribute) -> Outcome<()> {
    unsupported::refuse(&[
        ("OrganizationArn", input.organization_arn),
        ("OrganizationalUnitArn", input.organizational_unit_arn),
        ("ProductCode", input.product_code),
    ])?;
    let change = the_change(&input)?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify an image's attribute", move |tx| {
            let image = super::own(tx, &account, &input.image_id)?;
            let id = image.id.as_str();
            match &change {
                Change::Permissions { add, remove } => {
                    if !add.is_empty() && image.mappings.iter().filter_map(Mapping::volume).any(|v| v.encrypted) {
                        let message =
                            "An image with encrypted snapshots is of its account's own key, and cannot be shared";
                        return Err(AwsError::invalid_parameter_value(message).into());
                    }
                    for who in add {
                        row::permit(tx, id, who)?;
                    }
                    for who in remove {
                        row::forbid(tx, id, who)?;
                    }
                }
                Change::Description(text) => row::set_description(tx, id, text)?,
                Change::TokensRequired => row::set_tokens_required(tx, id)?,
            }
            unless_dry_run(input.dry_run)
        })
        .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResetImageAttribute {
    dry_run: Option<bool>,
    image_id: ImageId,
    attribute: String,
}

async fn reset(call: &Call, input: ResetImageAttribute) -> Outcome<()> {
    if input.attribute != "launchPermission" {
        return Err(unknown(&input.attribute));
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("reset an image's attribute", move |tx| {
            let image = super::own(tx, &account, &input.image_id)?;
            row::forbid_all(tx, image.id.as_str())?;
            unless_dry_run(input.dry_run)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_aws::params::{Flavor, Params, from_params};

    #[test]
    fn permissions_are_given_in_either_spelling() {
        let change = |sent: &str| {
            let sent = format!("ImageId=ami-0123456789abcdef0&{sent}");
            let input = from_params(&Params::parse(sent.as_bytes()).unwrap(), Flavor::Ec2).unwrap();
            the_change(&input).map_err(|e| e.code().to_owned())
        };
        let add = |who: &str| Ok(Change::Permissions { add: vec![who.into()], remove: vec![] });
        let table: &[(&str, Result<Change, String>)] = &[
            ("LaunchPermission.Add.1.UserId=123456789012", add("123456789012")),
            ("LaunchPermission.Add.1.Group=all", add("all")),
            ("Attribute=launchPermission&OperationType=add&UserId.1=1234-5678-9012", add("123456789012")),
            ("Attribute=launchPermission&OperationType=add&UserGroup.1=all", add("all")),
            ("Description.Value=x", Ok(Change::Description("x".into()))),
            ("Attribute=description&Value=x", Ok(Change::Description("x".into()))),
            ("LaunchPermission.Add.1.UserId=bob", Err("InvalidAMIAttributeItemValue".into())),
            ("LaunchPermission.Add.1.Group=some", Err("InvalidParameterValue".into())),
            ("Attribute=launchPermission&UserId.1=123456789012", Err("InvalidParameterValue".into())),
            ("LaunchPermission.Add.1.Group=all&Description.Value=x", Err("InvalidParameterCombination".into())),
            ("", Err("InvalidParameterCombination".into())),
        ];
        for (sent, expected) in table {
            assert_eq!(change(sent), *expected, "{sent}");
        }
    }
}
