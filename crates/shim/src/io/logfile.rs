//! A CRI log file: lines in, whole lines on disk, whatever the disk does.
//!
//! A disk that is full must stop neither the workload nor the log for ever: what cannot
//! be written is counted and dropped, the next write tries again, and a line that made
//! it only in part is cut off the file, so that a reader never sees half of one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use crate::log;

/// Mode of a log file: readers in its group are log collectors.
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o755;

/// The file that both streams of a container write to.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Lines dropped since the last write that succeeded.
    dropped: u64,
}

impl LogFile {
    /// Opens the log at `path`, and makes it and its directory if need be.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
        }
        let inner = Mutex::new(Inner { file: open(path)?, dropped: 0 });
        Ok(Self { path: path.to_owned(), inner })
    }

    /// Opens the file at the log's path anew, after somebody has renamed the old one. On
    /// an error the old file stays in use.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).file = file;
        Ok(())
    }

    /// Writes whole lines; never fails, see the module's text.
    pub(crate) fn write(&self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (written, error) = write_all(&inner.file, lines);
        match error {
            None if inner.dropped == 0 => {}
            None => {
                let (dropped, path) = (inner.dropped, self.path.display());
                log::warn(format_args!("log {path} is written again, {dropped} lines are lost"));
                inner.dropped = 0;
            }
            Some(errno) => {
                let torn = torn(&lines[..written]);
                if torn > 0
                    && let Err(error) = cut(&inner.file, torn)
                {
                    let path = self.path.display();
                    log::warn(format_args!("cut half a line off log {path}: {error}"));
                }
                if inner.dropped == 0 {
                    let path = self.path.display();
                    log::warn(format_args!("write log {path}: {errno}: dropping lines"));
                }
                let lost = lines[written - torn..].iter().filter(|byte| **byte == b'\n').count();
                inner.dropped += u64::try_from(lost).unwrap_or(u64::MAX);
            }
        }
    }
}

/// No symbolic link is followed at the path itself: whoever may write to a log directory
/// must not be able to choose which file of the node grows.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)
}

/// How much was written, and what stopped it.
fn write_all(file: &File, bytes: &[u8]) -> (usize, Option<Errno>) {
    let mut written = 0;
    while written < bytes.len() {
        match nix::unistd::write(file, &bytes[written..]) {
            Ok(0) => return (written, Some(Errno::EIO)),
            Ok(count) => written += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return (written, Some(errno)),
        }
    }
    (written, None)
}

/// How many bytes at the end of `written` belong to a line that is not complete.
fn torn(written: &[u8]) -> usize {
    written.iter().rev().take_while(|byte| **byte != b'\n').count()
}

/// Nobody else appends to the file, so the torn line is its end.
fn cut(file: &File, bytes: usize) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_and_its_directory_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/0.log");
        let log = LogFile::open(&path).unwrap();
        log.write(b"one\n");
        log.write(b"");
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777 & !FILE_MODE, 0, "{mode:o}");
    }

    #[test]
    fn after_a_rename_reopen_makes_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let log = LogFile::open(&path).unwrap();
        log.write(b"one\n");
        std::fs::rename(&path, &old).unwrap();
        log.write(b"two\n");
        log.reopen().unwrap();
        log.write(b"three\n");
        assert_eq!(std::fs::read(&old).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
    }

    #[test]
    fn a_reopen_that_fails_leaves_the_old_file_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("old"));
        let log = LogFile::open(&path).unwrap();
        std::fs::rename(&path, &old).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(log.reopen().is_err());
        log.write(b"one\n");
        assert_eq!(std::fs::read(&old).unwrap(), b"one\n");
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_full_disk_loses_whole_lines_and_then_the_log_goes_on() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        unshared_mounts();
        nix::mount::mount(Some("t"), dir.path(), Some("tmpfs"), flags, Some("size=16k")).unwrap();
        let path = dir.path().join("0.log");
        let log = LogFile::open(&path).unwrap();
        let line = [&[b'x'; 1000][..], b"\n"].concat();

        log.write(&line.repeat(30));
        let full = std::fs::read(&path).unwrap();
        assert_eq!(full.len() % line.len(), 0, "half a line is left");
        assert!(!full.is_empty());
        log.write(&line);
        assert!(log.inner.lock().unwrap().dropped >= 15);

        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::remove_file(dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(&line);
        assert_eq!(std::fs::read(&path).unwrap(), line);
        assert_eq!(log.inner.lock().unwrap().dropped, 0);
        drop(log);
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }

    /// Gives the test's thread a mount namespace of its own.
    fn unshared_mounts() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    }
}
