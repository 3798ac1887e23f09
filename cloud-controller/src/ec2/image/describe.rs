//! Images as EC2 shows them.

use std::{borrow::Cow, collections::BTreeMap};

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::ImageId,
};
use mallee_store::Error as StoreError;
use serde::{Deserialize, Serialize};

use super::{
    not_found,
    row::{self, EVERYBODY, Image, Kind, Proof, State},
};
use crate::{
    Outcome, actions,
    ec2::{
        block_device,
        listing::{self, Wanted},
        tag::{self, Tag},
    },
    service::Call,
};

actions![DescribeImages => describe];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeImages {
    dry_run: Option<bool>,
    #[serde(default)]
    image_id: Vec<ImageId>,
    #[serde(default)]
    owner: Vec<String>,
    #[serde(default)]
    executable_by: Vec<String>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
    /// No image of this cloud is deprecated or disabled: all are shown, whichever way these are.
    #[serde(rename = "IncludeDeprecated")]
    _include_deprecated: Option<bool>,
    #[serde(rename = "IncludeDisabled")]
    _include_disabled: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedImages {
    images_set: Vec<ImageInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageInfo {
    image_id: ImageId,
    image_location: String,
    image_state: &'static str,
    image_owner_id: String,
    creation_date: String,
    is_public: bool,
    product_codes: [(); 0],
    architecture: String,
    image_type: Kind,
    kernel_id: Option<String>,
    ramdisk_id: Option<String>,
    ena_support: bool,
    state_reason: Option<StateReason>,
    name: String,
    description: Option<String>,
    root_device_type: &'static str,
    root_device_name: String,
    block_device_mapping: Vec<block_device::Shown>,
    virtualization_type: &'static str,
    tag_set: Vec<Tag>,
    hypervisor: &'static str,
    platform_details: &'static str,
    usage_operation: &'static str,
    boot_mode: &'static str,
    imds_support: Option<&'static str>,
    source_instance_id: Option<String>,
    /// Who may launch it; only filtered by.
    #[serde(skip)]
    permitted: Vec<String>,
}

#[derive(Serialize)]
struct StateReason {
    code: &'static str,
    message: String,
}

/// A failed one says why; a pending one how far it is; an unsigned one that it is.
fn state_reason(image: &Image) -> Option<StateReason> {
    let on_snapshot = image.root_volume().is_some();
    let (code, message) = match image.state {
        State::Failed if on_snapshot => ("Server.InternalError", image.reason.clone()),
        State::Pending if on_snapshot => ("pending", image.reason.clone()),
        State::Failed => ("Client.InvalidManifest", image.reason.clone()),
        State::Pending if image.reason.is_empty() => ("pending", format!("importing, {} %", image.progress)),
        State::Pending => ("pending", image.reason.clone()),
        _ if image.proof == Proof::Unsigned => {
            ("Client.UnsignedManifest", "The bundle's manifest is not signed".to_owned())
        }
        _ => return None,
    };
    Some(StateReason { code, message })
}

fn info(image: Image, permitted: Vec<String>, tag_set: Vec<Tag>) -> ImageInfo {
    ImageInfo {
        image_state: match image.state {
            State::Pending => "pending",
            State::Available => "available",
            State::Failed => "failed",
            State::Deregistered => "deregistered",
        },
        state_reason: state_reason(&image),
        root_device_type: image.root_device_type(),
        block_device_mapping: image.mappings.iter().map(Into::into).collect(),
        source_instance_id: image.source_instance.clone(),
        image_id: image.id,
        image_location: image.location,
        image_owner_id: image.account,
        creation_date: timestamp(image.created),
        is_public: permitted.iter().any(|who| who == EVERYBODY),
        product_codes: [],
        architecture: image.architecture,
        image_type: image.kind,
        kernel_id: image.kernel,
        ramdisk_id: image.ramdisk,
        ena_support: false,
        name: image.name,
        description: image.description,
        root_device_name: image.root_device,
        virtualization_type: "hvm",
        tag_set,
        hypervisor: "xen",
        platform_details: "Linux/UNIX",
        usage_operation: "RunInstances",
        boot_mode: "legacy-bios",
        imds_support: image.tokens_required.then_some("v2.0"),
        permitted,
    }
}

impl Tagged for ImageInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

fn flag(value: bool) -> Cow<'static, str> {
    if value { "true".into() } else { "false".into() }
}

fn of_volumes<'i>(
    image: &'i ImageInfo,
    value: impl Fn(&'i block_device::EbsShown) -> Option<Cow<'i, str>>,
) -> Vec<Cow<'i, str>> {
    image.block_device_mapping.iter().filter_map(|m| m.ebs.as_ref()).filter_map(value).collect()
}

const ATTRIBUTES: &[Attribute<ImageInfo>] = &[
    ("architecture", |i| vec![(&i.architecture).into()]),
    ("block-device-mapping.delete-on-termination", |i| of_volumes(i, |v| Some(flag(v.delete_on_termination)))),
    ("block-device-mapping.device-name", |i| {
        i.block_device_mapping.iter().map(|m| m.device_name.as_str().into()).collect()
    }),
    ("block-device-mapping.encrypted", |i| of_volumes(i, |v| Some(flag(v.encrypted)))),
    ("block-device-mapping.snapshot-id", |i| of_volumes(i, |v| v.snapshot_id.as_deref().map(Into::into))),
    ("block-device-mapping.volume-size", |i| of_volumes(i, |v| Some(v.volume_size.to_string().into()))),
    ("block-device-mapping.volume-type", |i| of_volumes(i, |v| Some(v.volume_type.as_str().into()))),
    ("boot-mode", |i| vec![i.boot_mode.into()]),
    ("creation-date", |i| vec![(&i.creation_date).into()]),
    ("description", |i| i.description.as_deref().map(Into::into).into_iter().collect()),
    ("ena-support", |_| vec!["false".into()]),
    ("hypervisor", |i| vec![i.hypervisor.into()]),
    ("image-id", |i| vec![i.image_id.as_str().into()]),
    ("image-type", |i| vec![row::word(i.image_type).into()]),
    ("imds-support", |i| i.imds_support.map(Into::into).into_iter().collect()),
    ("is-public", |i| vec![i.is_public.to_string().into()]),
    ("kernel-id", |i| i.kernel_id.as_deref().map(Into::into).into_iter().collect()),
    ("manifest-location", |i| vec![(&i.image_location).into()]),
    ("name", |i| vec![(&i.name).into()]),
    ("owner-alias", |_| vec![]),
    ("owner-id", |i| vec![(&i.image_owner_id).into()]),
    ("platform", |_| vec![]),
    ("platform-details", |i| vec![i.platform_details.into()]),
    ("product-code", |_| vec![]),
    ("product-code.type", |_| vec![]),
    ("ramdisk-id", |i| i.ramdisk_id.as_deref().map(Into::into).into_iter().collect()),
    ("root-device-name", |i| vec![(&i.root_device_name).into()]),
    ("root-device-type", |i| vec![i.root_device_type.into()]),
    ("source-instance-id", |i| i.source_instance_id.as_deref().map(Into::into).into_iter().collect()),
    ("sriov-net-support", |_| vec![]),
    ("state", |i| vec![i.image_state.into()]),
    ("state-reason-code", |i| i.state_reason.as_ref().map(|r| r.code.into()).into_iter().collect()),
    ("state-reason-message", |i| i.state_reason.as_ref().map(|r| r.message.as_str().into()).into_iter().collect()),
    ("usage-operation", |i| vec![i.usage_operation.into()]),
    ("virtualization-type", |i| vec![i.virtualization_type.into()]),
];

async fn describe(call: &Call, input: DescribeImages) -> Outcome<DescribedImages> {
    let account = call.account().to_owned();
    let (images, permissions, mut tags) = call
        .cloud
        .store
        .read("describe images", move |tx| {
            // Tags are the caller's own: of somebody else's image none are shown.
            let mut tags = tag::of_kind(tx, &account, "ami-")?;
            tags.extend(tag::of_kind(tx, &account, "aki-")?);
            tags.extend(tag::of_kind(tx, &account, "ari-")?);
            Ok::<_, StoreError>((row::visible_to(tx, &account)?, row::permissions_seen_by(tx, &account)?, tags))
        })
        .await?;
    let mut permitted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (image, who) in permissions {
        permitted.entry(image).or_default().push(who);
    }
    let own = call.account();
    let is_owned = |image: &ImageInfo| {
        input.owner.is_empty()
            || input.owner.iter().any(|o| *o == image.image_owner_id || (o == "self" && image.image_owner_id == own))
    };
    let is_executable = |image: &ImageInfo| {
        input.executable_by.is_empty()
            || input.executable_by.iter().any(|who| match who.as_str() {
                // Whom the launch permission names: an owner needs none.
                "self" => image.permitted.iter().any(|p| p == own),
                who => image.permitted.iter().any(|p| p == who),
            })
    };
    let named = |image: &ImageInfo| input.image_id.contains(&image.image_id);
    let infos: Vec<ImageInfo> = images
        .into_iter()
        .map(|image| {
            let (who, its_tags) =
                (permitted.remove(image.id.as_str()).unwrap_or_default(), tags.take(image.id.as_str()));
            info(image, who, its_tags)
        })
        .filter(|i| named(i) || (is_owned(i) && is_executable(i)))
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.image_id.iter().map(ImageId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (mut images_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |i| i.image_id.as_str(), not_found, infos)?;
    images_set.retain(|i| is_owned(i) && is_executable(i));
    Ok(DescribedImages { images_set, next_token })
}
