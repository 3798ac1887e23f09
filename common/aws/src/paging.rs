//! `MaxResults` and `NextToken`: pages by the last key shown, with tokens nobody but this cloud can make.
//!
//! A token holds the last key of its page under a MAC over that key and the *context* (account, action, filters), so it
//! needs no table, survives restarts, and is worthless in another account or for another question.
//!
//! ```
//! use mallee_aws::paging::{Asked, Page, TokenKey};
//! let key = TokenKey::new([7; 32]);
//! let asked = Asked { max_results: Some(5), next_token: None, explicit_ids: 0 };
//! let page = Page::open(&key, &["123456789012", "DescribeVolumes", "filter digest"], asked).unwrap();
//! let mut rows: Vec<String> = (0..9).map(|n| format!("vol-{n}")).collect(); // those after page.after(), in key order
//! let next_token = page.cut(&mut rows, |row| row.as_str());
//! assert_eq!((rows.len(), next_token.is_some()), (5, true));
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::AwsError;

/// AWS' range for EC2's Describe actions.
const RANGE: std::ops::RangeInclusive<i64> = 5..=1000;
/// The page size where only a token was given.
const DEFAULT: usize = 1000;
const MAC_LENGTH: usize = 16;

/// The cloud's key for tokens.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    pub fn new(key: [u8; 32]) -> Self {
        TokenKey(key)
    }

    fn mac(&self, context: &[&str], last: &str) -> [u8; MAC_LENGTH] {
        let mut message = Vec::new();
        for part in context.iter().chain([&last]) {
            message.extend_from_slice(&(part.len() as u64).to_be_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        let mut out = [0; MAC_LENGTH];
        out.copy_from_slice(&crate::mac::hmac_sha256(&self.0, &[&message])[..MAC_LENGTH]);
        out
    }
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(hidden)")
    }
}

/// What the request said about paging.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    pub max_results: Option<i64>,
    pub next_token: Option<&'a str>,
    /// How many ids the request names; with any, it may not page.
    pub explicit_ids: usize,
}

/// One page, opened and checked.
#[derive(Debug)]
pub struct Page<'a> {
    key: &'a TokenKey,
    context: Vec<String>,
    after: Option<String>,
    limit: Option<usize>,
}

impl<'a> Page<'a> {
    /// Checks range, combination and token. `context` is everything that must stay the same from page to page.
    pub fn open(key: &'a TokenKey, context: &[&str], asked: Asked<'_>) -> Result<Page<'a>, AwsError> {
        if asked.explicit_ids > 0 && asked.max_results.is_some() {
            return Err(AwsError::invalid_parameter_combination(
                "The parameter maxResults cannot be used with explicit ids in the same request",
            ));
        }
        if let Some(asked) = asked.max_results.filter(|asked| !RANGE.contains(asked)) {
            return Err(AwsError::invalid_parameter_value(format!(
                "Value ( {asked} ) for parameter maxResults is invalid. Expecting a value between {} and {}.",
                RANGE.start(),
                RANGE.end()
            )));
        }
        // Some clients send the empty token of the last answer back.
        let token = asked.next_token.filter(|token| !token.is_empty());
        let after = token.map(|token| open_token(key, context, token)).transpose()?;
        let limit = asked.max_results.and_then(|n| usize::try_from(n).ok()).or(after.is_some().then_some(DEFAULT));
        Ok(Page { key, context: context.iter().map(|part| part.to_string()).collect(), after, limit })
    }

    /// Only rows with a key after this one belong to the page.
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// How many rows the page holds; `None` is all. Fetch one more to learn whether another page follows.
    pub fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Cuts `rows`, which are in the order of their keys and all after [`Page::after`], to the page and gives the token
    /// of the next one.
    pub fn cut<T>(&self, rows: &mut Vec<T>, key: impl Fn(&T) -> &str) -> Option<String> {
        let limit = self.limit?;
        if rows.len() <= limit {
            return None;
        }
        rows.truncate(limit);
        rows.last().map(|row| self.token(key(row)))
    }

    /// The token of the page after the row with this key.
    pub fn token(&self, last: &str) -> String {
        let context: Vec<&str> = self.context.iter().map(String::as_str).collect();
        let mut bytes = self.key.mac(&context, last).to_vec();
        bytes.extend_from_slice(last.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn open_token(key: &TokenKey, context: &[&str], token: &str) -> Result<String, AwsError> {
    let refuse = || AwsError::invalid_parameter_value("Unable to parse pagination token");
    if token.len() > 4096 {
        return Err(refuse());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refuse())?;
    let (mac, last) = bytes.split_at_checked(MAC_LENGTH).ok_or_else(refuse)?;
    let last = std::str::from_utf8(last).map_err(|_| refuse())?;
    let expected = key.mac(context, last);
    if !bool::from(subtle::ConstantTimeEq::ct_eq(mac, &expected[..])) {
        return Err(refuse());
    }
    Ok(last.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: [&str; 2] = ["1", "DescribeVolumes"];

    fn open(token: Option<&str>, context: &[&str]) -> Result<Option<String>, AwsError> {
        let key = TokenKey::new([1; 32]);
        let asked = Asked { max_results: Some(5), next_token: token, explicit_ids: 0 };
        Page::open(&key, context, asked).map(|page| page.after().map(str::to_string))
    }

    #[test]
    fn a_token_opens_only_where_it_was_made() {
        let key = TokenKey::new([1; 32]);
        let token = Page::open(&key, &CONTEXT, Asked::default()).unwrap().token("vol-5");
        assert_eq!(open(Some(&token), &CONTEXT), Ok(Some("vol-5".to_string())));
        assert!(open(Some(&token), &["2", "DescribeVolumes"]).is_err());
        assert!(open(Some(&token), &["1D", "escribeVolumes"]).is_err());
        let mut forged = token.into_bytes();
        forged[3] ^= 1;
        assert!(open(Some(std::str::from_utf8(&forged).unwrap()), &CONTEXT).is_err());
        for junk in ["x", "!!!!", "AAAA", &"A".repeat(5000)] {
            assert_eq!(open(Some(junk), &CONTEXT).unwrap_err().code, "InvalidParameterValue");
        }
        assert_eq!(open(Some(""), &CONTEXT), Ok(None));
    }

    #[test]
    fn paging_keeps_to_aws_bounds() {
        let key = TokenKey::new([1; 32]);
        let ask = |max_results, explicit_ids| {
            Page::open(&key, &CONTEXT, Asked { max_results, next_token: None, explicit_ids })
                .map(|p| p.limit())
                .map_err(|e| e.code)
        };
        assert_eq!(ask(None, 3), Ok(None));
        assert_eq!(ask(Some(5), 0), Ok(Some(5)));
        assert_eq!(ask(Some(4), 0), Err("InvalidParameterValue".into()));
        assert_eq!(ask(Some(1001), 0), Err("InvalidParameterValue".into()));
        assert_eq!(ask(Some(-1), 0), Err("InvalidParameterValue".into()));
        assert_eq!(ask(Some(10), 1), Err("InvalidParameterCombination".into()));
    }

    #[test]
    fn the_last_page_has_no_token() {
        let key = TokenKey::new([1; 32]);
        let asked = Asked { max_results: Some(5), ..Asked::default() };
        let page = Page::open(&key, &CONTEXT, asked).unwrap();
        let mut rows: Vec<String> = (0..5).map(|n| n.to_string()).collect();
        assert_eq!(page.cut(&mut rows, |row| row), None);
        rows.push("5".into());
        assert!(page.cut(&mut rows, |row| row).is_some());
        assert_eq!(rows.len(), 5);
    }
}
