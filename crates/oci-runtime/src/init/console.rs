//! A pseudo-terminal of the container's own devpts.
//!
//! Neither half is opened by a path that could be a link to something else: the multiplexer is
//! checked to be one, and the other half comes from it by descriptor (CVE-2025-52565).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat, fstatfs, makedev};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{AnyErrno, Error};
use crate::init::filesystem;
use crate::init::root::{Links, Root, refused};
use crate::plan::WindowSize;

/// File system magic of devpts (`DEVPTS_SUPER_MAGIC`, linux/magic.h).
const DEVPTS_MAGIC: u32 = 0x1cd1;
/// Major and minor number of the multiplexer.
const PTMX: (u32, u32) = (5, 2);

/// Both halves of a terminal.
#[derive(Debug)]
pub(crate) struct Console {
    /// For the caller.
    pub(crate) master: OwnedFd,
    /// For the process.
    pub(crate) slave: OwnedFd,
}

impl Console {
    /// Makes a terminal.
    pub(crate) fn open(root: &Root<'_>, window: Option<WindowSize>) -> Result<Self, Error> {
        let path = Path::new("/dev/pts/ptmx");
        let failed = |step| move |errno| refused(path, step, errno);
        let master = root
            .open(path, OFlags::RDWR | OFlags::NOCTTY, Links::Refused)
            .map_err(failed("open the terminal multiplexer"))?;
        let stat = fstat(&master).map_err(failed("look at the terminal multiplexer"))?;
        let magic = fstatfs(&master).map_err(failed("look at the terminal multiplexer"))?.f_type;
        let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == makedev(PTMX.0, PTMX.1)
            && u32::try_from(magic) == Ok(DEVPTS_MAGIC);
        if !is_ptmx {
            return Err(refused(path, "this is not the multiplexer of a devpts", Errno::NOTTY));
        }
        unlockpt(&master).map_err(failed("unlock a terminal"))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).map_err(failed("open a terminal"))?;
        if let Some(window) = window {
            let size =
                Winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(&master, size).map_err(Error::setup("set the terminal's size"))?;
        }
        Ok(Self { master, slave })
    }

    /// Binds the terminal to `/dev/console`.
    pub(crate) fn bind(&self, root: &Root<'_>) -> Result<(), Error> {
        let path = Path::new("/dev/console");
        let failed = |errno: AnyErrno| Error::Mount {
            fs_type: "bind".to_owned(),
            destination: path.to_owned(),
            explanation: String::new(),
            source: errno.0,
        };
        let target = root.ensure_file(path, Links::Refused)?;
        let mount = filesystem::clone(self.slave.as_fd(), false).map_err(failed)?;
        filesystem::attach(mount.as_fd(), target.as_fd()).map_err(failed)
    }
}
