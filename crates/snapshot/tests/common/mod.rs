//! What the tests of this crate share.

use std::path::Path;

use berth_model::mount::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Whether this process is root; says so when it is not.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs `work` on a thread with a mount namespace of its own, which ends with it.
pub(crate) fn in_mount_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Performs what a snapshot handed out, as mount(8) would.
pub(crate) fn perform(mounts: &[Mount], target: &Path) {
    std::fs::create_dir_all(target).unwrap();
    for wanted in mounts {
        let options = wanted.options.join(",");
        mount(
            Some(wanted.source.as_str()),
            target,
            Some(wanted.fs_type.as_str()),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
    }
}
