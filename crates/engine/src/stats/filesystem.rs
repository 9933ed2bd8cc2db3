//! The file system of images and writable layers.

use std::path::Path;

use crate::FilesystemUsage;
use crate::core::Core;

/// What of it does not move.
#[derive(Debug)]
pub(crate) struct Filesystem {
    device: String,
}

/// How large and how full it is; `None` when it does not say so.
pub(super) fn now(core: &Core) -> Option<FilesystemUsage> {
    let root = core.snapshots.root();
    let known = core.filesystem.get_or_init(|| Filesystem { device: device(root) });
    let stat = nix::sys::statvfs::statvfs(root).ok()?;
    Some(FilesystemUsage {
        device: known.device.clone(),
        capacity_bytes: stat.blocks().saturating_mul(stat.fragment_size()),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// What is mounted there, as mount(8) calls it; empty when that cannot be found.
fn device(root: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let number = std::fs::metadata(root).map(|metadata| metadata.dev());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo");
    let (Ok(number), Ok(mounts)) = (number, mounts) else { return String::new() };
    source(&mounts, nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

/// The source of the first mount with that device number (proc_pid_mountinfo(5)).
fn source(mounts: &str, major: u64, minor: u64) -> String {
    let number = format!("{major}:{minor}");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let source = line.and_then(|line| line.split_once(" - ")?.1.split(' ').nth(1));
    source.unwrap_or_default().to_owned()
}

/// The node of a block device; `None` when it is gone.
pub(super) fn block_device(major: u32, minor: u32) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // In sysfs `!` stands for the `/` of a device's name.
    Some(format!("/dev/{}", link.file_name()?.to_str()?.replace('!', "/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_that_of_the_mount() {
        let mounts = "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n\
                      30 22 0:24 / /run rw,nosuid - tmpfs tmpfs rw,size=1g\n";
        assert_eq!(source(mounts, 259, 1), "/dev/nvme0n1p1");
        assert_eq!(source(mounts, 0, 24), "tmpfs");
        assert_eq!(source(mounts, 259, 2), "");
        assert!(!device(Path::new("/proc")).is_empty());
    }
}
