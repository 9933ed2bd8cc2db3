//! What the containers of one sandbox share.
//!
//! Before Linux 6.15 a detached mount cannot be cloned, so what is shared stays mounted
//! (design decision 19): in a mount namespace that has nothing else, where no process lives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::process::{ForkOptions, fork};
use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

use crate::error::Error;
use crate::init::{filesystem, pivot};
use crate::wire::{self, Report};

/// How long making the namespace may take; it is some ten system calls.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the containers of one sandbox share: today one tmpfs for `/dev/shm`.
///
/// It stays mounted in a small private mount namespace that this value keeps alive. A mount of
/// type `berth-shared` and source `shm` in a spec is a clone of it.
#[derive(Debug, Default)]
pub struct SharedMounts {
    namespace: Option<OwnedFd>,
}

impl SharedMounts {
    /// Nothing shared: a spec that names `berth-shared` is refused.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Makes the namespace with a tmpfs of at most `shm_size` bytes.
    ///
    /// # Errors
    /// [`Error::Threads`], [`Error::Fork`], [`Error::Mount`], [`Error::Setup`].
    pub fn new(shm_size: u64) -> Result<Self, Error> {
        let (ours, theirs) = wire::pair().map_err(Error::setup("make a socket pair"))?;
        let options =
            ForkOptions { namespaces: Some(CloneFlags::CLONE_NEWNS), ..ForkOptions::default() };
        let child = fork(&options, |_| match make(shm_size) {
            Ok(namespace) => {
                u8::from(wire::send_ready(theirs.as_fd(), Some(namespace.as_fd())).is_err())
            }
            Err(error) => {
                wire::send_failure(theirs.as_fd(), &error);
                1
            }
        })
        .map_err(Error::fork("the maker of shared mounts"))?;
        drop(theirs);
        let outcome = answer(ours.as_fd());
        crate::creating::reap(child);
        Ok(Self { namespace: Some(outcome?) })
    }

    /// A detached clone of the shared `/dev/shm`.
    ///
    /// Moves the calling process through the namespace and back to `home`, so its working
    /// directory becomes `/`.
    pub(crate) fn clone_shm(&self, home: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
        let namespace = self.namespace.as_ref().ok_or_else(|| {
            Error::invalid("mounts", "berth-shared, but the sandbox shares nothing")
        })?;
        setns(namespace, CloneFlags::CLONE_NEWNS)
            .map_err(Error::setup("enter the namespace of shared mounts"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(CWD, c"/", flags)
            .map_err(Error::setup("clone the shared /dev/shm"));
        setns(home, CloneFlags::CLONE_NEWNS)
            .map_err(Error::setup("leave the namespace of shared mounts"))?;
        mount
    }
}

fn answer(socket: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let end = Instant::now() + DEADLINE;
    loop {
        match wire::receive(socket)? {
            Some(Report::Ready(Some(namespace))) => return Ok(namespace),
            Some(Report::Failed(error)) => return Err(error),
            Some(Report::Hello(_) | Report::Ready(None)) => {
                return Err(Error::Protocol("the maker of shared mounts".into()));
            }
            Some(Report::End) => {
                let what = "the maker of shared mounts".into();
                return Err(Error::Gone { what, outcome: "unknown".to_owned() });
            }
            None if crate::creating::readable(socket, end)? => {}
            None => return Err(Error::Timeout { what: "the maker of shared mounts".into() }),
        }
    }
}

/// Turns the calling process's mount namespace into one that has only a tmpfs.
fn make(size: u64) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(c"/proc/self/ns/mnt", flags, Mode::empty())
        .map_err(Error::setup("open the namespace of shared mounts"))?;
    pivot::detach_from_host()?;
    let data =
        [("size".to_owned(), Some(size.to_string())), ("mode".to_owned(), Some("1777".to_owned()))];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = filesystem::create("tmpfs", "shm", &data, attributes)
        .map_err(|failure| failure.at("tmpfs", "/".as_ref()))?;
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::setup("open the root directory"))?;
    filesystem::attach(mount.as_fd(), root.as_fd())
        .map_err(Error::setup("mount the shared tmpfs"))?;
    pivot::pivot_into(mount.as_fd())?;
    Ok(namespace)
}
