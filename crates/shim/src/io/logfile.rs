//! A CRI log file: lines in, whole lines on disk, whatever the disk does.
//!
//! A disk that is full must stop neither the workload nor the log for ever: what cannot
//! be written is counted and dropped, the next write tries again, and a line that made
//! it only in part is cut off the file, so that a reader never sees half of one. What was
//! lost is said in the shim's own log, when the log goes on or ends.

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
    /// Bytes of half a line at the file's end, which could not be cut off yet.
    torn: usize,
}

impl LogFile {
    /// Opens the log at `path`, and makes it and its directory if need be.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
        }
        let inner = Mutex::new(Inner { file: open(path)?, dropped: 0, torn: 0 });
        Ok(Self { path: path.to_owned(), inner })
    }

    /// Opens the file at the log's path anew, after somebody has renamed the old one. On
    /// an error the old file stays in use.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // The last chance for the old file.
        if let Err(error) = inner.mend() {
            let path = self.path.display();
            log::warn(format_args!("half a line is left at the end of old log {path}: {error}"));
        }
        (inner.file, inner.torn) = (file, 0);
        Ok(())
    }

    /// Writes whole lines; never fails, see the module's text.
    pub(crate) fn write(&self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = inner.dropped;
        match inner.write(lines) {
            Ok(()) if lost == 0 => {}
            Ok(()) => {
                let path = self.path.display();
                log::warn(format_args!("log {path} is written again, {lost} lines are lost"));
            }
            Err(error) if lost == 0 => {
                let path = self.path.display();
                log::warn(format_args!("write log {path}: {error}: dropping lines"));
            }
            // Said already; how many there were is said when the log goes on.
            Err(_) => {}
        }
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if inner.dropped > 0 {
            let (path, lost) = (self.path.display(), inner.dropped);
            log::warn(format_args!("log {path} ends, {lost} lines are lost"));
        }
    }
}

impl Inner {
    fn write(&mut self, lines: &[u8]) -> Result<(), Errno> {
        let (written, stopped) = match self.mend() {
            Ok(()) => write_all(&self.file, lines),
            Err(errno) => (0, Some(errno)),
        };
        let Some(errno) = stopped else {
            self.dropped = 0;
            return Ok(());
        };
        let torn = torn(&lines[..written]);
        self.torn += torn;
        self.dropped += count_lines(&lines[written - torn..]);
        // If this fails it is done before the next write.
        self.mend().ok();
        Err(errno)
    }

    /// Cuts half a line off the file, or ends it where nothing can be cut off: an
    /// append-only file.
    fn mend(&mut self) -> Result<(), Errno> {
        if self.torn == 0 {
            return Ok(());
        }
        if let Err(error) = cut(&self.file, self.torn) {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            if nix::unistd::write(&self.file, b"\n") != Ok(1) {
                return Err(errno);
            }
        }
        self.torn = 0;
        Ok(())
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    u64::try_from(lines.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u64::MAX)
}

/// No symbolic link is followed at the path itself, and nothing but a file is written to:
/// whoever may write to a log directory must not be able to choose which file or device of the
/// node grows.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")),
    }
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

    /// teeth: crates/shim/src/io/logfile.rs: `match file.metadata()?.is_file() {` → `match true {`
    #[test]
    fn a_device_or_a_pipe_in_the_place_of_a_log_is_refused() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let dir = tempfile::tempdir().unwrap();
        for (name, kind) in [("null", SFlag::S_IFCHR), ("pipe", SFlag::S_IFIFO)] {
            let path = dir.path().join(name);
            mknod(&path, kind, Mode::from_bits_truncate(0o600), makedev(1, 3)).unwrap();
            // Somebody who reads, so that the pipe can be opened.
            let mut reader = OpenOptions::new();
            let _reader = reader.read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path);
            assert!(LogFile::open(&path).is_err(), "{name}");
        }
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

    #[test]
    fn half_a_line_that_cannot_be_cut_off_at_once_is_cut_off_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = LogFile::open(&path).unwrap();
        log.write(b"one\n");
        // As a disk that was full, and failed the cut as well, leaves it.
        std::fs::write(&path, b"one\ntw").unwrap();
        log.inner.lock().unwrap().torn = 2;
        log.write(b"three\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"one\nthree\n");
        assert_eq!(log.inner.lock().unwrap().torn, 0);
    }

    #[test]
    fn a_disk_that_fills_again_and_again_never_tears_a_line() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        unshared_mounts();
        nix::mount::mount(Some("t"), dir.path(), Some("tmpfs"), flags, Some("size=64k")).unwrap();
        let log = LogFile::open(&dir.path().join("0.log")).unwrap();
        let filler = dir.path().join("filler");
        let (mut said, mut lost) = (0, 0);
        for round in 0..40_usize {
            // The disk is full at another place of a line each time.
            std::fs::write(&filler, vec![0; 64 << 10]).ok();
            for n in 0..20 {
                log.write(format!("{round:04} {n:04} {}\n", "x".repeat(round * 37)).as_bytes());
                said += 1;
            }
            lost += log.inner.lock().unwrap().dropped;
            std::fs::remove_file(&filler).unwrap();
            log.write(b"space\n");
            assert_eq!(log.inner.lock().unwrap().dropped, 0, "the log does not go on");
            let text = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
            for line in text.lines().filter(|line| *line != "space") {
                let (head, tail) = line.split_at(10);
                let round: usize = head[..4].parse().unwrap();
                assert_eq!(tail.len(), round * 37, "a torn line: {line}");
            }
            said -= text.lines().filter(|line| *line != "space").count() as u64;
            std::fs::OpenOptions::new()
                .write(true)
                .open(dir.path().join("0.log"))
                .unwrap()
                .set_len(0)
                .unwrap();
        }
        assert!(lost > 0);
        assert_eq!(said, lost, "what is missing was counted");
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
