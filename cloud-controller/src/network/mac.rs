//! MAC addresses: each is a row, so that none is given out twice, whoever wears it.

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

/// The owner is gone, and its addresses are free.
pub fn free(tx: &mut Tx<'_>, owner: &str) -> Outcome<()> {
    tx.execute("DELETE FROM mac WHERE owner = ?1", params![owner])?;
    Ok(())
}
