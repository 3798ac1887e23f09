//! Who asks, and access control lists. Whether they may says [`crate::access`].

use std::sync::Arc;

use mallee_policy::{Context, Who};
use serde::{Deserialize, Serialize};

use crate::s3::bucket::settings::Block;

/// Who a request speaks for, once its signature is verified, and what else policies may ask about it.
#[derive(Debug, Clone)]
pub struct Principal {
    who: Whose,
    /// As policies name it; empty for nobody.
    arn: String,
    /// What conditions of policies know about the request.
    pub context: Arc<Context>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Whose {
    /// No signature.
    Anonymous,
    Account(Account),
    /// The cloud's own image import, reading as this account would; `aws-exec-read` is for it.
    Importer(Account),
    /// walrus itself, delivering access logs for this account.
    LogDelivery(Account),
    /// The cloud's nodes, delivering flow logs of this account.
    FlowLogDelivery(Account),
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
    fn new(who: Whose) -> Self {
        let mut principal = Self { who, arn: String::new(), context: Arc::default() };
        if let Some(account) = principal.account() {
            principal.arn = format!("arn:aws:iam::{}:root", account.account);
        }
        principal
    }
    pub fn anonymous() -> Self {
        Self::new(Whose::Anonymous)
    }
    pub fn of_account(account: Account) -> Self {
        Self::new(Whose::Account(account))
    }
    pub fn importer(account: Account) -> Self {
        Self::new(Whose::Importer(account))
    }
    pub fn log_delivery(account: Account) -> Self {
        Self::new(Whose::LogDelivery(account))
    }
    pub fn flow_log_delivery(account: Account) -> Self {
        Self::new(Whose::FlowLogDelivery(account))
    }
    #[must_use]
    pub fn with_context(self, context: Context) -> Self {
        Self { context: Arc::new(context), ..self }
    }

    pub fn account(&self) -> Option<&Account> {
        match &self.who {
            Whose::Anonymous => None,
            Whose::Account(account)
            | Whose::Importer(account)
            | Whose::LogDelivery(account)
            | Whose::FlowLogDelivery(account) => Some(account),
        }
    }
    pub fn is_anonymous(&self) -> bool {
        self.who == Whose::Anonymous
    }
    /// Whether it is an account, asking for itself.
    pub fn may_own_buckets(&self) -> bool {
        matches!(self.who, Whose::Account(_))
    }
    pub fn is(&self, canonical_id: &str) -> bool {
        let owner = match &self.who {
            // AWS adds a statement for the delivery service to the bucket of whoever makes a flow log; here a bucket of the
            // log's own account lets it in without one.
            Whose::Account(account) | Whose::Importer(account) | Whose::FlowLogDelivery(account) => {
                &account.canonical_id
            }
            Whose::Anonymous | Whose::LogDelivery(_) => return false,
        };
        owner == canonical_id
    }
    /// As policies name it.
    pub fn who(&self) -> Who<'_> {
        match &self.who {
            Whose::Anonymous => Who::Anonymous,
            Whose::LogDelivery(_) => Who::Service("logging.s3.amazonaws.com"),
            Whose::FlowLogDelivery(_) => Who::Service("delivery.logs.amazonaws.com"),
            Whose::Account(account) | Whose::Importer(account) => {
                Who::Account { account: &account.account, arn: &self.arn, canonical_id: &account.canonical_id }
            }
        }
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

    /// Whether the list gives this, where the public may be kept out.
    pub(crate) fn gives(&self, principal: &Principal, wanted: Permission, block: Block) -> bool {
        self.0.iter().any(|grant| {
            let meant = match (&grant.grantee, &principal.who) {
                (Grantee::Id(id), Whose::Importer(_)) if id == EXEC_READER => true,
                (Grantee::Id(id), _) => principal.is(id),
                (Grantee::Group(uri), Whose::LogDelivery(_)) => uri == LOG_DELIVERY,
                (Grantee::Group(_), _) if block.ignore_public_acls => false,
                (Grantee::Group(uri), _) => {
                    uri == ALL_USERS || (uri == AUTHENTICATED_USERS && principal.account().is_some())
                }
            };
            meant && (grant.permission == wanted || grant.permission == Permission::FullControl)
        })
    }

    /// Whether anybody gets anything by this list who is not named in it.
    pub fn is_public(&self) -> bool {
        let public = |grantee: &Grantee| matches!(grantee, Grantee::Group(uri) if uri != LOG_DELIVERY);
        self.0.iter().any(|grant| public(&grant.grantee))
    }
}
