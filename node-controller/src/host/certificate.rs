//! The node's certificate under the names QEMU looks for, so that guests' volumes can be on other machines.

use std::{io, os::unix::fs::symlink, path::Path};

/// `tls` is the tier's folder, which keeps them new; `folder` is what libvirt tells QEMU.
pub fn show(tls: &Path, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (ours, name) in [("ca.pem", "ca-cert.pem"), ("cert.pem", "client-cert.pem"), ("key.pem", "client-key.pem")] {
        let link = folder.join(name);
        match std::fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => symlink(tls.join(ours), &link)?,
        }
    }
    Ok(())
}
