//! Encryption of volumes: per volume, and by default for everything an account makes.
//!
//! Each account has one key, which AWS calls `alias/aws/ebs` (see [`crate::disk_key`]). What is made of encrypted bytes is
//! encrypted; what is made with a key is made with the maker's own.

use mallee_aws::AwsError;
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use super::unless_dry_run;
use crate::{Cloud, Outcome, Refusal, actions, disk_key, service::Call};

actions![
    DisableEbsEncryptionByDefault => disable,
    EnableEbsEncryptionByDefault => enable,
    GetEbsDefaultKmsKeyId => default_key,
    GetEbsEncryptionByDefault => get,
    ModifyEbsDefaultKmsKeyId => modify_key,
    ResetEbsDefaultKmsKeyId => reset_key,
];

pub const TABLES: &str = "
ALTER TABLE volume ADD COLUMN disk_key TEXT;
ALTER TABLE snapshot ADD COLUMN disk_key TEXT;
CREATE TABLE encryption_by_default (account TEXT PRIMARY KEY);
";

const ALIAS: &str = "alias/aws/ebs";

/// A key as KMS would name it.
pub fn arn(cloud: &Cloud, account: &str, key: &str) -> String {
    cloud.arn("kms", account, &format!("key/{key}"))
}

/// What a request that makes volumes says of encryption, and a key in case the account has none yet.
#[derive(Clone)]
pub struct Asked {
    account: String,
    encrypted: Option<bool>,
    /// Another key than the account's cannot be used: its id, where it was named.
    named: Option<String>,
    new: disk_key::New,
    now: i64,
}

impl Asked {
    pub fn of(call: &Call, encrypted: Option<bool>, kms_key_id: Option<&str>) -> Outcome<Self> {
        let named = kms_key_id.filter(|k| !k.is_empty());
        if named.is_some() && encrypted != Some(true) {
            return Err(Refusal::new(
                "InvalidParameterDependency",
                "The parameter KmsKeyId requires the parameter Encrypted to be set.",
            ));
        }
        let account = call.account().to_owned();
        Ok(Self {
            named: named.and_then(|name| key_id(call, &account, name)),
            new: disk_key::New::draw(&call.cloud.sealing)?,
            now: call.now,
            account,
            encrypted,
        })
    }

    /// Whether everything this account makes is encrypted.
    pub fn is_default(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        is_default(tx, &self.account)
    }

    /// The key to encrypt with. None: it is not encrypted. `must`: it begins with something that is.
    pub fn key(&self, tx: &mut Tx<'_>, must: bool) -> Outcome<Option<String>> {
        if must && self.encrypted == Some(false) {
            return Err(
                AwsError::invalid_parameter_value("What begins with an encrypted snapshot cannot be in clear").into()
            );
        }
        if !must && self.encrypted != Some(true) && !self.is_default(tx)? {
            return Ok(None);
        }
        let key = disk_key::of_account(tx, &self.account, &self.new, self.now)?;
        match &self.named {
            Some(named) if *named != key => Err(unknown_key(named)),
            _ => Ok(Some(key)),
        }
    }
}

/// The id in a name of a key; None is the account's own, by its alias.
fn key_id(call: &Call, account: &str, name: &str) -> Option<String> {
    if name == ALIAS || name == call.cloud.arn("kms", account, ALIAS) {
        return None;
    }
    let prefix = arn(&call.cloud, account, "");
    Some(name.strip_prefix(&prefix).unwrap_or(name).to_owned())
}

fn unknown_key(key: &str) -> Refusal {
    let message = format!("Key '{key}' does not exist: an account of this cloud has one key, {ALIAS}");
    Refusal::new("InvalidParameterValue", message)
}

fn is_default(tx: &mut Tx<'_>, account: &str) -> Result<bool, StoreError> {
    let found = tx.query_opt("SELECT 1 FROM encryption_by_default WHERE account = ?1", params![account], |row| {
        row.get::<i64>(0)
    })?;
    Ok(found.is_some())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetEbsEncryptionByDefault {
    dry_run: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ByDefault {
    ebs_encryption_by_default: bool,
    /// Whose decision it is: EC2 itself.
    sse_type: Option<&'static str>,
}

async fn get(call: &Call, input: GetEbsEncryptionByDefault) -> Outcome<ByDefault> {
    let account = call.account().to_owned();
    unless_dry_run(input.dry_run)?;
    let on = call.cloud.store.read("read the default of encryption", move |tx| is_default(tx, &account)).await?;
    Ok(ByDefault { ebs_encryption_by_default: on, sse_type: on.then_some("sse-ebs") })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EnableEbsEncryptionByDefault {
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DisableEbsEncryptionByDefault {
    dry_run: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NowByDefault {
    ebs_encryption_by_default: bool,
}

async fn enable(call: &Call, input: EnableEbsEncryptionByDefault) -> Outcome<NowByDefault> {
    set(call, input.dry_run, "INSERT INTO encryption_by_default (account) VALUES (?1) ON CONFLICT DO NOTHING").await?;
    Ok(NowByDefault { ebs_encryption_by_default: true })
}

async fn disable(call: &Call, input: DisableEbsEncryptionByDefault) -> Outcome<NowByDefault> {
    set(call, input.dry_run, "DELETE FROM encryption_by_default WHERE account = ?1").await?;
    Ok(NowByDefault { ebs_encryption_by_default: false })
}

async fn set(call: &Call, dry_run: Option<bool>, sql: &'static str) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("change the default of encryption", move |tx| {
            tx.execute(sql, params![account])?;
            unless_dry_run(dry_run)
        })
        .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetEbsDefaultKmsKeyId {
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResetEbsDefaultKmsKeyId {
    dry_run: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DefaultKey {
    kms_key_id: String,
}

async fn default_key(_: &Call, input: GetEbsDefaultKmsKeyId) -> Outcome<DefaultKey> {
    unless_dry_run(input.dry_run)?;
    Ok(DefaultKey { kms_key_id: ALIAS.into() })
}

/// There is nothing else that it could have been set to.
async fn reset_key(_: &Call, input: ResetEbsDefaultKmsKeyId) -> Outcome<DefaultKey> {
    unless_dry_run(input.dry_run)?;
    Ok(DefaultKey { kms_key_id: ALIAS.into() })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyEbsDefaultKmsKeyId {
    dry_run: Option<bool>,
    kms_key_id: String,
}

async fn modify_key(call: &Call, input: ModifyEbsDefaultKmsKeyId) -> Outcome<DefaultKey> {
    let asked = Asked::of(call, Some(true), Some(&input.kms_key_id))?;
    call.cloud
        .store
        .write("choose the default key", move |tx| {
            asked.key(tx, false)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    Ok(DefaultKey { kms_key_id: ALIAS.into() })
}

#[cfg(test)]
mod tests {
    use crate::ec2::rehearsal::{Rehearsal, first};

    #[tokio::test]
    async fn what_is_made_is_encrypted_when_it_or_the_account_says_so_and_whatever_is_made_of_it() {
        let stage = Rehearsal::new().await;
        let create = |more: &str| format!("CreateVolume&AvailabilityZone=z-1a&Size=2{more}");
        let clear = first(&stage.ask(&create("")).await.unwrap(), "volumeId");
        assert_eq!(stage.wanted_volume(&clear).await.encrypted, None);
        let made = stage.ask(&create("&Encrypted=true")).await.unwrap();
        let (sealed, key) = (first(&made, "volumeId"), first(&made, "kmsKeyId"));
        let id = stage.wanted_volume(&sealed).await.encrypted.unwrap();
        assert!(key.starts_with("arn:aws:kms:") && key.ends_with(&id), "{key}");
        for (named, outcome) in [
            ("alias/aws/ebs", None),
            (key.as_str(), None),
            (id.as_str(), None),
            ("11111111-2222-3333-4444-555555555555", Some("InvalidParameterValue")),
        ] {
            let asked = stage.ask(&create(&format!("&Encrypted=true&KmsKeyId={named}"))).await;
            assert_eq!(asked.err().as_deref(), outcome, "{named}");
        }
        let depends = stage.ask(&create("&KmsKeyId=alias/aws/ebs")).await;
        assert_eq!(depends.err().as_deref(), Some("InvalidParameterDependency"));

        stage.serve(&sealed).await;
        let taken = stage.ask(&format!("CreateSnapshot&VolumeId={sealed}")).await.unwrap();
        assert_eq!(first(&taken, "encrypted"), "true");
        let snapshot = first(&taken, "snapshotId");
        stage.complete(&snapshot).await;
        let again = stage.ask(&create(&format!("&SnapshotId={snapshot}"))).await.unwrap();
        assert_eq!(first(&again, "encrypted"), "true");
        let refused = stage.ask(&create(&format!("&SnapshotId={snapshot}&Encrypted=false"))).await;
        assert_eq!(refused.err().as_deref(), Some("InvalidParameterValue"));
        let other = stage.another_account().await;
        let share =
            format!("ModifySnapshotAttribute&SnapshotId={snapshot}&CreateVolumePermission.Add.1.UserId={other}");
        assert_eq!(stage.ask(&share).await.err().as_deref(), Some("InvalidParameterValue"));

        assert_eq!(stage.all("GetEbsEncryptionByDefault", "ebsEncryptionByDefault").await, ["false"]);
        stage.ask("EnableEbsEncryptionByDefault").await.unwrap();
        assert_eq!(first(&stage.ask(&create("")).await.unwrap(), "encrypted"), "true");
        let image = stage.image_on_snapshot("").await;
        stage.ask(&format!("RunInstances&ImageId={image}&MinCount=1&MaxCount=1")).await.unwrap();
        let all =
            stage.ask("DescribeVolumes&Filter.1.Name=attachment.device&Filter.1.Value.1=/dev/sda1").await.unwrap();
        assert_eq!(first(&all, "encrypted"), "true");
        stage.ask("DisableEbsEncryptionByDefault").await.unwrap();
        assert_eq!(first(&stage.ask(&create("")).await.unwrap(), "encrypted"), "false");
        assert_eq!(stage.all("GetEbsDefaultKmsKeyId", "kmsKeyId").await, ["alias/aws/ebs"]);
        let foreign = stage.ask("ModifyEbsDefaultKmsKeyId&KmsKeyId=11111111-2222-3333-4444-555555555555").await;
        assert_eq!(foreign.err().as_deref(), Some("InvalidParameterValue"));
    }
}
