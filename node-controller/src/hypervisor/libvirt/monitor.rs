//! What QEMU is told past libvirt.

use std::{
    ffi::{CStr, CString},
    ptr,
};

use virt::{domain::Domain, error::Error, sys};

#[link(name = "virt-qemu")]
#[allow(unsafe_code)]
unsafe extern "C" {
    /// libvirt-qemu.h; the `virt` crate leaves it out.
    fn virDomainQemuMonitorCommand(
        domain: sys::virDomainPtr,
        command: *const libc::c_char,
        result: *mut *mut libc::c_char,
        flags: libc::c_uint,
    ) -> libc::c_int;
}

pub const QMP: libc::c_uint = 0;
/// VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
pub const HMP: libc::c_uint = 1;

/// QEMU's answer to a command in the language that `flags` says.
#[allow(unsafe_code)]
pub fn tell(domain: &Domain, command: &str, flags: libc::c_uint) -> Result<String, Error> {
    let command = CString::new(command.replace('\0', "")).unwrap_or_default();
    let mut said = ptr::null_mut();
    // SAFETY: the domain is live for the call, the command is zero-terminated and outlives it, and what libvirt allocates for
    // the answer is freed as its manual says.
    let (done, answer) = unsafe {
        let done = virDomainQemuMonitorCommand(domain.as_ptr(), command.as_ptr(), &mut said, flags);
        let answer = if done >= 0 && !said.is_null() {
            CStr::from_ptr(said).to_string_lossy().into_owned()
        } else {
            String::new()
        };
        libc::free(said.cast());
        (done, answer)
    };
    if done < 0 { Err(Error::last_error()) } else { Ok(answer) }
}
