//! What a layer's directory still needs when the layers below it are known.
//!
//! Hence per chain ID, never per diff ID: the same archive on other layers gives other
//! implied directories.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use berth_model::stats::DiskUsage;
use berth_snapshot::{MergedView, copy_metadata, usage};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::parent::{Times, open_beneath};
use super::path::shown;
use super::{Applied, Failure};
use crate::LayerError;

/// Finishes the layer in `root`, which lies on top of `below`; returns what it uses.
///
/// A directory that no entry names takes its metadata from the merged view below, or is
/// 0755 root of the epoch where there is none. A whiteout that hides nothing is removed:
/// in a directory that overlayfs does not merge it would show.
pub(crate) fn settle(
    root: BorrowedFd<'_>,
    applied: Applied,
    below: &MergedView,
) -> Result<DiskUsage, LayerError> {
    let mut dropped = 0;
    for path in &applied.whiteouts {
        let components = || path.split(|byte| *byte == b'/').map(OsStr::from_bytes);
        let hidden = is_hidden(path, &applied)
            || below.lookup(components()).map_err(LayerError::Snapshot)?.is_none();
        if hidden {
            drop_whiteout(root, path).map_err(|failure| applying(path, failure))?;
            dropped += 1;
        }
    }
    for path in &applied.implied {
        let components = path.split(|byte| *byte == b'/').map(OsStr::from_bytes);
        let own = open_beneath(root, path)
            .map_err(|errno| applying(path, Failure::Call("open it", errno)))?;
        let found = below.lookup(components).map_err(LayerError::Snapshot)?;
        match found.filter(berth_snapshot::Found::is_directory) {
            Some(found) => {
                let found = found.open_directory().map_err(LayerError::Snapshot)?;
                copy_metadata(found.as_fd(), own.as_fd()).map_err(LayerError::Snapshot)?;
            }
            None => plain(own.as_fd()).map_err(|failure| applying(path, failure))?,
        }
    }
    if !applied.root_named {
        match below.root() {
            Some(below) => copy_metadata(below, root).map_err(LayerError::Snapshot)?,
            None => plain(root).map_err(|failure| applying(b"", failure))?,
        }
    }
    if applied.recount {
        return usage(root).map_err(LayerError::Snapshot);
    }
    let inodes = applied.inodes - dropped;
    Ok(DiskUsage { bytes: applied.bytes, inodes, ..DiskUsage::default() })
}

/// Whether a directory of the layer itself hides what the whiteout would.
fn is_hidden(path: &[u8], applied: &Applied) -> bool {
    if applied.opaque.contains(&b""[..]) {
        return true;
    }
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.into_iter().any(|(at, _)| applied.opaque.contains(&path[..at]))
}

fn drop_whiteout(root: BorrowedFd<'_>, path: &[u8]) -> Result<(), Failure> {
    let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    let name = CString::new(name).map_err(|_| Failure::Call("name it", Errno::EINVAL))?;
    let parent = open_beneath(root, above).map_err(super::call("open its parent"))?;
    let times = Times::of(&parent)?;
    unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)
        .map_err(super::call("remove a whiteout of nothing"))?;
    times.restore(&parent).map_err(super::call("set its parent's times"))
}

fn plain(directory: BorrowedFd<'_>) -> Result<(), Failure> {
    let epoch = TimeSpec::new(0, 0);
    fchown(directory, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))
        .map_err(super::call("change its owner"))?;
    fchmod(directory, Mode::from_bits_truncate(0o755)).map_err(super::call("change its mode"))?;
    futimens(directory, &epoch, &epoch).map_err(super::call("set its times"))
}

fn applying(path: &[u8], failure: Failure) -> LayerError {
    let path = shown(path);
    match failure {
        Failure::Bad(source) => LayerError::Entry { path, source },
        Failure::Call(action, source) => LayerError::Apply { path, action, source },
        Failure::Layer(error) => error,
    }
}
