//! What a task needs of the machine, and how it gets it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run;

/// A Debian package, why it is wanted, and how to see that it is there.
struct Package {
    name: &'static str,
    why: &'static str,
    present: fn() -> bool,
}

/// What the demo and the tests use beside the Rust toolchain.
const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        why: "compiles the C parts of two dependencies (SQLite, ring) and links",
        present: || on_path("cc"),
    },
    Package {
        name: "libc6-dev",
        why: "C headers, and the static C library of the shim",
        present: static_libc,
    },
    Package {
        name: "docker-registry",
        why: "the real registry that images are pulled from",
        present: || on_path("docker-registry"),
    },
    Package {
        name: "busybox-static",
        why: "the one program in the test image",
        present: static_busybox,
    },
    Package {
        name: "xfsprogs",
        why: "xfs_io, which shuts a file system down as a power cut does",
        present: || on_path("xfs_io"),
    },
    Package {
        name: "strace",
        why: "has single system calls of a store fail, and ends it there; counts a pod's",
        present: || on_path("strace"),
    },
    Package {
        name: "valgrind",
        why: "counts the instructions of library paths",
        present: || on_path("valgrind"),
    },
];

/// What Berth is compared with, beside what the demo uses.
const PEERS: &[Package] = &[
    Package {
        name: CONTAINERD,
        why: "the runtime that Berth is compared with",
        present: || on_path(CONTAINERD),
    },
    Package {
        name: "runc",
        why: "the OCI runtime that containerd uses by default",
        present: || on_path("runc"),
    },
    Package {
        name: "crun",
        why: "the fastest OCI runtime that containerd can use",
        present: || on_path("crun"),
    },
    Package {
        name: "containernetworking-plugins",
        why: "the networks of containerd's pods",
        present: || Path::new("/usr/lib/cni/bridge").is_file(),
    },
    Package {
        name: "iptables",
        why: "executed by those plugins, to masquerade",
        present: || on_path("iptables"),
    },
];

const CONTAINERD: &str = "containerd";

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Installs the packages that are missing, saying which and why.
pub(crate) fn install_packages() -> Result<()> {
    install(PACKAGES)
}

/// The same for what Berth is compared with, of which no service is left running.
pub(crate) fn install_peers() -> Result<()> {
    let had_containerd = on_path(CONTAINERD);
    install(PEERS)?;
    // Its package starts it where systemd runs; the comparison starts one of its own.
    if !had_containerd && Path::new("/run/systemd/system").is_dir() {
        eprintln!("stopping the service that the package containerd has started");
        let mut stop = Command::new("systemctl");
        stop.args(["disable", "--quiet", "--now", CONTAINERD]);
        run::output(stop).context("stop containerd's service")?;
    }
    Ok(())
}

fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !(package.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Debian packages that are missing here:");
    for package in &missing {
        eprintln!("  {:<16} {}", package.name, package.why);
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    if !is_root() {
        bail!("not root, so nothing was installed; run: apt-get install {}", names.join(" "));
    }
    if !on_path("apt-get") {
        bail!("no apt-get here; install by hand: {}", names.join(" "));
    }
    eprintln!("installing: {}", names.join(" "));
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], names.as_slice()].concat())?;
    match missing.iter().find(|package| !(package.present)()) {
        Some(package) => bail!("{} was installed, yet is not usable", package.name),
        None => Ok(()),
    }
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("-qq").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run::output(command).context("install Debian packages").map(drop)
}

fn on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn static_libc() -> bool {
    let mut command = Command::new("cc");
    command.arg("-print-file-name=libc.a");
    // The compiler echoes the bare name when it does not find the file.
    run::output(command)
        .is_ok_and(|found| Path::new(String::from_utf8_lossy(&found).trim()).is_absolute())
}

fn static_busybox() -> bool {
    let candidates = ["/bin/busybox", "/usr/bin/busybox"];
    let mut found = candidates.iter().filter_map(|path| fs::read(path).ok());
    found.any(|elf| crate::binaries::is_static(&elf).unwrap_or(false))
}
