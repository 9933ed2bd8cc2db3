//! The host's procfs, opened before the container's root is entered.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;

use crate::error::{AnyErrno, Error};
use crate::plan::Labels;

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

    /// Has the kernel's security modules confine the program that this process executes
    /// next. Without the module, or the profile, it fails: nobody runs less confined than
    /// was asked for.
    pub(crate) fn label_next_program(&self, labels: &Labels) -> Result<(), Error> {
        if let Some(profile) = &labels.apparmor {
            // The module's own file since Linux 5.8; the other is that of whichever comes first.
            let text = format!("exec {profile}");
            let written = match self.write("self/attr/apparmor/exec", &text) {
                Err(AnyErrno(nix::errno::Errno::ENOENT)) => self.write("self/attr/exec", &text),
                answer => answer,
            };
            written.map_err(unlabelled("AppArmor profile", profile))?;
        }
        if let Some(context) = &labels.selinux {
            self.write("self/attr/exec", context)
                .map_err(unlabelled("SELinux context", context))?;
        }
        Ok(())
    }

    /// Runs `work` with the keys and keyrings that it makes labelled like the program that
    /// comes to own them.
    pub(crate) fn with_key_label(
        &self,
        labels: &Labels,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(context) = &labels.selinux else { return work() };
        let label = |text: &str| {
            let written = self.write("self/attr/keycreate", text);
            written.map_err(unlabelled("SELinux context of keys", context))
        };
        label(context)?;
        work()?;
        // An empty one is the default again; a line end is how to write that.
        label("\n")
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

fn unlabelled(what: &'static str, label: &str) -> impl FnOnce(AnyErrno) -> Error {
    let label = label.to_owned();
    move |errno| Error::Label { what: what.into(), label, source: errno.0 }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Files in place of the kernel's.
    fn fake(files: &[&str]) -> (tempfile::TempDir, Procfs) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join("self/attr").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let procfs = Procfs(rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap());
        (dir, procfs)
    }

    fn read(dir: &Path, file: &str) -> String {
        fs::read_to_string(dir.join("self/attr").join(file)).unwrap()
    }

    fn labels(apparmor: Option<&str>, selinux: Option<&str>) -> Labels {
        Labels { apparmor: apparmor.map(Into::into), selinux: selinux.map(Into::into) }
    }

    #[test]
    fn labels_go_to_the_files_of_their_modules() {
        let (dir, procfs) = fake(&["exec", "apparmor/exec", "keycreate"]);
        procfs.label_next_program(&labels(None, None)).unwrap();
        assert_eq!(read(dir.path(), "exec"), "");
        procfs.label_next_program(&labels(Some("p"), Some("u:r:t:s0"))).unwrap();
        assert_eq!(read(dir.path(), "apparmor/exec"), "exec p");
        assert_eq!(read(dir.path(), "exec"), "u:r:t:s0");
        let mut seen = String::new();
        let work = || {
            seen = read(dir.path(), "keycreate");
            Ok(())
        };
        procfs.with_key_label(&labels(None, Some("u:r:t:s0")), work).unwrap();
        assert_eq!(seen, "u:r:t:s0");
        assert!(read(dir.path(), "keycreate").starts_with('\n'), "it was not taken back");

        let (dir, procfs) = fake(&["exec"]);
        procfs.label_next_program(&labels(Some("p"), None)).unwrap();
        assert_eq!(read(dir.path(), "exec"), "exec p");
    }

    /// teeth: crates/oci-runtime/src/init/procfs.rs: `ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;` → `ResolveFlags::empty();`
    #[test]
    fn r5_a_label_is_written_nowhere_else_and_never_passed_over() {
        let (dir, procfs) = fake(&["other"]);
        let elsewhere = tempfile::tempdir().unwrap();
        let canary = elsewhere.path().join("exec");
        fs::write(&canary, "").unwrap();
        std::os::unix::fs::symlink(&canary, dir.path().join("self/attr/exec")).unwrap();
        let asked = labels(None, Some("u:r:t:s0"));
        assert!(matches!(procfs.label_next_program(&asked), Err(Error::Label { .. })));
        assert!(procfs.with_key_label(&asked, || Ok(())).is_err());
        assert_eq!(fs::read_to_string(&canary).unwrap(), "");
    }
}
