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
