//! The public access block: four switches that keep the public out, whatever lists and policies say.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;

use super::{
    opened,
    settings::{Block, update},
};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    s3::{done, xml},
};

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketPublicAccessBlock).await?;
    let Some(block) = bucket.settings.block else {
        return Err(Error::Refused(
            AwsError::new(
                "NoSuchPublicAccessBlockConfiguration",
                404,
                "The public access block configuration was not found",
            )
            .with_field("BucketName", bucket.name),
        ));
    };
    xml("PublicAccessBlockConfiguration", &block)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketPublicAccessBlock).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let block: Block = document::parse(&body, "PublicAccessBlockConfiguration", document::Limits::SMALL)?;
    update(walrus, bucket, move |settings| settings.block = Some(block)).await?;
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketPublicAccessBlock).await?;
    update(walrus, bucket, |settings| settings.block = None).await?;
    Ok(done(StatusCode::NO_CONTENT))
}
