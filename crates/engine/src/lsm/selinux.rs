//! SELinux: the contexts of a container's processes and files.

use std::path::Path;

use berth_model::container::SelinuxOptions;
use berth_model::{Digest, SandboxId};

use crate::files;

/// There as long as SELinux is switched on.
const ENABLED: &str = "/sys/fs/selinux/enforce";
/// Which policy is in use.
const CONFIG: &str = "/etc/selinux/config";
/// Most of a file that is read, bytes.
const MAX_FILE: u64 = 64 << 10;
/// Categories of a level.
const CATEGORIES: u32 = 1024;

/// The module, switched on, with what the policy wants of containers.
#[derive(Debug)]
pub(crate) struct Selinux {
    process: String,
    files: String,
}

/// The contexts of one container.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Contexts {
    pub(crate) process: String,
    pub(crate) files: String,
}

impl Selinux {
    /// `None` on a node without it.
    pub(super) fn find() -> Option<Self> {
        if !Path::new(ENABLED).exists() {
            return None;
        }
        let read = |path: &str| {
            let text = files::read_bounded(Path::new(path), MAX_FILE).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        let config = read(CONFIG);
        let policy = value(&config, "SELINUXTYPE").unwrap_or("targeted");
        Some(Self::of(&read(&format!("/etc/selinux/{policy}/contexts/lxc_contexts"))))
    }

    /// What a policy's `lxc_contexts` says (libselinux: selinux_lxc_contexts_path(3)).
    pub(super) fn of(text: &str) -> Self {
        let or = |name, default: &str| value(text, name).unwrap_or(default).to_owned();
        Self {
            process: or("process", "system_u:system_r:container_t:s0"),
            files: or("file", "system_u:object_r:container_file_t:s0"),
        }
    }

    /// The contexts of a container: its own options, else the sandbox's, else the policy's.
    /// Without a level they are those of the sandbox alone, so that its containers may use
    /// each other's files, and others' may not.
    pub(super) fn contexts(
        &self,
        sandbox: &SandboxId,
        of_sandbox: Option<&SelinuxOptions>,
        own: Option<&SelinuxOptions>,
    ) -> Contexts {
        let none = SelinuxOptions::default();
        let asked = own.or(of_sandbox).unwrap_or(&none);
        let levels = [own, of_sandbox].into_iter().flatten().map(|options| options.level.as_str());
        let level = levels.into_iter().find(|level| !level.is_empty());
        let level = level.map_or_else(|| own_level(sandbox), str::to_owned);
        let apply = |context: &str, role: &str, kind: &str| {
            let mut parts = context.splitn(4, ':');
            let mut part = |asked: &str| {
                let default = parts.next().unwrap_or_default();
                if asked.is_empty() { default.to_owned() } else { asked.to_owned() }
            };
            format!("{}:{}:{}:{level}", part(&asked.user), part(role), part(kind))
        };
        Contexts {
            process: apply(&self.process, &asked.role, &asked.kind),
            files: apply(&self.files, "", ""),
        }
    }
}

/// Two categories that follow from the sandbox's id: of 523,776 pairs.
fn own_level(sandbox: &SandboxId) -> String {
    let hash = Digest::of(sandbox.as_str().as_bytes()).hex().to_string();
    let number = |at: usize| u32::from_str_radix(&hash[at..at + 7], 16).unwrap_or_default();
    let first = number(0) % CATEGORIES;
    // One of the others.
    let second = (first + 1 + number(7) % (CATEGORIES - 1)) % CATEGORIES;
    format!("s0:c{},c{}", first.min(second), first.max(second))
}

/// The value of a line `name = "value"`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selinux() -> Selinux {
        Selinux::of(
            "process = \"system_u:system_r:container_t:s0\"\n\
             content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
             file = \"system_u:object_r:container_file_t:s0\"\n",
        )
    }

    fn options(user: &str, role: &str, kind: &str, level: &str) -> SelinuxOptions {
        let [user, role, kind, level] = [user, role, kind, level].map(str::to_owned);
        SelinuxOptions { user, role, kind, level }
    }

    #[test]
    fn containers_of_a_sandbox_share_a_level_that_others_do_not_have() {
        let [a, b] = ["a", "b"].map(|id| SandboxId::new(id).unwrap());
        let of = |id: &SandboxId| selinux().contexts(id, None, None);
        assert_eq!(of(&a), of(&a));
        assert_ne!(of(&a).process, of(&b).process);
        let contexts = of(&a);
        let level = contexts.process.strip_prefix("system_u:system_r:container_t:").unwrap();
        assert_eq!(contexts.files, format!("system_u:object_r:container_file_t:{level}"));
        for number in 0..1000 {
            let level = own_level(&SandboxId::new(format!("s{number}")).unwrap());
            let (first, second) = level.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
            let (first, second): (u32, u32) = (first.parse().unwrap(), second.parse().unwrap());
            assert!(first < second && second < CATEGORIES, "{level}");
        }
    }

    #[test]
    fn what_is_asked_for_replaces_parts() {
        let id = SandboxId::new("a").unwrap();
        let of_sandbox = options("", "", "", "s0:c4,c5");
        let own = options("user_u", "user_r", "svirt_t", "");
        let contexts = selinux().contexts(&id, Some(&of_sandbox), Some(&own));
        assert_eq!(contexts.process, "user_u:user_r:svirt_t:s0:c4,c5");
        assert_eq!(contexts.files, "user_u:object_r:container_file_t:s0:c4,c5");
        let own = options("", "", "", "s0");
        let contexts = selinux().contexts(&id, Some(&of_sandbox), Some(&own));
        assert_eq!(contexts.process, "system_u:system_r:container_t:s0");
        let contexts = Selinux::of("").contexts(&id, Some(&of_sandbox), None);
        assert_eq!(contexts.process, "system_u:system_r:container_t:s0:c4,c5");
    }
}
