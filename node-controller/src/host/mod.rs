//! What the node itself does to its machine's network, beside the engines (which `mallee-engines` owns).

pub mod metadata_link;

pub use metadata_link::{Linked, MetadataLink};
