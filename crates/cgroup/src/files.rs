//! Reading and writing the files of one cgroup directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use crate::Error;

/// Most that is read of a file with counters or a list, bytes.
const READ_LIMIT: u64 = 16 << 20;
/// Most that is read of a file of counters, bytes.
const MOST: usize = 1 << 20;

/// The directory of a cgroup in one hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Directory {
    path: PathBuf,
    /// The number of its hierarchy, where that tells it from the others of its cgroup.
    hierarchy: Option<usize>,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, hierarchy: None }
    }

    /// That of a cgroup in the hierarchy of that number.
    pub(crate) fn within(hierarchy: usize, path: PathBuf) -> Self {
        Self { path, hierarchy: Some(hierarchy) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes `value` to `name` in one write(2).
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = self.file(name);
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|error| match errno(&error) {
            Errno::ENOENT if self.path.is_dir() => Error::MissingFile { path },
            source => Error::Write { path, value: value.to_owned(), source },
        })
    }

    /// As [`Directory::write`]; a file that does not exist is no error.
    pub(crate) fn write_if_there(&self, name: &str, value: &str) -> Result<(), Error> {
        match self.write(name, value) {
            Err(Error::MissingFile { .. }) => Ok(()),
            other => other,
        }
    }

    /// The text of `name`.
    pub(crate) fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.file(name);
        let mut text = String::new();
        let read =
            File::open(&path).and_then(|file| file.take(READ_LIMIT).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(text),
            Err(error) => Err(Error::Read { path, source: errno(&error) }),
        }
    }

    /// As [`Directory::read`]; `None` when there is no such file or directory.
    pub(crate) fn read_if_there(&self, name: &str) -> Result<Option<String>, Error> {
        match self.read(name) {
            Ok(text) => Ok(Some(text)),
            // ENODEV: the cgroup was removed while the file was open.
            Err(Error::Read { source: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number in `name`; `None` for `max`.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        let text = self.read(name)?;
        match text.trim() {
            "max" => Ok(None),
            number => {
                number.parse().map(Some).map_err(|_| Error::Malformed { path: self.file(name) })
            }
        }
    }
}

/// What is kept of a cgroup that is read again and again.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Directories that were entered, by the numbers of their hierarchies: all are of one cgroup.
    pub(crate) directories: Vec<(usize, OwnedFd)>,
    /// See `usage::v1::limits`.
    pub(crate) limits: Option<KnownLimits>,
}

/// Limits of a v1 memory cgroup, without and with swap, and what bound it when they were read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KnownLimits {
    pub(crate) bound: [Option<u64>; 2],
    pub(crate) own: [Option<u64>; 2],
}

/// Reads small files one after the other into the same memory, each in as few calls as can be.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    pub(crate) kept: Kept,
    /// Whether there is a next time: then every directory is worth to be entered.
    again: bool,
}

impl Reader {
    /// For one cgroup, once.
    pub(crate) fn new() -> Self {
        Self::with(Kept::default(), false)
    }

    /// For a cgroup that will be read again, with what was kept of it.
    pub(crate) fn again(kept: Kept) -> Self {
        Self::with(kept, true)
    }

    fn with(kept: Kept, again: bool) -> Self {
        // More than any file of counters has, so that one read takes all of it.
        Self { bytes: vec![0; 8 << 10], kept, again }
    }

    /// Finds the directory once for all of its files that are read next: to find one from the
    /// root is most of what a small file costs. One that is not there shows at the first file.
    pub(crate) fn enter(&mut self, directory: &Directory) {
        let Some(hierarchy) = directory.hierarchy else { return };
        if self.entered(directory).is_some() {
            return;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(opened) = rustix::fs::open(directory.path(), flags, Mode::empty()) {
            self.kept.directories.push((hierarchy, opened));
        }
    }

    fn entered(&self, directory: &Directory) -> Option<&OwnedFd> {
        let wanted = directory.hierarchy?;
        let mut all = self.kept.directories.iter();
        all.find_map(|(hierarchy, entered)| (*hierarchy == wanted).then_some(entered))
    }

    fn open(&mut self, directory: &Directory, name: &str) -> Result<OwnedFd, rustix::io::Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        if self.again {
            self.enter(directory);
        }
        match self.entered(directory) {
            Some(entered) => rustix::fs::openat(entered, name, flags, Mode::empty()),
            None => rustix::fs::open(directory.file(name), flags, Mode::empty()),
        }
    }

    /// The text of `name` in `directory`.
    ///
    /// Not for lists of processes: other files the kernel writes in one piece (`seq_show`), so
    /// that nothing follows a read that did not fill the memory.
    pub(crate) fn text(&mut self, directory: &Directory, name: &str) -> Result<&str, Error> {
        let failed = |source: rustix::io::Errno| Error::Read {
            path: directory.file(name),
            source: Errno::from_raw(source.raw_os_error()),
        };
        let file = self.open(directory, name).map_err(failed)?;
        let mut length = 0;
        loop {
            match rustix::io::read(&file, &mut self.bytes[length..]) {
                Ok(more) => length += more,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(failed(errno)),
            }
            if length < self.bytes.len() || length >= MOST {
                break;
            }
            self.bytes.resize(length * 2, 0);
        }
        let text = str::from_utf8(&self.bytes[..length]);
        text.map_err(|_| Error::Malformed { path: directory.file(name) })
    }

    /// As [`Reader::text`]; `None` when there is no such file or directory.
    pub(crate) fn text_if_there(
        &mut self,
        directory: &Directory,
        name: &str,
    ) -> Result<Option<&str>, Error> {
        match self.text(directory, name) {
            Ok(text) => Ok(Some(text)),
            // ENODEV: the cgroup was removed while the file was open.
            Err(Error::Read { source: Errno::ENOENT | Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number in `name`; `None` for `max`.
    pub(crate) fn number(
        &mut self,
        directory: &Directory,
        name: &str,
    ) -> Result<Option<u64>, Error> {
        number(self.text(directory, name)?, directory, name)
    }

    /// As [`Reader::number`]; `None` too when there is no such file or directory.
    pub(crate) fn number_if_there(
        &mut self,
        directory: &Directory,
        name: &str,
    ) -> Result<Option<u64>, Error> {
        match self.text_if_there(directory, name)? {
            Some(text) => number(text, directory, name),
            None => Ok(None),
        }
    }
}

fn number(text: &str, directory: &Directory, name: &str) -> Result<Option<u64>, Error> {
    match text.trim() {
        "max" => Ok(None),
        number => {
            number.parse().map(Some).map_err(|_| Error::Malformed { path: directory.file(name) })
        }
    }
}

/// Value of `key` in a file of `key value` lines; zero when it is not there, since kernels
/// add keys.
pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// The error number of a failed call.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_entirely() {
        let text = "total_rss_huge 1\ntotal_rss 2\nrss 3\nodd\n";
        assert_eq!(keyed(text, "rss"), 3);
        assert_eq!(keyed(text, "total_rss"), 2);
        assert_eq!(keyed(text, "absent"), 0);
        assert_eq!(keyed(text, "odd"), 0);
    }

    #[test]
    fn files_are_neither_made_nor_confused_with_a_missing_cgroup() {
        let root = tempfile::tempdir().unwrap();
        let there = Directory::new(root.path().to_owned());
        let gone = Directory::new(root.path().join("gone"));
        assert!(matches!(there.write("pids.max", "1"), Err(Error::MissingFile { .. })));
        assert!(matches!(
            gone.write("pids.max", "1"),
            Err(Error::Write { source: Errno::ENOENT, .. })
        ));
        assert!(std::fs::read_dir(root.path()).unwrap().next().is_none());
        assert_eq!(gone.read_if_there("pids.max").unwrap(), None);
    }

    /// teeth: crates/cgroup/src/files.rs: `(*hierarchy == wanted)` → `true`
    #[test]
    fn a_reader_reads_files_of_any_length_in_any_directory() {
        let root = tempfile::tempdir().unwrap();
        let (here, below) = (
            Directory::within(0, root.path().to_owned()),
            Directory::within(1, root.path().join("below")),
        );
        std::fs::create_dir(below.path()).unwrap();
        let mut reader = Reader::new();
        for length in [0, 1, (8 << 10) - 1, 8 << 10, (8 << 10) + 1, 100_000] {
            std::fs::write(here.file("f"), "x".repeat(length)).unwrap();
            std::fs::write(below.file("f"), "y".repeat(length)).unwrap();
            reader.enter(&here);
            reader.enter(&below);
            assert_eq!(reader.text(&here, "f").unwrap(), "x".repeat(length));
            assert_eq!(reader.text(&below, "f").unwrap(), "y".repeat(length));
        }
        reader.enter(&Directory::within(2, root.path().join("gone")));
        assert_eq!(reader.text_if_there(&here, "g").unwrap(), None);
        assert_eq!(reader.text(&below, "f").unwrap().len(), 100_000);
    }

    #[test]
    fn a_number_is_read_or_the_file_is_malformed() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned());
        for (text, expected) in [("7\n", Some(Some(7))), ("max\n", Some(None)), ("-1\n", None)] {
            std::fs::write(directory.file("f"), text).unwrap();
            match expected {
                Some(number) => assert_eq!(directory.number("f").unwrap(), number),
                None => {
                    assert!(matches!(directory.number("f"), Err(Error::Malformed { .. })));
                }
            }
        }
    }
}
