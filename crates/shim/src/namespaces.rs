//! The `namespaces` command: makes the namespaces of a pod that has users of its own.
//!
//! berthd has threads, and so cannot enter a user namespace (setns(2)). It runs this program
//! once, with a socket as its standard input, which holds what is wanted and takes the
//! descriptors. What fails is printed as JSON. Nothing of this process is left after it.

use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_model::IdMappings;
use berth_oci_runtime::Holder;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use serde::Deserialize;

use crate::error::Error;

/// Longest request, bytes.
const MAX_REQUEST: usize = 192 << 10;

/// What berthd wants (`NamespacesRequest` of crate shim-client).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    ids: IdMappings,
    net: bool,
    ipc: bool,
    uts: bool,
    hostname: String,
    /// Path below `/proc/sys`, and value.
    sysctls: Vec<(String, String)>,
}

/// Makes them, and hands them over in the order user, net, ipc, uts.
pub(crate) fn run() -> Result<(), Error> {
    let stdin = std::io::stdin();
    let wanted = request(stdin.as_fd())?;
    match make(&wanted) {
        Ok(made) => send(stdin.as_fd(), &made),
        Err(error) => {
            told(&error)?;
            Err(error.into())
        }
    }
}

/// Says whether this kernel can do all that a container with users of its own needs; the
/// working directory, a directory of layers, stands for the file system that has to do it.
pub(crate) fn probe() -> Result<(), Error> {
    let directory = std::env::current_dir().map_err(|source| Error::Io("find layers", source))?;
    match berth_oci_runtime::probe(&directory) {
        Ok(()) => Ok(()),
        Err(error) => {
            told(&error)?;
            Err(error.into())
        }
    }
}

fn request(socket: BorrowedFd<'_>) -> Result<Wanted, Error> {
    let failed = |errno: rustix::io::Errno| Error::Io("read request", errno.into());
    let mut bytes = vec![0; MAX_REQUEST];
    let (_, read) = recv(socket, bytes.as_mut_slice(), RecvFlags::empty()).map_err(failed)?;
    serde_json::from_slice(bytes.get(..read).unwrap_or_default())
        .map_err(|error| Error::invalid("request", error.to_string()))
}

fn make(wanted: &Wanted) -> Result<Vec<OwnedFd>, berth_oci_runtime::Error> {
    let all = [
        (wanted.net, "net", CloneFlags::CLONE_NEWNET),
        (wanted.ipc, "ipc", CloneFlags::CLONE_NEWIPC),
        (wanted.uts, "uts", CloneFlags::CLONE_NEWUTS),
    ];
    let also = all.iter().filter(|(wanted, ..)| *wanted).map(|(_, _, flag)| *flag).collect();
    let holder = Holder::new(&wanted.ids, also, || set_up(wanted))?;
    let kinds = all.iter().filter(|(wanted, ..)| *wanted).map(|(_, kind, _)| *kind);
    std::iter::once("user").chain(kinds).map(|kind| holder.open(kind)).collect()
}

/// Inside, as the root of all of them.
fn set_up(wanted: &Wanted) -> Result<(), berth_oci_runtime::Error> {
    if wanted.uts {
        nix::unistd::sethostname(&wanted.hostname).map_err(|source| {
            let step = format!("set host name {:?}", wanted.hostname).into();
            berth_oci_runtime::Error::Setup { step, source }
        })?;
    }
    for (path, value) in &wanted.sysctls {
        std::fs::write(Path::new("/proc/sys").join(path), value).map_err(|error| {
            let source = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            berth_oci_runtime::Error::Sysctl { name: path.clone(), source }
        })?;
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, made: &[OwnedFd]) -> Result<(), Error> {
    let made: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let room = control.push(SendAncillaryMessage::ScmRights(&made));
    let failed = |errno: rustix::io::Errno| Error::Io("hand over namespaces", errno.into());
    if !room {
        return Err(failed(rustix::io::Errno::NOBUFS));
    }
    sendmsg(socket, &[IoSlice::new(b"N")], &mut control, SendFlags::NOSIGNAL).map_err(failed)?;
    Ok(())
}

/// Prints a failure for berthd.
fn told(error: &berth_oci_runtime::Error) -> Result<(), Error> {
    let (sysctl, errno) = match error {
        berth_oci_runtime::Error::Sysctl { name, source } => (Some(name), *source as i32),
        _ => (None, 0),
    };
    let problem = berth_model::chain(error);
    let words = serde_json::json!({ "problem": problem, "sysctl": sysctl, "errno": errno });
    let written = std::io::stdout().write_all(words.to_string().as_bytes());
    written.map_err(|source| Error::Io("answer", source))
}
