//! Cgroup mounts, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::Directory;
use crate::hierarchy::{Controller, Legacy, Mounts, Unified};

/// Where distributions mount cgroups; preferred when a hierarchy is mounted twice.
const USUAL: &str = "/sys/fs/cgroup";

/// What is mounted in this process's mount namespace.
pub(crate) fn read() -> Result<Mounts, Error> {
    let text = Directory::new(PathBuf::from("/proc/self")).read("mountinfo")?;
    let mut mounts = parse(&text);
    if let Some(unified) = &mut mounts.unified {
        let names = Directory::new(unified.mount.clone()).read("cgroup.controllers")?;
        unified.controllers = names.split_whitespace().filter_map(Controller::named).collect();
    }
    Ok(mounts)
}

/// One cgroup mount.
struct Mount<'a> {
    /// Device number: the same for every mount of one hierarchy.
    device: &'a str,
    point: PathBuf,
    unified: bool,
    options: &'a str,
}

fn parse(text: &str) -> Mounts {
    let mut all: Vec<Mount<'_>> = Vec::new();
    for mount in text.lines().filter_map(line) {
        match all.iter_mut().find(|known| known.device == mount.device) {
            None => all.push(mount),
            Some(known) if !usual(&known.point) && usual(&mount.point) => *known = mount,
            Some(_) => {}
        }
    }
    let mut mounts = Mounts::default();
    for mount in all {
        if mount.unified {
            let unified = Unified { mount: mount.point, controllers: BTreeSet::new() };
            mounts.unified.get_or_insert(unified);
        } else if let Some(controllers) = legacy(mount.options) {
            mounts.legacy.push(Legacy { mount: mount.point, controllers });
        }
    }
    mounts
}

fn usual(point: &Path) -> bool {
    point.starts_with(USUAL)
}

/// `id parent device root point options [optional…] - type source super-options`.
fn line(line: &str) -> Option<Mount<'_>> {
    let (mount, superblock) = line.split_once(" - ")?;
    let mut superblock = superblock.split(' ');
    let unified = match superblock.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = superblock.nth(1)?;
    let mut mount = mount.split(' ').skip(2);
    let device = mount.next()?;
    let point = unescape(mount.nth(1)?);
    Some(Mount { device, point, unified, options })
}

/// The controllers of a v1 hierarchy; `None` for a named one that is not systemd's.
fn legacy(options: &str) -> Option<BTreeSet<Controller>> {
    let name = options.split(',').find_map(|option| option.strip_prefix("name="));
    if name.is_some_and(|name| name != "systemd") {
        return None;
    }
    Some(options.split(',').filter_map(Controller::named).collect())
}

/// Undoes the kernel's octal escapes (`\040` for a space).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, escaped) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /run/copy rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:8 master:2 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/net_cls rw,relatime - cgroup cgroup rw,net_cls
35 31 0:32 / /sys/fs/cgroup/blk\\040io rw,relatime - cgroup cgroup rw,blkio
36 31 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
37 31 0:34 / /sys/fs/cgroup/other rw,relatime - cgroup cgroup rw,name=other
38 31 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
39 23 8:1 / / rw - ext4 /dev/sda1 rw
";

    #[test]
    fn a_hybrid_host_is_read() {
        let mounts = parse(HYBRID);
        let found: Vec<(&str, Vec<Controller>)> = mounts
            .legacy
            .iter()
            .map(|l| (l.mount.to_str().unwrap(), l.controllers.iter().copied().collect()))
            .collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", vec![Controller::Cpu, Controller::Cpuacct]),
                ("/sys/fs/cgroup/net_cls", vec![]),
                ("/sys/fs/cgroup/blk io", vec![Controller::Io]),
                ("/sys/fs/cgroup/systemd", vec![]),
            ]
        );
        assert_eq!(mounts.unified.unwrap().mount, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_host_of_one_hierarchy_is_read() {
        let text =
            "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\nnonsense\n";
        let mounts = parse(text);
        assert!(mounts.legacy.is_empty());
        assert_eq!(mounts.unified.unwrap().mount, Path::new("/sys/fs/cgroup"));
        assert_eq!(parse(""), Mounts::default());
    }
}
