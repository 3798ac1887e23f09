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

#[cfg(test)]
mod tests {
    use crate::ec2::rehearsal::Rehearsal;

    /// What the API reference of 2016-11-15 names, action by action; after the bar what this cloud refuses by name.
    const DOCUMENTED: &[(&str, &str, &str)] = &[
        (
            "DescribeVolumes",
            "attachment.attach-time attachment.delete-on-termination attachment.device attachment.instance-id \
             attachment.status availability-zone availability-zone-id create-time encrypted fast-restored \
             multi-attach-enabled operator.managed operator.principal size snapshot-id status tag:Owner tag-key volume-id \
             volume-type",
            "",
        ),
        (
            "DescribeSnapshots",
            "description encrypted owner-alias owner-id progress snapshot-id start-time status storage-tier transfer-type \
             tag:Owner tag-key volume-id volume-size",
            "",
        ),
        (
            "DescribeVolumeStatus",
            "action.code action.description action.event-id attachment-status.instance-id \
             attachment-status.io-performance availability-zone event.description event.event-id event.event-type \
             event.not-after event.not-before volume-status.details-name volume-status.details-status volume-status.status",
            "",
        ),
        (
            "DescribeVolumesModifications",
            "modification-state original-iops original-size original-volume-type originalMultiAttachEnabled start-time \
             target-iops target-size target-volume-type targetMultiAttachEnabled volume-id",
            "",
        ),
        (
            "DescribeImages",
            "architecture block-device-mapping.delete-on-termination block-device-mapping.device-name \
             block-device-mapping.snapshot-id block-device-mapping.volume-size block-device-mapping.volume-type \
             block-device-mapping.encrypted creation-date description ena-support hypervisor image-id image-type is-public \
             kernel-id manifest-location name owner-alias owner-id platform product-code product-code.type ramdisk-id \
             root-device-name root-device-type source-instance-id state state-reason-code state-reason-message \
             sriov-net-support tag:Owner tag-key virtualization-type",
            "free-tier-eligible image-allowed public-ssm-parameter-name source-image-id source-image-region \
             image-watermark.watermark-key scan-result.finding-scan-date",
        ),
        ("DescribeImportSnapshotTasks", "task-state tag:Owner", ""),
        ("DescribeImportImageTasks", "task-state tag:Owner", ""),
    ];

    #[tokio::test]
    async fn every_documented_filter_of_disks_is_taken_or_refused_by_name() {
        let stage = Rehearsal::new().await;
        for (action, taken, refused) in DOCUMENTED {
            let list = if action.contains("Import") { "Filters" } else { "Filter" };
            let ask = |name: &str| format!("{action}&{list}.1.Name={name}&{list}.1.Value.1=x");
            for name in taken.split_whitespace() {
                assert_eq!(stage.ask(&ask(name)).await.err(), None, "{action} {name}");
            }
            for name in refused.split_whitespace().chain(["no-such-filter"]) {
                assert_eq!(
                    stage.ask(&ask(name)).await.err().as_deref(),
                    Some("InvalidParameterValue"),
                    "{action} {name}"
                );
            }
            for (more, outcome) in [
                ("MaxResults=5", None),
                ("MaxResults=1000", None),
                ("MaxResults=4", Some("InvalidParameterValue")),
                ("MaxResults=1001", Some("InvalidParameterValue")),
                ("NextToken=nonsense", Some("InvalidParameterValue")),
            ] {
                assert_eq!(stage.ask(&format!("{action}&{more}")).await.err().as_deref(), outcome, "{action} {more}");
            }
        }
    }
}
