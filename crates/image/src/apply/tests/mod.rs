//! The applier on real directories: what layers become, and what hostile ones do not.

mod gnu;
mod hostile;
mod layers;

use std::path::{Path, PathBuf};

use berth_model::{ChainId, Digest};
use berth_snapshot::Snapshots;
use tempfile::TempDir;

use super::{apply, settle};
use crate::tar::Archive;
use crate::tar::build::Tar;
use crate::{LayerError, Limits};

/// Whether this process is root; says so when it is not.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Layers committed on one another, and where each of them is.
struct Stack {
    /// Holds the snapshots in `s`; what is beside it must never change.
    directory: TempDir,
    snapshots: Snapshots,
    chain: Vec<ChainId>,
}

impl Stack {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let snapshots = Snapshots::open(&directory.path().join("s")).unwrap();
        Self { directory, snapshots, chain: Vec::new() }
    }

    /// Unpacks and commits `tar` on top of what is there; returns its directory.
    fn push(&mut self, tar: Tar) -> Result<PathBuf, LayerError> {
        self.push_within(tar, &Limits::default())
    }

    /// Unpacks `tar` and hands back both, since the files go with the stack.
    fn push_kept(mut self, tar: Tar) -> (Self, PathBuf) {
        let root = self.push(tar).unwrap();
        (self, root)
    }

    fn push_within(&mut self, tar: Tar, limits: &Limits) -> Result<PathBuf, LayerError> {
        let bytes = tar.finish();
        let layer = self.snapshots.begin_layer().unwrap();
        let mut archive = Archive::new(bytes.as_slice());
        let applied = apply(layer.root(), &mut archive, self.chain.is_empty(), limits, &|_| {})?;
        let below = self.snapshots.view(&self.chain).unwrap();
        let used = settle(layer.root(), applied, &below)?;
        let counted = berth_snapshot::usage(layer.root()).unwrap();
        assert_eq!(used.inodes, counted.inodes, "inodes of the layer");
        let name = format!("{} {:?}", self.chain.len(), Digest::of(&bytes));
        let chain = ChainId(Digest::of(name.as_bytes()));
        let committed = self.snapshots.commit_layer(layer, chain).unwrap();
        self.chain.push(chain);
        Ok(self.snapshots.root().join(committed.dir))
    }

    fn read(&self, path: &str) -> Option<String> {
        let view = self.snapshots.view(&self.chain).unwrap();
        let content = view.read_file(Path::new(path), 1 << 20).unwrap()?;
        Some(String::from_utf8(content).unwrap())
    }
}
