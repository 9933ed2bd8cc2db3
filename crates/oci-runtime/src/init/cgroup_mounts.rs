//! `/sys/fs/cgroup` in a container: the host's arrangement, seen from the container's cgroup.
//!
//! With a cgroup namespace a mount shows that namespace's root, which is the container's own
//! cgroup. Without one the container's directories are bound from the host's mounts. Either
//! way nothing above the container's cgroup is there (CVE-2023-25809).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::mount::mount_setattr;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{AnyErrno, Error};
use crate::init::filesystem;
use crate::init::mounts::{failed, links, mount_flags};
use crate::init::procfs::Procfs;
use crate::init::root::{Root, open_child};
use crate::plan::{Attributes, ContainerPlan, MountPlan};

/// One hierarchy of `/proc/self/cgroup`.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Hierarchy {
    /// Its controllers, or `name=…`; empty for v2.
    controllers: String,
    /// This process's cgroup in it.
    path: String,
}

/// Mounts the cgroup file systems at the plan's destination.
pub(crate) fn perform(
    root: &Root<'_>,
    mount: &MountPlan,
    plan: &ContainerPlan,
    procfs: &Procfs,
) -> Result<(), Error> {
    let hierarchies = parse(&procfs.own_cgroups()?);
    let host = if plan.namespaces.is_private(CloneFlags::CLONE_NEWCGROUP) {
        None
    } else {
        Some(procfs.own_mounts()?)
    };
    let target = root.ensure_directory(&mount.destination, links(mount))?;
    let attributes = mount.options.attributes;
    let make = |hierarchy: &Hierarchy| make(mount, hierarchy, attributes, host.as_deref());
    if let [only] = hierarchies.as_slice()
        && only.controllers.is_empty()
    {
        let Some(tree) = make(only)? else {
            return Err(failed(mount)(Errno::NOENT));
        };
        return filesystem::attach(tree.as_fd(), target.as_fd()).map_err(failed(mount));
    }
    // v1: a small tmpfs with a directory for each hierarchy.
    let data = [("mode".to_owned(), Some("755".to_owned()))];
    let top = filesystem::create("tmpfs", "cgroup", &data, mount_flags(attributes.writable()))
        .map_err(|failure| failure.at("tmpfs", &mount.destination))?;
    filesystem::attach(top.as_fd(), target.as_fd()).map_err(failed(mount))?;
    for hierarchy in &hierarchies {
        if let Some(tree) = make(hierarchy)? {
            let directory = directory(top.as_fd(), hierarchy).map_err(failed(mount))?;
            filesystem::attach(tree.as_fd(), directory.as_fd()).map_err(failed(mount))?;
        }
    }
    if attributes.readonly() {
        mount_setattr(top.as_fd(), &Attributes::READ_ONLY.change(), false)
            .map_err(failed(mount))?;
    }
    Ok(())
}

/// The hierarchies of `/proc/self/cgroup`, whose lines are `id:controllers:path`.
fn parse(text: &str) -> Vec<Hierarchy> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        Some(Hierarchy { controllers: controllers.to_owned(), path: path.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// A detached mount of one hierarchy; `None` if the host has not mounted it.
fn make(
    mount: &MountPlan,
    hierarchy: &Hierarchy,
    attributes: Attributes,
    host: Option<&str>,
) -> Result<Option<OwnedFd>, Error> {
    let Some(host) = host else {
        let (fs_type, data) = own_mount(hierarchy);
        return filesystem::create(fs_type, "cgroup", &data, mount_flags(attributes))
            .map(Some)
            .map_err(|failure| failure.at(fs_type, &mount.destination));
    };
    let Some(point) = host_mount(host, hierarchy) else { return Ok(None) };
    let path = Path::new(point).join(hierarchy.path.trim_start_matches('/'));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, &path, flags)
        .map_err(|errno| Error::MountSource { path, source: AnyErrno::from(errno).0 })?;
    mount_setattr(tree.as_fd(), &attributes.change(), false).map_err(failed(mount))?;
    Ok(Some(tree))
}

/// What fsopen(2) needs to mount a hierarchy.
fn own_mount(hierarchy: &Hierarchy) -> (&'static str, Vec<(String, Option<String>)>) {
    if hierarchy.controllers.is_empty() {
        return ("cgroup2", Vec::new());
    }
    let option = |controller: &str| match controller.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (controller.to_owned(), None),
    };
    ("cgroup", hierarchy.controllers.split(',').map(option).collect())
}

/// Where the host has mounted a hierarchy, by `/proc/self/mountinfo` (proc_pid_mountinfo(5)):
/// `id parent dev root POINT options [tags] - TYPE source SUPER`.
fn host_mount<'a>(mounts: &'a str, hierarchy: &Hierarchy) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = filesystem.split(' ');
        let (fs_type, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
        let same = if hierarchy.controllers.is_empty() {
            fs_type == "cgroup2"
        } else {
            let has = |wanted: &str| options.split(',').any(|option| option == wanted);
            fs_type == "cgroup" && hierarchy.controllers.split(',').all(has)
        };
        (same && root == "/").then_some(point)
    })
}

/// The directory for a hierarchy, and links for each controller of one that has several.
fn directory(top: BorrowedFd<'_>, hierarchy: &Hierarchy) -> Result<OwnedFd, AnyErrno> {
    let name = match hierarchy.controllers.as_str() {
        "" => "unified",
        named => named.strip_prefix("name=").unwrap_or(named),
    };
    mkdirat(top, name, Mode::from_raw_mode(0o755))?;
    if name.contains(',') {
        for controller in name.split(',') {
            symlinkat(name, top, controller)?;
        }
    }
    Ok(open_child(top, name.as_ref(), OFlags::PATH | OFlags::DIRECTORY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_with_their_controllers() {
        let all = parse("4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/c\n");
        let (cpu, systemd, unified) = (&all[0], &all[1], &all[2]);
        assert_eq!((cpu.controllers.as_str(), cpu.path.as_str()), ("cpu,cpuacct", "/a:b"));
        assert_eq!(own_mount(cpu).1.len(), 2);
        assert_eq!(own_mount(systemd).1, [("name".to_owned(), Some("systemd".to_owned()))]);
        assert_eq!(own_mount(unified), ("cgroup2", Vec::new()));
    }

    #[test]
    fn a_hierarchy_is_found_among_the_hosts_mounts() {
        let mounts = "\
            30 20 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
            31 20 0:27 /x /mnt/cpu rw - cgroup cgroup rw,cpu\n\
            32 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let find = |line: &str| host_mount(mounts, &parse(line)[0]);
        assert_eq!(find("1:cpu,cpuacct:/"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(find("1:memory:/"), Some("/sys/fs/cgroup/memory"));
        assert_eq!(find("0::/"), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find("1:pids:/"), None);
    }
}
