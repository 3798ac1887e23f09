//! Policies that have been parsed: a request need not do it again while the bucket's row has the same text.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mallee_policy::{Malformed, Policy};

use super::BucketId;

/// Buckets whose policies are remembered: a few megabytes, were all of them as long as a policy may be.
const MOST: usize = 100;

#[derive(Default)]
pub struct KnownPolicies(Mutex<HashMap<BucketId, (String, Arc<Policy>)>>);

impl KnownPolicies {
    /// What `text`, the policy of `bucket`, says.
    pub fn parsed(&self, bucket: BucketId, text: &str) -> Result<Arc<Policy>, Malformed> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, policy)) = known.get(&bucket)
            && of == text
        {
            return Ok(policy.clone());
        }
        let policy = Arc::new(Policy::parse(text)?);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(bucket, (text.to_owned(), policy.clone()));
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_parsed_once_until_its_text_changes() {
        let text = |action: &str| {
            format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":"{action}","Resource":"arn:aws:s3:::b/*"}}]}}"#
            )
        };
        let known = KnownPolicies::default();
        let parsed = |bucket, action| known.parsed(BucketId(bucket), &text(action)).unwrap();
        let first = parsed(1, "s3:GetObject");
        assert!(Arc::ptr_eq(&first, &parsed(1, "s3:GetObject")));
        assert!(!Arc::ptr_eq(&first, &parsed(2, "s3:GetObject")));
        let second = parsed(1, "s3:PutObject");
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(known.parsed(BucketId(1), "{").is_err());
        for bucket in 0..500 {
            parsed(bucket, "s3:GetObject");
        }
        assert!(known.0.lock().unwrap().len() <= MOST);
    }
}
