//! IPv4 networks, as they are written in requests and kept in rows.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use mallee_aws::AwsError;
use mallee_store::{FromValue, ToValue, Value};

/// The first address and the length of a prefix; the bits behind it are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    first: u32,
    length: u8,
}

impl Cidr {
    /// The network of `length` (at most 32) that `address` is in.
    pub fn new(address: Ipv4Addr, length: u8) -> Self {
        let length = length.min(32);
        Self { first: u32::from(address) & mask(length), length }
    }

    /// What a request says: digits, dots, a slash. Host bits are cut off, as AWS does.
    pub fn asked(text: &str) -> Result<Self, AwsError> {
        text.parse().map_err(|()| AwsError::invalid_parameter_value(format!("CIDR block {text} is malformed")))
    }

    pub fn length(&self) -> u8 {
        self.length
    }

    /// The first address, the network's own.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first)
    }

    /// The last address, its broadcast.
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first | !mask(self.length))
    }

    /// The address `n` after the first.
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first.saturating_add(n))
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.length) == self.first
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.length <= other.length && self.contains(other.first())
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Everywhere.
    pub const ANYWHERE: Cidr = Cidr { first: 0, length: 0 };

    /// How many addresses it has.
    pub fn size(&self) -> u64 {
        1 << (32 - self.length)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.length)
    }
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        if length.is_empty() || length.len() > 2 || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        let length = length.parse().ok().filter(|l| *l <= 32).ok_or(())?;
        Ok(Self::new(address.parse().map_err(|_| ())?, length))
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl ToValue for Cidr {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self.to_string().into())
    }
}

impl FromValue for Cidr {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        text.parse().map_err(|()| format!("{text:?} is no IPv4 network"))
    }
}

/// An address column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub Ipv4Addr);

impl ToValue for Address {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self.0.to_string().into())
    }
}

impl FromValue for Address {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        text.parse().map(Address).map_err(|_| format!("{text:?} is no IPv4 address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_aws_reads_them() {
        let table = [
            ("10.0.0.0/16", Some("10.0.0.0/16")),
            ("10.0.3.7/16", Some("10.0.0.0/16")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("1.2.3.4/32", Some("1.2.3.4/32")),
            ("1.2.3.4", None),
            ("1.2.3.4/33", None),
            ("1.2.3.4/", None),
            ("1.2.3.4/+8", None),
            ("1.2.3/8", None),
            ("::/0", None),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Cidr>().ok().map(|c| c.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_network_knows_its_addresses() {
        let net: Cidr = "172.31.16.0/20".parse().unwrap();
        assert_eq!((net.nth(1), net.last(), net.size()), ([172, 31, 16, 1].into(), [172, 31, 31, 255].into(), 4096));
        assert!(net.contains([172, 31, 31, 255].into()) && !net.contains([172, 31, 32, 0].into()));
        assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().size(), 1 << 32);
    }
}
