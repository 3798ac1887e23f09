//! Policies: documents that say who may do what to which things, and when. Pure: no service, no clock, no store.
//!
//! [`Policy::parse`] reads a document, [`Policy::judge`] holds a [`Request`] against it. The grammar and the meaning are
//! those of the IAM reference ("IAM JSON policy elements", "Multivalued context keys"). What is allowed in a document
//! of a certain service (its actions, its resources) is that service's to check.
//!
//! Default is no: a statement that cannot be understood allows nothing, and denies what it might deny.

mod condition;
mod document;
mod json;
mod pattern;
mod principal;
mod public;

pub use condition::{Condition, Context, Operator};
pub use document::{Effect, Listed, Malformed, Policy, Statement, Version, covers};
pub use principal::{Principals, Who, account_of};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    pub who: Who<'r>,
    /// `s3:GetObject`.
    pub action: &'r str,
    /// `arn:aws:s3:::bucket/key`.
    pub resource: &'r str,
    pub context: &'r Context,
}

/// What one policy says. Several are put together with [`Verdict::and`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing about this: somebody else may allow it.
    Silent,
    Allow,
    /// Whoever else allows it.
    Deny,
}

impl Verdict {
    #[must_use]
    pub fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Deny, _) | (_, Verdict::Deny) => Verdict::Deny,
            (Verdict::Allow, _) | (_, Verdict::Allow) => Verdict::Allow,
            _ => Verdict::Silent,
        }
    }
}

impl Policy {
    pub fn judge(&self, request: &Request<'_>) -> Verdict {
        let said = self.statements.iter().filter(|statement| statement.fits(request, self.version));
        said.fold(Verdict::Silent, |verdict, statement| {
            verdict.and(match statement.effect {
                Effect::Allow => Verdict::Allow,
                Effect::Deny => Verdict::Deny,
            })
        })
    }
}

#[cfg(test)]
mod tests;
