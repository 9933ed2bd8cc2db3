//! Mounts made detached, then attached to a descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{AnyErrno, Error};

/// Why a file system could not be made, before it is known where it was to be.
#[derive(Debug)]
pub(crate) struct Failure {
    errno: Errno,
    explanation: String,
}

impl Failure {
    /// Names what was to be mounted, and where.
    pub(crate) fn at(self, fs_type: &str, destination: &Path) -> Error {
        Error::Mount {
            fs_type: fs_type.to_owned(),
            destination: destination.to_owned(),
            explanation: self.explanation,
            source: self.errno,
        }
    }
}

impl<E: Into<AnyErrno>> From<E> for Failure {
    fn from(errno: E) -> Self {
        Self { errno: errno.into().0, explanation: String::new() }
    }
}

/// A new, detached instance of a file system.
pub(crate) fn create(
    fs_type: &str,
    source: &str,
    data: &[(String, Option<String>)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let explained = |errno: rustix::io::Errno| Failure {
        errno: AnyErrno::from(errno).0,
        explanation: explanation(context.as_fd()),
    };
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source).map_err(explained)?;
    }
    for (name, value) in data {
        match value {
            None => fsconfig_set_flag(&context, name.as_str()),
            Some(value) => fsconfig_set_string(&context, name.as_str(), value.as_str()),
        }
        .map_err(|errno| match explained(errno) {
            failure if failure.explanation.is_empty() => {
                Failure { explanation: format!("option {name}"), ..failure }
            }
            failure => failure,
        })?;
    }
    fsconfig_create(&context).map_err(explained)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(explained)
}

/// What the kernel has to say about a failed call (its log of the context).
fn explanation(context: BorrowedFd<'_>) -> String {
    // The kernel keeps at most eight lines.
    const LINES: usize = 8;
    let mut lines = Vec::new();
    let mut line = [0u8; 512];
    while lines.len() < LINES {
        match rustix::io::read(context, &mut line[..]) {
            Ok(length) if length > 0 => {
                let text = String::from_utf8_lossy(&line[..length]);
                // "e proc: Unknown parameter 'x'": the letter is the severity.
                let text = text.get(2..).unwrap_or_default().trim_end();
                lines.push(text.to_owned());
            }
            Ok(_) | Err(_) => break,
        }
    }
    lines.join("; ")
}

/// A detached clone of the mount, or part of one, that `what` refers to.
pub(crate) fn clone(what: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, AnyErrno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(what, c"", flags)?)
}

/// Mounts a detached mount on what `target` refers to.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), AnyErrno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}
