//! The manifest of a bundle: what it consists of, and who says so.
//!
//! The signature is over the bytes of `<machine_configuration>…</machine_configuration><image>…</image>` as they stand in
//! the file, so nothing here is ever pretty-printed.

use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;

use crate::error::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A disk: whole, or a file system that is booted with a kernel of its own
    Machine,
    Kernel,
    Ramdisk,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Machine => "machine",
            Kind::Kernel => "kernel",
            Kind::Ramdisk => "ramdisk",
        }
    }
}

/// One file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub file: String,
    /// SHA-1, hex.
    pub digest: String,
}

#[derive(Debug, Clone)]
pub struct Manifest {
    pub architecture: String,
    /// Image ids a machine image boots with.
    pub kernel: Option<String>,
    pub ramdisk: Option<String>,
    pub name: String,
    /// 12 digits.
    pub account: String,
    pub kind: Kind,
    /// SHA-1 of the tar archive, hex.
    pub digest: String,
    /// Of the image, and of all parts together.
    pub size: u64,
    pub bundled_size: u64,
    /// Key and IV, encrypted for the cloud and for the user, hex.
    pub cloud_key: String,
    pub cloud_iv: String,
    pub user_key: String,
    pub user_iv: String,
    pub parts: Vec<Part>,
}

impl Manifest {
    /// The whole file.
    pub fn render(&self, key: &PKey<Private>) -> Result<String> {
        let signed = format!("{}{}", self.machine_configuration(), self.image());
        let mut signer = Signer::new(MessageDigest::sha1(), key)?;
        let signature = signer.sign_oneshot_to_vec(signed.as_bytes())?;
        Ok(format!(
            "<?xml version='1.0' encoding='ASCII'?>\n<manifest><version>2007-10-10</version><bundler><name>mallee</name>\
             <version>{}</version><release>0</release></bundler>{signed}<signature>{}</signature></manifest>",
            env!("CARGO_PKG_VERSION"),
            hex::encode(signature)
        ))
    }

    fn machine_configuration(&self) -> String {
        let (kernel, ramdisk) = match self.kind {
            Kind::Machine => (self.kernel.as_deref(), self.ramdisk.as_deref()),
            // This *is* one.
            Kind::Kernel => (Some("true"), None),
            Kind::Ramdisk => (None, Some("true")),
        };
        let optional = |name: &str, value: Option<&str>| value.map(|value| element(name, value)).unwrap_or_default();
        format!(
            "<machine_configuration>{}{}{}</machine_configuration>",
            element("architecture", &self.architecture),
            optional("kernel_id", kernel),
            optional("ramdisk_id", ramdisk)
        )
    }

    fn image(&self) -> String {
        let encrypted = |name: &str, value: &str| format!("<{name} algorithm=\"AES-128-CBC\">{value}</{name}>");
        let mut text = format!(
            "<image>{}{}{}<digest algorithm=\"SHA1\">{}</digest>{}{}",
            element("name", &self.name),
            element("user", &self.account),
            element("type", self.kind.as_str()),
            self.digest,
            element("size", &self.size.to_string()),
            element("bundled_size", &self.bundled_size.to_string())
        );
        text += &encrypted("ec2_encrypted_key", &self.cloud_key);
        text += &encrypted("user_encrypted_key", &self.user_key);
        text += &encrypted("ec2_encrypted_iv", &self.cloud_iv);
        text += &encrypted("user_encrypted_iv", &self.user_iv);
        text += &format!("<parts count=\"{}\">", self.parts.len());
        for (index, part) in self.parts.iter().enumerate() {
            text += &format!(
                "<part index=\"{index}\">{}<digest algorithm=\"SHA1\">{}</digest></part>",
                element("filename", &part.file),
                part.digest
            );
        }
        text + "</parts></image>"
    }
}

/// The file is declared to be ASCII, so everything else is a character reference.
fn element(name: &str, text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '"' => escaped += &format!("&#{};", u32::from(c)),
            ' '..='~' => escaped.push(c),
            _ => escaped += &format!("&#{};", u32::from(c)),
        }
    }
    format!("<{name}>{escaped}</{name}>")
}
