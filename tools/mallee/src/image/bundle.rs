//! `mallee image bundle`: image → tar (one member) → SHA-1 → gzip → AES-128-CBC → parts of 10 MiB, and a signed manifest.
//! The format of Amazon's and Eucalyptus' own tools; any of them can open it, and what they make is accepted as well.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use mallee_tiers::AccountAsked;
use openssl::pkey::{PKey, Private, Public};
use openssl::x509::X509;
use sha1::{Digest, Sha1};

use super::encrypt::{Encrypting, Secrets, for_owner};
use super::manifest::{Kind, Manifest};
use super::parts::Parts;
use crate::error::{Error, Result};
use crate::output::out;
use crate::state::State;
use crate::{admin, certificate, needs, progress};

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// The image: a raw disk, a kernel or a ramdisk
    pub file: PathBuf,
    /// Whose image it is
    #[arg(long, default_value = crate::account::FIRST, value_name = "NAME")]
    pub account: String,
    /// What the file is
    #[arg(long, value_enum, default_value = "machine")]
    pub kind: Kind,
    /// Kernel image that the machine image boots with
    #[arg(long, value_name = "AKI")]
    pub kernel: Option<String>,
    /// Ramdisk image that the machine image boots with
    #[arg(long, value_name = "ARI")]
    pub ramdisk: Option<String>,
    #[arg(long, default_value = "x86_64")]
    pub architecture: String,
    /// First part of the bundle's file names [default: the image's file name]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Where the bundle goes
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Prints the manifest's path.
pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let manifest = bundle(state, choices).await?;
    out!("{}", manifest.display());
    Ok(())
}

pub async fn bundle(state: &State, choices: &Choices) -> Result<PathBuf> {
    if choices.kind != Kind::Machine && (choices.kernel.is_some() || choices.ramdisk.is_some()) {
        return Err(Error::refused("only a machine image boots with a kernel or a ramdisk"));
    }
    let keys = admin::client(state).account_keys(&AccountAsked { name: choices.account.clone() }).await?;
    let files = certificate::ensure(state, &keys).await?;
    let owner = Owner::read(&files, &keys.account)?;
    let choices = choices.clone();
    let made = tokio::task::spawn_blocking(move || write(&choices, &owner)).await;
    made.map_err(|error| Error::refused(format!("bundling: {error}")))?
}

/// For whom a bundle is made and who signs it.
struct Owner {
    account: String,
    cloud: PKey<Public>,
    user: PKey<Public>,
    key: PKey<Private>,
}

impl Owner {
    fn read(files: &certificate::Files, account: &str) -> Result<Owner> {
        let read = |path: &Path| std::fs::read(path).map_err(Error::file("reading", path));
        Ok(Owner {
            account: account.to_owned(),
            cloud: X509::from_pem(&read(&files.cloud)?)?.public_key()?,
            user: X509::from_pem(&read(&files.certificate)?)?.public_key()?,
            key: PKey::private_key_from_pem(&read(&files.key)?)?,
        })
    }
}

fn write(choices: &Choices, owner: &Owner) -> Result<PathBuf> {
    let image = File::open(&choices.file).map_err(Error::file("opening", &choices.file))?;
    let size = image.metadata().map_err(Error::file("reading", &choices.file))?.len();
    let name = file_name(&choices.file)?;
    let prefix = choices.prefix.clone().unwrap_or_else(|| name.clone());
    std::fs::create_dir_all(&choices.out).map_err(Error::file("creating", &choices.out))?;
    let bar = progress::bytes(&format!("bundling {name}"), size);
    let secrets = Secrets::random();
    let parts = Parts::new(choices.out.clone(), prefix.clone());
    let counted = Counted { inner: image, bar: &bar };
    let encrypting = Encrypting::new(&secrets, parts)?;
    let (digest, parts, bundled_size) =
        archive(counted, &name, size, encrypting).map_err(Error::file("bundling into", &choices.out))?;
    bar.done(&progress::parts(parts.len()));
    let manifest = Manifest {
        architecture: choices.architecture.clone(),
        kernel: choices.kernel.clone(),
        ramdisk: choices.ramdisk.clone(),
        name,
        account: owner.account.clone(),
        kind: choices.kind,
        digest,
        size,
        bundled_size,
        cloud_key: for_owner(&secrets.key, &owner.cloud)?,
        cloud_iv: for_owner(&secrets.iv, &owner.cloud)?,
        user_key: for_owner(&secrets.key, &owner.user)?,
        user_iv: for_owner(&secrets.iv, &owner.user)?,
        parts,
    };
    let path = choices.out.join(format!("{prefix}.manifest.xml"));
    std::fs::write(&path, manifest.render(&owner.key)?).map_err(Error::file("writing", &path))?;
    Ok(path)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.ok_or_else(|| Error::refused(format!("{} is no file", path.display())))
}

/// The pipeline. The answer is the archive's SHA-1, the parts and their size.
fn archive(
    image: impl Read,
    name: &str,
    size: u64,
    encrypting: Encrypting<Parts>,
) -> io::Result<(String, Vec<super::manifest::Part>, u64)> {
    let digested = Digested { inner: GzEncoder::new(encrypting, Compression::default()), digest: Sha1::new() };
    let mut tar = tar::Builder::new(digested);
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, BufReader::with_capacity(1 << 20, image))?;
    let digested = tar.into_inner()?;
    let (parts, total) = digested.inner.finish()?.finish()?.finish()?;
    Ok((hex::encode(digested.digest.finalize()), parts, total))
}

struct Digested<W> {
    inner: W,
    digest: Sha1,
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Counted<'a, R> {
    inner: R,
    bar: &'a progress::Bytes,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bar.add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn owner(directory: &Path) -> Owner {
        let key = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        std::fs::write(directory.join("key.pem"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        std::fs::write(directory.join("public.pem"), key.public_key_to_pem().unwrap()).unwrap();
        let public = || PKey::public_key_from_pem(&key.public_key_to_pem().unwrap()).unwrap();
        Owner { account: "000000000001".to_owned(), cloud: public(), user: public(), key: key.clone() }
    }

    fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
        text.split_once(from).unwrap().1.split_once(to).unwrap().0
    }

    /// With `openssl` and `tar`, as a person would do it by hand.
    #[test]
    fn a_bundle_is_opened_by_the_tools_it_was_made_for() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path();
        let image: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(directory.join("disk.raw"), &image).unwrap();
        let choices = Choices {
            file: directory.join("disk.raw"),
            account: "admin".to_owned(),
            kind: Kind::Machine,
            kernel: Some("aki-1".to_owned()),
            ramdisk: None,
            architecture: "x86_64".to_owned(),
            prefix: None,
            out: directory.join("out"),
        };
        let manifest = std::fs::read_to_string(write(&choices, &owner(directory)).unwrap()).unwrap();
        assert!(manifest.contains("<kernel_id>aki-1</kernel_id>") && manifest.contains("<parts count=\"2\">"));
        std::fs::write(directory.join("manifest"), &manifest).unwrap();
        let signed =
            format!("<machine_configuration>{}</image>", between(&manifest, "<machine_configuration>", "</image>"));
        std::fs::write(directory.join("signed"), signed).unwrap();
        let signature = hex::decode(between(&manifest, "<signature>", "</signature>")).unwrap();
        std::fs::write(directory.join("signature"), signature).unwrap();
        for (name, tag) in [("k", "user_encrypted_key"), ("i", "ec2_encrypted_iv")] {
            let text = between(&manifest, &format!("<{tag} algorithm=\"AES-128-CBC\">"), "<");
            std::fs::write(directory.join(name), hex::decode(text).unwrap()).unwrap();
        }
        let script = "set -e
            openssl dgst -sha1 -verify public.pem -signature signature signed
            K=$(openssl pkeyutl -decrypt -inkey key.pem -in k) I=$(openssl pkeyutl -decrypt -inkey key.pem -in i)
            cat out/disk.raw.part.00 out/disk.raw.part.01 | openssl enc -d -aes-128-cbc -K $K -iv $I | gunzip > archive
            sha1sum out/disk.raw.part.* | while read sum file; do grep -q $sum manifest; done
            grep -q $(sha1sum archive | cut -c1-40) manifest
            tar xf archive -O disk.raw | cmp - disk.raw";
        let output = Command::new("sh").args(["-c", script]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
