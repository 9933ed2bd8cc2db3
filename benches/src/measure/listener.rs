//! Who serves a socket that a service manager listens on.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// What `/proc/net/unix` says of a socket that listens: `__SO_ACCEPTCON`.
const LISTENS: &str = "00010000";

/// The process, other than the first one of the machine, that has the listening `socket`
/// open; `None` if there is none, or if it is in another network namespace.
pub(crate) fn holder(socket: &Path) -> Result<Option<u32>> {
    let table = fs::read_to_string("/proc/net/unix").context("read /proc/net/unix")?;
    let Some(inode) = listening(&table, &socket.to_string_lossy()) else { return Ok(None) };
    let link = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // Processes and their descriptors come and go while they are looked at.
        let mut open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let is_it = |found: fs::DirEntry| {
            fs::read_link(found.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
        };
        if pid != 1 && open.any(is_it) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// The inode of the socket that listens at `path`: columns are number, references, protocol,
/// flags, type, state, inode, path.
fn listening<'a>(table: &'a str, path: &str) -> Option<&'a str> {
    table.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let listens = columns.nth(3)? == LISTENS;
        let inode = columns.nth(2)?;
        (listens && columns.next()? == path).then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_that_listens_is_found_among_its_connections() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0: 00000002 00000000 00000000 0001 01 7000\n\
                     0: 00000003 00000000 00000000 0001 03 7001 /run/cri.sock\n\
                     0: 00000002 00000000 00010000 0001 01 7002 /run/other.sock\n\
                     0: 00000002 00000000 00010000 0001 01 7003 /run/cri.sock\n";
        assert_eq!(listening(table, "/run/cri.sock"), Some("7003"));
        assert_eq!(listening(table, "/run/absent.sock"), None);
    }

    #[test]
    fn who_listens_here_is_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("it.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(holder(&socket).unwrap(), Some(std::process::id()));
        drop(listener);
        assert_eq!(holder(&socket).unwrap(), None);
    }
}
