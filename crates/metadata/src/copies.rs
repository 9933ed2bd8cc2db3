//! A copy of each record, in the directory of what it describes.
//!
//! `pods.db` is one file, and one bad page may take every pod's record with it while all
//! of them run. So each row is written a second time, as `record.json` in the sandbox's or
//! container's own directory, which lives as long as its processes can: it ends with the
//! boot.
//!
//! A copy is written after its row and removed before it. Hence one without a row means
//! that the row was lost, and one that is ahead of its row that the row is an old one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use berth_model::{ContainerState, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ContainerRecord, Error, SandboxPhase, SandboxRecord, check};

const NAME: &str = "record.json";
const NEW: &str = "record.new";
/// Longest copy: a request of the largest size (16 MiB), each byte as a number in JSON.
const MAX_BYTES: u64 = 80 << 20;
/// Most directories looked into.
const MAX_ENTRIES: usize = 100_000;

/// Where the copies of records are.
#[derive(Clone, Debug)]
pub struct Copies {
    /// Directory of the sandboxes' directories, named by id.
    pub sandboxes: PathBuf,
    /// Directory of the containers' directories, named by id.
    pub containers: PathBuf,
}

/// What is stored in `pods.db`, and copied.
pub(crate) trait Record: Clone + Serialize + DeserializeOwned {
    const TABLE: &'static str;
    /// What reads the table, and with which query; the last column is the record.
    const LIST: (&'static str, &'static str);

    fn key(&self) -> &str;
    /// The other columns of [`Record::LIST`], in order.
    fn columns(&self) -> Vec<String>;
    /// How far it has come; it never goes back.
    fn rank(&self) -> u8;
    /// Whether it is not in use yet, so that it may be undone.
    fn is_new(&self) -> bool;
    /// Whether there is a copy of it.
    fn is_copied(&self) -> bool;
    fn created_at(&self) -> i64;
    fn below(copies: &Copies) -> &Path;
}

impl Record for SandboxRecord {
    const TABLE: &'static str = "sandboxes";
    const LIST: (&'static str, &'static str) = (
        "list sandboxes",
        "SELECT id, namespace, name, uid, attempt, state, created_at, record
         FROM sandboxes ORDER BY created_at",
    );

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn columns(&self) -> Vec<String> {
        let name = &self.spec.name;
        vec![
            self.id.to_string(),
            name.namespace.clone(),
            name.name.clone(),
            name.uid.clone(),
            name.attempt.to_string(),
            self.phase.as_str().to_owned(),
            self.created_at.0.to_string(),
        ]
    }

    fn rank(&self) -> u8 {
        match self.phase {
            SandboxPhase::Creating => 0,
            SandboxPhase::Ready => 1,
            SandboxPhase::NotReady => 2,
        }
    }

    fn is_new(&self) -> bool {
        matches!(self.phase, SandboxPhase::Creating | SandboxPhase::Ready)
    }

    /// What is being made is undone by a restart; nobody was told of it.
    fn is_copied(&self) -> bool {
        self.phase != SandboxPhase::Creating
    }

    fn created_at(&self) -> i64 {
        self.created_at.0
    }

    fn below(copies: &Copies) -> &Path {
        &copies.sandboxes
    }
}

impl Record for ContainerRecord {
    const TABLE: &'static str = "containers";
    const LIST: (&'static str, &'static str) = (
        "list containers",
        "SELECT id, sandbox, name, attempt, state, image, created_at, record
         FROM containers ORDER BY created_at",
    );

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn columns(&self) -> Vec<String> {
        let name = &self.spec.name;
        vec![
            self.id.to_string(),
            self.sandbox.to_string(),
            name.name.clone(),
            name.attempt.to_string(),
            self.state.name().to_owned(),
            self.image.to_string(),
            self.created_at.0.to_string(),
        ]
    }

    fn rank(&self) -> u8 {
        match self.state {
            ContainerState::Created => 0,
            ContainerState::Running { .. } => 1,
            ContainerState::Exited { .. } => 2,
        }
    }

    fn is_new(&self) -> bool {
        self.state == ContainerState::Created
    }

    fn is_copied(&self) -> bool {
        true
    }

    fn created_at(&self) -> i64 {
        self.created_at.0
    }

    fn below(copies: &Copies) -> &Path {
        &copies.containers
    }
}

impl Copies {
    fn path<R: Record>(&self, key: &str) -> PathBuf {
        R::below(self).join(key).join(NAME)
    }

    /// Writes or replaces a copy, in one step for whoever reads.
    pub(crate) fn write<R: Record>(&self, key: &str, row: &str) -> Result<(), Error> {
        let path = self.path::<R>(key);
        write(&path, row).map_err(|source| Error::File { action: "write", path, source })
    }

    /// Removes a copy; a missing one is success.
    pub(crate) fn remove<R: Record>(&self, key: &str) -> Result<(), Error> {
        let path = self.path::<R>(key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            // Another thing of that name is no copy.
            Err(error) if absent(&error) || error.kind() == ErrorKind::IsADirectory => Ok(()),
            Err(source) => Err(Error::File { action: "remove", path, source }),
        }
    }

    /// The copy as text; `None` if there is none.
    pub(crate) fn read<R: Record>(&self, key: &str) -> Result<Option<String>, Error> {
        let path = self.path::<R>(key);
        match read(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if absent(&error) => Ok(None),
            Err(source) => Err(Error::File { action: "read", path, source }),
        }
    }

    /// What a copy says, if it is whole and in its own place.
    pub(crate) fn decode<R: Record>(&self, key: &str, text: &str) -> Result<R, Error> {
        let path = || self.path::<R>(key);
        let bad = |source: io::Error| Error::File { action: "understand", path: path(), source };
        let record: R = check::open(text, true).map_err(|error| bad(error.into()))?;
        match record.key() == key && record.is_copied() {
            true => Ok(record),
            false => Err(bad(io::Error::other("it is the copy of something else"))),
        }
    }

    /// Names of the directories that may hold a copy.
    pub(crate) fn keys<R: Record>(&self) -> Result<Vec<String>, Error> {
        let dir = R::below(self);
        let failed = |source| Error::File { action: "list", path: dir.to_owned(), source };
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut keys = Vec::new();
        for entry in entries.take(MAX_ENTRIES) {
            let name = entry.map_err(failed)?.file_name().into_string();
            // Ids of both kinds have the same form.
            keys.extend(name.ok().filter(|name| SandboxId::new(name.as_str()).is_ok()));
        }
        Ok(keys)
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_file_name(NEW);
    let create = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(nix::libc::O_NOFOLLOW).open(&new)
    };
    let mut file = match (create(), path.parent()) {
        // Its directory went with the boot.
        (Err(error), Some(directory)) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            create()?
        }
        (file, _) => file?,
    };
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first failure is the one to tell.
        drop(fs::remove_file(&new));
    }
    written
}

fn read(path: &Path) -> io::Result<String> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > MAX_BYTES {
        return Err(ErrorKind::FileTooLarge.into());
    }
    let mut text = String::with_capacity(usize::try_from(found.len()).unwrap_or(0));
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
