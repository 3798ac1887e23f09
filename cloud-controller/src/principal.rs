//! Who makes a request, and the one function that says whether they may.

use mallee_aws::AwsError;

/// The identity a request was signed by. Until users and roles come, that is always the root of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// 12 digits.
    pub account: String,
    pub account_name: String,
    /// `arn:aws:iam::ACCOUNT:root`.
    pub arn: String,
    /// What GetCallerIdentity calls UserId: the account's number for its root.
    pub user_id: String,
    pub access_key: String,
}

/// Whether `principal` may do `action` (`ec2:RunInstances`). Every request passes here, once, before its rule runs.
///
/// The root of an account may do everything in its account; what belongs to other accounts is kept out of sight by
/// the rules, which only ever look at rows of the principal's account (or at what was shared with it).
pub fn allow(principal: &Principal, action: &str) -> Result<(), AwsError> {
    if principal.arn.ends_with(":root") {
        return Ok(());
    }
    tracing::info!(principal.arn = principal.arn, action, "refused: not the root of its account");
    Err(AwsError::unauthorized())
}
