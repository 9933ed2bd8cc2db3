//! The `start` command: binds the socket, forks the shim, and says where it listens.
//!
//! The shim is a fork of this process and executes nothing: half a millisecond less per
//! pod. What `start` says, it says once the shim answers on its socket; what fails before
//! that fails `start`, with the reason on standard error.

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use berth_sys::process::{ForkOptions, Forked, fork};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use protobuf::Message;
use sha2::{Digest, Sha256};

use crate::args::Args;
use crate::daemon::{self, Daemon};
use crate::error::Error;
use crate::log;

/// Where containerd's shims listen.
const SOCKETS: &str = "/run/containerd/s";
/// Longest input read, bytes.
const MAX_INPUT: u64 = 1 << 20;

/// Starts a shim, and prints its address.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    log::set_debug(args.debug);
    let params = bootstrap_params(args);
    let own = std::env::var_os("BERTH_SOCKET").map(PathBuf::from);
    let socket = match &own {
        Some(path) => path.clone(),
        None => containerd_socket(args, params.as_ref()),
    };
    let mut forked = None;
    if let Some(listener) = bind(&socket)? {
        let events = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
        let told = || params.map(|params| params.containerd_ttrpc_address);
        let daemon = Daemon {
            id: args.id.clone(),
            namespace: args.namespace.clone(),
            events: events.or_else(told).unwrap_or_default(),
            socket: socket.clone(),
            log: if own.is_some() { daemon::Log::Inherited } else { daemon::Log::Fifo },
        };
        let shim = fork_shim(daemon, listener);
        forked = Some(shim.inspect_err(|_| drop(std::fs::remove_file(&socket)))?);
    }
    let address = format!("unix://{}", socket.display());
    if own.is_none() {
        // containerd 1.x finds the shim again by this file in the bundle.
        std::fs::write("address", &address)
            .map_err(|source| Error::Io("write address file", source))?;
    }
    let answer = answer(&address, std::env::var("MAX_SHIM_VERSION").ok().as_deref());
    let mut stdout = io::stdout();
    let told = stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush());
    if told.is_err()
        && let Some(shim) = forked
    {
        // Who asked for it is gone, and perhaps no successor looks for it any more.
        kill(shim.pid, Signal::SIGKILL).ok();
        std::fs::remove_file(&socket).ok();
    }
    told.map_err(|source| Error::Io("answer", source))
}

/// The oldest form that the caller understands: containerd before 1.7 knows the bare
/// address only, and 1.7 no version above 2.
fn answer(address: &str, newest: Option<&str>) -> String {
    let version = match newest.map(str::parse::<u32>) {
        None => return address.to_owned(),
        Some(Ok(newest)) => newest.clamp(2, 3),
        Some(Err(_)) => 2,
    };
    serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" }).to_string()
}

/// The socket's path, as containerd forms it: short, and one per containerd and id.
pub(crate) fn containerd_socket(args: &Args, params: Option<&BootstrapParams>) -> PathBuf {
    let name = Path::new(&args.address).join(&args.namespace).join(&args.id);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = params.and_then(|params| params.socket_dir.as_deref());
    Path::new(directory.filter(|path| path.starts_with('/')).unwrap_or(SOCKETS)).join(name)
}

/// What containerd 2.3 and later says on standard input. Older ones send options there,
/// which mean nothing to this shim, or nothing.
fn bootstrap_params(args: &Args) -> Option<BootstrapParams> {
    let kind = std::fs::metadata("/proc/self/fd/0").ok()?.file_type();
    if !kind.is_fifo() && !kind.is_file() && !kind.is_socket() {
        return None;
    }
    let mut input = Vec::new();
    io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input).ok()?;
    let params = BootstrapParams::parse_from_bytes(&input).ok()?;
    (params.instance_id == args.id).then_some(params)
}

/// Binds the socket; `None` if a shim answers there already, as a retry would find it.
fn bind(path: &Path) -> Result<Option<UnixListener>, Error> {
    let failed = |source| Error::Path { what: "bind socket", path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Some(listener))
}

/// Forks the shim, and waits until it answers or says why it does not.
fn fork_shim(daemon: Daemon, listener: UnixListener) -> Result<Forked, Error> {
    let (ready, report) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::Syscall("make pipe", errno))?;
    let parents = ready.as_raw_fd();
    let forked = fork(&ForkOptions::default(), move |_| {
        // This copy of the parent's end is nobody's: the parent's destructors never run here.
        nix::unistd::close(parents).ok();
        daemon.run(listener, report)
    })?;
    outcome(&ready).map(|()| forked)
}

/// The shim closes the pipe when it is ready; before that it writes what went wrong.
fn outcome(ready: &OwnedFd) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Io("start shim", source);
    let mut words = Vec::new();
    let ready = std::fs::File::from(ready.try_clone().map_err(failed)?);
    ready.take(64 << 10).read_to_end(&mut words).map_err(failed)?;
    match words.split_last() {
        Some((b'\0', [])) => Ok(()),
        Some(_) => Err(failed(io::Error::other(String::from_utf8_lossy(&words).into_owned()))),
        None => Err(failed(io::Error::other("it died"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_gets_the_answer_it_understands() {
        assert_eq!(answer("unix:///a", None), "unix:///a");
        let json = |newest| -> serde_json::Value {
            serde_json::from_str(&answer("unix:///a", Some(newest))).unwrap()
        };
        for (newest, version) in [("2", 2), ("3", 3), ("9", 3), ("x", 2)] {
            assert_eq!(json(newest)["version"], version);
            assert_eq!(json(newest)["address"], "unix:///a");
            assert_eq!(json(newest)["protocol"], "ttrpc");
        }
    }

    #[test]
    fn a_socket_path_fits_and_differs_by_id() {
        let args = |id: &str| Args {
            action: crate::args::Action::Start,
            namespace: "k8s.io".into(),
            id: id.into(),
            address: "/run/containerd/containerd.sock".into(),
            bundle: None,
            debug: false,
        };
        let (a, b) = (containerd_socket(&args("a"), None), containerd_socket(&args("b"), None));
        assert_ne!(a, b);
        assert!(a.as_os_str().len() <= 107 && a.starts_with(SOCKETS));
        let mut params = BootstrapParams::new();
        params.socket_dir = Some("/run/x".into());
        assert!(containerd_socket(&args("a"), Some(&params)).starts_with("/run/x"));
    }

    #[test]
    fn a_dead_shims_socket_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/s");
        let first = bind(&path).unwrap().unwrap();
        assert!(bind(&path).unwrap().is_none());
        drop(first);
        assert!(bind(&path).unwrap().is_some());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
