//! AES-128-CBC over a stream, and the key of it encrypted for those who may open the bundle.

use std::io::{self, Write};

use openssl::pkey::{PKey, Public};
use openssl::rsa::Padding;
use openssl::symm::{Cipher, Crypter, Mode};

use crate::error::{Error, Result};

/// A key and an IV of 128 random bits. Their *text*, 32 hex digits, is what goes into the manifest.
pub struct Secrets {
    pub key: [u8; 16],
    pub iv: [u8; 16],
}

impl Secrets {
    pub fn random() -> Secrets {
        Secrets { key: rand::random(), iv: rand::random() }
    }
}

/// RSA, PKCS#1 v1.5, hex: what `openssl rsautl -encrypt -pkcs` makes.
pub fn for_owner(secret: &[u8; 16], owner: &PKey<Public>) -> Result<String> {
    let rsa = owner
        .rsa()
        .map_err(|_| Error::refused("bundles are encrypted for RSA certificates; this one has another kind of key"))?;
    let text = hex::encode(secret);
    let mut encrypted = vec![0; rsa.size() as usize];
    let length = rsa.public_encrypt(text.as_bytes(), &mut encrypted, Padding::PKCS1)?;
    Ok(hex::encode(&encrypted[..length]))
}

pub struct Encrypting<W> {
    crypter: Crypter,
    block: usize,
    inner: W,
    buffer: Vec<u8>,
}

impl<W: Write> Encrypting<W> {
    pub fn new(secrets: &Secrets, inner: W) -> Result<Encrypting<W>> {
        let cipher = Cipher::aes_128_cbc();
        let crypter = Crypter::new(cipher, Mode::Encrypt, &secrets.key, Some(&secrets.iv))?;
        Ok(Encrypting { crypter, block: cipher.block_size(), inner, buffer: Vec::new() })
    }

    /// Writes the padding.
    pub fn finish(mut self) -> io::Result<W> {
        self.buffer.resize(2 * self.block, 0);
        let length = self.crypter.finalize(&mut self.buffer)?;
        self.inner.write_all(&self.buffer[..length])?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Encrypting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len() + self.block, 0);
        let length = self.crypter.update(bytes, &mut self.buffer)?;
        self.inner.write_all(&self.buffer[..length])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
