//! The bundle that every OCI runtime gets: busybox `true`, as a node would confine it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use oci_spec::runtime::{Capabilities, Capability, LinuxSeccomp};
use serde_json::json;

/// What docker's and containerd's containers may do by default.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Makes a bundle in `dir` whose container runs in the cgroup `cgroup`.
pub(super) fn make(dir: &Path, cgroup: &str) -> Result<PathBuf> {
    let root = dir.join("rootfs");
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let program = root.join("bin/busybox");
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|busybox| fs::copy(busybox, &program).ok())
        .context("find busybox (Debian's busybox-static)")?;
    symlink("busybox", root.join("bin/true")).context("link true to busybox")?;
    let config = dir.join("config.json");
    let spec = serde_json::to_vec(&spec(cgroup)).context("write the bundle's specification")?;
    fs::write(&config, spec).with_context(|| format!("write {}", config.display()))?;
    Ok(dir.to_owned())
}

fn spec(cgroup: &str) -> serde_json::Value {
    let names: Capabilities = CAPABILITIES.into_iter().collect();
    let seccomp: LinuxSeccomp = berth_spec::seccomp::default_profile(&names);
    let memory = 128_u64 << 20;
    json!({
        // The lowest version with what is asked for: Debian's crun knows no newer one than 1.0.
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": names, "effective": names, "permitted": names},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": memory},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"},
            ],
            "seccomp": seccomp,
            "maskedPaths": berth_spec::default_masked_paths(),
            "readonlyPaths": berth_spec::default_readonly_paths(),
        },
    })
}

fn mounts() -> serde_json::Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_is_one_and_confines_by_default() {
        let spec: oci_spec::runtime::Spec = serde_json::from_value(spec("/bench/x")).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_ref().unwrap().to_str(), Some("/bench/x"));
        let seccomp = linux.seccomp().as_ref().unwrap();
        assert!(seccomp.syscalls().as_ref().is_some_and(|rules| rules.len() > 3));
        let capabilities = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().map(|set| set.len()), Some(14));
    }
}
