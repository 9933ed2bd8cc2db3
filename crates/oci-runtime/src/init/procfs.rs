//! The host's procfs, opened before the container's root is entered.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;

use crate::error::{AnyErrno, Error};

/// Inode number of procfs' root directory (`PROC_ROOT_INO` of the kernel).
const ROOT_INODE: u64 = 1;

/// A procfs that nothing in a container has been able to touch (invariant I2).
#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// Opens `/proc` of the host and checks that it is one.
    pub(crate) fn of_host() -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let step = "open the host's procfs";
        let proc = rustix::fs::open(c"/proc", flags, Mode::empty()).map_err(Error::setup(step))?;
        let magic = fstatfs(&proc).map_err(Error::setup(step))?.f_type;
        let inode = fstat(&proc).map_err(Error::setup(step))?.st_ino;
        if magic != PROC_SUPER_MAGIC || inode != ROOT_INODE {
            return Err(Error::setup("check the host's procfs")(Errno::XDEV));
        }
        Ok(Self(proc))
    }

    /// Sets a kernel parameter of this process's namespaces; `path` is below `/proc/sys`.
    pub(crate) fn set_sysctl(&self, path: &str, value: &str) -> Result<(), Error> {
        self.write(&format!("sys/{path}"), value)
            .map_err(|errno| Error::Sysctl { name: path.to_owned(), source: errno.0 })
    }

    /// Sets this process's OOM score. Where the host's administrator has left us no right to
    /// lower it, it stays what it is, which is the nearest allowed value.
    pub(crate) fn set_oom_score_adj(&self, score: i32) -> Result<(), Error> {
        match self.write("self/oom_score_adj", &score.to_string()) {
            Ok(()) | Err(AnyErrno(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM)) => Ok(()),
            Err(errno) => Err(Error::setup("set the OOM score")(errno)),
        }
    }

    /// The hierarchies of `/proc/self/cgroup`, as the kernel prints them.
    pub(crate) fn own_cgroups(&self) -> Result<String, Error> {
        self.read("self/cgroup").map_err(Error::setup("read /proc/self/cgroup"))
    }

    /// The mounts of this process, as the kernel prints them.
    pub(crate) fn own_mounts(&self) -> Result<String, Error> {
        self.read("self/mountinfo").map_err(Error::setup("read /proc/self/mountinfo"))
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, AnyErrno> {
        // No other file system may lie over a file in there.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        Ok(openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }

    fn write(&self, path: &str, value: &str) -> Result<(), AnyErrno> {
        let file = self.open(path, OFlags::WRONLY)?;
        // A value is one write: the kernel parses each on its own.
        match rustix::io::write(file.as_fd(), value.as_bytes())? {
            written if written == value.len() => Ok(()),
            _ => Err(Errno::IO.into()),
        }
    }

    fn read(&self, path: &str) -> Result<String, AnyErrno> {
        use std::io::Read as _;
        // A few thousand mounts.
        const LIMIT: u64 = 4 * 1024 * 1024;
        let file = std::fs::File::from(self.open(path, OFlags::RDONLY)?);
        let mut text = String::new();
        let read = file.take(LIMIT).read_to_string(&mut text)?;
        if u64::try_from(read).is_ok_and(|read| read == LIMIT) {
            return Err(Errno::FBIG.into());
        }
        Ok(text)
    }
}
