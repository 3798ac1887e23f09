//! Lifecycle: what of a bucket goes by itself, and when. The document is kept as it was understood; what it says about an
//! object is in [`rules`], and [`run`] does it.

mod rules;
mod run;

pub use run::Lifecycle;

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;

use super::{Bucket, opened, settings};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    s3::{done, http_time, object::Object, set, xml},
};
use rules::Configuration;

const KIND: &str = "lifecycle";

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetLifecycleConfiguration).await?;
    match settings::document::<Configuration>(walrus, bucket.id, KIND).await? {
        Some(configuration) => xml("LifecycleConfiguration", &configuration),
        None => Err(Error::Refused(
            AwsError::new("NoSuchLifecycleConfiguration", 404, "The lifecycle configuration does not exist")
                .with_field("BucketName", bucket.name),
        )),
    }
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutLifecycleConfiguration).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Configuration = document::parse(&body, "LifecycleConfiguration", document::Limits::SMALL)?;
    let configuration = asked.checked()?;
    let text = serde_json::to_string(&configuration).map_err(|e| Error::Internal(e.to_string()))?;
    keep(walrus, bucket, Some(text)).await?;
    walrus.lifecycle.poke();
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutLifecycleConfiguration).await?;
    keep(walrus, bucket, None).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

/// The document, and that there is one, in one transaction.
async fn keep(walrus: &Walrus, bucket: Bucket, text: Option<String>) -> Result<(), Error> {
    walrus
        .store
        .write("keep a bucket's lifecycle", move |tx| {
            settings::change(tx, &bucket, |settings| settings.lifecycle = text.is_some())?;
            settings::keep(tx, &bucket, KIND, text.as_deref())
        })
        .await
}

/// `x-amz-expiration`, where a rule will take the object away. Only buckets with a lifecycle are looked up.
pub async fn show_expiration(
    walrus: &Walrus,
    response: &mut Response<Body>,
    bucket: &Bucket,
    object: &Object,
) -> Result<(), Error> {
    if !bucket.settings.lifecycle {
        return Ok(());
    }
    let Some(configuration) = settings::document::<Configuration>(walrus, bucket.id, KIND).await? else {
        return Ok(());
    };
    match configuration.expiration(object) {
        Some((at, rule)) => {
            set(response, "x-amz-expiration", &format!("expiry-date=\"{}\", rule-id=\"{rule}\"", http_time(at)))
        }
        None => Ok(()),
    }
}
