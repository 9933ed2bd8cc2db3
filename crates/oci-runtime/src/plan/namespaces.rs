//! Which namespaces are new, and which are joined.

use std::path::PathBuf;

use berth_model::IdMappings;
use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::ids;
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
    /// To be joined, but for that of users.
    pub(crate) join: Vec<Namespace>,
    /// That of users, if it is not the caller's. It owns those that are new.
    pub(crate) user: Option<UserNamespace>,
}

/// The user namespace of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UserNamespace {
    /// An existing one; `None` makes one.
    pub(crate) join: Option<Namespace>,
    /// Where its ids lie on the host.
    pub(crate) ids: IdMappings,
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
        let user = user(linux, &mut new, &mut join)?;
        Ok(Self { new, join, user })
    }

    /// Whether the container's is another than the caller's.
    pub(crate) fn is_private(&self, flag: CloneFlags) -> bool {
        self.new.contains(flag) || self.join.iter().any(|namespace| namespace.flag == flag)
    }
}

/// Takes the user namespace out of the others: it is made, or entered, on its own.
fn user(
    linux: &Linux,
    new: &mut CloneFlags,
    join: &mut Vec<Namespace>,
) -> Result<Option<UserNamespace>, Error> {
    const FIELD: &str = "linux.uidMappings";
    let existing = join.iter().position(|namespace| namespace.flag == CloneFlags::CLONE_NEWUSER);
    let wanted = existing.is_some() || new.contains(CloneFlags::CLONE_NEWUSER);
    new.remove(CloneFlags::CLONE_NEWUSER);
    match (wanted, ids::of_namespace(linux)?) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Error::invalid(FIELD, "needs a user namespace")),
        (true, None) => Err(Error::invalid(FIELD, "a user namespace needs mappings")),
        (true, Some(ids)) => {
            if ids.host_uid(0).is_none() || ids.host_gid(0).is_none() {
                return Err(Error::invalid(FIELD, "id 0 is not mapped"));
            }
            let join = existing.map(|index| join.remove(index));
            Ok(Some(UserNamespace { join, ids }))
        }
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
        LinuxNamespaceType::User => Some(("user", CloneFlags::CLONE_NEWUSER)),
        LinuxNamespaceType::Time => None,
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
    fn a_user_namespace_is_neither_new_nor_joined_with_the_others() {
        let mapping = r#"[{"containerID":0,"hostID":1000,"size":9}]"#;
        let read_user = |user: &str, uids: &str| {
            let maps = format!(r#""uidMappings":{uids},"gidMappings":{mapping}"#);
            read(&format!(r#"[{{"type":"mount"}},{{"type":"user"{user}}}],{maps}"#))
        };
        let joined = read_user(r#","path":"/proc/self/fd/14""#, mapping).unwrap();
        assert!(joined.join.is_empty());
        let user = joined.user.unwrap();
        assert_eq!(user.join.unwrap().path, PathBuf::from("/proc/self/fd/14"));
        assert_eq!(user.ids.host_uid(8), Some(1008));
        let made = read_user("", mapping).unwrap();
        assert_eq!(made.new, CloneFlags::CLONE_NEWNS);
        assert!(made.user.unwrap().join.is_none());
        for bad in ["[]", r#"[{"containerID":1,"hostID":1000,"size":9}]"#] {
            assert!(matches!(read_user("", bad), Err(Error::InvalidSpec { .. })), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for bad in [
            "[]",
            r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#,
            r#"[{"type":"mount"},{"type":"time"}]"#,
        ] {
            assert!(matches!(read(bad), Err(Error::Unsupported { .. })), "{bad}");
        }
        for bad in [
            r#"[{"type":"mount"},{"type":"mount"}]"#,
            r#"[{"type":"mount"},{"type":"ipc","path":"ns/ipc"}]"#,
            r#"[{"type":"mount"},{"type":"user"}]"#,
            r#"[{"type":"mount"}],"uidMappings":[{"containerID":0,"hostID":9,"size":9}]"#,
        ] {
            assert!(matches!(read(bad), Err(Error::InvalidSpec { .. })), "{bad}");
        }
    }
}
