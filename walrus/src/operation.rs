//! Every operation of S3's API, in one list: what walrus does, and what it says to the rest. The list is the router, so
//! nothing is done that is not in it. `GET` of a configuration nobody can set here answers what AWS answers where nothing
//! was set, because clients read a dozen of them before they do anything; setting it is refused by name.

use http::{HeaderMap, Method};

use crate::{
    Error,
    access::Action,
    call::{self, Call},
    error::refuse,
};

/// What an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Service,
    Bucket,
    Object,
}

/// What picks the operation beside method and target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Nothing,
    /// A parameter of the query, whatever its value.
    Query(&'static str),
    /// A parameter with this value.
    Value(&'static str, &'static str),
    /// A parameter of the query and a header.
    QueryAndHeader(&'static str, &'static str),
    /// A parameter of the query and an `id`: one of several configurations of a kind.
    QueryAndId(&'static str),
    Header(&'static str),
    /// A body of `multipart/form-data`.
    Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    This(Op),
    /// There is none, and here there never is: the error AWS answers with.
    Absent {
        code: &'static str,
        status: u16,
        message: &'static str,
    },
    /// There is none: an empty document, or one that says the default.
    Document {
        root: &'static str,
        inner: &'static str,
    },
    /// Nothing to take away, which is what was asked for.
    NothingThere,
    Refused,
}

/// The operations walrus does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    ListBuckets,
    CreateBucket,
    HeadBucket,
    DeleteBucket,
    GetBucketLocation,
    GetBucketAcl,
    PutBucketAcl,
    GetBucketTagging,
    PutBucketTagging,
    DeleteBucketTagging,
    GetBucketCors,
    PutBucketCors,
    DeleteBucketCors,
    GetBucketPolicy,
    GetBucketPolicyStatus,
    PutBucketPolicy,
    DeleteBucketPolicy,
    GetPublicAccessBlock,
    PutPublicAccessBlock,
    DeletePublicAccessBlock,
    GetBucketOwnershipControls,
    PutBucketOwnershipControls,
    DeleteBucketOwnershipControls,
    GetBucketWebsite,
    PutBucketWebsite,
    DeleteBucketWebsite,
    GetBucketEncryption,
    PutBucketEncryption,
    DeleteBucketEncryption,
    GetBucketLogging,
    PutBucketLogging,
    GetBucketNotificationConfiguration,
    PutBucketNotificationConfiguration,
    GetBucketRequestPayment,
    PutBucketRequestPayment,
    GetBucketVersioning,
    PutBucketVersioning,
    GetObjectLockConfiguration,
    PutObjectLockConfiguration,
    GetBucketLifecycle,
    PutBucketLifecycle,
    DeleteBucketLifecycle,
    GetObjectRetention,
    PutObjectRetention,
    GetObjectLegalHold,
    PutObjectLegalHold,
    ListObjects,
    ListObjectsV2,
    ListObjectVersions,
    ListMultipartUploads,
    DeleteObjects,
    PostObject,
    GetObject,
    HeadObject,
    PutObject,
    CopyObject,
    DeleteObject,
    GetObjectAttributes,
    GetObjectAcl,
    PutObjectAcl,
    GetObjectTagging,
    PutObjectTagging,
    DeleteObjectTagging,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    ListParts,
    AbortMultipartUpload,
    CompleteMultipartUpload,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub name: &'static str,
    pub on: On,
    pub method: &'static str,
    pub by: By,
    pub does: Does,
}

const fn row(name: &'static str, on: On, method: &'static str, by: By, does: Does) -> Operation {
    Operation { name, on, method, by, does }
}

const fn absent(code: &'static str, message: &'static str) -> Does {
    Does::Absent { code, status: 404, message }
}

const fn document(root: &'static str) -> Does {
    Does::Document { root, inner: "" }
}

const NO_CONFIGURATION: Does = absent("NoSuchConfiguration", "The specified configuration does not exist.");

use By::{Form, Header, Nothing, Query, QueryAndHeader, QueryAndId, Value};
use Does::{NothingThere, Refused, This};
use On::{Bucket, Object, Service};

/// The first row that fits is taken, so the narrower ones stand first.
#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = &[
    row("ListBuckets", Service, "GET", Nothing, This(Op::ListBuckets)),

    row("GetBucketLocation", Bucket, "GET", Query("location"), This(Op::GetBucketLocation)),
    row("GetBucketAcl", Bucket, "GET", Query("acl"), This(Op::GetBucketAcl)),
    row("PutBucketAcl", Bucket, "PUT", Query("acl"), This(Op::PutBucketAcl)),
    row("ListMultipartUploads", Bucket, "GET", Query("uploads"), This(Op::ListMultipartUploads)),
    row("ListObjectVersions", Bucket, "GET", Query("versions"), This(Op::ListObjectVersions)),
    row("DeleteObjects", Bucket, "POST", Query("delete"), This(Op::DeleteObjects)),
    row("GetBucketVersioning", Bucket, "GET", Query("versioning"), This(Op::GetBucketVersioning)),
    row("PutBucketVersioning", Bucket, "PUT", Query("versioning"), This(Op::PutBucketVersioning)),
    row("GetBucketTagging", Bucket, "GET", Query("tagging"), This(Op::GetBucketTagging)),
    row("PutBucketTagging", Bucket, "PUT", Query("tagging"), This(Op::PutBucketTagging)),
    row("DeleteBucketTagging", Bucket, "DELETE", Query("tagging"), This(Op::DeleteBucketTagging)),
    row("GetBucketCors", Bucket, "GET", Query("cors"), This(Op::GetBucketCors)),
    row("PutBucketCors", Bucket, "PUT", Query("cors"), This(Op::PutBucketCors)),
    row("DeleteBucketCors", Bucket, "DELETE", Query("cors"), This(Op::DeleteBucketCors)),
    row("GetBucketLifecycleConfiguration", Bucket, "GET", Query("lifecycle"), This(Op::GetBucketLifecycle)),
    row("PutBucketLifecycleConfiguration", Bucket, "PUT", Query("lifecycle"), This(Op::PutBucketLifecycle)),
    row("DeleteBucketLifecycle", Bucket, "DELETE", Query("lifecycle"), This(Op::DeleteBucketLifecycle)),
    row("GetBucketPolicyStatus", Bucket, "GET", Query("policyStatus"), This(Op::GetBucketPolicyStatus)),
    row("GetBucketPolicy", Bucket, "GET", Query("policy"), This(Op::GetBucketPolicy)),
    row("PutBucketPolicy", Bucket, "PUT", Query("policy"), This(Op::PutBucketPolicy)),
    row("DeleteBucketPolicy", Bucket, "DELETE", Query("policy"), This(Op::DeleteBucketPolicy)),
    row("GetPublicAccessBlock", Bucket, "GET", Query("publicAccessBlock"), This(Op::GetPublicAccessBlock)),
    row("PutPublicAccessBlock", Bucket, "PUT", Query("publicAccessBlock"), This(Op::PutPublicAccessBlock)),
    row("DeletePublicAccessBlock", Bucket, "DELETE", Query("publicAccessBlock"), This(Op::DeletePublicAccessBlock)),
    row("GetBucketOwnershipControls", Bucket, "GET", Query("ownershipControls"), This(Op::GetBucketOwnershipControls)),
    row("PutBucketOwnershipControls", Bucket, "PUT", Query("ownershipControls"), This(Op::PutBucketOwnershipControls)),
    row("DeleteBucketOwnershipControls", Bucket, "DELETE", Query("ownershipControls"), This(Op::DeleteBucketOwnershipControls)),
    row("GetBucketWebsite", Bucket, "GET", Query("website"), This(Op::GetBucketWebsite)),
    row("PutBucketWebsite", Bucket, "PUT", Query("website"), This(Op::PutBucketWebsite)),
    row("DeleteBucketWebsite", Bucket, "DELETE", Query("website"), This(Op::DeleteBucketWebsite)),
    row("GetBucketEncryption", Bucket, "GET", Query("encryption"), This(Op::GetBucketEncryption)),
    row("PutBucketEncryption", Bucket, "PUT", Query("encryption"), This(Op::PutBucketEncryption)),
    row("DeleteBucketEncryption", Bucket, "DELETE", Query("encryption"), This(Op::DeleteBucketEncryption)),
    row("GetObjectLockConfiguration", Bucket, "GET", Query("object-lock"), This(Op::GetObjectLockConfiguration)),
    row("PutObjectLockConfiguration", Bucket, "PUT", Query("object-lock"), This(Op::PutObjectLockConfiguration)),
    row("GetBucketReplication", Bucket, "GET", Query("replication"), absent("ReplicationConfigurationNotFoundError", "The replication configuration was not found")),
    row("PutBucketReplication", Bucket, "PUT", Query("replication"), Refused),
    row("DeleteBucketReplication", Bucket, "DELETE", Query("replication"), NothingThere),
    row("GetBucketLogging", Bucket, "GET", Query("logging"), This(Op::GetBucketLogging)),
    row("PutBucketLogging", Bucket, "PUT", Query("logging"), This(Op::PutBucketLogging)),
    row("GetBucketNotificationConfiguration", Bucket, "GET", Query("notification"), This(Op::GetBucketNotificationConfiguration)),
    row("PutBucketNotificationConfiguration", Bucket, "PUT", Query("notification"), This(Op::PutBucketNotificationConfiguration)),
    row("GetBucketAccelerateConfiguration", Bucket, "GET", Query("accelerate"), document("AccelerateConfiguration")),
    row("PutBucketAccelerateConfiguration", Bucket, "PUT", Query("accelerate"), Refused),
    row("GetBucketRequestPayment", Bucket, "GET", Query("requestPayment"), This(Op::GetBucketRequestPayment)),
    row("PutBucketRequestPayment", Bucket, "PUT", Query("requestPayment"), This(Op::PutBucketRequestPayment)),
    row("GetBucketInventoryConfiguration", Bucket, "GET", QueryAndId("inventory"), NO_CONFIGURATION),
    row("ListBucketInventoryConfigurations", Bucket, "GET", Query("inventory"), Does::Document { root: "ListInventoryConfigurationsResult", inner: "<IsTruncated>false</IsTruncated>" }),
    row("PutBucketInventoryConfiguration", Bucket, "PUT", Query("inventory"), Refused),
    row("DeleteBucketInventoryConfiguration", Bucket, "DELETE", Query("inventory"), NO_CONFIGURATION),
    row("GetBucketAnalyticsConfiguration", Bucket, "GET", QueryAndId("analytics"), NO_CONFIGURATION),
    row("ListBucketAnalyticsConfigurations", Bucket, "GET", Query("analytics"), Does::Document { root: "ListBucketAnalyticsConfigurationResult", inner: "<IsTruncated>false</IsTruncated>" }),
    row("PutBucketAnalyticsConfiguration", Bucket, "PUT", Query("analytics"), Refused),
    row("DeleteBucketAnalyticsConfiguration", Bucket, "DELETE", Query("analytics"), NO_CONFIGURATION),
    row("GetBucketMetricsConfiguration", Bucket, "GET", QueryAndId("metrics"), NO_CONFIGURATION),
    row("ListBucketMetricsConfigurations", Bucket, "GET", Query("metrics"), Does::Document { root: "ListMetricsConfigurationsResult", inner: "<IsTruncated>false</IsTruncated>" }),
    row("PutBucketMetricsConfiguration", Bucket, "PUT", Query("metrics"), Refused),
    row("DeleteBucketMetricsConfiguration", Bucket, "DELETE", Query("metrics"), NO_CONFIGURATION),
    row("GetBucketIntelligentTieringConfiguration", Bucket, "GET", QueryAndId("intelligent-tiering"), NO_CONFIGURATION),
    row("ListBucketIntelligentTieringConfigurations", Bucket, "GET", Query("intelligent-tiering"), Does::Document { root: "ListBucketIntelligentTieringConfigurationsOutput", inner: "<IsTruncated>false</IsTruncated>" }),
    row("PutBucketIntelligentTieringConfiguration", Bucket, "PUT", Query("intelligent-tiering"), Refused),
    row("DeleteBucketIntelligentTieringConfiguration", Bucket, "DELETE", Query("intelligent-tiering"), NO_CONFIGURATION),
    row("CreateSession", Bucket, "GET", Query("session"), Refused),
    row("CreateBucketMetadataTableConfiguration", Bucket, "POST", Query("metadataTable"), Refused),
    row("CreateBucketMetadataConfiguration", Bucket, "POST", Query("metadataConfiguration"), Refused),
    row("ListObjectsV2", Bucket, "GET", Value("list-type", "2"), This(Op::ListObjectsV2)),
    row("ListObjects", Bucket, "GET", Nothing, This(Op::ListObjects)),
    row("HeadBucket", Bucket, "HEAD", Nothing, This(Op::HeadBucket)),
    row("CreateBucket", Bucket, "PUT", Nothing, This(Op::CreateBucket)),
    row("DeleteBucket", Bucket, "DELETE", Nothing, This(Op::DeleteBucket)),
    row("PostObject", Bucket, "POST", Form, This(Op::PostObject)),

    row("GetObjectAcl", Object, "GET", Query("acl"), This(Op::GetObjectAcl)),
    row("PutObjectAcl", Object, "PUT", Query("acl"), This(Op::PutObjectAcl)),
    row("GetObjectTagging", Object, "GET", Query("tagging"), This(Op::GetObjectTagging)),
    row("PutObjectTagging", Object, "PUT", Query("tagging"), This(Op::PutObjectTagging)),
    row("DeleteObjectTagging", Object, "DELETE", Query("tagging"), This(Op::DeleteObjectTagging)),
    row("GetObjectAttributes", Object, "GET", Query("attributes"), This(Op::GetObjectAttributes)),
    row("GetObjectRetention", Object, "GET", Query("retention"), This(Op::GetObjectRetention)),
    row("PutObjectRetention", Object, "PUT", Query("retention"), This(Op::PutObjectRetention)),
    row("GetObjectLegalHold", Object, "GET", Query("legal-hold"), This(Op::GetObjectLegalHold)),
    row("PutObjectLegalHold", Object, "PUT", Query("legal-hold"), This(Op::PutObjectLegalHold)),
    row("GetObjectTorrent", Object, "GET", Query("torrent"), Refused),
    row("RestoreObject", Object, "POST", Query("restore"), Refused),
    row("SelectObjectContent", Object, "POST", Query("select"), Refused),
    row("RenameObject", Object, "PUT", Query("renameObject"), Refused),
    row("ListParts", Object, "GET", Query("uploadId"), This(Op::ListParts)),
    row("UploadPartCopy", Object, "PUT", QueryAndHeader("uploadId", "x-amz-copy-source"), This(Op::UploadPartCopy)),
    row("UploadPart", Object, "PUT", Query("uploadId"), This(Op::UploadPart)),
    row("AbortMultipartUpload", Object, "DELETE", Query("uploadId"), This(Op::AbortMultipartUpload)),
    row("CompleteMultipartUpload", Object, "POST", Query("uploadId"), This(Op::CompleteMultipartUpload)),
    row("CreateMultipartUpload", Object, "POST", Query("uploads"), This(Op::CreateMultipartUpload)),
    row("CopyObject", Object, "PUT", Header("x-amz-copy-source"), This(Op::CopyObject)),
    row("GetObject", Object, "GET", Nothing, This(Op::GetObject)),
    row("HeadObject", Object, "HEAD", Nothing, This(Op::HeadObject)),
    row("PutObject", Object, "PUT", Nothing, This(Op::PutObject)),
    row("DeleteObject", Object, "DELETE", Nothing, This(Op::DeleteObject)),
];

impl Operation {
    fn sub_resource(&self) -> Option<&'static str> {
        match self.by {
            Query(name) | QueryAndHeader(name, _) | QueryAndId(name) => Some(name),
            Nothing | Value(..) | Header(_) | Form => None,
        }
    }

    fn fits(&self, query: &call::Query, headers: &HeaderMap) -> bool {
        match self.by {
            Nothing => true,
            Query(name) => query.has(name),
            Value(name, value) => query.get(name) == Some(value),
            QueryAndId(name) => query.has(name) && query.has("id"),
            QueryAndHeader(name, header) => query.has(name) && headers.contains_key(header),
            Header(name) => headers.contains_key(name),
            Form => headers
                .get(http::header::CONTENT_TYPE)
                .and_then(|v| v.to_str().ok())
                .is_some_and(|v| v.to_ascii_lowercase().starts_with("multipart/form-data")),
        }
    }
}

impl Operation {
    /// What a policy calls it, for the rows that need no more than the right to a configuration.
    pub fn action(&self) -> Action {
        use Action::*;
        let (get, put) = match self.sub_resource().unwrap_or_default() {
            "accelerate" => (GetAccelerateConfiguration, PutAccelerateConfiguration),
            "replication" => (GetReplicationConfiguration, PutReplicationConfiguration),
            "inventory" => (GetInventoryConfiguration, PutInventoryConfiguration),
            "analytics" => (GetAnalyticsConfiguration, PutAnalyticsConfiguration),
            "metrics" => (GetMetricsConfiguration, PutMetricsConfiguration),
            "intelligent-tiering" => (GetIntelligentTieringConfiguration, PutIntelligentTieringConfiguration),
            _ => (ListBucket, PutBucketPolicy),
        };
        if self.method == "GET" { get } else { put }
    }
}

/// The operation a request asks for.
pub fn pick(call: &Call) -> Result<&'static Operation, Error> {
    find(&call.method, &call.target, &call.query, &call.headers)
}

/// The operation that `target` asks for, path and query as they are sent.
pub fn asked(method: &Method, target: &str, headers: &HeaderMap) -> Result<&'static Operation, Error> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    find(method, &call::Target::of(path, None)?, &call::Query::parse(query)?, headers)
}

fn find(
    method: &Method,
    target: &call::Target,
    query: &call::Query,
    headers: &HeaderMap,
) -> Result<&'static Operation, Error> {
    let on = match (target.bucket.as_str(), target.key.as_str()) {
        ("", _) => Service,
        (_, "") => Bucket,
        _ => Object,
    };
    let here = || OPERATIONS.iter().filter(move |row| row.on == on);
    let known = here().filter_map(Operation::sub_resource).find(|name| query.has(name));
    if known.is_none() {
        // `?acl` is how a sub-resource is spelled; parameters of other kinds have a value.
        let bare = query.iter().find(|(name, value)| value.is_none() && !name.is_empty());
        if let Some((name, _)) = bare {
            return Err(refuse::not_implemented(&format!("The sub-resource {name:?}")));
        }
    }
    let found = here().find(|row| {
        row.method == method.as_str() && row.fits(query, headers) && (known.is_none() || row.sub_resource().is_some())
    });
    if let Some(row) = found {
        return Ok(row);
    }
    match (known, method) {
        (None, &Method::POST) => Err(refuse::not_implemented("POST to this address, as a form of another service,")),
        _ => Err(Error::Refused(
            mallee_aws::AwsError::new(
                "MethodNotAllowed",
                405,
                "The specified method is not allowed against this resource.",
            )
            .with_field("Method", method.as_str()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_listed_once() {
        let mut names: Vec<_> = OPERATIONS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }

    #[test]
    fn a_narrow_row_stands_before_the_wide_one() {
        for (at, row) in OPERATIONS.iter().enumerate() {
            let hidden = OPERATIONS[..at].iter().find(|before| {
                before.on == row.on && before.method == row.method && (before.by == By::Nothing || before.by == row.by)
            });
            assert!(hidden.is_none(), "{} hides {}", hidden.unwrap().name, row.name);
        }
    }
}
