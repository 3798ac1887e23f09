//! EC2: one file per resource, each with its table of actions, its rules, its rows and its SQL.

pub mod account_attribute;
pub mod address;
pub mod block_device;
pub mod client_token;
pub mod dhcp_options;
pub mod egress_only_gateway;
pub mod encryption;
pub mod endpoint;
pub mod flow_log;
pub mod image;
pub mod import;
pub mod instance;
pub mod instance_type;
pub mod interface;
pub mod internet_gateway;
pub mod key_pair;
pub mod listing;
pub mod nat_gateway;
pub mod network_acl;
pub mod peering;
pub mod prefix_list;
pub mod region;
pub mod resource;
pub mod route_table;
pub mod security_group;
pub mod snapshot;
pub mod subnet;
pub mod tag;
pub mod unsupported;
pub mod volume;
pub mod vpc;

#[cfg(test)]
pub mod rehearsal;

use mallee_aws::AwsError;
use mallee_store::{Error as StoreError, FromValue, ToValue, Value};

use crate::{
    Refusal,
    service::{Dialect, Service},
};

/// The service, resource by resource.
pub const SERVICE: Service = Service {
    name: "ec2",
    dialect: Dialect::Ec2,
    tables: &[
        account_attribute::ACTIONS,
        address::associate::ACTIONS,
        address::describe::ACTIONS,
        dhcp_options::ACTIONS,
        dhcp_options::change::ACTIONS,
        encryption::ACTIONS,
        egress_only_gateway::ACTIONS,
        endpoint::ACTIONS,
        endpoint::change::ACTIONS,
        flow_log::ACTIONS,
        flow_log::change::ACTIONS,
        image::attribute::ACTIONS,
        image::copy::ACTIONS,
        image::create::ACTIONS,
        image::describe::ACTIONS,
        image::register::ACTIONS,
        import::begin::ACTIONS,
        import::show::ACTIONS,
        instance::attribute::ACTIONS,
        instance::console::ACTIONS,
        instance::describe::ACTIONS,
        instance::lifecycle::ACTIONS,
        instance::metadata_default::ACTIONS,
        instance::run::ACTIONS,
        instance::status::ACTIONS,
        instance_type::ACTIONS,
        interface::ACTIONS,
        interface::address::ACTIONS,
        interface::attach::ACTIONS,
        interface::attribute::ACTIONS,
        interface::change::ACTIONS,
        interface::ipv6::ACTIONS,
        internet_gateway::ACTIONS,
        internet_gateway::change::ACTIONS,
        key_pair::ACTIONS,
        nat_gateway::ACTIONS,
        network_acl::ACTIONS,
        network_acl::change::ACTIONS,
        network_acl::entry::ACTIONS,
        peering::ACTIONS,
        peering::describe::ACTIONS,
        prefix_list::ACTIONS,
        prefix_list::change::ACTIONS,
        region::ACTIONS,
        route_table::ACTIONS,
        route_table::change::ACTIONS,
        route_table::route::ACTIONS,
        security_group::authorize::ACTIONS,
        security_group::group::ACTIONS,
        security_group::reference::ACTIONS,
        security_group::rule::ACTIONS,
        security_group::rule_edit::ACTIONS,
        snapshot::attribute::ACTIONS,
        snapshot::copy::ACTIONS,
        snapshot::create::ACTIONS,
        snapshot::describe::ACTIONS,
        subnet::ACTIONS,
        subnet::change::ACTIONS,
        subnet::ipv6::ACTIONS,
        tag::ACTIONS,
        volume::attach::ACTIONS,
        volume::attribute::ACTIONS,
        volume::create::ACTIONS,
        volume::describe::ACTIONS,
        volume::modify::ACTIONS,
        vpc::ACTIONS,
        vpc::block::ACTIONS,
        vpc::change::ACTIONS,
    ],
};

/// Ends a transaction that would have succeeded: `DryRun` is checked last, so that it also finds what is wrong.
pub fn unless_dry_run(dry_run: Option<bool>) -> Result<(), Refusal> {
    if dry_run == Some(true) { Err(AwsError::dry_run().into()) } else { Ok(()) }
}

/// A store error on a UNIQUE constraint becomes this refusal; any other stays what it is.
pub fn unique_is(error: StoreError, refusal: impl FnOnce() -> Refusal) -> Refusal {
    match error {
        StoreError::Unique { .. } => refusal(),
        other => other.into(),
    }
}

/// An id column: ids are types in the code and text in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id<T>(pub T);

impl<T: std::str::FromStr> FromValue for Id<T> {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        match value {
            Value::Text(text) => {
                text.parse().map(Id).map_err(|_| format!("{text:?} is no id of the kind that belongs here"))
            }
            other => Err(format!("an id cannot be read from {other:?}")),
        }
    }
}

impl<T: AsRef<str>> ToValue for Id<T> {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self.0.as_ref().into())
    }
}

/// What must stay the same from page to page of an answer: account, action and filters.
pub fn paging_context(call: &crate::service::Call, filters: &[mallee_aws::filter::Filter]) -> Vec<String> {
    let mut context = vec![call.account().to_owned(), call.params.action().unwrap_or_default().to_owned()];
    for filter in filters {
        context.push(filter.name.clone());
        context.extend(filter.value.iter().cloned());
    }
    context
}
