//! The names of committed layers.

use berth_model::ChainId;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::store::{COMMITTED, LAYERS};
use crate::{Error, Snapshots};

/// What the name of a committed layer leads to.
pub(crate) enum Link {
    /// The name is not there.
    Absent,
    /// The layer's directory is not there.
    Dangling,
    /// Not where this program makes it lead.
    Bad(String),
    /// The layer's directory, relative to the root.
    To(String),
}

impl Snapshots {
    /// The directory of a committed layer, relative to the root; `None` if the layer or
    /// its directory is gone.
    pub(crate) fn directory_of(&self, chain: ChainId) -> Result<Option<String>, Error> {
        match self.find(chain)? {
            Link::To(dir) => Ok(Some(dir)),
            Link::Absent | Link::Dangling => Ok(None),
            Link::Bad(target) => Err(Error::BadLink { chain, target }),
        }
    }

    pub(crate) fn find(&self, chain: ChainId) -> Result<Link, Error> {
        let link = format!("{COMMITTED}/{}", chain.0.hex());
        let target = match readlinkat(&self.0.root, link.as_str()) {
            Ok(target) => target.to_string_lossy().into_owned(),
            Err(Errno::ENOENT) => return Ok(Link::Absent),
            // Something else than a link has its name.
            Err(Errno::EINVAL) => return Ok(Link::Bad("itself".to_owned())),
            Err(errno) => return Err(self.0.io("read link", &link)(errno)),
        };
        let number = target.strip_prefix("../l/").filter(|number| number.parse::<u64>().is_ok());
        let Some(number) = number else { return Ok(Link::Bad(target)) };
        let dir = format!("{LAYERS}/{number}");
        match fstatat(&self.0.root, dir.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is_directory(&stat) => Ok(Link::To(dir)),
            Ok(_) | Err(Errno::ENOENT) => Ok(Link::Dangling),
            Err(errno) => Err(self.0.io("read metadata of", &dir)(errno)),
        }
    }

    /// Takes the name of a committed layer away, whatever has it.
    pub(crate) fn unlink(&self, chain: ChainId) -> Result<(), Error> {
        let link = format!("{COMMITTED}/{}", chain.0.hex());
        match unlinkat(&self.0.root, link.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => self.discard(COMMITTED, &chain.0.hex()),
            Err(errno) => Err(self.0.io("remove", &link)(errno)),
        }
    }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}
