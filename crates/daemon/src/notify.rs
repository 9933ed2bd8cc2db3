//! Tells a supervisor that the daemon is ready, or reads its configuration again, when it
//! asks (sd_notify(3)).

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon serves, or has read its configuration again.
pub(crate) const READY: &str = "READY=1\n";

/// The configuration is about to be read again. The time tells the supervisor which of its
/// signals that answers, so it is of the clock that the supervisor reads.
pub(crate) fn reloading() -> String {
    let now = berth_sys::clock::monotonic();
    format!("RELOADING=1\nMONOTONIC_USEC={}\n", now.as_micros())
}

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
    fn a_reload_tells_its_time_of_the_clock_since_boot() {
        let time = || {
            let told = reloading();
            let (first, second) = told.trim_end().split_once('\n').unwrap();
            assert_eq!(first, "RELOADING=1");
            second.strip_prefix("MONOTONIC_USEC=").unwrap().parse::<u128>().unwrap()
        };
        let before = berth_sys::clock::monotonic().as_micros();
        let (first, second) = (time(), time());
        assert!(before <= first && first <= second, "{before} {first} {second}");
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
