//! What a request names of the host: mount sources, device nodes, profiles.

pub(super) mod cdi;
mod propagation;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use berth_model::container::{Device, Profile};
use berth_model::mount::BindMount;
use berth_spec::HostDevice;
use oci_spec::runtime::LinuxDeviceType;

use crate::{Error, files};

/// Most device nodes that one container sees.
const MAX_DEVICES: usize = 4096;
/// Deepest directory below `/dev` that is looked at.
const MAX_DEPTH: usize = 8;
/// Largest seccomp profile read, bytes.
const MAX_PROFILE: u64 = 1 << 20;

/// Directories of `/dev` that every container has of its own.
const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];

/// The mounts with each source as it is on the host now, symbolic links followed.
pub(super) fn resolve(mounts: &[BindMount]) -> Result<Vec<BindMount>, Error> {
    let one = |mount: &BindMount| {
        if mount.image.is_some() {
            return Ok(mount.clone());
        }
        let path = &mount.host_path;
        if !path.is_absolute() {
            let problem = format!("{:?} is not absolute", path.display());
            return Err(Error::invalid("mount source", problem));
        }
        let host_path = found(path)
            .map_err(|source| Error::MissingMountSource { path: path.clone(), source })?;
        Ok(BindMount { host_path, ..mount.clone() })
    };
    let resolved: Vec<_> = mounts.iter().map(one).collect::<Result<_, Error>>()?;
    // After all of them were looked at, which may have mounted some (autofs(5)); and read
    // once, since it has a line for each mount of the host.
    let mut table = propagation::Table::default();
    for mount in resolved.iter().filter(|mount| mount.image.is_none()) {
        propagation::check(mount, &mut table)?;
    }
    Ok(resolved)
}

/// Where `path` is, without symbolic links. What is not there is made, as a directory:
/// pods whose volumes do not say whether they must exist rely on that (Kubernetes,
/// "hostPath volume types"). A link to nowhere is refused.
fn found(path: &Path) -> Result<PathBuf, std::io::Error> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        answer => return answer,
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(path)?;
    fs::canonicalize(path)
}

/// The device nodes that a request names; a directory stands for every node in it.
pub(super) fn devices(asked: &[Device]) -> Result<Vec<HostDevice>, Error> {
    let mut found = BTreeMap::new();
    for device in asked {
        let host = fs::canonicalize(&device.host_path).map_err(|source| Error::Invalid {
            field: "device",
            problem: format!("{}: {source}", device.host_path.display()),
        })?;
        let before = found.len();
        collect(&host, &device.container_path, &device.permissions, 0, &mut found)?;
        if found.len() == before {
            let problem = format!("{} is not a device", device.host_path.display());
            return Err(Error::invalid("device", problem));
        }
    }
    Ok(found.into_values().collect())
}

/// Every device node of the host, as a privileged container sees them, and those that it
/// asks for elsewhere.
pub(super) fn all_devices(asked: &[Device]) -> Result<Vec<HostDevice>, Error> {
    let mut found = BTreeMap::new();
    collect(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut found)?;
    found.extend(devices(asked)?.into_iter().map(|device| (device.path.clone(), device)));
    Ok(found.into_values().collect())
}

fn collect(
    host: &Path,
    container: &Path,
    access: &str,
    depth: usize,
    found: &mut BTreeMap<PathBuf, HostDevice>,
) -> Result<(), Error> {
    let failed = |source| Error::Io { action: "read device", path: host.to_owned(), source };
    // Nodes come and go; one that went is not there.
    let Ok(metadata) = fs::symlink_metadata(host) else { return Ok(()) };
    if metadata.is_dir() {
        if depth > MAX_DEPTH || OWN.iter().any(|own| container == Path::new(own)) {
            return Ok(());
        }
        for entry in fs::read_dir(host).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            collect(&host.join(&name), &container.join(&name), access, depth + 1, found)?;
        }
        return Ok(());
    }
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        _ => return Ok(()),
    };
    if depth > 0 && container == Path::new("/dev/console") {
        return Ok(());
    }
    if found.len() >= MAX_DEVICES {
        return Err(Error::invalid("device", format!("more than {MAX_DEVICES} device nodes")));
    }
    let number = metadata.rdev();
    let device = HostDevice {
        path: container.to_owned(),
        kind,
        major: narrow(nix::sys::stat::major(number)),
        minor: narrow(nix::sys::stat::minor(number)),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    };
    found.insert(container.to_owned(), device);
    Ok(())
}

/// A part of a device number; Linux has at most 32 bits of either.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The bytes of a seccomp profile of the node, when one is named: below `directory`, or
/// an absolute path, which is what kubelet sends.
pub(super) fn seccomp(profile: &Profile, directory: &Path) -> Result<Option<Vec<u8>>, Error> {
    let Profile::Localhost(name) = profile else { return Ok(None) };
    let path = Path::new(name);
    let inside = |part: std::path::Component<'_>| {
        matches!(part, std::path::Component::Normal(_) | std::path::Component::RootDir)
    };
    if name.is_empty() || !path.components().all(inside) {
        return Err(Error::invalid("seccomp profile", format!("{name:?} is not a path to a file")));
    }
    match files::read_bounded(&directory.join(path), MAX_PROFILE) {
        Err(Error::Io { path, source, .. }) => {
            Err(Error::invalid("seccomp profile", format!("{}: {source}", path.display())))
        }
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(host: &Path) -> BindMount {
        BindMount {
            container_path: "/data".into(),
            host_path: host.to_owned(),
            ..BindMount::default()
        }
    }

    #[test]
    fn a_missing_mount_source_is_made_and_a_broken_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a/b");
        let resolved = resolve(&[mount(&missing)]).unwrap();
        assert_eq!(resolved[0].host_path, fs::canonicalize(&missing).unwrap());
        assert_eq!(fs::metadata(&missing).unwrap().mode() & 0o7777, 0o755);
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        fs::write(&file, "").unwrap();
        for bad in [link.clone(), file.join("below")] {
            let error = resolve(&[mount(&bad)]).unwrap_err();
            assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(bad.to_str().unwrap()), "{error}");
        }
        assert!(resolve(&[mount("relative".as_ref())]).is_err());
    }

    #[test]
    fn a_link_to_a_mount_source_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let resolved = resolve(&[mount(&link)]).unwrap();
        assert_eq!(resolved[0].host_path, fs::canonicalize(&target).unwrap());
    }

    #[test]
    fn devices_are_found_by_number() {
        let asked = Device {
            container_path: "/dev/nothing".into(),
            host_path: "/dev/null".into(),
            permissions: "r".into(),
        };
        let found = devices(std::slice::from_ref(&asked)).unwrap();
        assert_eq!((found[0].major, found[0].minor), (1, 3));
        assert_eq!(
            (found[0].path.as_path(), found[0].access.as_str()),
            ("/dev/nothing".as_ref(), "r")
        );
        for bad in ["/etc/passwd", "/nonexistent"] {
            let asked = Device { host_path: bad.into(), ..asked.clone() };
            assert!(devices(&[asked]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_privileged_container_does_not_get_the_nodes_terminals() {
        let asked = Device {
            container_path: "/dev/nothing".into(),
            host_path: "/dev/null".into(),
            permissions: "r".into(),
        };
        let all = all_devices(&[asked]).unwrap();
        assert!(all.iter().any(|device| device.path == Path::new("/dev/nothing")));
        assert!(all.iter().any(|device| device.path == Path::new("/dev/null")));
        assert!(!all.iter().any(|device| device.path.starts_with("/dev/pts")));
    }

    /// teeth: crates/engine/src/container/mounts.rs: `!path.components().all(inside)` → `false`
    /// teeth: crates/engine/src/container/mounts.rs: `Err(Error::Io { path, source, .. }) => {` → `Err(Error::Io { path, source, .. }) if false => {`
    #[test]
    fn d7_a_localhost_profile_must_exist_and_stay_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let profiles = dir.path().join("profiles");
        fs::create_dir_all(profiles.join("x")).unwrap();
        for place in [dir.path(), &profiles, &profiles.join("x")] {
            fs::write(place.join("a.json"), "{}").unwrap();
        }
        let read = |name: &str| seccomp(&Profile::Localhost(name.into()), &profiles);
        for good in ["a.json", "x/a.json", profiles.join("a.json").to_str().unwrap()] {
            assert_eq!(read(good).unwrap().as_deref(), Some(&b"{}"[..]), "{good}");
        }
        // Most of them lead to a file.
        for bad in ["", "../a.json", "b.json", "x/../a.json", "x/../../a.json", "x"] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument, "{bad:?}: {error}");
        }
        assert_eq!(seccomp(&Profile::Unconfined, &profiles).unwrap(), None);
    }
}
