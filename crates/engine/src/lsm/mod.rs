//! The security modules of the node's kernel, as far as a container is told to them.
//!
//! What a request says of a module that the kernel does not have is of no effect, as with
//! other runtimes, but for an AppArmor profile that it names: a container that asks to be
//! confined by it must not run without.

pub(crate) mod apparmor;
pub(crate) mod relabel;
pub(crate) mod selinux;

use std::path::PathBuf;

use berth_model::container::Security;
use berth_model::mount::BindMount;
use berth_model::{SandboxId, SandboxSpec};
use berth_spec::Labels;

use crate::Error;
use apparmor::Apparmor;
use selinux::Selinux;

/// What the kernel has; `None` is a module that is absent or switched off.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    apparmor: Option<Apparmor>,
    selinux: Option<Selinux>,
    /// The daemon's own directories, which no container is given the context of.
    own: Vec<PathBuf>,
}

impl Modules {
    /// Looks at the kernel. Loads the default AppArmor profile where it is missing. Blocks.
    pub(crate) fn find(own: Vec<PathBuf>) -> Self {
        Self { apparmor: Apparmor::find(), selinux: Selinux::find(), own }
    }

    /// What a container is told to the kernel with.
    pub(crate) fn labels(
        &self,
        sandbox: (&SandboxId, &SandboxSpec),
        security: &Security,
    ) -> Result<Labels, Error> {
        let contexts = self.selinux.as_ref().map(|selinux| {
            let (id, spec) = sandbox;
            selinux.contexts(id, spec.selinux.as_ref(), security.selinux.as_ref())
        });
        Ok(Labels {
            apparmor: apparmor::profile(self.apparmor.as_ref(), security)?,
            // The policy has a domain for privileged containers, which it gives by itself.
            selinux: contexts.as_ref().map(|c| c.process.clone()).filter(|_| !security.privileged),
            mount: contexts.map(|c| c.files),
        })
    }

    /// Labels what the container is to use of the host: the mounts that ask for it, and the
    /// `files` of its sandbox. Blocks.
    pub(crate) fn relabel(
        &self,
        labels: &Labels,
        mounts: &[BindMount],
        files: &[PathBuf],
    ) -> Result<(), Error> {
        let (Some(_), Some(label)) = (&self.selinux, &labels.mount) else { return Ok(()) };
        let asked = mounts.iter().filter(|mount| mount.selinux_relabel && mount.image.is_none());
        for path in asked.map(|mount| &mount.host_path) {
            relabel::check(path, &self.own)?;
            relabel::tree(path, label)?;
        }
        // They are the daemon's own, wherever its directory really is.
        let real = |path: &PathBuf| path.canonicalize().map_err(Error::io("find", path));
        files.iter().try_for_each(|path| relabel::tree(&real(path)?, label))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::relabel::label;
    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    /// A node with SELinux, and a container's context.
    fn node(own: &[&Path]) -> (Modules, Labels) {
        let own = own.iter().map(|path| path.to_path_buf()).collect();
        let labels = Labels { mount: Some(LABEL.to_owned()), ..Labels::default() };
        (Modules { apparmor: None, selinux: Some(Selinux::of("")), own }, labels)
    }

    fn mount(host: &Path, selinux_relabel: bool) -> BindMount {
        BindMount { host_path: host.to_owned(), selinux_relabel, ..BindMount::default() }
    }

    /// A directory with directories `names`, each with a file.
    fn volumes(names: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("file"), "").unwrap();
        }
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    /// Only root gives files such an attribute.
    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    /// teeth: crates/engine/src/lsm/mod.rs: `mount.selinux_relabel && mount.image.is_none()` → `mount.image.is_none()`
    /// teeth: crates/engine/src/lsm/mod.rs: `relabel::tree(path, label)?;` → ``
    #[test]
    fn d6_a_volume_is_labelled_when_that_is_asked_for_and_else_not() {
        if !is_root() {
            return;
        }
        let (_dir, path) = volumes(&["asked", "plain", "files"]);
        let [asked, plain, files] = ["asked", "plain", "files"].map(|name| path.join(name));
        let (modules, labels) = node(&[]);
        let mounts = [mount(&plain, false), mount(&asked, true)];
        modules.relabel(&labels, &mounts, std::slice::from_ref(&files)).unwrap();
        for given in [&asked, &files] {
            assert_eq!(label(given).as_deref(), Some(LABEL));
            assert_eq!(label(&given.join("file")).as_deref(), Some(LABEL));
        }
        for kept in [&path, &plain, &plain.join("file")] {
            assert_ne!(label(kept).as_deref(), Some(LABEL), "{}", kept.display());
        }
    }

    /// teeth: crates/engine/src/lsm/mod.rs: `let (Some(_), Some(label)) = (` → `let (_, Some(label)) = (`
    #[test]
    fn d6_what_a_container_without_a_context_mounts_keeps_its_own() {
        let (_dir, path) = volumes(&["asked"]);
        let mounts = [mount(&path.join("asked"), true)];
        let (modules, labels) = node(&[]);
        modules.relabel(&Labels::default(), &mounts, &[]).unwrap();
        Modules::default().relabel(&labels, &mounts, &[]).unwrap();
        assert_ne!(label(&path.join("asked")).as_deref(), Some(LABEL));
    }

    /// teeth: crates/engine/src/lsm/mod.rs: `relabel::check(path, &self.own)?;` → ``
    /// teeth: crates/engine/src/lsm/mod.rs: `relabel::check(path, &self.own)?;` → `relabel::check(path, &[])?;`
    #[test]
    fn d6_what_is_the_nodes_or_the_daemons_is_refused_and_keeps_its_label() {
        let (_dir, path) = volumes(&["root", "run"]);
        let [root, run] = ["root", "run"].map(|name| path.join(name));
        let (modules, labels) = node(&[&root, &run]);
        // Below /etc it is one that is not there: were it not refused, nothing would be lost.
        let absent = PathBuf::from("/etc/berth/no-such-volume");
        for bad in [&absent, &root, &run, &root.join("file"), &path] {
            let refused = modules.relabel(&labels, &[mount(bad, true)], &[]).unwrap_err();
            let kind = refused.kind();
            assert_eq!(kind, berth_model::ErrorKind::InvalidArgument, "{refused}");
            assert!(refused.to_string().contains(&*bad.to_string_lossy()), "{refused}");
            assert_ne!(label(bad).as_deref(), Some(LABEL), "{}", bad.display());
        }
        modules.relabel(&labels, &[mount(&absent, false)], &[]).unwrap();
    }
}
