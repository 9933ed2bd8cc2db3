//! Which namespaces are new, and which are joined.

use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::error::Error;

/// An existing namespace to join.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Namespace {
    pub(crate) kind: &'static str,
    /// Its `CLONE_NEW*` flag.
    pub(crate) flag: CloneFlags,
    /// Often `/proc/self/fd/N`, a descriptor the caller holds.
    pub(crate) path: PathBuf,
}

/// The namespaces of a container. What is in neither list is shared with the caller.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Namespaces {
    /// To be made, the mount namespace always among them.
    pub(crate) new: CloneFlags,
    /// To be joined.
    pub(crate) join: Vec<Namespace>,
}

impl Namespaces {
    /// Reads `linux.namespaces`.
    pub(crate) fn new(linux: &Linux) -> Result<Self, Error> {
        const FIELD: &str = "linux.namespaces";
        let mut new = CloneFlags::empty();
        let mut join = Vec::new();
        let mut seen = CloneFlags::empty();
        for namespace in linux.namespaces().as_deref().unwrap_or_default() {
            let (kind, flag) = kind(namespace.typ())
                .ok_or_else(|| Error::unsupported(FIELD, format!("{}", namespace.typ())))?;
            if seen.contains(flag) {
                return Err(Error::invalid(FIELD, format!("{kind} is there twice")));
            }
            seen |= flag;
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => new |= flag,
                Some(path) if !path.is_absolute() => {
                    return Err(Error::invalid(FIELD, format!("path of {kind} is not absolute")));
                }
                Some(path) => join.push(Namespace { kind, flag, path: path.clone() }),
            }
        }
        if !new.contains(CloneFlags::CLONE_NEWNS) {
            return Err(Error::unsupported(FIELD, "a mount namespace that is not new"));
        }
        Ok(Self { new, join })
    }

    /// Whether the container's is another than the caller's.
    pub(crate) fn is_private(&self, flag: CloneFlags) -> bool {
        self.new.contains(flag) || self.join.iter().any(|namespace| namespace.flag == flag)
    }
}

fn kind(typ: LinuxNamespaceType) -> Option<(&'static str, CloneFlags)> {
    match typ {
        LinuxNamespaceType::Mount => Some(("mount", CloneFlags::CLONE_NEWNS)),
        LinuxNamespaceType::Cgroup => Some(("cgroup", CloneFlags::CLONE_NEWCGROUP)),
        LinuxNamespaceType::Uts => Some(("uts", CloneFlags::CLONE_NEWUTS)),
        LinuxNamespaceType::Ipc => Some(("ipc", CloneFlags::CLONE_NEWIPC)),
        LinuxNamespaceType::Pid => Some(("pid", CloneFlags::CLONE_NEWPID)),
        LinuxNamespaceType::Network => Some(("network", CloneFlags::CLONE_NEWNET)),
        LinuxNamespaceType::User | LinuxNamespaceType::Time => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Namespaces, Error> {
        Namespaces::new(&serde_json::from_str(&format!("{{\"namespaces\":{json}}}")).unwrap())
    }

    #[test]
    fn a_namespace_is_new_or_joined_or_shared() {
        let all = read(
            r#"[{"type":"mount"},{"type":"pid"},{"type":"network","path":"/proc/self/fd/10"}]"#,
        )
        .unwrap();
        assert_eq!(all.new, CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID);
        assert_eq!(all.join.len(), 1);
        assert!(all.is_private(CloneFlags::CLONE_NEWNET));
        assert!(!all.is_private(CloneFlags::CLONE_NEWIPC));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for bad in [
            "[]",
            r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#,
            r#"[{"type":"mount"},{"type":"user"}]"#,
            r#"[{"type":"mount"},{"type":"time"}]"#,
        ] {
            assert!(matches!(read(bad), Err(Error::Unsupported { .. })), "{bad}");
        }
        for bad in [
            r#"[{"type":"mount"},{"type":"mount"}]"#,
            r#"[{"type":"mount"},{"type":"ipc","path":"ns/ipc"}]"#,
        ] {
            assert!(matches!(read(bad), Err(Error::InvalidSpec { .. })), "{bad}");
        }
    }
}
