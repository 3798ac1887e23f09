//! The AWS wire, pure: what comes in and goes out over EC2 Query, Query and S3 REST, with no tokio, store or file system.
//! It owns no fact of the cloud; it only knows how AWS' clients spell things.
//!
//! In the order a request travels: [`signature`] (who sent it), [`chunked`] (S3 bodies in frames), [`params`],
//! [`rest_json`] and [`document`] (what is asked), [`filter`] and [`paging`] (which rows), [`answer`] and [`document`] (what
//! is answered), [`error`] (or refused). [`id`] and [`credential`] are the words they share.
//!
//! A Describe action from the form to the XML:
//!
//! ```
//! use std::borrow::Cow;
//! use mallee_aws::answer::to_ec2_xml;
//! use mallee_aws::filter::{Attribute, Filter, Filters, Tagged};
//! use mallee_aws::id::VolumeId;
//! use mallee_aws::paging::{Asked, Page, TokenKey};
//! use mallee_aws::params::{Flavor, Params, from_params};
//! use mallee_aws::AwsError;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! #[serde(rename_all = "PascalCase")]
//! struct DescribeVolumes {
//!     #[serde(default)]
//!     volume_id: Vec<VolumeId>,
//!     #[serde(default)]
//!     filter: Vec<Filter>,
//!     max_results: Option<i64>,
//!     next_token: Option<String>,
//!     dry_run: Option<bool>,
//! }
//!
//! #[derive(Serialize)]
//! #[serde(rename_all = "camelCase")]
//! struct Answer {
//!     volume_set: Vec<Volume>,
//!     next_token: Option<String>,
//! }
//!
//! #[derive(Serialize, Clone)]
//! #[serde(rename_all = "camelCase")]
//! struct Volume {
//!     volume_id: VolumeId,
//!     size: u32,
//!     status: &'static str,
//! }
//!
//! impl Tagged for Volume {
//!     fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
//!         std::iter::empty()
//!     }
//! }
//!
//! const FILTERS: &[Attribute<Volume>] = &[
//!     ("volume-id", |row| vec![row.volume_id.as_str().into()]),
//!     ("size", |row| vec![Cow::Owned(row.size.to_string())]),
//!     ("status", |row| vec![row.status.into()]),
//! ];
//!
//! fn describe(form: &Params, stored: &[Volume], key: &TokenKey, request_id: &str) -> Result<String, AwsError> {
//!     let input: DescribeVolumes = from_params(form, Flavor::Ec2)?;
//!     let filters = Filters::compile(&input.filter, FILTERS)?;
//!     let asked = Asked {
//!         max_results: input.max_results,
//!         next_token: input.next_token.as_deref(),
//!         explicit_ids: input.volume_id.len(),
//!     };
//!     let page = Page::open(key, &["123456789012", "DescribeVolumes"], asked)?;
//!     if input.dry_run == Some(true) {
//!         return Err(AwsError::dry_run());
//!     }
//!     let mut rows: Vec<Volume> = stored
//!         .iter()
//!         .filter(|row| page.after().is_none_or(|after| row.volume_id.as_str() > after))
//!         .filter(|row| input.volume_id.is_empty() || input.volume_id.contains(&row.volume_id))
//!         .filter(|row| filters.matches(row))
//!         .cloned()
//!         .collect();
//!     let next_token = page.cut(&mut rows, |row| row.volume_id.as_str());
//!     let version = form.version().unwrap_or("2016-11-15");
//!     to_ec2_xml("DescribeVolumes", version, request_id, &Answer { volume_set: rows, next_token })
//! }
//!
//! let form = Params::parse(b"Action=DescribeVolumes&Version=2015-10-01&Filter.1.Name=status&Filter.1.Value.1=avail*");
//! let volume = Volume { volume_id: VolumeId::from_random([7; 9]), size: 8, status: "available" };
//! let xml = describe(&form.unwrap(), &[volume], &TokenKey::new([0; 32]), "req-1").unwrap();
//! assert!(xml.contains("<volumeSet><item><volumeId>vol-07070707070707070</volumeId><size>8</size>"));
//! ```
//!
//! Who sent a request: [`signature`] shows `Presented` and `verify`.

pub mod answer;
pub mod chunked;
pub mod credential;
pub mod document;
pub mod error;
pub mod filter;
pub mod id;
mod mac;
pub mod paging;
pub mod params;
pub mod rest_json;
pub mod signature;
pub mod xml;

pub use credential::{AccessKeyId, SecretKey};
pub use error::{AwsError, Protocol};
