//! An overlay whose lower layers show their ids as a user namespace maps them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::MountAttrFlags;
use rustix::process::fchdir;

use super::{LONGEST_DATA, clone_tree, failed, open_directory, set_attributes, set_ids};
use crate::error::{AnyErrno, Error};
use crate::init::filesystem;
use crate::plan::RootMount;

/// A small tmpfs on which the layers' mounts lie: one for each directory that has layers in
/// it, so that the path to a layer is short. It is the working directory.
struct Stage<'a> {
    directory: OwnedFd,
    users: BorrowedFd<'a>,
    /// What is seen under `0`, `1`, …
    parents: Vec<PathBuf>,
}

/// Mounts an overlay at `target`.
pub(super) fn mount(mount: &RootMount, target: &Path, users: BorrowedFd<'_>) -> Result<(), Error> {
    let mut stage = Stage::new(target, users)?;
    let mut data = Vec::with_capacity(mount.options.data.len());
    for (name, value) in &mount.options.data {
        data.push(match (name.as_str(), value) {
            ("lowerdir", Some(layers)) => format!("{name}={}", stage.layers(layers)?),
            (_, None) => name.clone(),
            (_, Some(value)) => format!("{name}={value}"),
        });
    }
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, mount.options.attributes.readonly());
    let merged = stage.merge(flags, &data.join(","))?;
    set_attributes(merged.as_fd(), mount)?;
    let target = open_directory(target).map_err(failed("open its directory"))?;
    filesystem::attach(merged.as_fd(), target.as_fd()).map_err(failed("attach it"))
}

/// Whether such an overlay can be made with `layer` as its lower layer, in a mount namespace
/// that the calling process has for itself.
pub(crate) fn probe(layer: &Path, users: BorrowedFd<'_>) -> Result<(), Error> {
    let mut stage = Stage::new(Path::new("/"), users)?;
    let layer = stage.layer(layer)?;
    for name in ["upper", "work"] {
        mkdirat(CWD, name, Mode::RWXU).map_err(failed("make a directory"))?;
    }
    stage.merge(MsFlags::empty(), &format!("lowerdir={layer},upperdir=upper,workdir=work"))?;
    Ok(())
}

impl<'a> Stage<'a> {
    fn new(target: &Path, users: BorrowedFd<'a>) -> Result<Self, Error> {
        let data = [("mode".to_owned(), Some("700".to_owned()))];
        let directory = filesystem::create("tmpfs", "layers", &data, MountAttrFlags::empty())
            .map_err(|failure| failure.at("tmpfs", target))?;
        let target = open_directory(target).map_err(failed("open its directory"))?;
        filesystem::attach(directory.as_fd(), target.as_fd()).map_err(failed("attach it"))?;
        fchdir(&directory).map_err(failed("enter the directory of layers"))?;
        Ok(Self { directory, users, parents: Vec::new() })
    }

    /// `lowerdir` by the paths that layers have here.
    fn layers(&mut self, layers: &str) -> Result<String, Error> {
        if layers.contains('\\') || layers.contains("::") {
            return Err(Error::unsupported("rootfs", "mapped ids of layers so named"));
        }
        let paths: Result<Vec<String>, Error> =
            layers.split(':').map(|layer| self.layer(Path::new(layer))).collect();
        Ok(paths?.join(":"))
    }

    fn layer(&mut self, path: &Path) -> Result<String, Error> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::invalid("rootfs", format!("{} is no layer", path.display())));
        };
        let known = self.parents.iter().position(|known| known == parent);
        let index = known.map_or_else(|| self.add(parent), Ok)?;
        Ok(format!("{index}/{}", name.to_string_lossy()))
    }

    /// Makes a directory of layers visible here.
    fn add(&mut self, parent: &Path) -> Result<usize, Error> {
        let index = self.parents.len();
        let name = index.to_string();
        mkdirat(&self.directory, name.as_str(), Mode::RWXU)
            .map_err(failed("make a directory for its layers"))?;
        let tree = clone_tree(parent, false)?;
        set_ids(tree.as_fd(), self.users, parent)?;
        let target = open_directory(Path::new(&name)).map_err(failed("open a layer"))?;
        filesystem::attach(tree.as_fd(), target.as_fd()).map_err(failed("attach its layers"))?;
        self.parents.push(parent.to_owned());
        Ok(index)
    }

    /// Mounts an overlay; a detached clone of it.
    fn merge(&self, flags: MsFlags, data: &str) -> Result<OwnedFd, Error> {
        const MERGED: &str = "m";
        if data.len() > LONGEST_DATA {
            return Err(Error::unsupported("rootfs", "mapped ids of that many layers"));
        }
        mkdirat(&self.directory, MERGED, Mode::RWXU).map_err(failed("make its directory"))?;
        nix::mount::mount(Some("overlay"), MERGED, Some("overlay"), flags, Some(data))
            .map_err(|errno| failed("mount it with mapped layers")(AnyErrno::from(errno)))?;
        clone_tree(Path::new(MERGED), false)
    }
}
