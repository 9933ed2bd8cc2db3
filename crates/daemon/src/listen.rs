//! The unix socket of the CRI.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, umask};

use crate::directories;

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The socket's directory.
    #[error(transparent)]
    Directory(#[from] directories::Error),
    /// Something other than a socket has the name.
    #[error("{} exists and is not a socket", .0.display())]
    InTheWay(PathBuf),
    /// Another process answers there.
    #[error("another process listens on {}", .0.display())]
    InUse(PathBuf),
    /// Binding or its steps failed.
    #[error("listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Listens on `path` with mode 0660, in place of a dead daemon's socket.
///
/// The caller holds the directory lock, so a socket that is there belongs to nobody. Call
/// it before other threads make files: the umask is the process's.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    // A directory that is there has its mode from whoever made it: /run must stay /run.
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        directories::make(parent, directories::PASSABLE)?;
    }
    let failed = |source| Error::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if answers(path).map_err(failed)? {
                return Err(Error::InUse(path.to_owned()));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => return Err(Error::InTheWay(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let before = umask(Mode::from_bits_truncate(0o117));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Whether somebody listens on the socket; does not wait for one who is busy.
fn answers(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_is_for_root_and_its_group_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/berth.sock");
        for _ in 0..2 {
            listen(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        }
        let parent = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o711);
    }

    #[test]
    fn a_socket_that_answers_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.sock");
        let first = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(Error::InUse(_))));
        UnixStream::connect(&path).unwrap();
        drop(first);
        listen(&path).unwrap();
    }

    #[test]
    fn a_file_with_the_sockets_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/berth.sock");
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(Error::InTheWay(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
