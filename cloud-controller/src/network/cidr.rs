//! IP networks, as they are written in requests and kept in rows.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

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

/// The first address and the length of an IPv6 prefix; the bits behind it are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr6 {
    first: u128,
    length: u8,
}

impl Cidr6 {
    pub const ANYWHERE: Cidr6 = Cidr6 { first: 0, length: 0 };

    /// The network of `length` (at most 128) that `address` is in.
    pub fn new(address: Ipv6Addr, length: u8) -> Self {
        let length = length.min(128);
        Self { first: u128::from(address) & mask6(length), length }
    }

    pub fn asked(text: &str) -> Result<Self, AwsError> {
        text.parse().map_err(|()| AwsError::invalid_parameter_value(format!("CIDR block {text} is malformed")))
    }

    pub fn length(&self) -> u8 {
        self.length
    }

    pub fn first(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.first)
    }

    /// The address `n` after the first.
    pub fn nth(&self, n: u128) -> Ipv6Addr {
        Ipv6Addr::from(self.first.saturating_add(n))
    }

    /// The network `n` of those of `length` in it.
    pub fn part(&self, length: u8, n: u128) -> Self {
        let step = 1u128.checked_shl(128 - u32::from(length.clamp(self.length, 128))).unwrap_or(0);
        Self::new(Ipv6Addr::from(self.first.saturating_add(step.saturating_mul(n))), length)
    }

    pub fn contains(&self, address: Ipv6Addr) -> bool {
        u128::from(address) & mask6(self.length) == self.first
    }

    pub fn covers(&self, other: &Cidr6) -> bool {
        self.length <= other.length && self.contains(other.first())
    }

    pub fn overlaps(&self, other: &Cidr6) -> bool {
        self.covers(other) || other.covers(self)
    }
}

fn mask6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl fmt::Display for Cidr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.length)
    }
}

impl FromStr for Cidr6 {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        if length.is_empty() || length.len() > 3 || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        let length = length.parse().ok().filter(|l| *l <= 128).ok_or(())?;
        Ok(Self::new(address.parse().map_err(|_| ())?, length))
    }
}

/// A network of either family. IPv4 comes first in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Net {
    V4(Cidr),
    V6(Cidr6),
}

impl Net {
    pub fn covers(&self, other: &Net) -> bool {
        match (self, other) {
            (Net::V4(net), Net::V4(other)) => net.covers(other),
            (Net::V6(net), Net::V6(other)) => net.covers(other),
            _ => false,
        }
    }

    /// `ip4` or `ip6`: what OVN calls the family.
    pub fn family(&self) -> &'static str {
        match self {
            Net::V4(_) => "ip4",
            Net::V6(_) => "ip6",
        }
    }

    pub fn v4(&self) -> Option<Cidr> {
        match self {
            Net::V4(net) => Some(*net),
            Net::V6(_) => None,
        }
    }

    pub fn v6(&self) -> Option<Cidr6> {
        match self {
            Net::V4(_) => None,
            Net::V6(net) => Some(*net),
        }
    }
}

impl From<Cidr> for Net {
    fn from(net: Cidr) -> Self {
        Net::V4(net)
    }
}

impl From<Cidr6> for Net {
    fn from(net: Cidr6) -> Self {
        Net::V6(net)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Net::V4(net) => net.fmt(f),
            Net::V6(net) => net.fmt(f),
        }
    }
}

impl FromStr for Net {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(Net::V4).or_else(|()| text.parse().map(Net::V6))
    }
}

/// Both are shown, and kept, as text.
macro_rules! as_text {
    ($name:ident, $what:literal) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl ToValue for $name {
            fn to_value(&self) -> Value<'_> {
                Value::Text(self.to_string().into())
            }
        }

        impl FromValue for $name {
            fn from_value(value: Value<'_>) -> Result<Self, String> {
                let text = String::from_value(value)?;
                text.parse().map_err(|()| format!("{text:?} is no {}", $what))
            }
        }
    };
}

as_text!(Cidr, "IPv4 network");
as_text!(Cidr6, "IPv6 network");
as_text!(Net, "network");

/// A column with an address of either family.
macro_rules! address_column {
    ($(#[$doc:meta])* $name:ident, $address:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub $address);

        impl ToValue for $name {
            fn to_value(&self) -> Value<'_> {
                Value::Text(self.0.to_string().into())
            }
        }

        impl FromValue for $name {
            fn from_value(value: Value<'_>) -> Result<Self, String> {
                let text = String::from_value(value)?;
                text.parse().map($name).map_err(|_| format!("{text:?} is no address"))
            }
        }
    };
}

address_column!(
    /// An IPv4 address column.
    Address,
    Ipv4Addr
);
address_column!(
    /// An IPv6 address column.
    Address6,
    Ipv6Addr
);
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

    #[test]
    fn ipv6_networks_are_canonical_and_know_their_parts() {
        let table = [
            ("::/0", Some("::/0")),
            ("2001:DB8:0:0::1/32", Some("2001:db8::/32")),
            ("::1/129", None),
            ("::1", None),
            ("10.0.0.0/8", None),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Cidr6>().ok().map(|c| c.to_string()).as_deref(), expected, "{text}");
        }
        let net: Cidr6 = "fd00:1:2:300::/56".parse().unwrap();
        assert_eq!(net.part(64, 255).to_string(), "fd00:1:2:3ff::/64");
        assert!(net.covers(&net.part(64, 255)) && !net.overlaps(&net.part(56, 1)) && Cidr6::ANYWHERE.covers(&net));
        assert_eq!("::/0".parse::<Net>(), Ok(Net::V6(Cidr6::ANYWHERE)));
        assert_eq!("0.0.0.0/0".parse::<Net>(), Ok(Net::V4(Cidr::ANYWHERE)));
    }
}
