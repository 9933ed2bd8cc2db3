//! The directories below one root.

mod active;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_failpoint::Point;
use berth_model::mount::Mount;
use berth_model::stats::DiskUsage;
use berth_model::{ChainId, Digest, ErrorKind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;

use crate::link::Link;
use crate::meta::copy_metadata;
use crate::{Error, MergedView, Size, SnapshotKey, Trash, probe, tree};

/// Most lower directories of one overlay (the kernel's `OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;

pub(crate) const LAYERS: &str = "l";
pub(crate) const COMMITTED: &str = "committed";
pub(crate) const ACTIVE: &str = "active";
pub(crate) const INGEST: &str = "ingest";
pub(crate) const TRASH: &str = "trash";
pub(crate) const EMPTY: &str = "empty";

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Whether what a container writes must survive a crash of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// No: overlay's `volatile` is used where the kernel has it. After a crash the
    /// snapshot must be removed, never mounted again.
    Volatile,
    /// Yes.
    Durable,
}

/// The snapshots below one root; clones share it.
#[derive(Clone, Debug)]
pub struct Snapshots(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    /// Absolute and UTF-8, without characters that overlay's options give a meaning to.
    path: String,
    pub(crate) root: OwnedFd,
    next: AtomicU64,
    volatile: bool,
    /// What is known of the size of directories that a record may not name: layers in the
    /// making or just committed, and what waits to be removed.
    sizes: Mutex<HashMap<String, Size>>,
}

/// A layer in the making; what is not committed is removed when dropped.
#[derive(Debug)]
pub struct LayerDir {
    snapshots: Snapshots,
    /// `Some` until committed.
    name: Option<String>,
    root: OwnedFd,
}

/// A layer that is committed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Committed {
    /// Its directory, relative to the snapshot root.
    pub dir: String,
    /// Whether this commit made it; otherwise it was there, and what was to be committed
    /// is gone.
    pub fresh: bool,
}

impl LayerDir {
    /// The root directory of the layer, open for reading.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Notes how much the layer holds by now, for [`Snapshots::sizes`].
    pub fn holds(&self, size: Size) {
        if let Some(name) = &self.name {
            self.snapshots.0.sizes().insert(format!("{INGEST}/{name}"), size);
        }
    }
}

impl Drop for LayerDir {
    fn drop(&mut self) {
        // What cannot be removed now is swept at the next start.
        if let Some(name) = self.name.take() {
            drop(self.snapshots.discard(INGEST, &name));
        }
    }
}

impl Snapshots {
    /// Opens or makes the root, and asks the kernel once whether it has `volatile`.
    ///
    /// Blocking, as everything here.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let bad = || Error::BadRoot(root.to_owned());
        let path = root.to_str().ok_or_else(bad)?;
        if !root.is_absolute() || path.contains([':', ',', '\\', '\n']) {
            return Err(bad());
        }
        std::fs::create_dir_all(root).map_err(Error::io("make directory", root))?;
        let fd = open(root, DIRECTORY, Mode::empty()).map_err(Error::io("open", root))?;
        nix::sys::stat::fchmod(&fd, Mode::S_IRWXU).map_err(Error::io("change mode of", root))?;
        for name in [LAYERS, COMMITTED, ACTIVE, INGEST, TRASH] {
            ensure_directory(&fd, name, Mode::S_IRWXU)?;
        }
        ensure_directory(&fd, EMPTY, Mode::from_bits_truncate(0o755))?;
        let mut inner = Inner {
            path: path.trim_end_matches('/').to_owned(),
            root: fd,
            next: AtomicU64::new(0),
            volatile: false,
            sizes: Mutex::default(),
        };
        let mut last = 0;
        for place in [LAYERS, INGEST, TRASH] {
            let numbers = inner.names(place)?.into_iter().filter_map(|name| name.parse().ok());
            // What is larger was never given.
            last = numbers.filter(|number| *number < u64::MAX / 2).fold(last, u64::max);
        }
        inner.next = AtomicU64::new(last + 1);
        inner.volatile = match inner.probe() {
            // A start on a full disk must not fail for want of a directory to ask in.
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => {
                probe::volatile_supported()
            }
            answer => answer?,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Where everything is.
    #[must_use]
    pub fn root(&self) -> &Path {
        Path::new(&self.0.path)
    }

    /// A descriptor of the root, for syncfs(2) and the like.
    #[must_use]
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.0.root.as_fd()
    }

    /// Whether overlay mounts can be `volatile` on this host.
    #[must_use]
    pub fn volatile(&self) -> bool {
        self.0.volatile
    }

    /// Starts a layer: an empty directory that no one else sees.
    pub fn begin_layer(&self) -> Result<LayerDir, Error> {
        let name = self.0.number();
        let path = format!("{INGEST}/{name}");
        self.0.make(&path, Mode::from_bits_truncate(0o755))?;
        let root = self.0.open_directory(&path)?;
        Ok(LayerDir { snapshots: self.clone(), name: Some(name), root })
    }

    /// Makes `layer` the committed snapshot `chain`, unless there is one.
    ///
    /// Visible at once, durable only after a sync of the file system.
    pub fn commit_layer(&self, mut layer: LayerDir, chain: ChainId) -> Result<Committed, Error> {
        match self.find(chain)? {
            Link::To(dir) => return Ok(Committed { dir, fresh: false }),
            Link::Absent => {}
            // What it led to is gone, so it names nothing and nothing is lost with it.
            Link::Dangling | Link::Bad(_) => self.unlink(chain)?,
        }
        let name = layer.name.clone().expect("it is taken only here, with the layer itself");
        let dir = format!("{LAYERS}/{name}");
        self.0.rename(&format!("{INGEST}/{name}"), &dir)?;
        layer.name = None;
        let step = berth_failpoint::pass(Point::PULL_LAYER_MOVED);
        if let Err(error) = step {
            self.discard(LAYERS, &name)?;
            return Err(Error::io("pass failpoint", Point::PULL_LAYER_MOVED.name)(error));
        }
        let link = format!("{COMMITTED}/{}", chain.0.hex());
        match symlinkat(format!("../{dir}").as_str(), &self.0.root, link.as_str()) {
            Ok(()) => Ok(Committed { dir, fresh: true }),
            Err(Errno::EEXIST) => {
                self.discard(LAYERS, &name)?;
                let dir = self.directory_of(chain)?.ok_or(Error::MissingLayer(chain))?;
                Ok(Committed { dir, fresh: false })
            }
            Err(errno) => {
                self.discard(LAYERS, &name)?;
                Err(self.0.io("make link", &link)(errno))
            }
        }
    }

    /// Whether `chain` is committed, and its directory is there.
    pub fn is_committed(&self, chain: ChainId) -> Result<bool, Error> {
        Ok(matches!(self.find(chain)?, Link::To(_)))
    }

    /// What is known of the sizes of directories, by their path relative to the root, that
    /// a record need not name: layers in the making, those committed since the start, and
    /// what waits to be removed.
    #[must_use]
    pub fn sizes(&self) -> HashMap<String, Size> {
        self.0.sizes().clone()
    }

    /// Every committed snapshot, in no order.
    pub fn committed(&self) -> Result<Vec<ChainId>, Error> {
        let names = self.0.names(COMMITTED)?;
        let digests =
            names.iter().filter_map(|name| Digest::from_str(&format!("sha256:{name}")).ok());
        Ok(digests.map(ChainId).collect())
    }

    /// The directory of the committed snapshot `chain`, relative to the root, and what it
    /// uses.
    pub fn committed_usage(&self, chain: ChainId) -> Result<(String, DiskUsage), Error> {
        let dir = self.directory_of(chain)?.ok_or(Error::MissingLayer(chain))?;
        let usage = tree::usage(self.layer(chain)?.as_fd())
            .map_err(|error| error.below(self.root().join(&dir)))?;
        Ok((dir, usage))
    }

    /// Removes the committed snapshot `chain`; what is absent is success.
    ///
    /// No container may be using it: overlayfs does not survive that.
    pub fn remove_committed(&self, chain: ChainId) -> Result<(), Error> {
        self.detach_committed(chain)?.map_or(Ok(()), Trash::empty)
    }

    /// Takes the committed snapshot `chain` away at once and leaves its files for
    /// [`Trash::empty`]; `None` if there is none. As [`Snapshots::remove_committed`]
    /// otherwise.
    pub fn detach_committed(&self, chain: ChainId) -> Result<Option<Trash>, Error> {
        // The directory first: a name that leads nowhere is as good as none.
        let trash = match self.find(chain)? {
            Link::Absent => return Ok(None),
            Link::To(dir) => self.detach(&dir)?,
            Link::Dangling | Link::Bad(_) => None,
        };
        berth_failpoint::pass(Point::COLLECT_LAYER_MOVED)
            .map_err(Error::io("pass failpoint", Point::COLLECT_LAYER_MOVED.name))?;
        self.unlink(chain)?;
        Ok(trash)
    }

    /// Makes the active snapshot `key` on top of `chain` (lowest layer first; may be
    /// empty), and says how to mount it.
    pub fn prepare(
        &self,
        key: &SnapshotKey,
        chain: &[ChainId],
        durability: Durability,
    ) -> Result<Vec<Mount>, Error> {
        let mounts = self.mounts(key, chain, durability)?;
        let own = format!("{ACTIVE}/{key}");
        match self.0.make(&own, Mode::S_IRWXU) {
            Err(Error::Io { source: Errno::EEXIST, .. }) => return Err(Error::Exists(key.clone())),
            answer => answer?,
        }
        let filled = self.fill(&own, chain);
        if filled.is_err() {
            drop(self.remove(key)); // the first failure is the one to report
        }
        filled.map(|()| mounts)
    }

    /// Upper and work directory; the merged root shows the upper's metadata, so it takes
    /// that of the layer below.
    fn fill(&self, own: &str, chain: &[ChainId]) -> Result<(), Error> {
        let path = format!("{own}/upper");
        self.0.make(&path, Mode::from_bits_truncate(0o755))?;
        if let Some(top) = chain.last() {
            let upper = self.0.open_directory(&path)?;
            let copied = copy_metadata(self.layer(*top)?.as_fd(), upper.as_fd());
            copied.map_err(|error| error.at(self.root().join(path)))?;
        }
        self.0.make(&format!("{own}/work"), Mode::S_IRWXU)
    }

    /// How to mount the active snapshot `key`, made on top of `chain`.
    pub fn mounts(
        &self,
        key: &SnapshotKey,
        chain: &[ChainId],
        durability: Durability,
    ) -> Result<Vec<Mount>, Error> {
        let root = &self.0.path;
        let lower = self.lower(chain)?;
        let mut options = vec![
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={root}/{ACTIVE}/{key}/upper"),
            format!("workdir={root}/{ACTIVE}/{key}/work"),
        ];
        if self.0.volatile && durability == Durability::Volatile {
            options.push("volatile".to_owned());
        }
        Ok(vec![Mount { fs_type: "overlay".to_owned(), source: "overlay".to_owned(), options }])
    }

    /// Removes the active snapshot `key`; what is absent is success. It must not be
    /// mounted any more.
    pub fn remove(&self, key: &SnapshotKey) -> Result<(), Error> {
        self.discard(ACTIVE, key.as_str())
    }

    /// Every active snapshot, in no order.
    pub fn active(&self) -> Result<Vec<SnapshotKey>, Error> {
        Ok(self.0.names(ACTIVE)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What the container of `key` has written.
    pub fn usage(&self, key: &SnapshotKey) -> Result<DiskUsage, Error> {
        let path = format!("{ACTIVE}/{key}/upper");
        match self.0.open_directory(&path) {
            Ok(upper) => {
                tree::usage(upper.as_fd()).map_err(|error| error.below(self.root().join(path)))
            }
            Err(Error::Io { source: Errno::ENOENT, .. }) => Err(Error::NotFound(key.clone())),
            Err(error) => Err(error),
        }
    }

    /// The merged view of `chain`, lowest layer first.
    pub fn view(&self, chain: &[ChainId]) -> Result<MergedView, Error> {
        let layers = chain.iter().rev().map(|chain| self.layer(*chain));
        Ok(MergedView::new(layers.collect::<Result<_, _>>()?))
    }

    fn layer(&self, chain: ChainId) -> Result<OwnedFd, Error> {
        let dir = self.directory_of(chain)?.ok_or(Error::MissingLayer(chain))?;
        match self.0.open_directory(&dir) {
            Err(Error::Io { source: Errno::ENOENT, .. }) => Err(Error::MissingLayer(chain)),
            answer => answer,
        }
    }
}

impl Inner {
    /// A number no directory of this root has had since it was opened.
    pub(crate) fn number(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn probe(&self) -> Result<bool, Error> {
        let name = format!("{INGEST}/{}", self.number());
        self.make(&name, Mode::S_IRWXU)?;
        let answer = probe::volatile(&Path::new(&self.path).join(&name));
        let path = CString::new(name).expect("a number has no NUL");
        tree::remove(self.root.as_fd(), &path).map_err(|error| error.below(&self.path))?;
        answer
    }

    fn make(&self, path: &str, mode: Mode) -> Result<(), Error> {
        mkdirat(&self.root, path, mode).map_err(self.io("make directory", path))?;
        // mkdir(2) obeys the umask, which is not ours to change.
        let fd = self.open_directory(path)?;
        nix::sys::stat::fchmod(&fd, mode).map_err(self.io("change mode of", path))
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        renameat(&self.root, from, &self.root, to).map_err(self.io("rename", from))?;
        let mut sizes = self.sizes();
        if let Some(size) = sizes.remove(from) {
            sizes.insert(to.to_owned(), size);
        }
        Ok(())
    }

    /// A panic elsewhere leaves a figure that is off.
    pub(crate) fn sizes(&self) -> MutexGuard<'_, HashMap<String, Size>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open_directory(&self, path: &str) -> Result<OwnedFd, Error> {
        openat(&self.root, path, DIRECTORY, Mode::empty()).map_err(self.io("open", path))
    }

    /// What is in the directory `place`.
    pub(crate) fn names(&self, place: &str) -> Result<Vec<String>, Error> {
        let fd = self.open_directory(place)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd).map_err(self.io("read directory", place))? {
            let entry = entry.map_err(self.io("read directory", place))?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(crate) fn io<E: crate::error::IntoErrno>(
        &self,
        action: &'static str,
        path: &str,
    ) -> impl FnOnce(E) -> Error + use<E> {
        let path: PathBuf = Path::new(&self.path).join(path);
        Error::io(action, path)
    }
}

fn ensure_directory(root: &OwnedFd, name: &str, mode: Mode) -> Result<(), Error> {
    match mkdirat(root, name, mode) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(Error::io("make directory", name)(errno)),
    }
    let fd = openat(root, name, DIRECTORY, Mode::empty()).map_err(Error::io("open", name))?;
    nix::sys::stat::fchmod(&fd, mode).map_err(Error::io("change mode of", name))
}
