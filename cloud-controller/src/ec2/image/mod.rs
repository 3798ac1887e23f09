//! Images: what instances boot from. Registered from the manifest of a bundle that lies in walrus, imported in the
//! background, and kept as plain bytes named by their digest.

mod row;

pub use row::TABLES;
