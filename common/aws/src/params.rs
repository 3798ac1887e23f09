//! Query requests: the form body or query string, taken apart once, and read into a hand-written struct.
//!
//! ```
//! use mallee_aws::params::{Flavor, Params, from_params};
//! #[derive(serde::Deserialize)]
//! #[serde(rename_all = "PascalCase")]
//! struct Describe {
//!     #[serde(default)]
//!     instance_id: Vec<String>,
//!     max_results: Option<i64>,
//! }
//! let params = Params::parse(b"Action=DescribeInstances&InstanceId.1=i-1&InstanceId.7=i-2&MaxResults=50").unwrap();
//! let input: Describe = from_params(&params, Flavor::Ec2).unwrap();
//! assert_eq!(input.instance_id, ["i-1", "i-2"]);
//! ```
//!
//! Fields carry the wire name (`InstanceId`, `TagSpecification`, `Filter`), not the SDK's. A list that may be absent says
//! `#[serde(default)]`; one without it is a required parameter. What no field takes is refused as `UnknownParameter`, which
//! is why `#[serde(flatten)]` must not be used in inputs: serde then swallows unknown names in silence.

use std::collections::BTreeMap;

use crate::error::AwsError;

mod read;

/// Parameters of one request. AWS sends hundreds at most; a thousand ids with their tags fit.
const MAX_PARAMETERS: usize = 10_000;
const MAX_NAME: usize = 512;

/// How lists and maps are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// `Name.1`, always flat.
    Ec2,
    /// `Name.member.1` and `Name.entry.1.key`; flat lists are read as well.
    Query,
}

/// The decoded parameters of a request, unique by name.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Params {
    entries: BTreeMap<String, String>,
}

impl std::fmt::Debug for Params {
    /// Names only: values may be passwords, user data or session tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

impl Params {
    /// Decodes `application/x-www-form-urlencoded` bytes: `+` and `%20` are spaces, the result must be UTF-8, and a name
    /// given twice is refused (which of the two would a signature or a policy have meant?).
    pub fn parse(encoded: &[u8]) -> Result<Params, AwsError> {
        let mut params = Params::default();
        params.extend(encoded)?;
        Ok(params)
    }

    /// Adds further encoded parameters, as when a POST has a query string and a form.
    pub fn extend(&mut self, encoded: &[u8]) -> Result<(), AwsError> {
        for pair in encoded.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.iter().position(|&byte| byte == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &[][..]),
            };
            let name = decode(name)?;
            if name.len() > MAX_NAME {
                return Err(malformed("A parameter name is too long"));
            }
            if self.entries.len() >= MAX_PARAMETERS {
                return Err(malformed("The request has too many parameters"));
            }
            let value = decode(value)?;
            if self.entries.contains_key(&name) {
                return Err(malformed(&format!("The parameter {name} is given more than once")));
            }
            self.entries.insert(name, value);
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(String::as_str)
    }

    pub fn action(&self) -> Option<&str> {
        self.get("Action")
    }

    /// Advisory: it is echoed in the answer's namespace and never branched on.
    pub fn version(&self) -> Option<&str> {
        self.get("Version")
    }

    /// All pairs, in the byte order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Reads the parameters into `T`, refusing what `T` does not name.
///
/// Errors: `UnknownParameter`, `MissingParameter`, `InvalidParameterValue` with the full dotted name; a value whose own
/// `Deserialize` fails with `Some.Code: message` (as the typed ids do) keeps that code.
pub fn from_params<T: serde::de::DeserializeOwned>(params: &Params, flavor: Flavor) -> Result<T, AwsError> {
    read::read(params, flavor)
}

/// Parameters of the request itself rather than of its action.
fn belongs_to_the_envelope(name: &str) -> bool {
    const ENVELOPE: [&str; 9] = [
        "Action",
        "Version",
        "SignatureVersion",
        "SignatureMethod",
        "Signature",
        "AWSAccessKeyId",
        "Timestamp",
        "Expires",
        "SecurityToken",
    ];
    ENVELOPE.contains(&name) || name.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case("X-Amz-"))
}

fn decode(encoded: &[u8]) -> Result<String, AwsError> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded.iter();
    while let Some(&byte) = rest.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = rest.next().and_then(|&digit| hex_digit(digit));
                let low = rest.next().and_then(|&digit| hex_digit(digit));
                match (high, low) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(malformed("A percent sign is not followed by two hexadecimal digits")),
                }
            }
            byte => byte,
        });
    }
    if out.contains(&0) {
        // PostgreSQL's text and XML have no such character: what held one could be neither kept nor shown.
        return Err(AwsError::bad_request("InvalidCharacter", "A parameter has a NUL character in it"));
    }
    String::from_utf8(out).map_err(|_| malformed("A parameter is not UTF-8"))
}

pub(crate) fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn malformed(message: &str) -> AwsError {
    AwsError::bad_request("MalformedQueryString", message)
}

#[cfg(test)]
mod tests;
