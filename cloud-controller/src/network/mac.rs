//! MAC addresses: each is a row, so that none is given out twice, whoever wears it.

use std::net::Ipv6Addr;

use mallee_store::{Tx, params};

use crate::{Outcome, Refusal};

pub const TABLES: &str = "
CREATE TABLE mac (
    address TEXT PRIMARY KEY,
    owner TEXT NOT NULL
);
CREATE INDEX mac_of ON mac (owner);
";

/// A random address nobody has, locally administered (`06:…`, as EC2's are), lower-case with colons.
pub fn take(tx: &mut Tx<'_>, owner: &str) -> Outcome<String> {
    for _ in 0..16 {
        let [a, b, c, d, e]: [u8; 5] = rand::random();
        let address = format!("06:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}");
        let taken = tx.execute(
            "INSERT INTO mac (address, owner) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![address, owner],
        )?;
        if taken == 1 {
            return Ok(address);
        }
    }
    Err(Refusal::internal("no free MAC address found in 16 tries"))
}

/// The address that whoever wears the MAC has on its link, of itself (RFC 4291, appendix A).
pub fn link_local(mac: &str) -> Option<Ipv6Addr> {
    let bytes = mac.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<Vec<u8>, _>>().ok()?;
    let [a, b, c, d, e, f] = bytes.try_into().ok()?;
    let last = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Some(Ipv6Addr::from((0xfe80 << 112) | u128::from(last)))
}

/// The owner is gone, and its addresses are free.
pub fn free(tx: &mut Tx<'_>, owner: &str) -> Outcome<()> {
    tx.execute("DELETE FROM mac WHERE owner = ?1", params![owner])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_has_the_link_local_address_that_everybody_gives_it() {
        assert_eq!(link_local("06:00:00:00:09:01"), Some("fe80::400:ff:fe00:901".parse().unwrap()));
        assert_eq!(link_local("52:54:00:12:34:56"), Some("fe80::5054:ff:fe12:3456".parse().unwrap()));
        assert_eq!(link_local("06:00"), None);
    }
}
