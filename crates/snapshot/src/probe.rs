//! Asks the kernel, once, what its overlayfs can do.

use std::path::Path;

use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::Error;

/// Whether an overlay with a writable layer in `scratch` can be `volatile` (5.10+).
///
/// The overlay is configured but never mounted, and gone when this returns. Where
/// overlayfs refuses altogether (no privilege, unsuitable file system) the answer is no:
/// starting a container says why.
pub(crate) fn volatile(scratch: &Path) -> Result<bool, Error> {
    for part in ["l", "u", "w"] {
        std::fs::create_dir(scratch.join(part)).map_err(Error::io("make directory", scratch))?;
    }
    let attempt = || -> rustix::io::Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (option, part) in [("lowerdir", "l"), ("upperdir", "u"), ("workdir", "w")] {
            fsconfig_set_string(&context, option, scratch.join(part))?;
        }
        fsconfig_set_flag(&context, "volatile")?;
        fsconfig_create(&context)
    };
    Ok(attempt().is_ok())
}

/// Whether overlay mounts can be `volatile` on this host, asked in a directory of its own
/// in the machine's temporary directory. [`crate::Snapshots::open`] asks for its own root.
#[must_use]
pub fn volatile_supported() -> bool {
    let template = std::env::temp_dir().join("berth-probe-XXXXXX");
    let Ok(scratch) = nix::unistd::mkdtemp(&template) else { return false };
    let answer = volatile(&scratch).unwrap_or(false);
    let removed = std::fs::remove_dir_all(&scratch);
    answer && removed.is_ok()
}
