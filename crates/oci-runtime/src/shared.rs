//! What the containers of one sandbox share.
//!
//! Before Linux 6.15 a detached mount cannot be cloned, so what is shared stays mounted
//! (design decision 19): in a mount namespace that has nothing else, where no process lives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::process::{ForkOptions, fork};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use rustix::process::Signal;

use crate::error::Error;
use crate::init::{filesystem, pivot};
use crate::wire::{self, Report};

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

    /// Begins to make the namespace, with a tmpfs of at most `shm_size` bytes that belongs to
    /// `owner`, a user and a group of the host, in a forked helper.
    ///
    /// # Errors
    /// [`Error::Threads`], [`Error::Fork`], [`Error::Setup`].
    pub fn make(shm_size: u64, owner: (u32, u32)) -> Result<MakingMounts, Error> {
        let (ours, theirs) = wire::pair().map_err(Error::setup("make a socket pair"))?;
        let namespaces = Some(CloneFlags::CLONE_NEWNS);
        let options = ForkOptions { namespaces, quiet: true, ..ForkOptions::default() };
        let child = fork(&options, |_| match make(shm_size, owner) {
            Ok(namespace) => {
                u8::from(wire::send_ready(theirs.as_fd(), Some(namespace.as_fd())).is_err())
            }
            Err(error) => {
                wire::send_failure(theirs.as_fd(), &error);
                1
            }
        })
        .map_err(Error::fork("the maker of shared mounts"))?;
        Ok(MakingMounts { socket: ours, helper: (child.pid, child.pidfd) })
    }

    /// What [`Self::clone_shm`] works with.
    pub(crate) fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.namespace.as_ref().map(AsFd::as_fd)
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

/// [`SharedMounts`] being made.
#[derive(Debug)]
pub struct MakingMounts {
    socket: OwnedFd,
    helper: (Pid, OwnedFd),
}

impl AsFd for MakingMounts {
    /// Readable when [`MakingMounts::advance`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl MakingMounts {
    /// What has come of it, without blocking; `None` means that the answer is still to come.
    ///
    /// # Errors
    /// What the helper met; [`Error::Gone`], [`Error::Protocol`].
    pub fn advance(&self) -> Result<Option<SharedMounts>, Error> {
        match wire::receive(self.socket.as_fd())? {
            None => Ok(None),
            Some(Report::Ready(Some(namespace))) => {
                Ok(Some(SharedMounts { namespace: Some(namespace) }))
            }
            Some(Report::Failed(error)) => Err(error),
            Some(Report::Hello(_) | Report::Hooks | Report::Ready(None)) => {
                Err(Error::Protocol("the maker of shared mounts".into()))
            }
            Some(Report::End) => {
                let what = "the maker of shared mounts".into();
                Err(Error::Gone { what, outcome: "unknown".to_owned() })
            }
        }
    }

    /// Ends the helper: its pid and pidfd, to be reaped with [`berth_sys::process::reap`].
    #[must_use = "a helper that is not reaped stays a zombie"]
    pub fn end(self) -> (Pid, OwnedFd) {
        // One that has ended by itself is what is wanted.
        rustix::process::pidfd_send_signal(&self.helper.1, Signal::KILL).ok();
        self.helper
    }
}

/// Turns the calling process's mount namespace into one that has only a tmpfs.
fn make(size: u64, (uid, gid): (u32, u32)) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(c"/proc/self/ns/mnt", flags, Mode::empty())
        .map_err(Error::setup("open the namespace of shared mounts"))?;
    pivot::detach_from_host()?;
    let option = |name: &str, value: String| (name.to_owned(), Some(value));
    let mut data = vec![option("size", size.to_string()), option("mode", "1777".to_owned())];
    if (uid, gid) != (0, 0) {
        data.extend([option("uid", uid.to_string()), option("gid", gid.to_string())]);
    }
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
