//! Access control lists on the wire: canned names, grant headers and documents. What they mean is in [`crate::principal`].

use http::Response;
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{Owner, xml};
use crate::{
    Error, Walrus,
    call::Call,
    error::refuse,
    principal::{ALL_USERS, AUTHENTICATED_USERS, Acl, EXEC_READER, Grant, Grantee, LOG_DELIVERY, Permission},
};

/// As AWS limits it.
const MOST_GRANTS: usize = 100;

/// A list as rows keep it. The usual one, `private`, is the empty text.
pub fn to_text(acl: &Acl, owner: &str) -> Result<String, Error> {
    if *acl == Acl::private(owner) {
        return Ok(String::new());
    }
    serde_json::to_string(acl).map_err(|e| Error::Internal(e.to_string()))
}

pub fn from_text(text: &str, owner: &str) -> Result<Acl, Error> {
    if text.is_empty() {
        return Ok(Acl::private(owner));
    }
    serde_json::from_str(text).map_err(|e| Error::Internal(format!("an access control list: {e}")))
}

const GRANT_HEADERS: [(&str, Permission); 5] = [
    ("x-amz-grant-read", Permission::Read),
    ("x-amz-grant-write", Permission::Write),
    ("x-amz-grant-read-acp", Permission::ReadAcp),
    ("x-amz-grant-write-acp", Permission::WriteAcp),
    ("x-amz-grant-full-control", Permission::FullControl),
];

/// The list the request's headers ask for, when they do.
pub fn asked(walrus: &Walrus, call: &Call, owner: &str, bucket_owner: &str) -> Result<Option<Acl>, Error> {
    let canned = call.header("x-amz-acl")?;
    let mut grants = Vec::new();
    for (header, permission) in GRANT_HEADERS {
        for grantee in call.header(header)?.unwrap_or_default().split(',').filter(|text| !text.trim().is_empty()) {
            grants.push(Grant { grantee: grantee_of_header(walrus, grantee)?, permission });
        }
    }
    match (canned, grants.is_empty()) {
        (None, true) => Ok(None),
        (Some(_), false) => Err(refuse::request("Specifying both Canned ACLs and Header Grants is not allowed")),
        (Some(name), true) => canned_acl(name, owner, bucket_owner).map(Some),
        (None, false) => limited(grants).map(Some),
    }
}

pub fn canned_acl(name: &str, owner: &str, bucket_owner: &str) -> Result<Acl, Error> {
    Acl::canned(name, owner, bucket_owner)
        .ok_or_else(|| refuse::argument("x-amz-acl", name, "The canned ACL is not one of S3's."))
}

fn limited(grants: Vec<Grant>) -> Result<Acl, Error> {
    if grants.len() > MOST_GRANTS {
        return Err(refuse::request("An access control list has at most 100 grants."));
    }
    Ok(Acl(grants))
}

/// `id="…"` or `uri="…"`.
fn grantee_of_header(walrus: &Walrus, text: &str) -> Result<Grantee, Error> {
    let wrong = || refuse::argument("x-amz-grant", text, "Argument format not recognized");
    let (kind, value) = text.trim().split_once('=').ok_or_else(wrong)?;
    let value = value.trim().trim_matches('"');
    match kind.trim() {
        "id" => user(walrus, value),
        "uri" => group(value),
        "emailAddress" => Err(nobody_by_email(value)),
        _ => Err(wrong()),
    }
}

/// No account here has an e-mail address.
fn nobody_by_email(address: &str) -> Error {
    Error::Refused(
        AwsError::bad_request(
            "UnresolvableGrantByEmailAddress",
            "The e-mail address you provided does not match any account on record.",
        )
        .with_field("EmailAddress", address),
    )
}

fn user(walrus: &Walrus, id: &str) -> Result<Grantee, Error> {
    if id != EXEC_READER && walrus.holders.by_canonical_id(id).is_none() {
        return Err(refuse::argument("CanonicalUser/ID", id, "Invalid id"));
    }
    Ok(Grantee::Id(id.into()))
}

fn group(uri: &str) -> Result<Grantee, Error> {
    if ![ALL_USERS, AUTHENTICATED_USERS, LOG_DELIVERY].contains(&uri) {
        return Err(refuse::argument("Group/URI", uri, "Invalid group uri"));
    }
    Ok(Grantee::Group(uri.into()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PolicyIn {
    owner: Option<Owner>,
    access_control_list: Option<GrantsIn>,
}

/// Grants as a document has them.
#[derive(Deserialize)]
pub struct GrantsIn {
    #[serde(rename = "Grant", default)]
    grants: Vec<GrantIn>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GrantIn {
    grantee: GranteeIn,
    permission: String,
}

#[derive(Deserialize)]
struct GranteeIn {
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "URI")]
    uri: Option<String>,
    #[serde(rename = "EmailAddress")]
    email: Option<String>,
}

fn malformed() -> Error {
    refuse::coded(
        "MalformedACLError",
        400,
        "The ACL that you provided was not well formed or did not validate against our published schema",
    )
}

/// The list a PutAcl request brings, in its headers or its body.
pub async fn from_request(walrus: &Walrus, call: &mut Call, owner: &str, bucket_owner: &str) -> Result<Acl, Error> {
    let body = call.document(document::Limits::SMALL.bytes).await?;
    if let Some(acl) = asked(walrus, call, owner, bucket_owner)? {
        if !body.is_empty() {
            return Err(refuse::coded("UnexpectedContent", 400, "This request does not support content"));
        }
        return Ok(acl);
    }
    if body.is_empty() {
        return Err(refuse::coded(
            "MissingSecurityHeader",
            400,
            "Your request was missing a required header: an ACL by header or in the body",
        ));
    }
    let policy: PolicyIn =
        document::parse(&body, "AccessControlPolicy", document::Limits::SMALL).map_err(|_| malformed())?;
    if policy.owner.is_some_and(|named| named.id != owner) {
        return Err(refuse::access_denied());
    }
    limited(policy.access_control_list.map_or_else(|| Ok(Vec::new()), |list| list.read(walrus, malformed))?)
}

impl GrantsIn {
    pub fn read(self, walrus: &Walrus, malformed: impl Fn() -> Error) -> Result<Vec<Grant>, Error> {
        let read = |grant: GrantIn| {
            let permission = Permission::by_name(&grant.permission).ok_or_else(&malformed)?;
            let grantee = match grant.grantee {
                GranteeIn { id: Some(id), uri: None, .. } => user(walrus, &id)?,
                GranteeIn { uri: Some(uri), id: None, .. } => group(&uri)?,
                GranteeIn { email: Some(email), .. } => return Err(nobody_by_email(&email)),
                _ => return Err(malformed()),
            };
            Ok(Grant { grantee, permission })
        };
        self.grants.into_iter().map(read).collect()
    }
}

/// Grants as a document shows them.
#[derive(Serialize)]
pub struct GrantsOut {
    #[serde(rename = "Grant")]
    grants: Vec<GrantOut>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GrantOut {
    grantee: GranteeOut,
    permission: &'static str,
}

#[derive(Serialize)]
struct GranteeOut {
    #[serde(rename = "@xmlns:xsi")]
    xsi: &'static str,
    #[serde(rename = "@xsi:type")]
    kind: &'static str,
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "DisplayName", skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(rename = "URI", skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
}

impl GrantsOut {
    /// Groups first: suites of conformance read lists in this order, and AWS promises none.
    pub fn of(walrus: &Walrus, grants: &[Grant]) -> Self {
        let shown = |grant: &Grant| {
            let (kind, id, display_name, uri) = match &grant.grantee {
                Grantee::Id(id) => {
                    let owner = Owner::of(walrus, id);
                    ("CanonicalUser", Some(owner.id), owner.display_name, None)
                }
                Grantee::Group(uri) => ("Group", None, None, Some(uri.clone())),
            };
            let grantee = GranteeOut { xsi: "http://www.w3.org/2001/XMLSchema-instance", kind, id, display_name, uri };
            GrantOut { grantee, permission: grant.permission.name() }
        };
        let of_group = |grant: &&Grant| matches!(grant.grantee, Grantee::Group(_));
        let (groups, users) = (grants.iter().filter(of_group), grants.iter().filter(|grant| !of_group(grant)));
        Self { grants: groups.chain(users).map(shown).collect() }
    }
}

/// The document of GetBucketAcl and GetObjectAcl.
pub fn answer(walrus: &Walrus, owner: &str, acl: &Acl) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Policy {
        owner: Owner,
        access_control_list: GrantsOut,
    }

    let policy = Policy { owner: Owner::of(walrus, owner), access_control_list: GrantsOut::of(walrus, &acl.0) };
    xml("AccessControlPolicy", &policy)
}
