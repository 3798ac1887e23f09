//! RegisterImage, of a bundle or on a snapshot, and DeregisterImage.

use mallee_aws::{
    AwsError,
    id::{ImageId, KernelImageId, MachineImageId, RamdiskImageId},
};
use serde::{Deserialize, Serialize};

use super::{
    fetch::{self, NotRead},
    manifest::{self, Manifest},
    row::{self, Image, Kind, Proof, State},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        block_device::{self, Asked},
        snapshot::{self, together},
        tag::{self, TagSpecification},
        unique_is, unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![DeregisterImage => deregister, RegisterImage => register];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RegisterImage {
    dry_run: Option<bool>,
    image_location: Option<String>,
    name: Option<String>,
    description: Option<String>,
    architecture: Option<String>,
    kernel_id: Option<KernelImageId>,
    ramdisk_id: Option<RamdiskImageId>,
    root_device_name: Option<String>,
    virtualization_type: Option<String>,
    imds_support: Option<String>,
    ena_support: Option<bool>,
    boot_mode: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    #[serde(default)]
    block_device_mapping: Vec<Asked>,
    billing_product: Option<Unsupported>,
    sriov_net_support: Option<Unsupported>,
    tpm_support: Option<Unsupported>,
    uefi_data: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegisteredImage {
    image_id: ImageId,
}

/// Reads the manifest as the caller may read it, since it says what kind of image this is; the rest is imported later.
async fn register(call: &Call, input: RegisterImage) -> Outcome<RegisteredImage> {
    unsupported::refuse(&[
        ("BillingProduct", input.billing_product),
        ("SriovNetSupport", input.sriov_net_support),
        ("TpmSupport", input.tpm_support),
        ("UefiData", input.uefi_data),
    ])?;
    for (name, sent, fits) in [
        ("VirtualizationType", input.virtualization_type.as_deref(), "hvm"),
        ("BootMode", input.boot_mode.as_deref(), "legacy-bios"),
        ("ImdsSupport", input.imds_support.as_deref(), "v2.0"),
    ] {
        if let Some(other) = sent.filter(|s| *s != fits) {
            return Err(AwsError::unsupported(format!(
                "{name}={other} is not supported by this cloud; it can be {fits}"
            ))
            .into());
        }
    }
    if input.ena_support == Some(true) {
        return Err(AwsError::unsupported(
            "EnaSupport=true is not supported by this cloud: guests have virtio network cards",
        )
        .into());
    }
    let tags = tag::specified(&input.tag_specification, &["image", "snapshot"])?.remove("image").unwrap_or_default();
    let image = match input.image_location.clone().filter(|l| !l.is_empty()) {
        Some(location) => {
            let name = name(input.name.as_deref(), &location)?;
            let manifest = read_manifest(call, &location).await?;
            new_image(call, &input, manifest, name, location)?
        }
        None if input.block_device_mapping.is_empty() => {
            return Err(AwsError::missing_parameter("ImageLocation or BlockDeviceMapping").into());
        }
        None => on_snapshot(call, &input)?,
    };
    let (dry_run, asked, of_bundle) = (input.dry_run, input.block_device_mapping, input.image_location.is_some());
    let id = call
        .cloud
        .store
        .write("register an image", move |tx| {
            let mut image = image.clone();
            let account = image.account.clone();
            image.mappings =
                block_device::over(&[], &image.root_device, &asked, |id| snapshot::source(tx, &account, id))?;
            check_root(&image, of_bundle)?;
            for companion in [&image.kernel, &image.ramdisk].into_iter().flatten() {
                super::get(tx, &image.account, &companion.parse()?)?;
            }
            row::insert(tx, &image).map_err(|e| unique_is(e, || super::name_taken(&image)))?;
            tag::put(tx, &image.account, image.id.as_str(), &tags)?;
            unless_dry_run(dry_run)?;
            Ok::<_, Refusal>(image.id.clone())
        })
        .await?;
    call.cloud.pokes.images.poke();
    Ok(RegisteredImage { image_id: id })
}

/// Without a bundle the root is a snapshot, and one with a bundle cannot have another root.
fn check_root(image: &Image, of_bundle: bool) -> Outcome<()> {
    let (root, device) = (image.root_volume(), &image.root_device);
    match root {
        Some(_) if of_bundle => {
            let message =
                format!("The root of a bundle's image is an instance store: nothing can be mapped to {device}");
            Err(Refusal::new("InvalidBlockDeviceMapping", message))
        }
        None if !of_bundle => {
            let message = format!("No snapshot is mapped to the root device {device}");
            Err(Refusal::new("InvalidBlockDeviceMapping", message))
        }
        Some(volume) if volume.snapshot.is_none() => {
            Err(Refusal::new("InvalidBlockDeviceMapping", format!("The root device {device} needs a snapshot")))
        }
        _ => Ok(()),
    }
}

/// AWS' rule for names; an image without one is named by its location, as the older API did.
fn name(asked: Option<&str>, location: &str) -> Outcome<String> {
    asked.filter(|n| !n.is_empty()).map_or_else(|| Ok(location.to_owned()), checked_name)
}

pub(super) fn checked_name(name: &str) -> Outcome<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if !(3..=128).contains(&name.chars().count()) || !name.chars().all(fits) {
        return Err(Refusal::new(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', '.', '-', '/', '_', \
             '[', ']', '@', ''' and spaces",
        ));
    }
    Ok(name.to_owned())
}

async fn read_manifest(call: &Call, location: &str) -> Outcome<Manifest> {
    let not_read = |e: NotRead| match e {
        NotRead::Absent(text) => Refusal::new("InvalidManifest", text),
        NotRead::Later(text) => Refusal {
            answer: AwsError::unavailable("The image's manifest cannot be read from S3 now; try again"),
            cause: Some(text),
        },
    };
    let walrus =
        call.cloud.tiers.walrus_http(&call.cloud.store).await.map_err(|e| not_read(NotRead::Later(e.message)))?;
    let object = fetch::open(&walrus, call.account(), location).await.map_err(not_read)?;
    let bytes = object.whole(manifest::MAX_BYTES).await.map_err(not_read)?;
    manifest::parse(&bytes).map_err(|reason| Refusal::new("InvalidManifest", reason))
}

fn checked_architecture(architecture: String) -> Outcome<String> {
    if matches!(architecture.as_str(), "x86_64" | "i386") {
        return Ok(architecture);
    }
    Err(AwsError::invalid_parameter_value(format!(
        "Architecture '{architecture}' is not run by this cloud: it can be x86_64 or i386"
    ))
    .into())
}

/// What is on a snapshot is there: it is available at once.
fn on_snapshot(call: &Call, input: &RegisterImage) -> Outcome<Image> {
    let name = input.name.as_deref().filter(|n| !n.is_empty()).ok_or_else(|| AwsError::missing_parameter("Name"))?;
    let name = checked_name(name)?;
    Ok(Image {
        id: ImageId::Machine(MachineImageId::from_random(rand::random())),
        account: call.account().to_owned(),
        location: format!("{}/{name}", call.account()),
        name,
        kind: Kind::Machine,
        architecture: checked_architecture(input.architecture.clone().unwrap_or_else(|| "x86_64".into()))?,
        description: input.description.clone().filter(|d| !d.is_empty()),
        kernel: input.kernel_id.as_ref().map(ToString::to_string),
        ramdisk: input.ramdisk_id.as_ref().map(ToString::to_string),
        root_device: input.root_device_name.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "/dev/sda1".into()),
        tokens_required: input.imds_support.is_some(),
        state: State::Available,
        reason: String::new(),
        progress: 100,
        proof: Proof::Unknown,
        digest: None,
        size: 0,
        created: call.now,
        mappings: Vec::new(),
        source_instance: None,
    })
}

fn new_image(call: &Call, input: &RegisterImage, manifest: Manifest, name: String, location: String) -> Outcome<Image> {
    let architecture =
        checked_architecture(input.architecture.clone().unwrap_or_else(|| manifest.architecture.clone()))?;
    let random = rand::random();
    let id = match manifest.kind {
        Kind::Machine => ImageId::Machine(MachineImageId::from_random(random)),
        Kind::Kernel => ImageId::Kernel(KernelImageId::from_random(random)),
        Kind::Ramdisk => ImageId::Ramdisk(RamdiskImageId::from_random(random)),
    };
    let companion = |asked: Option<&str>, own: &Option<String>| asked.map(str::to_owned).or_else(|| own.clone());
    let is_machine = manifest.kind == Kind::Machine;
    Ok(Image {
        id,
        account: call.account().to_owned(),
        name,
        location: location.trim_start_matches('/').to_owned(),
        kind: manifest.kind,
        architecture,
        description: input.description.clone().filter(|d| !d.is_empty()),
        kernel: companion(input.kernel_id.as_ref().map(KernelImageId::as_str), &manifest.kernel).filter(|_| is_machine),
        ramdisk: companion(input.ramdisk_id.as_ref().map(RamdiskImageId::as_str), &manifest.ramdisk)
            .filter(|_| is_machine),
        root_device: input.root_device_name.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| manifest.root_device()),
        tokens_required: input.imds_support.is_some(),
        state: State::Pending,
        reason: String::new(),
        progress: 0,
        proof: Proof::Unknown,
        digest: None,
        size: manifest.size,
        created: call.now,
        mappings: Vec::new(),
        source_instance: None,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeregisterImage {
    dry_run: Option<bool>,
    image_id: ImageId,
    delete_associated_snapshots: Option<Unsupported>,
}

/// What runs of it runs on; its bytes go when nothing needs them any more. Its snapshots stay.
async fn deregister(call: &Call, input: DeregisterImage) -> Outcome<()> {
    unsupported::refuse(&[("DeleteAssociatedSnapshots", input.delete_associated_snapshots)])?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("deregister an image", move |tx| {
            let image = super::own(tx, &account, &input.image_id)?;
            together::give_up(tx, image.id.as_str())?;
            row::set_deregistered(tx, image.id.as_str())?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.images.poke();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_aws_rule_and_default_to_the_location() {
        assert_eq!(name(None, "b/x.manifest.xml").unwrap(), "b/x.manifest.xml");
        assert_eq!(
            name(Some("Debian 12 (x86_64) [it's @ 1.0/a-b]"), "l").unwrap(),
            "Debian 12 (x86_64) [it's @ 1.0/a-b]"
        );
        for bad in ["ab", "a\nbc", "naïve", &"a".repeat(129)] {
            assert_eq!(name(Some(bad), "l").err().unwrap().code(), "InvalidAMIName.Malformed", "{bad}");
        }
    }
}
