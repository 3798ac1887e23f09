//! What the node itself does to its machine, beside the engines (which `mallee-engines` owns).

pub mod certificate;
pub mod metadata_link;

pub use metadata_link::{Linked, MetadataLink};
