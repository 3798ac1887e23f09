//! The size and the limits of a disk that a guest has, and whether it failed.
//!
//! A grown volume is served anew under the same name. QEMU learns of its size when it comes back to it, which it does at the
//! guest's next request and not before, so a disk that does not know its new size yet is read from, and asked again later.

use std::{ffi::CString, ptr};

use virt::{domain::Domain, error::Error, sys};

use super::{super::SeenDisk, monitor};

/// 0 bytes: the size stays. `tunables` are libvirt's names, and 0 is no limit.
pub fn fit(
    domain: &Domain,
    disk: &SeenDisk,
    bytes: u64,
    tunables: &[(&'static str, u64)],
) -> std::result::Result<(), Error> {
    tune(domain, &disk.target, tunables)?;
    if bytes == 0 {
        return Ok(());
    }
    let resized = domain.block_resize(&disk.target, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES);
    if resized.is_err() {
        read_from(domain, &disk.alias)?;
    }
    resized.map(drop)
}

/// More disks than a guest can have here.
const DISKS: usize = 64;

/// Whether a disk of the guest gave an error that it was stopped for.
#[allow(unsafe_code)]
pub fn has_failed(domain: &Domain) -> std::result::Result<bool, Error> {
    let mut errors: [sys::virDomainDiskError; DISKS] =
        std::array::from_fn(|_| sys::virDomainDiskError { disk: ptr::null_mut(), error: 0 });
    // SAFETY: the array is ours and as long as is said; the names that libvirt allocates in the first `found` entries are freed
    // as its manual says, once.
    let found = unsafe {
        let found = sys::virDomainGetDiskErrors(domain.as_ptr(), errors.as_mut_ptr(), DISKS as u32, 0);
        for error in errors.iter().take(usize::try_from(found).unwrap_or_default()) {
            libc::free(error.disk.cast());
        }
        found
    };
    if found < 0 { Err(Error::last_error()) } else { Ok(found > 0) }
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

#[allow(unsafe_code)]
fn tune(domain: &Domain, target: &str, tunables: &[(&'static str, u64)]) -> std::result::Result<(), Error> {
    let target = c_string(target);
    let (mut parameters, mut count, mut room) = (ptr::null_mut(), 0, 0);
    // SAFETY: libvirt allocates and grows the list through the three pointers, which are ours and live for the block; it is freed
    // once, by its own function, whatever happened. Strings are zero-terminated and outlive the calls.
    let done = unsafe {
        let mut done = 0;
        for (name, value) in tunables {
            let name = c_string(name);
            done |= sys::virTypedParamsAddULLong(&mut parameters, &mut count, &mut room, name.as_ptr(), *value);
        }
        if done >= 0 {
            let live = sys::VIR_DOMAIN_AFFECT_LIVE;
            done = sys::virDomainSetBlockIoTune(domain.as_ptr(), target.as_ptr(), parameters, count, live);
        }
        sys::virTypedParamsFree(parameters, count);
        done
    };
    if done < 0 { Err(Error::last_error()) } else { Ok(()) }
}

/// Reads the disk's first sector, and does not wait for it: QEMU would stand still if nobody served the disk just now.
fn read_from(domain: &Domain, alias: &str) -> std::result::Result<(), Error> {
    let command = format!("qemu-io -d /machine/peripheral/{alias}/virtio-backend \"aio_read -q 0 512\"");
    let answer = monitor::tell(domain, &command, monitor::HMP)?;
    tracing::debug!(disk = alias, answer = answer.trim(), "read from a disk that does not know its size");
    Ok(())
}
