//! Who pays for requests. Nobody pays here; but a bucket whose requesters would is closed to those who do not say that
//! they know (`x-amz-request-payer`), as clients expect.

use http::{Response, StatusCode};
use mallee_aws::document;
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{find, opened, settings::update};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{done, set, xml},
};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    payer: String,
}

/// Tells who said they would pay that they did, as clients wait to hear.
pub async fn tell(walrus: &Walrus, call: &Call, response: &mut Response<Body>) -> Result<(), Error> {
    if call.header("x-amz-request-payer")? != Some("requester") || call.target.bucket.is_empty() {
        return Ok(());
    }
    let name = call.target.bucket.clone();
    match walrus.store.read("find a bucket", move |tx| find(tx, &name)).await {
        Ok(bucket) if bucket.settings.requester_pays && !call.principal.is(&bucket.owner) => {
            set(response, "x-amz-request-charged", "requester")
        }
        Ok(_) | Err(Error::Refused(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketRequestPayment).await?;
    let payer = if bucket.settings.requester_pays { "Requester" } else { "BucketOwner" };
    xml("RequestPaymentConfiguration", &Configuration { payer: payer.into() })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketRequestPayment).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Configuration = document::parse(&body, "RequestPaymentConfiguration", document::Limits::SMALL)?;
    let requester_pays = match asked.payer.as_str() {
        "BucketOwner" => false,
        "Requester" => true,
        _ => return Err(refuse::malformed_xml()),
    };
    update(walrus, bucket, move |settings| settings.requester_pays = requester_pays).await?;
    Ok(done(StatusCode::OK))
}
