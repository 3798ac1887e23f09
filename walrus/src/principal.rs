//! Who asks, and the one place that says whether they may.

use serde::{Deserialize, Serialize};

/// Who a request speaks for, once its signature is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// No signature.
    Anonymous,
    Account(Account),
    /// The cloud's own image import, reading as this account would; `aws-exec-read` is for it.
    Importer(Account),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// 12 digits.
    pub account: String,
    pub name: String,
    /// 64 hex digits: S3's name of the account, and what rows keep as the owner.
    pub canonical_id: String,
}

impl Principal {
    pub fn account(&self) -> Option<&Account> {
        match self {
            Principal::Anonymous => None,
            Principal::Account(account) | Principal::Importer(account) => Some(account),
        }
    }
    pub fn is(&self, canonical_id: &str) -> bool {
        self.account().is_some_and(|account| account.canonical_id == canonical_id)
    }
}

pub const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
pub const AUTHENTICATED_USERS: &str = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers";
pub const LOG_DELIVERY: &str = "http://acs.amazonaws.com/groups/s3/LogDelivery";
/// The canonical user AWS shows for what `aws-exec-read` grants: EC2, which reads image bundles.
pub const EXEC_READER: &str = "6aa5a366c34c1cbe25dc49211496e913e0351eb0e8c37aa3477e40942ec6b97c";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grantee {
    /// A canonical user.
    Id(String),
    Group(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permission {
    #[serde(rename = "FULL_CONTROL")]
    FullControl,
    #[serde(rename = "READ")]
    Read,
    #[serde(rename = "WRITE")]
    Write,
    #[serde(rename = "READ_ACP")]
    ReadAcp,
    #[serde(rename = "WRITE_ACP")]
    WriteAcp,
}

impl Permission {
    pub const fn name(self) -> &'static str {
        match self {
            Permission::FullControl => "FULL_CONTROL",
            Permission::Read => "READ",
            Permission::Write => "WRITE",
            Permission::ReadAcp => "READ_ACP",
            Permission::WriteAcp => "WRITE_ACP",
        }
    }
    pub fn by_name(name: &str) -> Option<Self> {
        use Permission::{FullControl, Read, ReadAcp, Write, WriteAcp};
        [FullControl, Read, Write, ReadAcp, WriteAcp].into_iter().find(|p| p.name() == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub grantee: Grantee,
    pub permission: Permission,
}

/// Who may do what beside the owner by being the owner: an access control list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Acl(pub Vec<Grant>);

impl Acl {
    /// `private`: the owner has everything.
    pub fn private(owner: &str) -> Self {
        Acl(vec![Grant { grantee: Grantee::Id(owner.into()), permission: Permission::FullControl }])
    }

    /// A canned list by its name; `None` for a name AWS does not know.
    pub fn canned(name: &str, owner: &str, bucket_owner: &str) -> Option<Self> {
        let group = |uri: &str, permission| Grant { grantee: Grantee::Group(uri.into()), permission };
        let user = |id: &str, permission| Grant { grantee: Grantee::Id(id.into()), permission };
        let Acl(mut grants) = Acl::private(owner);
        match name {
            "private" => {}
            "public-read" => grants.push(group(ALL_USERS, Permission::Read)),
            "public-read-write" => {
                grants.push(group(ALL_USERS, Permission::Read));
                grants.push(group(ALL_USERS, Permission::Write));
            }
            "authenticated-read" => grants.push(group(AUTHENTICATED_USERS, Permission::Read)),
            "aws-exec-read" => grants.push(user(EXEC_READER, Permission::Read)),
            "bucket-owner-read" if bucket_owner != owner => grants.push(user(bucket_owner, Permission::Read)),
            "bucket-owner-full-control" if bucket_owner != owner => {
                grants.push(user(bucket_owner, Permission::FullControl));
            }
            "bucket-owner-read" | "bucket-owner-full-control" => {}
            "log-delivery-write" => {
                grants.push(group(LOG_DELIVERY, Permission::Write));
                grants.push(group(LOG_DELIVERY, Permission::ReadAcp));
            }
            _ => return None,
        }
        Some(Acl(grants))
    }

    fn gives(&self, principal: &Principal, wanted: Permission) -> bool {
        self.0.iter().any(|grant| {
            let meant = match (&grant.grantee, principal) {
                (Grantee::Id(id), Principal::Importer(_)) if id == EXEC_READER => true,
                (Grantee::Id(id), principal) => principal.is(id),
                (Grantee::Group(uri), principal) => {
                    uri == ALL_USERS || (uri == AUTHENTICATED_USERS && principal.account().is_some())
                }
            };
            meant && (grant.permission == wanted || grant.permission == Permission::FullControl)
        })
    }
}

/// What is about to be done; policies of a later release will know these by their AWS names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    CreateBucket,
    ListAllMyBuckets,
    DeleteBucket,
    ListBucket,
    ListUploads,
    GetBucketConfiguration,
    PutBucketConfiguration,
    GetBucketAcl,
    PutBucketAcl,
    GetObject,
    PutObject,
    DeleteObject,
    GetObjectAcl,
    PutObjectAcl,
    GetObjectTagging,
    PutObjectTagging,
}

/// What it is done to.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    Service,
    Bucket { owner: &'a str, acl: &'a Acl },
    /// A key in a bucket, whether or not there is an object.
    Key { bucket_owner: &'a str, bucket_acl: &'a Acl, object: Option<(&'a str, &'a Acl)> },
}

/// The one function every request passes.
pub fn allow(principal: &Principal, action: Action, resource: Resource<'_>) -> bool {
    use Action::{
        CreateBucket, DeleteBucket, DeleteObject, GetBucketAcl, GetBucketConfiguration, GetObject, GetObjectAcl,
        GetObjectTagging, ListAllMyBuckets, ListBucket, ListUploads, PutBucketAcl, PutBucketConfiguration, PutObject,
        PutObjectAcl, PutObjectTagging,
    };
    match (action, resource) {
        (CreateBucket | ListAllMyBuckets, Resource::Service) => matches!(principal, Principal::Account(_)),
        (action, Resource::Bucket { owner, acl }) => {
            let by_acl = |permission| principal.is(owner) || acl.gives(principal, permission);
            match action {
                ListBucket | ListUploads => by_acl(Permission::Read),
                GetBucketAcl => by_acl(Permission::ReadAcp),
                PutBucketAcl => by_acl(Permission::WriteAcp),
                DeleteBucket | GetBucketConfiguration | PutBucketConfiguration => principal.is(owner),
                _ => false,
            }
        }
        (action, Resource::Key { bucket_owner, bucket_acl, object }) => {
            // Who owns the object may not read it merely by owning the bucket: AWS with ACLs enabled is the same.
            let owns = object.is_some_and(|(owner, _)| principal.is(owner));
            let by_acl = |permission| owns || object.is_some_and(|(_, acl)| acl.gives(principal, permission));
            match action {
                PutObject | DeleteObject => principal.is(bucket_owner) || bucket_acl.gives(principal, Permission::Write),
                GetObject => by_acl(Permission::Read),
                GetObjectAcl => by_acl(Permission::ReadAcp),
                PutObjectAcl => by_acl(Permission::WriteAcp),
                GetObjectTagging | PutObjectTagging => owns || (object.is_some() && principal.is(bucket_owner)),
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> Account {
        Account { account: "000000000001".into(), name: "a".into(), canonical_id: id.into() }
    }

    /// What each canned list lets a stranger's account, nobody, and the image import do with an object.
    #[test]
    fn canned_lists_let_in_whom_they_name() {
        let (owner, bucket_owner) = ("owner", "bucket");
        let stranger = Principal::Account(account("stranger"));
        let importer = Principal::Importer(account("stranger"));
        let may = |who: &Principal, acl: &Acl| {
            let resource =
                Resource::Key { bucket_owner, bucket_acl: &Acl::private(bucket_owner), object: Some((owner, acl)) };
            allow(who, Action::GetObject, resource)
        };
        let table = [
            ("private", [false, false, false, false]),
            ("public-read", [true, true, true, true]),
            ("public-read-write", [true, true, true, true]),
            ("authenticated-read", [false, true, true, true]),
            ("aws-exec-read", [false, false, true, false]),
            ("bucket-owner-read", [false, false, false, true]),
            ("bucket-owner-full-control", [false, false, false, true]),
        ];
        for (name, [anonymous, account_may, import, bucket_may]) in table {
            let acl = Acl::canned(name, owner, bucket_owner).unwrap();
            assert_eq!(may(&Principal::Anonymous, &acl), anonymous, "{name}");
            assert_eq!(may(&stranger, &acl), account_may, "{name}");
            assert_eq!(may(&importer, &acl), import, "{name}");
            assert_eq!(may(&Principal::Account(account(bucket_owner)), &acl), bucket_may, "{name}");
            assert!(may(&Principal::Account(account(owner)), &acl), "{name}");
        }
        assert_eq!(Acl::canned("public", owner, bucket_owner), None);
    }

    #[test]
    fn a_stranger_may_do_nothing_to_a_private_bucket() {
        use Action::*;
        let acl = Acl::private("owner");
        let all = [
            CreateBucket, ListAllMyBuckets, DeleteBucket, ListBucket, ListUploads, GetBucketConfiguration,
            PutBucketConfiguration, GetBucketAcl, PutBucketAcl, GetObject, PutObject, DeleteObject, GetObjectAcl,
            PutObjectAcl, GetObjectTagging, PutObjectTagging,
        ];
        for who in [Principal::Anonymous, Principal::Account(account("stranger")), Principal::Importer(account("x"))] {
            for action in all {
                let bucket = Resource::Bucket { owner: "owner", acl: &acl };
                let key = Resource::Key { bucket_owner: "owner", bucket_acl: &acl, object: Some(("owner", &acl)) };
                assert!(!allow(&who, action, bucket) && !allow(&who, action, key), "{action:?}");
            }
        }
    }
}
