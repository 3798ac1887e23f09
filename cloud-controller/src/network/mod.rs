//! The network of the cloud: what its rows say, as content of OVN's northbound database, and the reconciler that makes the
//! database match.
//!
//! A VPC is a logical router, a subnet a logical switch, an interface a logical port, a security group a port group with
//! ACLs, an elastic IP a `dnat_and_snat`. The rows belong to the pages in `ec2/`; [`wanted`] reads them, [`render`] turns
//! them into northbound rows without looking at anything else, [`plan`] is the difference to what is there, and
//! [`reconcile`] applies it.

pub mod cidr;
mod database;
pub mod default_vpc;
pub mod mac;
pub mod northbound;
pub mod outside;
pub mod plan;
pub mod reconcile;
pub mod render;
mod trace;
mod tree;
pub mod wanted;

pub use cidr::{Cidr, Cidr6, Net};
pub use default_vpc::{create_default_subnet, create_default_vpc};
pub use reconcile::{Network, adopt, drive};
pub use trace::trace;
pub use tree::tree;

use mallee_aws::id::InstanceId;
use mallee_store::Tx;

use crate::{Cloud, Outcome, Refusal, ec2::prefix_list};

/// Everything there is, for whoever wants to look at it.
pub async fn read(cloud: &Cloud) -> Result<wanted::Wanted, String> {
    let s3 = prefix_list::of_s3(&cloud.config);
    let read = move |tx: &mut Tx<'_>| wanted::read(tx, s3.as_ref());
    cloud.store.read("read the network", read).await.map_err(|e: Refusal| e.cause.unwrap_or(e.answer.message))
}

/// Something of the network that an instance's metadata shows has changed.
pub fn touch(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<()> {
    Ok(crate::ec2::instance::touch(tx, instance.as_str())?)
}

#[cfg(test)]
mod tests;
