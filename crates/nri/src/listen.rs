//! The socket that plugins connect to.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::nri::{MAX_PLUGINS, Shared};
use crate::{Error, join};

/// How long nothing is accepted after an error (`EMFILE`).
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket: only root may connect, for a plugin decides what containers get.
pub(crate) async fn bind(socket: &Path) -> Result<UnixListener, Error> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    if let Some(parent) = socket.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(failed("make directory of plugin socket", parent))?;
    }
    // What a dead daemon left; one that answers belongs to another runtime.
    match UnixStream::connect(socket).await {
        Ok(_) => {
            let source = std::io::Error::from(std::io::ErrorKind::AddrInUse);
            return Err(failed("listen for plugins at", socket)(source));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => {
            std::fs::remove_file(socket).map_err(failed("remove stale socket", socket))?;
        }
    }
    let listener = UnixListener::bind(socket).map_err(failed("listen for plugins at", socket))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(socket, private).map_err(failed("close to others", socket))?;
    Ok(listener)
}

/// Accepts plugins until the runtime goes; each joins on its own.
pub(crate) async fn accept(shared: Arc<Shared>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(MAX_PLUGINS));
    let shutdown = shared.shutdown.clone();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
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

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("below/nri.sock");
        let first = bind(&socket).await.unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let parent = socket.parent().unwrap();
        assert_eq!(std::fs::metadata(parent).unwrap().permissions().mode() & 0o777, 0o700);
        bind(&socket).await.unwrap_err();
        drop(first);
        bind(&socket).await.unwrap();
    }
}
