//! What the processes of a container have: descriptors, sockets, limits.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Most descriptors that are looked at; of more it is not said which are sockets.
const MAX_DESCRIPTORS: u64 = 65_536;
/// Most bytes read of `/proc/pid/limits`, which has some 1500.
const MAX_LIMITS: u64 = 16 << 10;

/// What the processes of a cgroup have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// Their open descriptors.
    pub descriptors: u64,
    /// Those that are sockets; `None` for too many descriptors to look at each.
    pub sockets: Option<u64>,
    /// How many descriptors the first process may open (`RLIMIT_NOFILE`, soft); `None`
    /// without a limit, and once it is gone.
    pub max_open_files: Option<u64>,
}

/// Reads what the processes `pids` have, of which `init` is the first. One that ends meanwhile
/// has nothing.
pub(crate) fn read(pids: &[u32], init: u32) -> Processes {
    read_below(Path::new("/proc"), pids, init)
}

fn read_below(proc: &Path, pids: &[u32], init: u32) -> Processes {
    let mut processes = Processes {
        count: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        sockets: Some(0),
        max_open_files: max_open_files(&proc.join(init.to_string()).join("limits")),
        ..Processes::default()
    };
    for pid in pids {
        let directory: PathBuf = proc.join(pid.to_string()).join("fd");
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            processes.descriptors += 1;
            if processes.descriptors > MAX_DESCRIPTORS {
                processes.sockets = None;
            }
            // One that is closed meanwhile is no socket.
            let socket = |link: PathBuf| link.as_os_str().as_bytes().starts_with(b"socket:");
            if let Some(sockets) = &mut processes.sockets
                && std::fs::read_link(entry.path()).is_ok_and(socket)
            {
                *sockets += 1;
            }
        }
    }
    processes
}

/// `Max open files            1024                 4096                 files     `
fn max_open_files(path: &Path) -> Option<u64> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_LIMITS).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_this_process() {
        let pid = std::process::id();
        let before = read(&[pid], pid);
        let pair = std::os::unix::net::UnixStream::pair().unwrap();
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/").unwrap()).collect();
        let after = read(&[pid], pid);
        // Other tests open and close some at the same time.
        assert!(after.descriptors >= before.descriptors + 80, "{before:?} {after:?}");
        assert!(after.sockets >= Some(2) && after.sockets < Some(50), "{after:?}");
        assert!(after.count == 1 && after.max_open_files > Some(0), "{after:?}");
        drop((pair, files));
    }

    #[test]
    fn a_process_that_is_gone_has_nothing() {
        let none = Processes { count: 1, sockets: Some(0), ..Processes::default() };
        assert_eq!(read(&[0], 0), none);
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("limits");
        let write = |soft: &str| {
            let text = format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max open files            {soft:<20} 1048576              files     \n"
            );
            std::fs::write(&path, text).unwrap();
            max_open_files(&path)
        };
        assert_eq!(write("1024"), Some(1024));
        assert_eq!(write("unlimited"), None);
        assert_eq!(max_open_files(Path::new("/nonexistent")), None);
    }
}
