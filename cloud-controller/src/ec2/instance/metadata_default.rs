//! What the metadata options of an instance are when its launch does not say: each is the launch's own word, else the
//! account's default, else what the image is for. That is AWS' order.
//!
//! Here images that were registered since the cloud knows of this are for IMDSv2, also those that do not say so: what asks for
//! metadata without a token (a request that was forged through the guest, mostly) gets nothing. An image shows
//! `ImdsSupport` only when it was given it. Old guests that know v1 only are launched with `HttpTokens=optional`, by the
//! launch, by the account's default, or by the operator's `imds_v1` for the whole cloud.

use mallee_aws::AwsError;
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use super::{row::MetadataOptions, run::MetadataOptionsAsked};
use crate::{
    Outcome, Refusal, actions,
    ec2::{image::Image, unless_dry_run, unsupported},
    service::Call,
};

actions![
    GetInstanceMetadataDefaults => get,
    ModifyInstanceMetadataDefaults => modify,
];

/// A column that is not set has no default of the account's.
pub const TABLES: &str = "
CREATE TABLE metadata_default (
    account TEXT PRIMARY KEY REFERENCES account (id),
    tokens TEXT,
    hop_limit BIGINT,
    endpoint TEXT,
    tags TEXT
);
";

/// IMDSv1 and v2 both.
pub const V1: MetadataOptions = MetadataOptions { enabled: true, tokens_required: false, hop_limit: 1, tags: false };
/// The answer with the token may pass one router inside the guest: containers.
const V2: MetadataOptions = MetadataOptions { enabled: true, tokens_required: true, hop_limit: 2, tags: false };

const NO_PREFERENCE: &str = "no-preference";

/// What an instance of this account gets of this image when its launch says nothing. `v1`: the operator's word about images
/// that say nothing.
pub fn of_launch(tx: &mut Tx<'_>, account: &str, image: &Image, v1: bool) -> Outcome<MetadataOptions> {
    let v2 = image.tokens_required || (!v1 && image.is_for_v2(tx)?);
    read(tx, account)?.over(if v2 { V2 } else { V1 })
}

fn read(tx: &mut Tx<'_>, account: &str) -> Result<MetadataOptionsAsked, StoreError> {
    let sql = "SELECT tokens, hop_limit, endpoint, tags FROM metadata_default WHERE account = ?1";
    let found = tx.query_opt(sql, params![account], |row| {
        Ok(MetadataOptionsAsked {
            http_tokens: row.get(0)?,
            http_put_response_hop_limit: row.get(1)?,
            http_endpoint: row.get(2)?,
            http_protocol_ipv6: None,
            instance_metadata_tags: row.get(3)?,
        })
    })?;
    Ok(found.unwrap_or_default())
}

fn write(tx: &mut Tx<'_>, account: &str, defaults: &MetadataOptionsAsked) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO metadata_default (account, tokens, hop_limit, endpoint, tags) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (account) DO UPDATE SET tokens = ?2, hop_limit = ?3, endpoint = ?4, tags = ?5",
        params![
            account,
            defaults.http_tokens,
            defaults.http_put_response_hop_limit,
            defaults.http_endpoint,
            defaults.instance_metadata_tags
        ],
    )
    .map(|_| ())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetInstanceMetadataDefaults {
    dry_run: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Defaults {
    account_level: AccountLevel,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountLevel {
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    instance_metadata_tags: Option<String>,
    managed_by: &'static str,
}

async fn get(call: &Call, input: GetInstanceMetadataDefaults) -> Outcome<Defaults> {
    unless_dry_run(input.dry_run)?;
    let account = call.account().to_owned();
    let found = call.cloud.store.read("read the defaults of metadata options", move |tx| read(tx, &account)).await?;
    Ok(Defaults {
        account_level: AccountLevel {
            http_tokens: found.http_tokens,
            http_put_response_hop_limit: found.http_put_response_hop_limit,
            http_endpoint: found.http_endpoint,
            instance_metadata_tags: found.instance_metadata_tags,
            managed_by: "account",
        },
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyInstanceMetadataDefaults {
    dry_run: Option<bool>,
    http_tokens: Option<String>,
    /// -1 is no preference.
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    instance_metadata_tags: Option<String>,
    http_tokens_enforced: Option<String>,
}

#[derive(Serialize)]
struct Done {
    r#return: bool,
}

/// What is not given stays. Instances that are there already keep what they have.
async fn modify(call: &Call, input: ModifyInstanceMetadataDefaults) -> Outcome<Done> {
    match input.http_tokens_enforced.as_deref() {
        None | Some("disabled" | NO_PREFERENCE) => {}
        Some("enabled") => unsupported::refuse_set("HttpTokensEnforced", Some(true))?,
        Some(other) => {
            let message = format!("Value ({other}) for parameter HttpTokensEnforced is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify the defaults of metadata options", move |tx| {
            let mut defaults = read(tx, &account)?;
            let word = |asked: &Option<String>, there: Option<String>| match asked.as_deref() {
                None => there,
                Some(NO_PREFERENCE) => None,
                Some(word) => Some(word.to_owned()),
            };
            defaults.http_tokens = word(&input.http_tokens, defaults.http_tokens);
            defaults.http_endpoint = word(&input.http_endpoint, defaults.http_endpoint);
            defaults.instance_metadata_tags = word(&input.instance_metadata_tags, defaults.instance_metadata_tags);
            defaults.http_put_response_hop_limit = match input.http_put_response_hop_limit {
                None => defaults.http_put_response_hop_limit,
                Some(-1) => None,
                limit => limit,
            };
            defaults.over(V1)?;
            write(tx, &account, &defaults)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(Done { r#return: true })
        })
        .await
}

#[cfg(test)]
mod tests {
    use crate::ec2::rehearsal::{Rehearsal, first};

    /// Tokens, hop limit, endpoint and tags of a new instance.
    async fn launched(a: &Rehearsal, more: &str) -> [String; 4] {
        let launch = format!("RunInstances&ImageId={}&MinCount=1&MaxCount=1{more}", a.image);
        let answer = a.ask(&launch).await.unwrap();
        ["httpTokens", "httpPutResponseHopLimit", "httpEndpoint", "instanceMetadataTags"].map(|e| first(&answer, e))
    }

    #[tokio::test]
    async fn the_launch_is_before_the_account_and_the_account_before_the_image() {
        let a = Rehearsal::new().await;
        let modify = async |what: &str| a.ask(&format!("ModifyInstanceMetadataDefaults&{what}")).await;
        assert_eq!(launched(&a, "").await, ["required", "2", "enabled", "disabled"], "a new image");
        let optional = launched(&a, "&MetadataOptions.HttpTokens=optional").await;
        assert_eq!(optional, ["optional", "2", "enabled", "disabled"], "each option by itself");
        modify("HttpTokens=optional&HttpPutResponseHopLimit=5").await.unwrap();
        modify("InstanceMetadataTags=enabled").await.unwrap();
        assert_eq!(launched(&a, "").await, ["optional", "5", "enabled", "enabled"], "what is not given stays");
        let own = "&MetadataOptions.HttpTokens=required&MetadataOptions.InstanceMetadataTags=disabled";
        assert_eq!(launched(&a, own).await, ["required", "5", "enabled", "disabled"]);
        let shown = a.ask("GetInstanceMetadataDefaults").await.unwrap();
        let level = "<accountLevel><httpTokens>optional</httpTokens><httpPutResponseHopLimit>5</httpPutResponseHopLimit>\
                     <instanceMetadataTags>enabled</instanceMetadataTags><managedBy>account</managedBy></accountLevel>";
        assert!(shown.contains(level), "{shown}");
        a.ask(&format!("ModifyImageAttribute&ImageId={}&ImdsSupport.Value=v2.0", a.image)).await.unwrap();
        assert_eq!(launched(&a, "").await[0], "optional", "the account is before the image");
        modify("HttpTokens=no-preference&HttpPutResponseHopLimit=-1&InstanceMetadataTags=no-preference").await.unwrap();
        assert_eq!(launched(&a, "").await, ["required", "2", "enabled", "disabled"]);
        for (wrong, code) in [
            ("HttpTokens=v2", "InvalidParameterValue"),
            ("HttpPutResponseHopLimit=65", "InvalidParameterValue"),
            ("HttpEndpoint=on", "InvalidParameterValue"),
            ("HttpTokensEnforced=enabled", "Unsupported"),
            ("HttpTokensEnforced=x", "InvalidParameterValue"),
            ("HttpTokens=optional&DryRun=true", "DryRunOperation"),
        ] {
            assert_eq!(modify(wrong).await, Err(code.into()), "{wrong}");
        }
        assert_eq!(launched(&a, "").await[0], "required", "what was refused changed nothing");
        let other = a.another_account().await;
        let theirs = a.ask_as(&other, "GetInstanceMetadataDefaults").await.unwrap();
        assert!(theirs.contains("<accountLevel><managedBy>account</managedBy></accountLevel>"), "{theirs}");
    }

    #[tokio::test]
    async fn old_images_keep_v1_and_the_operator_may_keep_it_for_all_that_say_nothing() {
        let a = Rehearsal::new().await;
        let described = a.ask(&format!("DescribeImages&ImageId.1={}", a.image)).await.unwrap();
        assert!(!described.contains("imdsSupport"), "nobody said so: {described}");
        let image = a.image.clone();
        let before = "UPDATE image SET imds_v2 = 0 WHERE id = ?1";
        let old = move |tx: &mut mallee_store::Tx<'_>| tx.execute(before, mallee_store::params![image]);
        a.cloud.store.write("make it an old image", old).await.unwrap();
        assert_eq!(launched(&a, "").await, ["optional", "1", "enabled", "disabled"]);
        let b = Rehearsal::with(|config| config.imds_v1 = true).await;
        assert_eq!(launched(&b, "").await, ["optional", "1", "enabled", "disabled"]);
        b.ask(&format!("ModifyImageAttribute&ImageId={}&ImdsSupport.Value=v2.0", b.image)).await.unwrap();
        assert_eq!(launched(&b, "").await, ["required", "2", "enabled", "disabled"], "this one says so");
    }
}
