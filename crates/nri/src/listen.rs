//! The socket that plugins connect to.

use std::io::ErrorKind;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::nri::{MAX_PLUGINS, Shared};
use crate::{Error, join};

/// When a socket is looked at again that another runtime has; then twice as late each time.
const AGAIN: Duration = Duration::from_secs(20);
/// Longest time between two looks: a look is a connection that says nothing, of which the other
/// runtime may complain.
const SELDOM: Duration = Duration::from_secs(10 * 60);
/// How long nothing is accepted after an error (`EMFILE`).
const PAUSE: Duration = Duration::from_millis(100);

/// The socket, and which file it is: other runtimes take the name whether it is used or not.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl Listening {
    /// Which file it is.
    pub(crate) fn file(&self) -> (u64, u64) {
        self.file
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Without the file there is nothing to remove.
        if file(&self.path).is_ok_and(|found| found == self.file) {
            let _gone_already = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of what has the name.
pub(crate) fn file(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Makes the socket: only root may connect, for a plugin decides what containers get.
pub(crate) async fn bind(socket: &Path) -> Result<Listening, Error> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    if let Some(parent) = socket.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(failed("make directory of plugin socket", parent))?;
    }
    let cannot = || failed("listen for plugins at", socket);
    match std::fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => match UnixStream::connect(socket).await {
            // What a dead daemon left.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(socket).map_err(failed("remove stale socket", socket))?;
            }
            // One that answers, or is too busy to, belongs to another runtime.
            Ok(_) => return Err(Error::InUse(socket.to_owned())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(Error::InUse(socket.to_owned()));
            }
            Err(error) => return Err(cannot()(error)),
        },
        Ok(_) => return Err(cannot()(ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(cannot()(error)),
    }
    let listener = UnixListener::bind(socket).map_err(cannot())?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(socket, private).map_err(failed("close to others", socket))?;
    let file = file(socket).map_err(cannot())?;
    Ok(Listening { listener, path: socket.to_owned(), file })
}

/// Takes the socket once it is free, and accepts plugins. It is looked at seldom, and has to
/// be found without a listener twice: a runtime that starts anew is back by then, and plugins
/// that it had find it.
pub(crate) async fn take_over(shared: Arc<Shared>, socket: PathBuf) {
    let taking = async {
        let (mut free, mut pause) = (false, AGAIN);
        loop {
            tokio::time::sleep(if free { AGAIN } else { pause }).await;
            pause = SELDOM.min(pause * 2);
            let was_free = std::mem::replace(&mut free, is_free(&socket).await);
            if !(free && was_free) {
                continue;
            }
            match bind(&socket).await {
                Ok(listening) => return listening,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "no plugin can connect still");
                }
            }
        }
    };
    let shutdown = shared.shutdown.clone();
    if let Some(listening) = shutdown.run_until_cancelled(taking).await {
        tracing::info!(socket = %socket.display(), "plugins can connect now");
        shared.listens(&listening);
        accept(shared, listening).await;
    }
}

/// Whether nobody listens there.
async fn is_free(socket: &Path) -> bool {
    match UnixStream::connect(socket).await {
        Ok(_) => false,
        Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}

/// Accepts plugins until the runtime goes, and the socket with it; each joins on its own.
pub(crate) async fn accept(shared: Arc<Shared>, listening: Listening) {
    let room = Arc::new(Semaphore::new(MAX_PLUGINS));
    let shutdown = shared.shutdown.clone();
    let accepting = async {
        loop {
            match listening.listener.accept().await {
                Ok((stream, _)) => {
                    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
                        tracing::warn!("a plugin is refused: it is not root's");
                        continue;
                    }
                    let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
                        tracing::warn!("a plugin is refused: there are {MAX_PLUGINS} already");
                        continue;
                    };
                    let joined = join::connected(Arc::clone(&shared), stream);
                    shared.tasks.spawn(async move {
                        let _room = room;
                        joined.await;
                    });
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "accept plugin");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accepting).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/nri/src/listen.rs: `.is_ok_and(|found| found == self.file)` → `.is_ok()`
    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("below/nri.sock");
        let first = bind(&socket).await.unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let parent = socket.parent().unwrap();
        assert_eq!(std::fs::metadata(parent).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(bind(&socket).await, Err(Error::InUse(_))));
        // As a kill leaves it: the file, and nobody who listens.
        let (saved, moved) = (dir.path().join("saved"), dir.path().join("moved"));
        std::fs::hard_link(&socket, &saved).unwrap();
        drop(first);
        assert!(!socket.exists());
        std::fs::rename(&saved, &socket).unwrap();
        let second = bind(&socket).await.unwrap();

        // Another runtime takes the name: what it has there stays its own.
        std::fs::rename(&socket, &moved).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        drop(second);
        assert!(socket.exists());
        drop(other);
        std::fs::remove_file(&socket).unwrap();

        std::fs::write(&socket, "somebody's").unwrap();
        bind(&socket).await.unwrap_err();
        assert_eq!(std::fs::read_to_string(&socket).unwrap(), "somebody's");
    }
}
