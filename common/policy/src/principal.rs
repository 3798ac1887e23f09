//! Who asks, and how documents name them.

use crate::{
    document::Malformed,
    json::Json,
    pattern::{exactly, like},
};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'w> {
    Anonymous,
    /// An account, or somebody of it.
    Account {
        /// 12 digits.
        account: &'w str,
        /// `arn:aws:iam::123456789012:root`, `…:user/name`.
        arn: &'w str,
        /// S3's other name of the account.
        canonical_id: &'w str,
    },
    /// A service of the cloud: `logging.s3.amazonaws.com`.
    Service(&'w str),
}

/// `Principal` of a statement: kinds (`AWS`, `CanonicalUser`, `Service`, `Federated`) and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principals(pub Vec<(String, Vec<String>)>);

const KINDS: [&str; 4] = ["AWS", "CanonicalUser", "Service", "Federated"];

impl Principals {
    pub(crate) fn read(json: Json) -> Result<Self, Malformed> {
        let invalid = || Malformed("Invalid principal in policy".into());
        match json {
            Json::Scalar(text) if text == "*" => Ok(Self(vec![("AWS".into(), vec![text])])),
            Json::Object(members) if !members.is_empty() => {
                let mut kinds = Vec::with_capacity(members.len());
                for (kind, names) in members {
                    let names = names.texts().filter(|names| !names.is_empty()).ok_or_else(invalid)?;
                    if !KINDS.contains(&kind.as_str()) {
                        return Err(invalid());
                    }
                    kinds.push((kind, names));
                }
                Ok(Self(kinds))
            }
            _ => Err(invalid()),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind.as_str(), name.as_str())))
    }

    /// Whether anybody at all is meant.
    pub fn everybody(&self) -> bool {
        self.names().any(|(kind, name)| kind == "AWS" && name == "*")
    }

    pub fn mean(&self, who: Who<'_>) -> bool {
        self.names().any(|(kind, name)| match (kind, who) {
            ("AWS", Who::Anonymous) => name == "*",
            ("AWS", Who::Account { account, arn, .. }) => {
                name == "*" || name == arn || account_of(name) == Some(account)
            }
            ("CanonicalUser", Who::Account { canonical_id, .. }) => name == canonical_id,
            ("Service", Who::Service(service)) => like(name, service, exactly),
            _ => false,
        })
    }
}

/// The account a name stands for as a whole: its number, or its root.
pub fn account_of(name: &str) -> Option<&str> {
    let account = name.strip_prefix("arn:aws:iam::").map_or(Some(name), |rest| rest.strip_suffix(":root"))?;
    (account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit())).then_some(account)
}
