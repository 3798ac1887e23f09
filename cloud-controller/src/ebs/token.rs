//! Tokens of blocks and of pages: what only this cloud can have made, for one thing, and for a week.
//!
//! A block's token says which blob of walrus holds it, so reading a block costs no look at the snapshot's pages. Whether the
//! caller may read the snapshot is asked anew each time.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use mallee_service::seal::SealingKey;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// As AWS' last.
pub const LIFE_MS: i64 = 7 * 24 * 3600 * 1000;
const MAC: usize = 16;

/// The cloud's key for them, and when those that it makes now expire.
pub struct Tokens {
    key: [u8; 32],
    now: i64,
}

impl Tokens {
    pub fn new(sealing: &SealingKey, now: i64) -> Self {
        Self { key: sealing.derive("tokens of the EBS direct APIs"), now }
    }

    pub fn expiry(&self) -> i64 {
        self.now + LIFE_MS
    }

    fn mac(&self, about: &[&str], payload: &[u8]) -> Option<[u8; MAC]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        for part in about {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.update(payload);
        mac.finalize().into_bytes().first_chunk().copied()
    }

    fn seal(&self, about: &[&str], rest: &[u8]) -> String {
        let payload = [&self.expiry().to_be_bytes()[..], rest].concat();
        // An HMAC takes keys of any length.
        let mac = self.mac(about, &payload).unwrap_or_default();
        STANDARD.encode([&mac[..], &payload].concat())
    }

    fn open(&self, about: &[&str], token: &str) -> Option<Vec<u8>> {
        let bytes = STANDARD.decode(token.get(..token.len().min(256))?).ok()?;
        let (mac, payload) = bytes.split_first_chunk::<MAC>()?;
        if !bool::from(self.mac(about, payload)?.ct_eq(mac)) {
            return None;
        }
        let (expiry, rest) = payload.split_first_chunk::<8>()?;
        (i64::from_be_bytes(*expiry) > self.now).then(|| rest.to_vec())
    }

    /// `digest` is that of the block's blob; none is a block of zeros.
    pub fn of_block(&self, snapshot: &str, block: u64, digest: Option<&str>) -> String {
        let digest = digest.and_then(|digest| hex::decode(digest).ok()).unwrap_or_default();
        self.seal(&["block", snapshot, &block.to_string()], &digest)
    }

    /// The blob of a block; `Some(None)` is one of zeros.
    pub fn block(&self, snapshot: &str, block: u64, token: &str) -> Option<Option<String>> {
        let digest = self.open(&["block", snapshot, &block.to_string()], token)?;
        Some((!digest.is_empty()).then(|| hex::encode(digest)))
    }

    /// `about` is everything that stays the same from page to page.
    pub fn of_page(&self, about: &[&str], next: u64) -> String {
        self.seal(&[&["page"], about].concat(), &next.to_be_bytes())
    }

    pub fn page(&self, about: &[&str], token: &str) -> Option<u64> {
        let next = self.open(&[&["page"], about].concat(), token)?;
        next.try_into().ok().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_own_block_only_and_for_a_week_only() {
        let tokens = |key: u8, now| Tokens { key: [key; 32], now };
        let (made, digest) = (tokens(1, 1_000), "ab".repeat(32));
        let token = made.of_block("snap-1", 7, Some(&digest));
        assert!(token.len() <= 256 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)));
        assert_eq!(made.block("snap-1", 7, &token), Some(Some(digest)));
        assert_eq!(made.block("snap-1", 7, &made.of_block("snap-1", 7, None)), Some(None));
        for (tokens, snapshot, block) in [
            (tokens(2, 1_000), "snap-1", 7),
            (tokens(1, 1_000), "snap-2", 7),
            (tokens(1, 1_000), "snap-1", 8),
            (tokens(1, 1_000 + LIFE_MS), "snap-1", 7),
        ] {
            assert_eq!(tokens.block(snapshot, block, &token), None, "{snapshot} {block}");
        }
        assert!(tokens(1, 999 + LIFE_MS).block("snap-1", 7, &token).is_some());
        assert_eq!(made.page(&["block", "snap-1", "7"], &token), None);
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(made.block("snap-1", 7, &String::from_utf8(forged).unwrap()), None, "{at}");
        }
        for junk in ["", "=", "AAAA", "ü", &"A".repeat(10_000)] {
            assert_eq!(made.block("snap-1", 7, junk), None);
        }
    }

    #[test]
    fn a_page_goes_on_only_with_the_question_it_was_made_for() {
        let tokens = Tokens { key: [1; 32], now: 0 };
        let token = tokens.of_page(&["list", "snap-1"], 1 << 40);
        assert_eq!(tokens.page(&["list", "snap-1"], &token), Some(1 << 40));
        assert_eq!(tokens.page(&["list", "snap-2"], &token), None);
        assert_eq!(tokens.page(&["listsnap-1"], &token), None);
    }
}
