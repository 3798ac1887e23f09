//! What every `Describe` of rows with ids has in common: filters, explicit ids, pages.

use std::collections::BTreeSet;

use mallee_aws::{
    filter::{Attribute, Filter, Filters, Tagged},
    paging::{Asked, Page},
};

use crate::{Outcome, Refusal, ec2::unless_dry_run, service::Call};

/// The condition for the rows of an account (`?1`), or for all rows when it is None. Two texts: only without the `OR` can
/// an index be used. (PostgreSQL takes a parameter's type from its first use, so `?1 IS NULL` cannot come first.)
pub fn whose(account: Option<&str>) -> &'static str {
    match account {
        Some(_) => "account = ?1",
        None => "(account = ?1 OR ?1 IS NULL)",
    }
}

/// What a `Describe` asks for, as it was sent.
pub struct Wanted<'a> {
    pub dry_run: Option<bool>,
    pub filter: &'a [Filter],
    /// Ids named in the request; none is all.
    pub ids: Vec<&'a str>,
    pub max_results: Option<i64>,
    pub next_token: Option<&'a str>,
}

/// The items of this answer and the token of the next. `all` is what the account has, in the order of `id`.
pub fn page<T: Tagged>(
    call: &Call,
    wanted: &Wanted<'_>,
    table: &[Attribute<T>],
    id: fn(&T) -> &str,
    not_found: impl Fn(&str) -> Refusal,
    mut all: Vec<T>,
) -> Outcome<(Vec<T>, Option<String>)> {
    let filters = Filters::compile(wanted.filter, table)?;
    let context = super::paging_context(call, wanted.filter);
    let context: Vec<&str> = context.iter().map(String::as_str).collect();
    let asked =
        Asked { max_results: wanted.max_results, next_token: wanted.next_token, explicit_ids: wanted.ids.len() };
    let page = Page::open(&call.cloud.token_key, &context, asked)?;
    if !wanted.ids.is_empty() {
        let named: BTreeSet<&str> = wanted.ids.iter().copied().collect();
        all.retain(|item| named.contains(id(item)));
        if all.len() < named.len() {
            let missing = wanted.ids.iter().find(|n| !all.iter().any(|item| id(item) == **n));
            return Err(missing.map_or_else(|| Refusal::internal("an id is there twice"), |n| not_found(n)));
        }
    }
    unless_dry_run(wanted.dry_run)?;
    all.retain(|item| page.after().is_none_or(|after| id(item) > after) && filters.matches(item));
    let next_token = page.cut(&mut all, |item| id(item));
    Ok((all, next_token))
}
