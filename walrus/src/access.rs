//! Whether somebody may do something to something: the one function every request passes.
//!
//! Three voices are heard. The bucket's policy: what it denies is denied, and what it allows is allowed. The access
//! control lists, unless the bucket's ownership controls have switched them off. And ownership itself. The public access
//! block takes the public out of each of them.

use mallee_policy::{Policy, Request, Verdict, Who};

use crate::{
    principal::{Acl, Permission, Principal},
    s3::bucket::settings::{Block, Ownership},
};

macro_rules! actions {
    ($($name:ident on $kind:ident,)*) => {
        /// What is about to be done, by its name in policies.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action { $($name),* }

        impl Action {
            pub const ALL: &'static [Action] = &[$(Action::$name),*];

            /// `s3:GetObject`.
            pub const fn name(self) -> &'static str {
                match self { $(Action::$name => concat!("s3:", stringify!($name))),* }
            }
            pub const fn on(self) -> Kind {
                match self { $(Action::$name => Kind::$kind),* }
            }
        }
    };
}

/// What kind of thing an action is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Service,
    Bucket,
    Object,
}

actions! {
    ListAllMyBuckets on Service,
    CreateBucket on Service,
    DeleteBucket on Bucket,
    ListBucket on Bucket,
    ListBucketVersions on Bucket,
    ListBucketMultipartUploads on Bucket,
    GetBucketLocation on Bucket,
    GetBucketAcl on Bucket,
    PutBucketAcl on Bucket,
    GetBucketPolicy on Bucket,
    PutBucketPolicy on Bucket,
    DeleteBucketPolicy on Bucket,
    GetBucketPolicyStatus on Bucket,
    GetBucketPublicAccessBlock on Bucket,
    PutBucketPublicAccessBlock on Bucket,
    GetBucketOwnershipControls on Bucket,
    PutBucketOwnershipControls on Bucket,
    GetBucketTagging on Bucket,
    PutBucketTagging on Bucket,
    GetBucketCORS on Bucket,
    PutBucketCORS on Bucket,
    GetBucketWebsite on Bucket,
    PutBucketWebsite on Bucket,
    DeleteBucketWebsite on Bucket,
    GetBucketLogging on Bucket,
    PutBucketLogging on Bucket,
    GetEncryptionConfiguration on Bucket,
    PutEncryptionConfiguration on Bucket,
    GetBucketRequestPayment on Bucket,
    PutBucketRequestPayment on Bucket,
    GetBucketNotification on Bucket,
    PutBucketNotification on Bucket,
    GetBucketVersioning on Bucket,
    PutBucketVersioning on Bucket,
    GetLifecycleConfiguration on Bucket,
    PutLifecycleConfiguration on Bucket,
    GetBucketObjectLockConfiguration on Bucket,
    PutBucketObjectLockConfiguration on Bucket,
    GetAccelerateConfiguration on Bucket,
    PutAccelerateConfiguration on Bucket,
    GetReplicationConfiguration on Bucket,
    PutReplicationConfiguration on Bucket,
    GetInventoryConfiguration on Bucket,
    PutInventoryConfiguration on Bucket,
    GetAnalyticsConfiguration on Bucket,
    PutAnalyticsConfiguration on Bucket,
    GetMetricsConfiguration on Bucket,
    PutMetricsConfiguration on Bucket,
    GetIntelligentTieringConfiguration on Bucket,
    PutIntelligentTieringConfiguration on Bucket,
    GetObject on Object,
    GetObjectVersion on Object,
    GetObjectAttributes on Object,
    GetObjectVersionAttributes on Object,
    PutObject on Object,
    DeleteObject on Object,
    DeleteObjectVersion on Object,
    GetObjectAcl on Object,
    GetObjectVersionAcl on Object,
    PutObjectAcl on Object,
    PutObjectVersionAcl on Object,
    GetObjectTagging on Object,
    GetObjectVersionTagging on Object,
    PutObjectTagging on Object,
    PutObjectVersionTagging on Object,
    DeleteObjectTagging on Object,
    DeleteObjectVersionTagging on Object,
    AbortMultipartUpload on Object,
    ListMultipartUploadParts on Object,
    GetObjectRetention on Object,
    PutObjectRetention on Object,
    GetObjectLegalHold on Object,
    PutObjectLegalHold on Object,
    BypassGovernanceRetention on Object,
}

impl Action {
    /// The action's twin for a request that names a version: who may read what is there may not thereby read what was.
    #[must_use]
    pub fn of_version(self) -> Action {
        use Action::*;
        match self {
            GetObject => GetObjectVersion,
            GetObjectAttributes => GetObjectVersionAttributes,
            DeleteObject => DeleteObjectVersion,
            GetObjectAcl => GetObjectVersionAcl,
            PutObjectAcl => PutObjectVersionAcl,
            GetObjectTagging => GetObjectVersionTagging,
            PutObjectTagging => PutObjectVersionTagging,
            DeleteObjectTagging => DeleteObjectVersionTagging,
            other => other,
        }
    }
}

/// What a bucket says about access to it and to what is in it.
#[derive(Debug, Clone, Copy)]
pub struct BucketAccess<'a> {
    pub name: &'a str,
    /// Canonical id.
    pub owner: &'a str,
    /// 12 digits.
    pub account: &'a str,
    pub acl: &'a Acl,
    pub policy: Option<&'a Policy>,
    pub ownership: Ownership,
    pub block: Block,
    pub requester_pays: bool,
}

/// What it is done to.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    Service,
    Bucket(BucketAccess<'a>),
    /// A key in a bucket, whether or not there is an object.
    Key {
        bucket: BucketAccess<'a>,
        key: &'a str,
        object: Option<ObjectAccess<'a>>,
    },
}

/// What an object says about access to it.
#[derive(Debug, Clone, Copy)]
pub struct ObjectAccess<'a> {
    /// Canonical id.
    pub owner: &'a str,
    pub acl: &'a Acl,
    pub tags: &'a [(String, String)],
}

pub fn allow(principal: &Principal, action: Action, resource: Resource<'_>) -> bool {
    let (bucket, key, object) = match resource {
        Resource::Service => {
            return matches!(action, Action::ListAllMyBuckets | Action::CreateBucket) && principal.may_own_buckets();
        }
        Resource::Bucket(bucket) => (bucket, None, None),
        Resource::Key { bucket, key, object } => (bucket, Some(key), object),
    };
    if action.on() != (if key.is_some() { Kind::Object } else { Kind::Bucket }) {
        return false;
    }
    let owns_bucket = principal.is(bucket.owner);
    use Action::{DeleteBucketPolicy, GetBucketPolicy, PutBucketPolicy};
    // Or a policy could lock out everybody, for ever.
    if owns_bucket && matches!(action, GetBucketPolicy | PutBucketPolicy | DeleteBucketPolicy) {
        return true;
    }
    if bucket.requester_pays && !owns_bucket && !offers_to_pay(principal) {
        return false;
    }
    match by_policy(principal, action, bucket, key, object) {
        Verdict::Deny => return false,
        Verdict::Allow => return true,
        Verdict::Silent => {}
    }
    let Some(_) = key else { return by_bucket_acl(principal, action, bucket) };
    by_object_acl(principal, action, bucket, object)
}

/// Whether the request says that its sender would pay. Nobody can be charged who is not known.
fn offers_to_pay(principal: &Principal) -> bool {
    let said = principal.context.values("s3:x-amz-request-payer");
    matches!(principal.who(), Who::Service(_))
        || !principal.is_anonymous() && said.iter().any(|payer| payer == "requester")
}

fn by_policy(
    principal: &Principal,
    action: Action,
    bucket: BucketAccess<'_>,
    key: Option<&str>,
    object: Option<ObjectAccess<'_>>,
) -> Verdict {
    let Some(policy) = bucket.policy else { return Verdict::Silent };
    let arn = match key {
        Some(key) => format!("arn:aws:s3:::{}/{key}", bucket.name),
        None => format!("arn:aws:s3:::{}", bucket.name),
    };
    let mut context = (*principal.context).clone();
    context.add("s3:ResourceAccount", bucket.account);
    context.add("aws:ResourceAccount", bucket.account);
    for (key, value) in object.map(|object| object.tags).unwrap_or_default() {
        context.add(&format!("s3:ExistingObjectTag/{key}"), value.as_str());
    }
    match policy.judge(&Request { who: principal.who(), action: action.name(), resource: &arn, context: &context }) {
        Verdict::Allow if !may_delegate(bucket, object) => Verdict::Silent,
        Verdict::Allow
            if bucket.block.restrict_public_buckets && policy.is_public() && !of_account(principal, bucket) =>
        {
            Verdict::Silent
        }
        verdict => verdict,
    }
}

/// A bucket's policy gives what is its owner's: not objects that another account put there and still owns.
fn may_delegate(bucket: BucketAccess<'_>, object: Option<ObjectAccess<'_>>) -> bool {
    bucket.ownership == Ownership::BucketOwnerEnforced || object.is_none_or(|object| object.owner == bucket.owner)
}

fn of_account(principal: &Principal, bucket: BucketAccess<'_>) -> bool {
    match principal.who() {
        Who::Account { account, .. } => account == bucket.account,
        Who::Service(_) => true,
        Who::Anonymous => false,
    }
}

/// What a list gives, as far as lists count in this bucket.
fn given(principal: &Principal, acl: &Acl, bucket: BucketAccess<'_>, wanted: Permission) -> bool {
    bucket.ownership != Ownership::BucketOwnerEnforced && acl.gives(principal, wanted, bucket.block)
}

fn by_bucket_acl(principal: &Principal, action: Action, bucket: BucketAccess<'_>) -> bool {
    use Action::{GetBucketAcl, ListBucket, ListBucketMultipartUploads, ListBucketVersions, PutBucketAcl};
    // What a bucket is and does is its owner's; a list can give only these.
    let permission = match action {
        ListBucket | ListBucketVersions | ListBucketMultipartUploads => Permission::Read,
        GetBucketAcl => Permission::ReadAcp,
        PutBucketAcl => Permission::WriteAcp,
        _ => return principal.is(bucket.owner),
    };
    match permission {
        Permission::ReadAcp | Permission::WriteAcp if principal.is(bucket.owner) => true,
        _ => may_in_bucket(principal, bucket, permission),
    }
}

/// What the bucket's list gives in it. Its owner is in that list like anybody else, until they take themselves out of it;
/// where lists are off, there is only the owner.
fn may_in_bucket(principal: &Principal, bucket: BucketAccess<'_>, wanted: Permission) -> bool {
    match bucket.ownership {
        Ownership::BucketOwnerEnforced => principal.is(bucket.owner),
        _ => given(principal, bucket.acl, bucket, wanted),
    }
}

fn by_object_acl(
    principal: &Principal,
    action: Action,
    bucket: BucketAccess<'_>,
    object: Option<ObjectAccess<'_>>,
) -> bool {
    use Action::*;
    let owns_bucket = principal.is(bucket.owner);
    // Who owns the bucket may not read an object merely for that, unless ownership was settled that way: AWS with
    // lists in force is the same.
    let owns = object.is_some_and(|object| {
        if bucket.ownership == Ownership::BucketOwnerEnforced { owns_bucket } else { principal.is(object.owner) }
    });
    let by_acl = |permission| owns || object.is_some_and(|object| given(principal, object.acl, bucket, permission));
    match action {
        // Of what is about to be put: it is theirs who puts it, so they may say, and whether they may put it is asked
        // elsewhere.
        PutObjectAcl if object.is_none() => true,
        PutObjectTagging if object.is_none() => may_in_bucket(principal, bucket, Permission::Write),
        PutObject | DeleteObject | AbortMultipartUpload | ListMultipartUploadParts => {
            may_in_bucket(principal, bucket, Permission::Write)
        }
        GetObject | GetObjectVersion | GetObjectAttributes | GetObjectVersionAttributes => by_acl(Permission::Read),
        GetObjectAcl | GetObjectVersionAcl => by_acl(Permission::ReadAcp),
        PutObjectAcl | PutObjectVersionAcl => by_acl(Permission::WriteAcp),
        GetObjectTagging
        | GetObjectVersionTagging
        | PutObjectTagging
        | PutObjectVersionTagging
        | DeleteObjectTagging
        | DeleteObjectVersionTagging => owns || (object.is_some() && owns_bucket),
        GetObjectRetention | PutObjectRetention | GetObjectLegalHold | PutObjectLegalHold => owns || owns_bucket,
        // Who may write may hide an object; only the bucket's owner may destroy a version.
        DeleteObjectVersion | BypassGovernanceRetention => owns_bucket,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
