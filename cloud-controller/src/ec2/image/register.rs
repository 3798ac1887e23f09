//! RegisterImage and DeregisterImage.

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
    billing_product: Option<Unsupported>,
    block_device_mapping: Option<Unsupported>,
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
        ("BlockDeviceMapping", input.block_device_mapping),
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
    let location = input
        .image_location
        .clone()
        .filter(|l| !l.is_empty())
        .ok_or_else(|| AwsError::missing_parameter("ImageLocation"))?;
    let name = name(input.name.as_deref(), &location)?;
    let tags = tag::specified(&input.tag_specification, &["image", "snapshot"])?.remove("image").unwrap_or_default();
    let manifest = read_manifest(call, &location).await?;
    let image = new_image(call, &input, manifest, name, location)?;
    let dry_run = input.dry_run;
    let id = call
        .cloud
        .store
        .write("register an image", move |tx| {
            for companion in [&image.kernel, &image.ramdisk].into_iter().flatten() {
                super::get(tx, &image.account, &companion.parse()?)?;
            }
            row::insert(tx, &image).map_err(|e| {
                unique_is(e, || {
                    Refusal::new(
                        "InvalidAMIName.Duplicate",
                        format!("AMI name {} is already in use by another image of this account", image.name),
                    )
                })
            })?;
            tag::put(tx, &image.account, image.id.as_str(), &tags)?;
            unless_dry_run(dry_run)?;
            Ok::<_, Refusal>(image.id.clone())
        })
        .await?;
    call.cloud.pokes.images.poke();
    Ok(RegisteredImage { image_id: id })
}

/// AWS' rule for names; an image without one is named by its location, as the older API did.
fn name(asked: Option<&str>, location: &str) -> Outcome<String> {
    let Some(name) = asked.filter(|n| !n.is_empty()) else { return Ok(location.to_owned()) };
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

fn new_image(call: &Call, input: &RegisterImage, manifest: Manifest, name: String, location: String) -> Outcome<Image> {
    let architecture = input.architecture.clone().unwrap_or_else(|| manifest.architecture.clone());
    if !matches!(architecture.as_str(), "x86_64" | "i386") {
        return Err(AwsError::invalid_parameter_value(format!(
            "Architecture '{architecture}' is not run by this cloud: it can be x86_64 or i386"
        ))
        .into());
    }
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
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeregisterImage {
    dry_run: Option<bool>,
    image_id: ImageId,
    delete_associated_snapshots: Option<Unsupported>,
}

/// What runs of it runs on; its bytes go when nothing needs them any more.
async fn deregister(call: &Call, input: DeregisterImage) -> Outcome<()> {
    unsupported::refuse(&[("DeleteAssociatedSnapshots", input.delete_associated_snapshots)])?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("deregister an image", move |tx| {
            let image = super::own(tx, &account, &input.image_id)?;
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
