//! A libvirtd of the node's own: private state, and no `/dev/kvm` where KVM does not work.
//!
//! libvirt's directories are compiled in, so both daemons run in mount namespaces where those directories show ours. A new
//! libvirtd finds the guests of the one before through the same files, so it may die at any time.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::kvm::{Accelerator, Verdict};
use crate::layout::Layout;
use crate::made::replace_file;
use crate::netns::Netns;
use crate::plan::{Mount, Plan, Ready};

/// Which of our directories is seen where.
fn directories(layout: &Layout) -> [(PathBuf, PathBuf); 6] {
    let virt = layout.virt();
    [
        (virt.join("run"), "/run/libvirt".into()),
        (virt.join("lib"), "/var/lib/libvirt".into()),
        (virt.join("cache"), "/var/cache/libvirt".into()),
        (virt.join("log"), "/var/log/libvirt".into()),
        (virt.join("etc"), "/etc/libvirt".into()),
        // libvirt calls ovs-vsctl, which looks for the switch's database here and nowhere else.
        (layout.ovs(), "/run/openvswitch".into()),
    ]
}

/// The mount points that have to exist on the machine.
pub(crate) fn mount_points(layout: &Layout) -> Vec<PathBuf> {
    directories(layout).into_iter().map(|(_, target)| target).collect()
}

pub(crate) fn plans(layout: &Layout, netns: &Netns, verdict: &Verdict) -> Vec<Plan> {
    let mut mounts: Vec<Mount> =
        directories(layout).into_iter().map(|(source, target)| Mount::Bind { source, target }).collect();
    if verdict.accelerator == Accelerator::Tcg {
        // An openable but useless /dev/kvm makes libvirt probe QEMU anew at every call: a minute per domain.
        mounts.push(Mount::Deny { empty: no_kvm(layout), target: "/dev/kvm".into() });
    }
    let virt = layout.virt();
    let plan = |program: &str, ready: Ready| {
        let pid = virt.join(format!("{program}.pid")).display().to_string();
        let command = vec![program.to_owned(), "-p".to_owned(), pid];
        Plan {
            netns: netns.clone(),
            mounts: mounts.clone(),
            logs: vec![log(layout, program)],
            ..Plan::new(program, &layout.run(), &layout.log(), command, ready)
        }
    };
    let virtlogd = plan("virtlogd", Ready::Unix { socket: virt.join("run/virtlogd-sock") });
    let socket = layout.libvirt_socket();
    let mut libvirtd = plan("libvirtd", Ready::Libvirt { socket });
    libvirtd.after = vec!["virtlogd".to_owned()];
    vec![virtlogd, libvirtd]
}

pub(crate) fn write_files(layout: &Layout) -> Result<()> {
    let etc = layout.virt().join("etc");
    let empty = no_kvm(layout);
    std::fs::write(&empty, "").map_err(Error::file("writing", &empty))?;
    replace_file(&etc.join("libvirtd.conf"), libvirtd_conf(layout)?.as_bytes())?;
    // libvirtd does not start without the folder; the node-controller puts its certificate there.
    let nbd = layout.nbd_tls();
    std::fs::create_dir_all(&nbd).map_err(Error::file("making", &nbd))?;
    let qemu = format!("{QEMU_CONF}nbd_tls_x509_cert_dir = \"{}\"\n", nbd.display());
    replace_file(&etc.join("qemu.conf"), qemu.as_bytes())?;
    let virtlogd = format!("log_level = 3\nlog_outputs = \"3:file:{}\"\n", log(layout, "virtlogd").display());
    replace_file(&etc.join("virtlogd.conf"), virtlogd.as_bytes())
}

fn no_kvm(layout: &Layout) -> PathBuf {
    layout.virt().join("no-kvm")
}

fn log(layout: &Layout, program: &str) -> PathBuf {
    layout.log().join(format!("{program}.log"))
}

const QEMU_CONF: &str = r#"# Written by Mallee at every start.
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
# libvirt would set "unlimited", which fails where a login's hard limit is lower and root may not raise it (sudo in a container);
# and a guest's memory has no business in a core file.
max_core = 0
stdio_handler = "logd"
"#;

fn libvirtd_conf(layout: &Layout) -> Result<String> {
    Ok(format!(
        "# Written by Mallee at every start.\n\
         unix_sock_group = \"root\"\n\
         unix_sock_rw_perms = \"0700\"\n\
         auth_unix_rw = \"none\"\n\
         log_level = 3\n\
         log_outputs = \"3:file:{}\"\n\
         host_uuid = \"{}\"\n",
        log(layout, "libvirtd").display(),
        host_uuid(&layout.virt().join("host-uuid"))?
    ))
}

/// Migration compares the two machines' uuids, and firmware often gives all machines of a batch the same: so it is our own.
fn host_uuid(file: &Path) -> Result<String> {
    if let Ok(known) = std::fs::read_to_string(file)
        && uuid::Uuid::parse_str(known.trim()).is_ok()
    {
        return Ok(known.trim().to_owned());
    }
    let new = uuid::Uuid::new_v4().to_string();
    replace_file(file, new.as_bytes())?;
    Ok(new)
}
