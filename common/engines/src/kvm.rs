//! Does KVM work here? `/dev/kvm` being there does not say so: on a virtual machine without nested virtualisation guests hang.
//!
//! No `vmx` or `svm` flag in /proc/cpuinfo is an answer at once. Otherwise a boot sector of 512 bytes is run under KVM; it
//! writes one byte to `isa-debug-exit`, which ends QEMU with a status nothing else gives. The verdict holds for this boot.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::made::replace_file;
use crate::process::boot_id;

const TRIAL_LIMIT: Duration = Duration::from_secs(10);
/// `isa-debug-exit` ends QEMU with twice the byte plus one.
const SUCCESS_BYTE: u8 = 0x15;
const SUCCESS_STATUS: i32 = (SUCCESS_BYTE as i32) * 2 + 1;

/// What the operator says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmChoice {
    /// Find out.
    #[default]
    Auto,
    /// Use KVM without trying it.
    Kvm,
    /// Do not use KVM.
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    /// QEMU's translator, which works everywhere.
    Tcg,
}

/// What was found, and why, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub accelerator: Accelerator,
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    boot: String,
    verdict: Verdict,
}

impl Verdict {
    fn new(accelerator: Accelerator, reason: impl Into<String>) -> Verdict {
        Verdict { accelerator, reason: reason.into() }
    }
}

/// The verdict for this machine: the operator's word, or what was found earlier in this boot, or a trial (up to 10 s).
pub async fn verdict(choice: KvmChoice, layout: &Layout) -> Result<Verdict> {
    match choice {
        KvmChoice::Kvm => return Ok(Verdict::new(Accelerator::Kvm, "the configuration says so")),
        KvmChoice::Tcg => return Ok(Verdict::new(Accelerator::Tcg, "the configuration says so")),
        KvmChoice::Auto => {}
    }
    let boot = boot_id();
    let file = layout.kvm_verdict();
    if let Some(known) = remembered(&file).filter(|known| known.boot == boot) {
        return Ok(known.verdict);
    }
    let verdict = find_out(&layout.run()).await?;
    let remembered = Remembered { boot, verdict };
    let text = serde_json::to_vec_pretty(&remembered).map_err(|error| Error::System(error.to_string()))?;
    replace_file(&file, &text)?;
    Ok(remembered.verdict)
}

fn remembered(file: &Path) -> Option<Remembered> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

async fn find_out(scratch: &Path) -> Result<Verdict> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Verdict::new(Accelerator::Tcg, "there is no /dev/kvm"));
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualisation(&cpuinfo) {
        let reason = "the processor shows neither vmx nor svm, so /dev/kvm cannot run guests";
        return Ok(Verdict::new(Accelerator::Tcg, reason));
    }
    Ok(match trial(Accelerator::Kvm, scratch, TRIAL_LIMIT).await? {
        Ok(()) => Verdict::new(Accelerator::Kvm, "a trial guest ran under KVM"),
        Err(why) => Verdict::new(Accelerator::Tcg, format!("a trial guest did not run under KVM: {why}")),
    })
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_ascii_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// `mov al, BYTE; out 0xf4, al;` and then, if nobody took it, halt for ever.
fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    let code = [0xb0, SUCCESS_BYTE, 0xe6, 0xf4, 0xfa, 0xf4, 0xeb, 0xfd];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Runs the trial guest: `Err` inside says how it failed.
pub async fn trial(
    accelerator: Accelerator,
    scratch: &Path,
    limit: Duration,
) -> Result<std::result::Result<(), String>> {
    let disk = scratch.join("kvm-trial.img");
    std::fs::write(&disk, boot_sector()).map_err(Error::file("writing", &disk))?;
    let drive = format!("file={},format=raw,if=ide,snapshot=on", disk.display());
    let accel = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", accel, "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "none", "-monitor", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-drive", &drive])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let outcome = tokio::time::timeout(limit, command.output()).await;
    std::fs::remove_file(&disk).map_err(Error::file("removing", &disk))?;
    Ok(match outcome {
        Err(_) => Err(format!("it hung for {} s", limit.as_secs())),
        Ok(Err(error)) => Err(format!("qemu-system-x86_64: {error}")),
        Ok(Ok(output)) if output.status.code() == Some(SUCCESS_STATUS) => Ok(()),
        Ok(Ok(output)) => {
            Err(format!("QEMU ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_flags_count() {
        assert!(has_virtualisation("processor: 0\nflags\t\t: fpu svm sse\n"));
        assert!(!has_virtualisation("flags : fpu svm_lock\nvmx flags : ept\n"));
    }

    #[tokio::test]
    async fn the_boot_sector_is_recognised_where_it_surely_runs() {
        let scratch = tempfile::tempdir().unwrap();
        let outcome = trial(Accelerator::Tcg, scratch.path(), Duration::from_secs(30)).await.unwrap();
        assert_eq!(outcome, Ok(()));
    }
}
