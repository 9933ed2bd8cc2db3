//! Where the FIFOs of a command are, and what its process shall be.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use berth_failpoint::Point;
use berth_model::ContainerId;
use nix::sys::stat::Mode;
use oci_spec::runtime::{BoxBuilder, Spec};

use super::end::CONTAINER;
use crate::client::Size;
use crate::core::step_blocking;
use crate::{Error, files};

/// Largest `config.json` read back, bytes.
const MAX_SPEC: u64 = 16 << 20;

/// Where the FIFOs are, and the name of the container. A client may go while they are being
/// made, so their removal is final.
#[derive(Clone)]
pub(super) struct Directory {
    path: PathBuf,
    /// Whether the command has an input.
    pub(super) input: bool,
    over: Arc<Mutex<bool>>,
}

impl Directory {
    pub(super) fn at(path: PathBuf, input: bool) -> Self {
        Self { path, input, over: Arc::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn stdin(&self) -> PathBuf {
        self.path.join("in")
    }

    pub(super) fn stdout(&self) -> PathBuf {
        self.path.join("out")
    }

    pub(super) fn stderr(&self) -> PathBuf {
        self.path.join("err")
    }

    /// Makes it all, unless nobody wants it any more.
    pub(super) fn make(&self, container: &ContainerId) -> Result<(), Error> {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if *over {
            return Ok(());
        }
        make_fifos(&self.path, self.input)?;
        files::write_file(&self.path.join(CONTAINER), container.as_str().as_bytes())
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        *over = true;
        files::remove_dir(&self.path)
    }
}

pub(super) fn make_fifos(dir: &Path, input: bool) -> Result<(), Error> {
    files::make_dir(dir, 0o700)?;
    step_blocking(Point::EXEC_DIRECTORY)?;
    for name in ["out", "err"].into_iter().chain(input.then_some("in")) {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| Error::io("make FIFO", &path)(errno.into()))?;
    }
    Ok(())
}

/// The process of the container with other arguments.
pub(super) fn process(
    bundle: &Path,
    command: Vec<String>,
    tty: bool,
    size: Option<Size>,
) -> Result<Vec<u8>, Error> {
    let path = bundle.join("config.json");
    let damaged = |source: serde_json::Error| Error::io("read", &path)(source.into());
    let spec: Spec =
        serde_json::from_slice(&files::read_bounded(&path, MAX_SPEC)?).map_err(damaged)?;
    let missing = || Error::io("read process of", &path)(io::ErrorKind::InvalidData.into());
    let container = spec.process().as_ref().ok_or_else(missing)?;
    let mut process = berth_spec::exec_process(container, command, tty)
        .map_err(|source| Error::Spec { name: name_of(bundle), source })?;
    if let Some(Size { width, height }) = size {
        let size = BoxBuilder::default().width(width).height(height).build();
        // Both dimensions are there, and the client says later ones anew.
        process.set_console_size(size.ok());
    }
    serde_json::to_vec(&process)
        .map_err(|source| Error::io("write process of", &path)(source.into()))
}

/// A bundle is called as its container is.
fn name_of(bundle: &Path) -> String {
    bundle.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifos_made_late_for_a_client_that_is_gone_are_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Directory::at(parent.path().join("fifos"), true);
        let container = ContainerId::from_random([7; 32]);
        dir.make(&container).unwrap();
        assert!(dir.stdout().exists() && dir.stderr().exists() && dir.stdin().exists());
        dir.remove().unwrap();
        dir.make(&container).unwrap();
        assert!(!dir.path.exists());
    }

    #[test]
    fn the_fifos_are_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let dir = Directory::at(parent.path().join("fifos"), false);
        make_fifos(&dir.path, dir.input).unwrap();
        assert!(!dir.stdin().exists());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path), 0o700);
        assert_eq!(mode(&dir.stdout()), 0o600);
    }
}
