//! Whether a policy lets in the public, as "Blocking public access to your Amazon S3 storage" defines it: a statement
//! that allows everybody is public unless a condition pins down where the request comes from.

use crate::{
    condition::{Comparison, Condition, Network},
    document::{Effect, Listed, Policy, Statement},
};

/// Keys whose fixed values make a statement not public.
const PINNING: [&str; 12] = [
    "aws:sourcearn",
    "aws:sourcevpc",
    "aws:sourcevpce",
    "aws:sourceowner",
    "aws:sourceaccount",
    "aws:userid",
    "aws:principalorgid",
    "aws:principalaccount",
    "aws:principalarn",
    "s3:x-amz-server-side-encryption-aws-kms-key-id",
    "s3:dataaccesspointarn",
    "s3:dataaccesspointaccount",
];

impl Policy {
    pub fn is_public(&self) -> bool {
        self.statements.iter().any(Statement::is_public)
    }
}

impl Statement {
    fn is_public(&self) -> bool {
        let everybody = match &self.principal {
            None => false,
            Some(Listed::These(list)) => list.everybody(),
            Some(Listed::AllBut(_)) => true,
        };
        self.effect == Effect::Allow && everybody && !self.conditions.iter().any(pins)
    }
}

fn pins(condition: &Condition) -> bool {
    let Some(operator) = condition.operator.filter(|operator| !operator.negated && !operator.is_lax()) else {
        return false;
    };
    let key = condition.key.to_ascii_lowercase();
    if condition.values.is_empty() {
        return false;
    }
    if key == "aws:sourceip" {
        // Wider than this is everybody, by the manual.
        let narrow = |network: Network| network.prefix >= if network.is_ipv4() { 8 } else { 32 };
        let fixed = |value: &String| Network::parse(value).is_some_and(narrow);
        return operator.comparison == Comparison::Ip && condition.values.iter().all(fixed);
    }
    let textual = matches!(
        operator.comparison,
        Comparison::String | Comparison::StringIgnoreCase | Comparison::StringLike | Comparison::Arn
    );
    let wild = matches!(operator.comparison, Comparison::StringLike | Comparison::Arn);
    let fixed = |value: &String| !(value.contains("${") || wild && value.contains(['*', '?']));
    textual && PINNING.contains(&key.as_str()) && condition.values.iter().all(fixed)
}
