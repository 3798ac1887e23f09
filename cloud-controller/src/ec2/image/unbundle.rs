//! A bundle taken apart while it streams: parts → AES-128-CBC → gunzip → the one file in the tar, with every digest checked
//! on the way. Blocking, bounded in memory, and bounded in output by what the manifest says.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Public},
    sha::{Sha1, Sha256},
    sign::Verifier,
    symm::{Cipher, Crypter, Mode},
    x509::X509,
};
use tokio::sync::mpsc;

use super::manifest::Manifest;

/// A piece of a bundle, as it comes from walrus.
pub enum Piece {
    Bytes(bytes::Bytes),
    PartEnds,
    /// It could not be read to its end; tried again later.
    Broken(String),
}

/// Why a bundle did not become an image.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The bundle is not what its manifest says: it never becomes available.
    Wrong(String),
    /// Something was in the way; worth another try.
    Later(String),
}

/// The plain image.
#[derive(Debug, PartialEq, Eq)]
pub struct Plain {
    /// SHA-256 in hex.
    pub digest: String,
    pub size: u64,
}

/// Key or IV, opened with the cloud's key: 32 hex digits in text.
pub fn key_material(opened: &[u8]) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    hex::decode_to_slice(opened.trim_ascii(), &mut bytes).ok()?;
    Some(bytes)
}

/// Whether one of these certificates (PEM) made the manifest's signature.
pub fn is_signed_by(manifest: &Manifest, signature: &[u8], certificates: &[String]) -> bool {
    let verifies = |pem: &String| -> Result<bool, openssl::error::ErrorStack> {
        let key: PKey<Public> = X509::from_pem(pem.as_bytes())?.public_key()?;
        let mut verifier = Verifier::new(MessageDigest::sha1(), &key)?;
        verifier.update(&manifest.signed)?;
        verifier.verify(signature)
    };
    certificates.iter().any(|pem| verifies(pem).unwrap_or(false))
}

/// Writes the plain image of a bundle to `spool`.
pub fn unbundle(
    manifest: &Manifest,
    key: [u8; 16],
    iv: [u8; 16],
    pieces: mpsc::Receiver<Piece>,
    spool: &mut impl Write,
) -> Result<Plain, Trouble> {
    let mut parts = Parts::new(manifest, pieces);
    match open(manifest, key, iv, &mut parts, spool) {
        Ok(plain) => Ok(plain),
        // A damaged part breaks everything behind it: its own digest says it best.
        Err(e) => match parts.verify_current() {
            Err(about_part) => Err(trouble(&about_part)),
            Ok(()) => Err(trouble(&e)),
        },
    }
}

fn trouble(e: &io::Error) -> Trouble {
    match e.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::StorageFull => Trouble::Later(e.to_string()),
        _ => Trouble::Wrong(e.to_string()),
    }
}

fn wrong(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn open(
    manifest: &Manifest,
    key: [u8; 16],
    iv: [u8; 16],
    parts: &mut Parts<'_>,
    spool: &mut impl Write,
) -> io::Result<Plain> {
    let plain = Decrypting::new(parts, key, iv)?;
    // A tar of one file: its headers and its padding are small beside it, however it was made.
    let mut tar_bytes = Counted::new(MultiGzDecoder::new(plain), manifest.size.saturating_add(4 * 1024 * 1024));
    let plain = single_member(manifest, &mut tar_bytes, spool)?;
    io::copy(&mut tar_bytes, &mut io::sink())?;
    if tar_bytes.digest() != manifest.digest {
        return Err(wrong("the digest of the whole image is not the manifest's"));
    }
    let decompressor = tar_bytes.inner;
    let mut decrypting = decompressor.into_inner();
    io::copy(&mut decrypting, &mut io::sink())?;
    Ok(plain)
}

/// Our disk, not the bundle: whatever it was, it is worth another try.
fn not_written(e: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, format!("the plain image cannot be written here: {e}"))
}

/// Copies the one file of the tar and hashes it.
fn single_member(manifest: &Manifest, tar_bytes: &mut impl Read, spool: &mut impl Write) -> io::Result<Plain> {
    let mut archive = tar::Archive::new(tar_bytes);
    let mut entries = archive.entries()?;
    let mut entry = entries.next().ok_or_else(|| wrong("the bundle's archive is empty"))??;
    let kind = entry.header().entry_type();
    if !(kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous()) {
        return Err(wrong("the bundle's archive does not hold a plain file"));
    }
    let mut hash = Sha256::new();
    let mut size = 0u64;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = entry.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        if size > manifest.size {
            return Err(wrong(format!("the image is larger than the {} bytes its manifest says", manifest.size)));
        }
        hash.update(&buffer[..n]);
        spool.write_all(&buffer[..n]).map_err(not_written)?;
    }
    drop(entry);
    if size != manifest.size {
        return Err(wrong(format!("the image has {size} bytes, its manifest says {}", manifest.size)));
    }
    match entries.next() {
        None => {}
        Some(Err(e)) => return Err(e),
        Some(Ok(_)) => return Err(wrong("the bundle's archive holds more than one file")),
    }
    spool.flush().map_err(not_written)?;
    Ok(Plain { digest: hex::encode(hash.finish()), size })
}

/// The parts one after the other, each held against its digest.
struct Parts<'m> {
    manifest: &'m Manifest,
    pieces: mpsc::Receiver<Piece>,
    current: bytes::Bytes,
    index: usize,
    hash: Sha1,
    total: u64,
    /// The first part that was not what the manifest says. Readers above may hide why they failed.
    damage: Option<String>,
}

impl<'m> Parts<'m> {
    fn new(manifest: &'m Manifest, pieces: mpsc::Receiver<Piece>) -> Self {
        Self { manifest, pieces, current: bytes::Bytes::new(), index: 0, hash: Sha1::new(), total: 0, damage: None }
    }

    /// Fetches until there are bytes. False: all parts are through.
    fn fill(&mut self) -> io::Result<bool> {
        while self.current.is_empty() {
            if self.index >= self.manifest.parts.len() {
                if self.total != self.manifest.bundled_size {
                    return Err(wrong(format!(
                        "the parts have {} bytes together, the manifest says {}",
                        self.total, self.manifest.bundled_size
                    )));
                }
                return Ok(false);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    self.hash.update(&bytes);
                    self.total += bytes.len() as u64;
                    if self.total > self.manifest.bundled_size {
                        let message = format!(
                            "the parts have more bytes than the {} the manifest says",
                            self.manifest.bundled_size
                        );
                        return Err(wrong(message));
                    }
                    self.current = bytes;
                }
                Some(Piece::PartEnds) => self.end_part()?,
                Some(Piece::Broken(why)) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
                None => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the bundle's parts stopped coming"));
                }
            }
        }
        Ok(true)
    }

    fn end_part(&mut self) -> io::Result<()> {
        let found = std::mem::replace(&mut self.hash, Sha1::new()).finish();
        let part =
            self.manifest.parts.get(self.index).ok_or_else(|| wrong("there are more parts than the manifest names"))?;
        if found != part.digest {
            let text = format!("part {} ({}) is damaged: its SHA-1 is not the manifest's", self.index, part.filename);
            self.damage = Some(text.clone());
            return Err(wrong(text));
        }
        self.index += 1;
        Ok(())
    }

    /// Reads what is left of the part that was being read and holds it against its digest.
    fn verify_current(&mut self) -> io::Result<()> {
        if let Some(damage) = &self.damage {
            return Err(wrong(damage.clone()));
        }
        if self.index >= self.manifest.parts.len() {
            return Ok(());
        }
        loop {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.hash.update(&bytes),
                Some(Piece::PartEnds) => return self.end_part(),
                // What was already found is more telling than that the rest did not come.
                Some(Piece::Broken(_)) | None => return Ok(()),
            }
        }
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.fill()? {
            return Ok(0);
        }
        let n = out.len().min(self.current.len());
        out[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// AES-128-CBC with PKCS#7 padding, as `openssl enc` writes it.
struct Decrypting<'p, 'm> {
    parts: &'p mut Parts<'m>,
    crypter: Crypter,
    sealed: Vec<u8>,
    opened: Vec<u8>,
    from: usize,
    ended: bool,
}

impl<'p, 'm> Decrypting<'p, 'm> {
    fn new(parts: &'p mut Parts<'m>, key: [u8; 16], iv: [u8; 16]) -> io::Result<Self> {
        let crypter = Crypter::new(Cipher::aes_128_cbc(), Mode::Decrypt, &key, Some(&iv)).map_err(io::Error::other)?;
        Ok(Self { parts, crypter, sealed: vec![0; 64 * 1024], opened: Vec::new(), from: 0, ended: false })
    }

    fn fill(&mut self) -> io::Result<()> {
        let not_opened = |_| wrong("the bundle cannot be decrypted with the key in its manifest");
        while self.from == self.opened.len() && !self.ended {
            let n = self.parts.read(&mut self.sealed)?;
            self.opened.resize(self.sealed.len() + 32, 0);
            self.from = 0;
            let written = if n == 0 {
                self.ended = true;
                self.crypter.finalize(&mut self.opened).map_err(not_opened)?
            } else {
                self.crypter.update(&self.sealed[..n], &mut self.opened).map_err(not_opened)?
            };
            self.opened.truncate(written);
        }
        Ok(())
    }
}

impl Read for Decrypting<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let n = out.len().min(self.opened.len() - self.from);
        out[..n].copy_from_slice(&self.opened[self.from..self.from + n]);
        self.from += n;
        Ok(n)
    }
}

/// Hashes what is read and stops at a bound: a small bundle cannot become an endless image.
struct Counted<R> {
    inner: R,
    hash: Sha1,
    left: u64,
}

impl<R: Read> Counted<R> {
    fn new(inner: R, most: u64) -> Self {
        Self { inner, hash: Sha1::new(), left: most }
    }

    fn digest(&self) -> [u8; 20] {
        self.hash.clone().finish()
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| wrong("the bundle unpacks to far more than its manifest says"))?;
        self.hash.update(&out[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
