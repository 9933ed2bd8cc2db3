//! Namespaces of a pod that has users of its own: made by a run of the in-tree shim's program,
//! since a process with threads cannot enter a user namespace (setns(2)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_model::IdMappings;
use nix::errno::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::start::run;
use crate::{Error, Runtime, StartRequest};

/// How long it may take: some twenty system calls and one execve(2).
const LIMIT: Duration = Duration::from_secs(10);

/// Which namespaces to make beside that of users, and what to set inside.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NamespacesRequest {
    /// Where the ids lie on the node.
    pub ids: IdMappings,
    /// Whether to make one for the network.
    pub net: bool,
    /// Whether to make one for System V IPC and POSIX queues.
    pub ipc: bool,
    /// Whether to make one for names of the host.
    pub uts: bool,
    /// What the host is called in there.
    pub hostname: String,
    /// Kernel parameters: path below `/proc/sys`, and value.
    pub sysctls: Vec<(String, String)>,
}

/// What was made.
#[derive(Debug)]
pub struct MadeNamespaces {
    /// Owns the others.
    pub user: OwnedFd,
    /// If wanted.
    pub net: Option<OwnedFd>,
    /// If wanted.
    pub ipc: Option<OwnedFd>,
    /// If wanted.
    pub uts: Option<OwnedFd>,
}

/// What the program prints when it fails.
#[derive(Debug, Deserialize)]
struct Failure {
    problem: String,
    sysctl: Option<String>,
    errno: i32,
}

/// Makes them; `directory` is where the program runs, `id` for messages.
///
/// # Errors
/// [`Error::Sysctl`] for a parameter that the kernel refuses, [`Error::Refused`] for the rest.
pub async fn namespaces(
    runtime: &Runtime,
    id: &str,
    wanted: &NamespacesRequest,
) -> Result<MadeNamespaces, Error> {
    let failed = |what| {
        let id = id.to_owned();
        move |errno: rustix::io::Errno| Error::Io { what, id, source: errno.into() }
    };
    let flags = SocketFlags::CLOEXEC;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, theirs) = pair.map_err(failed("make socket"))?;
    let request = serde_json::to_vec(wanted).expect("strings and numbers have a JSON form");
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(&ours, &request, flags).map_err(failed("write request"))?;
    command(runtime, id, Path::new("/"), "namespaces", vec![(theirs, 0)]).await?;
    let mut made = receive(&ours).map_err(failed("take namespaces"))?.into_iter();
    let missing = || failed("take namespaces")(rustix::io::Errno::PROTO);
    let mut next = |wanted: bool| match wanted {
        true => made.next().map(Some).ok_or_else(missing),
        false => Ok(None),
    };
    let (user, net) = (next(true)?, next(wanted.net)?);
    let (ipc, uts) = (next(wanted.ipc)?, next(wanted.uts)?);
    Ok(MadeNamespaces { user: user.ok_or_else(missing)?, net, ipc, uts })
}

/// Asks whether this kernel can run containers with users of their own, whose layers are in
/// `layers`.
///
/// # Errors
/// What it cannot.
pub async fn probe_namespaces(runtime: &Runtime, layers: &Path) -> Result<(), Error> {
    command(runtime, "probe", layers, "probe", Vec::new()).await
}

async fn command(
    runtime: &Runtime,
    id: &str,
    directory: &Path,
    action: &'static str,
    fds: Vec<(OwnedFd, i32)>,
) -> Result<(), Error> {
    let request = StartRequest {
        id: id.to_owned(),
        bundle: directory.to_owned(),
        events: PathBuf::new(),
        socket: None,
        fds,
        cgroup: Vec::new(),
        env: Vec::new(),
        log: None,
        debug: false,
        deadline: LIMIT,
    };
    match run(runtime, request, action, Instant::now() + LIMIT).await {
        Ok(_) => Ok(()),
        Err(Error::Refused { id, action, status, output }) => {
            Err(match serde_json::from_str::<Failure>(&output) {
                Ok(Failure { sysctl: Some(name), errno, .. }) => {
                    Error::Sysctl { name, source: Errno::from_raw(errno) }
                }
                Ok(failure) => Error::Refused { id, action, status, output: failure.problem },
                Err(_) => Error::Refused { id, action, status, output },
            })
        }
        Err(error) => Err(error),
    }
}

/// What has been sent; the sender has ended by now.
fn receive(socket: &OwnedFd) -> Result<Vec<OwnedFd>, rustix::io::Errno> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut all = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            all.extend(fds);
        }
    }
    Ok(all)
}
