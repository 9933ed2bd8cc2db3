//! Mounts: the default set, the sandbox's files, and what the request asks for.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use berth_model::mount::{BindMount, ImageMount, Propagation};
use oci_spec::runtime::{Mount, MountBuilder};

use crate::ids::map_mount;
use crate::wanted::is_container_path;
use crate::{Error, Shm, Wanted};

/// Type of a mount that the in-tree shim keeps for all containers of a sandbox; its
/// source is the name under which it is kept (`shm`).
pub const SHARED_MOUNT: &str = "berth-shared";

/// Type of a mount of an image; its options are those of the overlay or bind mount of the
/// layers, with [`SUB_PATH`].
pub const IMAGE_MOUNT: &str = "berth-image";

/// Option of an [`IMAGE_MOUNT`]: the directory in the image that is seen.
pub const SUB_PATH: &str = "subpath";

/// Destination, type, source and options of what every container has
/// (OCI runtime specification, config-linux, "Default Filesystems").
const DEFAULTS: [(&str, &str, &str, &[&str]); 6] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

/// Every mount, parents before children.
///
/// A mount of the request replaces a default one at the same place; one over `/dev`
/// replaces all that is below it too. The runtime performs them in this order, each
/// inside the container's root.
pub(crate) fn mounts(wanted: &Wanted<'_>) -> Result<Vec<Mount>, Error> {
    let asked = wanted.spec.mounts.iter().map(|mount| asked(wanted, mount));
    let mut asked = asked.collect::<Result<Vec<_>, _>>()?;
    for device in &wanted.device_mounts {
        let at = destination("mount of a device", &device.path)?;
        asked.retain(|mount| *mount.destination() != at);
        asked.push(mount(at, &device.kind, &device.source, device.options.clone()));
    }
    let replaced = |default: &Mount| {
        asked.iter().any(|asked| {
            let at = asked.destination();
            at == default.destination()
                || (at == Path::new("/dev") && default.destination().starts_with(at))
        })
    };
    let mut all: Vec<_> = defaults(wanted).filter(|default| !replaced(default)).collect();
    all.extend(asked);
    // Stable: of two at one depth the earlier in the request stays the lower.
    all.sort_by_key(|mount| mount.destination().components().count());
    Ok(all)
}

/// Where parts of the host are bound that the request names.
pub(crate) fn exact<'a>(wanted: &'a Wanted<'_>) -> impl Iterator<Item = PathBuf> + 'a {
    let host = wanted.spec.mounts.iter().filter(|mount| mount.image.is_none());
    host.filter_map(|mount| destination("mount", &mount.container_path).ok())
}

/// How the root is propagated, so that the mounts that ask for it receive events.
pub(crate) fn rootfs_propagation(wanted: &Wanted<'_>) -> Option<String> {
    let has = |wanted_kind| wanted.spec.mounts.iter().any(|mount| mount.propagation == wanted_kind);
    if has(Propagation::Bidirectional) {
        return Some("rshared".to_owned());
    }
    has(Propagation::HostToContainer).then(|| "rslave".to_owned())
}

fn defaults<'a>(wanted: &'a Wanted<'_>) -> impl Iterator<Item = Mount> + 'a {
    let writable_sys = wanted.privileged();
    let kernel = DEFAULTS.into_iter().map(move |(destination, kind, source, options)| {
        let option = |&option: &&str| match option {
            "ro" if writable_sys => Some("rw".to_owned()),
            // tty, which the users of a very small range do not have (pts(4)).
            "gid=5" if wanted.ids.is_some_and(|ids| ids.host_gid(5).is_none()) => None,
            other => Some(other.to_owned()),
        };
        mount(destination, kind, source, options.iter().filter_map(option).collect())
    });
    kernel.chain(sandbox_files(wanted))
}

fn sandbox_files<'a>(wanted: &'a Wanted<'_>) -> impl Iterator<Item = Mount> + 'a {
    let access = if wanted.spec.security.readonly_rootfs { "ro" } else { "rw" };
    let files = &wanted.files;
    let bound = [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ];
    let bound = bound.into_iter().filter_map(move |(destination, source)| {
        Some(mount(destination, "bind", source.as_ref()?, bind_options(access)))
    });
    let shm = files.shm.iter().map(|shm| match shm {
        Shm::Shared => {
            let options = ["nosuid", "noexec", "nodev"].map(str::to_owned).to_vec();
            mount("/dev/shm", SHARED_MOUNT, "shm", options)
        }
        Shm::Bind(source) => mount("/dev/shm", "bind", source, bind_options("rw")),
    });
    bound.chain(shm)
}

fn bind_options(access: &str) -> Vec<String> {
    ["rbind", "rprivate", access].map(str::to_owned).to_vec()
}

fn mount(
    destination: impl Into<PathBuf>,
    kind: &str,
    source: impl AsRef<OsStr>,
    options: Vec<String>,
) -> Mount {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(Path::new(&source).to_owned())
        .options(options)
        .build()
        .expect("id mappings, the only thing checked, are absent")
}

fn asked(wanted: &Wanted<'_>, asked: &BindMount) -> Result<Mount, Error> {
    let destination = destination("mount", &asked.container_path)?;
    let access = match (asked.recursive_readonly, asked.readonly) {
        (true, false) => return Err(Error::RecursiveReadOnly(asked.container_path.clone())),
        (true, true) if asked.propagation != Propagation::Private => {
            return Err(Error::RecursiveReadOnly(asked.container_path.clone()));
        }
        (true, true) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    let propagation = match asked.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let forbidden = asked.options.iter().map(|option| option.as_str());
    if let Some(image) = &asked.image {
        // What an image brings is content: its device nodes and set-user-ID bits are not
        // for a container that looks into it.
        let fixed = ["ro", "nosuid", "nodev", propagation].into_iter();
        let options = fixed.chain(forbidden).map(str::to_owned).collect();
        // Whose the files of an image are, its users know.
        let ids = asked.ids.as_ref().or(wanted.ids);
        let mounted = image_mount(wanted, image, destination, options)?;
        return Ok(map_mount(mounted, ids));
    }
    let options = ["rbind", propagation, access].into_iter().chain(forbidden);
    let bind = mount(destination, "bind", &asked.host_path, options.map(str::to_owned).collect());
    Ok(map_mount(bind, asked.ids.as_ref()))
}

fn image_mount(
    wanted: &Wanted<'_>,
    image: &ImageMount,
    destination: PathBuf,
    mut options: Vec<String>,
) -> Result<Mount, Error> {
    let layers = wanted.volumes.get(&image.name);
    let layers = layers.ok_or_else(|| Error::ImageMissing(image.name.clone()))?;
    options.extend(layers.options.iter().cloned());
    if !image.sub_path.is_empty() {
        options.push(format!("{SUB_PATH}={}", image.sub_path));
    }
    Ok(mount(destination, IMAGE_MOUNT, &layers.source, options))
}

/// The path with `.`, `..` and doubled slashes taken out, as text: what the image's
/// symbolic links make of it is the runtime's concern, inside the root.
pub(crate) fn destination(what: &'static str, path: &Path) -> Result<PathBuf, Error> {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            // At the root it stays there, as in path_resolution(7).
            Component::ParentDir => _ = clean.pop(),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if !is_container_path(path) || clean == Path::new("/") {
        return Err(Error::ContainerPath { what, path: path.to_owned() });
    }
    Ok(clean)
}

#[cfg(test)]
mod tests;
