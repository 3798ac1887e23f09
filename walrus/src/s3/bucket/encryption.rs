//! How a bucket's objects are encrypted when a request does not say: SSE-S3, or not at all.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{
    opened,
    settings::{Encryption, update},
};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{done, xml},
};

#[derive(Serialize, Deserialize)]
struct Configuration {
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    apply_server_side_encryption_by_default: ByDefault,
    #[serde(default)]
    bucket_key_enabled: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ByDefault {
    #[serde(rename = "SSEAlgorithm")]
    algorithm: String,
    #[serde(rename = "KMSMasterKeyID", skip_serializing_if = "Option::is_none")]
    kms_key: Option<String>,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetEncryptionConfiguration).await?;
    let Some(Encryption::Aes256) = bucket.settings.encryption else {
        return Err(Error::Refused(
            AwsError::new(
                "ServerSideEncryptionConfigurationNotFoundError",
                404,
                "The server side encryption configuration was not found",
            )
            .with_field("BucketName", bucket.name),
        ));
    };
    let by_default = ByDefault { algorithm: "AES256".into(), kms_key: None };
    let rule = Rule { apply_server_side_encryption_by_default: by_default, bucket_key_enabled: false };
    xml("ServerSideEncryptionConfiguration", &Configuration { rules: vec![rule] })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutEncryptionConfiguration).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Configuration = document::parse(&body, "ServerSideEncryptionConfiguration", document::Limits::SMALL)?;
    let [rule] = &asked.rules[..] else { return Err(refuse::malformed_xml()) };
    let by_default = &rule.apply_server_side_encryption_by_default;
    match by_default.algorithm.as_str() {
        "AES256" if by_default.kms_key.is_none() => {}
        "AES256" => {
            return Err(refuse::argument(
                "KMSMasterKeyID",
                "",
                "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
            ));
        }
        "aws:kms" | "aws:kms:dsse" => return Err(refuse::not_implemented("Server-side encryption with KMS keys")),
        _ => return Err(refuse::malformed_xml()),
    }
    update(walrus, bucket, |settings| settings.encryption = Some(Encryption::Aes256)).await?;
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutEncryptionConfiguration).await?;
    update(walrus, bucket, |settings| settings.encryption = None).await?;
    Ok(done(StatusCode::NO_CONTENT))
}
