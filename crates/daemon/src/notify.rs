//! Tells a supervisor that the daemon is ready, when it asks (sd_notify(3)).

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state` (`READY=1`) to `socket`, the value of `NOTIFY_SOCKET`, if there is one.
pub(crate) fn notify(socket: Option<OsString>, state: &str) -> io::Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&socket)?,
    };
    let sent = UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    if sent != state.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_asks_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        notify(Some(path.into()), "READY=1").unwrap();
        let mut message = [0; 64];
        let length = supervisor.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1");
    }

    #[test]
    fn nobody_is_told_when_nobody_asks() {
        notify(None, "READY=1").unwrap();
    }

    #[test]
    fn a_supervisor_that_is_gone_is_an_error() {
        assert!(notify(Some("/nonexistent/notify".into()), "READY=1").is_err());
    }
}
