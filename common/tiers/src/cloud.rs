//! What the cloud-controller does for the other tiers, and for the person at the machine.

use serde::{Deserialize, Serialize};

use crate::{
    Identities, IdentitiesAsked, Millis, NodeRow, Role, Secret, TierStatus, WhyAnswer, WhyAsked, binding::tier,
};

tier! {
    /// What the cloud-controller does for the tiers below.
    CloudController, client CloudClient, server CloudServer {
        /// A tier says where it is; repeated while it lives.
        register_tier(TierRegistration) -> TierRegistered, from [Walrus, ClusterController, StorageController];
        identities(IdentitiesAsked) -> Identities, from [Walrus];
        /// A new certificate before the old one ends.
        renew(SigningRequest) -> SignedCertificate, from [Walrus, ClusterController, StorageController, NodeController];
        /// Where a tier is: nodes ask for their cluster-controller and for walrus.
        locate(Locate) -> Located, from [Walrus, ClusterController, StorageController, NodeController];
        /// A key that disks are encrypted with. Whoever asks keeps it sealed.
        disk_key(DiskKeyAsked) -> DiskKey, from [StorageController];
    }
}

tier! {
    /// What the operator's command asks of the cloud-controller over its root-only admin socket.
    Admin, client AdminClient, server AdminServer {
        account_create(AccountCreate) -> AccountKeys, from [Operator];
        account_list(crate::StatusAsked) -> Accounts, from [Operator];
        /// `mallee account allow` and `forbid`.
        account_allow(AccountAllow) -> crate::Done, from [Operator];
        /// The keys of an account, for `mallee env`.
        account_keys(AccountAsked) -> AccountKeys, from [Operator];
        /// Registers a signing certificate (PEM, RSA) of an account, as image bundles are signed with.
        certificate_add(CertificateAdd) -> crate::Done, from [Operator];
        join_token(TokenAsked) -> Token, from [Operator];
        status(crate::StatusAsked) -> CloudStatus, from [Operator];
        why(WhyAsked) -> WhyAnswer, from [Operator];
        /// `mallee net show`.
        network(crate::NetworkAsked) -> crate::NetworkTree, from [Operator];
        /// `mallee net trace`.
        trace(crate::TraceAsked) -> crate::TracePlan, from [Operator];
        /// Let the zones take this cloud-controller's lists although its store is a new one.
        zone_adopt(ZoneAsked) -> crate::Done, from [Operator];
        /// `mallee node drain` and its like.
        change_node(crate::NodeAsked) -> crate::Done, from [Operator];
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TierRegistration {
    /// `host:port`.
    pub address: String,
    pub version: String,
    pub now: Millis,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TierRegistered {
    pub lease_ms: u64,
    pub now: Millis,
    pub region: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Locate {
    pub role: Role,
    /// Empty for tiers of the whole cloud.
    pub zone: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Located {
    pub address: String,
    pub name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskKeyAsked {
    pub id: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskKey {
    /// 32 bytes in hex.
    pub secret: Secret,
}

/// `POST /-/join`: the first certificate of a machine, against a one-time token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    pub token: Secret,
    pub request: SigningRequest,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SigningRequest {
    /// PEM of a PKCS#10 request; only its public key is used, the identity comes from the token or the old certificate.
    pub pem: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignedCertificate {
    pub certificate_pem: String,
    pub ca_pem: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenAsked {
    pub role: Role,
    pub zone: String,
    pub name: String,
    /// 0: the default of one hour.
    #[serde(default)]
    pub seconds: u64,
}

/// A one-time join token. Its text carries the address, the CA's fingerprint and a secret: see `mallee_service::join`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    pub token: Secret,
    pub expires: Millis,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountCreate {
    pub name: String,
    /// Succeed with what is there when an account of this name exists.
    #[serde(default)]
    pub ensure: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountAsked {
    pub name: String,
}

/// Something that not every account may do, such as `private-l2`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountAllow {
    pub name: String,
    pub what: String,
    pub allowed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountKeys {
    pub account: String,
    pub name: String,
    pub access_key: String,
    pub secret: Secret,
    /// PEM of the certificate bundles are encrypted for (the cloud's), and of the cloud's CA.
    pub cloud_certificate_pem: String,
    pub ca_pem: String,
    pub region: String,
    /// Whether the account has a signing certificate registered.
    #[serde(default)]
    pub signing_certificates: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accounts {
    pub accounts: Vec<AccountRow>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountRow {
    pub account: String,
    pub name: String,
    pub created: Millis,
    pub instances: u64,
    /// What the operator allowed it beyond what every account may do.
    #[serde(default)]
    pub allowed: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CertificateAdd {
    pub account: String,
    pub pem: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ZoneAsked {
    pub zone: String,
}

/// Everything `mallee status` shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CloudStatus {
    pub region: String,
    /// Every tier that ever registered, with why it does not answer when it does not.
    pub tiers: Vec<TierRow>,
    pub nodes: Vec<ZoneNode>,
    pub orphans: Vec<String>,
    pub instances_by_state: Vec<(String, u64)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TierRow {
    pub role: Role,
    pub zone: String,
    pub name: String,
    pub address: String,
    pub status: Option<TierStatus>,
    pub trouble: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ZoneNode {
    pub zone: String,
    pub node: NodeRow,
}
