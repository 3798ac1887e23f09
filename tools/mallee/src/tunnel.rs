//! What an operator says of the tunnels between machines: `LINK:ADDRESS/LENGTH`, and `@GATEWAY` where other machines are not on
//! the link's own network.

use std::str::FromStr;

use mallee_engines::TunnelConfig;

pub const FORM: &str = "LINK:ADDRESS/LENGTH[@GATEWAY]";

/// On the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel(pub TunnelConfig);

impl FromStr for Tunnel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text} is not {FORM}, such as eth0:10.0.0.101/24");
        let (place, gateway) = match text.split_once('@') {
            Some((place, gateway)) => (place, Some(gateway.parse().map_err(|_| malformed())?)),
            None => (text, None),
        };
        let (parent, network) = place.split_once(':').ok_or_else(malformed)?;
        let (address, length) = network.split_once('/').ok_or_else(malformed)?;
        let prefix_length = length.parse().ok().filter(|length| (1..=31).contains(length)).ok_or_else(malformed)?;
        if parent.is_empty() || parent.len() > 15 {
            return Err(malformed());
        }
        let address = address.parse().map_err(|_| malformed())?;
        Ok(Self(TunnelConfig { parent: parent.to_owned(), address, prefix_length, gateway }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_a_link_and_an_address() {
        let Tunnel(tunnel) = "eth0:10.0.0.101/24@10.0.0.254".parse().unwrap();
        assert_eq!((tunnel.parent.as_str(), tunnel.prefix_length), ("eth0", 24));
        assert_eq!(tunnel.gateway, Some("10.0.0.254".parse().unwrap()));
        for text in ["eth0", "eth0:10.0.0.1", ":10.0.0.1/24", "eth0:10.0.0.1/32", "eth0:x/24", "eth0:10.0.0.1/24@x"] {
            assert!(text.parse::<Tunnel>().is_err(), "{text}");
        }
    }
}
