//! Names, devices, paths and kernel parameters of a container.

use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxPersonalityDomain};

use super::clean_absolute;
use super::namespaces::Namespaces;
use crate::error::Error;

/// What a device node stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NodeKind {
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A node to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DeviceNode {
    /// In the container, clean.
    pub(crate) path: PathBuf,
    pub(crate) kind: NodeKind,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What OCI promises in every container (config-linux.md, "Default Devices"), but for the
/// console and ptmx, which are a mount and a link.
const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Refuses what would otherwise be ignored in silence.
pub(super) fn refuse_unsupported(linux: &Linux) -> Result<(), Error> {
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(Error::unsupported("linux.netDevices", "moving network devices"));
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        return Err(Error::unsupported("linux.timeOffsets", "time namespaces"));
    }
    if linux.intel_rdt().is_some() {
        return Err(Error::unsupported("linux.intelRdt", "resctrl"));
    }
    if linux.memory_policy().is_some() {
        return Err(Error::unsupported("linux.memoryPolicy", "memory policies"));
    }
    let personality = linux.personality().as_ref();
    if personality.is_some_and(|it| it.domain() != LinuxPersonalityDomain::PerLinux) {
        return Err(Error::unsupported("linux.personality", "a personality but LINUX"));
    }
    Ok(())
}

/// `hostname` or `domainname`; only a namespace of the container's own takes one.
pub(super) fn host_name(
    field: &'static str,
    name: &Option<String>,
    namespaces: &Namespaces,
) -> Result<Option<String>, Error> {
    // HOST_NAME_MAX of the kernel (__NEW_UTS_LEN).
    const LONGEST: usize = 64;
    let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { return Ok(None) };
    if name.len() > LONGEST || name.contains('\0') {
        return Err(Error::invalid(field, format!("{name:?} is no host name")));
    }
    if !namespaces.is_private(CloneFlags::CLONE_NEWUTS) {
        return Err(Error::invalid(field, "needs a uts namespace"));
    }
    // A joined namespace has the name its owner gave it.
    Ok(namespaces.new.contains(CloneFlags::CLONE_NEWUTS).then(|| name.clone()))
}

/// A list of absolute paths in the container.
pub(super) fn paths(
    field: &'static str,
    paths: &Option<Vec<String>>,
) -> Result<Vec<PathBuf>, Error> {
    let clean = |path: &String| {
        clean_absolute(Path::new(path))
            .filter(|clean| clean.as_path() != Path::new("/"))
            .ok_or_else(|| Error::invalid(field, format!("{path:?} is not a path below /")))
    };
    paths.as_deref().unwrap_or_default().iter().map(clean).collect()
}

/// The default nodes and those of `linux.devices`, which replace them where they meet.
pub(super) fn devices(linux: &Linux) -> Result<Vec<DeviceNode>, Error> {
    let wanted: Vec<DeviceNode> = linux
        .devices()
        .as_deref()
        .unwrap_or_default()
        .iter()
        .map(device)
        .collect::<Result<_, _>>()?;
    let mut all: Vec<DeviceNode> = DEFAULT_NODES
        .iter()
        .filter(|(path, ..)| !wanted.iter().any(|node| node.path == Path::new(path)))
        .map(|(path, major, minor)| DeviceNode {
            path: PathBuf::from(path),
            kind: NodeKind::Char { major: *major, minor: *minor },
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    // The multiplexer is a link into the container's own devpts, whatever a list copied from
    // the host says; the console is bound from the terminal.
    let ours = [Path::new("/dev/ptmx"), Path::new("/dev/console")];
    all.extend(wanted.into_iter().filter(|node| !ours.contains(&node.path.as_path())));
    Ok(all)
}

fn device(device: &LinuxDevice) -> Result<DeviceNode, Error> {
    const FIELD: &str = "linux.devices";
    let path = clean_absolute(device.path())
        .filter(|path| path.file_name().is_some())
        .ok_or_else(|| Error::invalid(FIELD, format!("path {}", device.path().display())))?;
    let number = |number: i64| {
        u32::try_from(number).map_err(|_| Error::invalid(FIELD, format!("device number {number}")))
    };
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => {
            NodeKind::Char { major: number(device.major())?, minor: number(device.minor())? }
        }
        LinuxDeviceType::B => {
            NodeKind::Block { major: number(device.major())?, minor: number(device.minor())? }
        }
        LinuxDeviceType::P => NodeKind::Fifo,
        LinuxDeviceType::A => {
            return Err(Error::invalid(FIELD, "a device needs a type"));
        }
    };
    Ok(DeviceNode {
        path,
        kind,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// `linux.sysctl`, sorted by name; only parameters of namespaces the container does not share
/// with the caller (config-linux.md, "Sysctl").
pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, Error> {
    const FIELD: &str = "linux.sysctl";
    let mut all = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let path = sysctl_path(name)
            .ok_or_else(|| Error::invalid(FIELD, format!("{name:?} is no sysctl name")))?;
        let flag = owner(&path).ok_or_else(|| {
            Error::invalid(FIELD, format!("{name} belongs to the host, not to a namespace"))
        })?;
        if !namespaces.is_private(flag) {
            let reason = format!("{name} needs a namespace of the container's own");
            return Err(Error::invalid(FIELD, reason));
        }
        if value.contains(['\0', '\n']) {
            return Err(Error::invalid(FIELD, format!("value of {name} has a line break")));
        }
        all.push((path, value.clone()));
    }
    all.sort();
    Ok(all)
}

/// The path below `/proc/sys`: dots separate unless the name has slashes, in which case dots
/// are part of it (sysctl(8)).
fn sysctl_path(name: &str) -> Option<String> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let sound = |part: &str| {
        !part.is_empty()
            && part != ".."
            && part != "."
            && part.chars().all(|c| c.is_ascii_graphic() && c != '=' && c != '+')
    };
    path.split('/').all(sound).then_some(path)
}

/// The namespace a parameter belongs to (namespaces(7), ipc_namespaces(7)).
fn owner(path: &str) -> Option<CloneFlags> {
    match path {
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => Some(CloneFlags::CLONE_NEWIPC),
        "kernel/hostname" | "kernel/domainname" => Some(CloneFlags::CLONE_NEWUTS),
        _ if path.starts_with("fs/mqueue/") => Some(CloneFlags::CLONE_NEWIPC),
        _ if path.starts_with("net/") => Some(CloneFlags::CLONE_NEWNET),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: &str) -> Linux {
        serde_json::from_str(json).unwrap()
    }

    fn read(sysctl: &str, namespaces: &str) -> Result<Vec<(String, String)>, Error> {
        let json =
            format!(r#"{{"sysctl":{sysctl},"namespaces":[{{"type":"mount"}}{namespaces}]}}"#);
        let linux = linux(&json);
        sysctls(&linux, &Namespaces::new(&linux).unwrap())
    }

    #[test]
    fn a_sysctl_needs_the_namespace_it_belongs_to() {
        let net = r#",{"type":"network"}"#;
        assert_eq!(
            read(r#"{"net.ipv4.ip_forward":"1"}"#, net).unwrap(),
            [("net/ipv4/ip_forward".to_owned(), "1".to_owned())]
        );
        assert!(read(r#"{"net.ipv4.ip_forward":"1"}"#, "").is_err());
        assert!(read(r#"{"kernel.msgmax":"1"}"#, net).is_err());
        assert!(read(r#"{"net/ipv4/conf/eth0.1/forwarding":"1"}"#, net).is_ok());
    }

    #[test]
    fn a_sysctl_of_the_host_is_refused() {
        let all = r#",{"type":"network"},{"type":"ipc"},{"type":"uts"}"#;
        for bad in [
            "kernel.core_pattern",
            "net..x",
            "net/../kernel/core_pattern",
            "vm.swappiness",
            "net.a=1+kernel.core_pattern",
            "",
        ] {
            assert!(read(&format!("{{{bad:?}:\"1\"}}"), all).is_err(), "{bad}");
        }
        assert!(read(r#"{"net.ipv4.ip_forward":"1\n2"}"#, all).is_err());
    }

    #[test]
    fn a_wanted_device_replaces_the_default_one() {
        let nodes = devices(&linux(
            r#"{"devices":[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384},
                {"path":"/dev/ptmx","type":"c","major":5,"minor":2},
                {"path":"/dev/../dev/fuse","type":"c","major":10,"minor":229}]}"#,
        ))
        .unwrap();
        let null: Vec<_> =
            nodes.iter().filter(|node| node.path == Path::new("/dev/null")).collect();
        assert_eq!(null.len(), 1);
        assert_eq!(null[0].mode, 0o600);
        assert!(!nodes.iter().any(|node| node.path == Path::new("/dev/ptmx")));
        assert!(nodes.iter().any(|node| node.path == Path::new("/dev/fuse")));
    }
}
