//! Kernel parameters that a sandbox may set: those of its own namespaces.
//!
//! A name is a fixed word or a known prefix, never a path: `kernel.core_pattern` behind
//! a `+` or `/` once ran programs as root of the node (CVE-2022-0811).

use std::collections::BTreeMap;

use berth_model::sandbox::{NamespaceMode, NamespaceOptions};

use crate::Error;

/// Longest value; what the kernel reads in one write is a page.
const MAX_VALUE_BYTES: usize = 4096;

/// Parameters of the IPC namespace (ipc_namespaces(7)).
const IPC: [&str; 11] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.msg_next_id",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
];
const QUEUES: &str = "fs.mqueue.";
const NETWORK: &str = "net.";

/// Checks that every parameter belongs to a namespace that the sandbox does not share
/// with the node.
pub fn check(
    sysctls: &BTreeMap<String, String>,
    namespaces: &NamespaceOptions,
) -> Result<(), Error> {
    for (name, value) in sysctls {
        let error = |problem| Error::Sysctl { name: name.chars().take(128).collect(), problem };
        check_text(name, value).map_err(error)?;
        let owner = if IPC.contains(&name.as_str()) || name.starts_with(QUEUES) {
            &namespaces.ipc
        } else if name.starts_with(NETWORK) {
            &namespaces.network
        } else {
            return Err(error("it does not belong to a namespace"));
        };
        if *owner == NamespaceMode::Node {
            return Err(error("the sandbox uses the node's namespace"));
        }
    }
    Ok(())
}

/// A `/` is allowed only as sysctl(8) writes it: for a dot within an interface name.
fn check_text(name: &str, value: &str) -> Result<(), &'static str> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | ':' | '@');
    let segment = |segment: &str| {
        let bad = segment.is_empty() || segment.starts_with('/') || segment.ends_with('/');
        !bad && !segment.contains("//") && segment.chars().all(word)
    };
    if !name.split('.').all(segment) {
        return Err("its name must be words joined by dots");
    }
    if value.len() > MAX_VALUE_BYTES || value.contains(['\0', '\n']) {
        return Err("its value must be one line of at most 4096 bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(name: &str, value: &str, namespaces: &NamespaceOptions) -> Result<(), Error> {
        check(&[(name.to_owned(), value.to_owned())].into(), namespaces)
    }

    #[test]
    fn parameters_of_own_namespaces_are_allowed() {
        for name in [
            "kernel.shm_rmid_forced",
            "fs.mqueue.msg_max",
            "net.core.somaxconn",
            "net.ipv4.conf.eth0/100.forwarding",
        ] {
            check_one(name, "1", &NamespaceOptions::default()).unwrap();
        }
    }

    /// teeth: crates/spec/src/sysctl.rs: `return Err(error("it does not belong to a namespace"))` → `continue`
    #[test]
    fn d9_parameters_of_the_node_are_refused() {
        for name in [
            "kernel.core_pattern",
            "kernel.shmmaxx",
            "kernel",
            "vm.swappiness",
            "fs.mqueue",
            "net",
            "",
            ".",
            "net.",
            "net..core",
            "net.ipv4/../../kernel.core_pattern",
            "net./kernel",
            "net.a=1+kernel.core_pattern",
            "net.core.somaxconn\n",
            "../kernel/core_pattern",
        ] {
            let result = check_one(name, "1", &NamespaceOptions::default());
            assert!(matches!(result, Err(Error::Sysctl { .. })), "{name:?}");
        }
        let long = "x".repeat(4097);
        for value in ["1\n2", "\0", &long] {
            check_one("net.core.somaxconn", value, &NamespaceOptions::default()).unwrap_err();
        }
    }

    /// teeth: crates/spec/src/sysctl.rs: `if *owner == NamespaceMode::Node {` → `if false {`
    /// teeth: crates/spec/src/sysctl.rs: `&namespaces.ipc` → `&namespaces.network`
    #[test]
    fn d9_a_namespace_of_the_node_keeps_its_parameters() {
        let network =
            NamespaceOptions { network: NamespaceMode::Node, ..NamespaceOptions::default() };
        let ipc = NamespaceOptions { ipc: NamespaceMode::Node, ..NamespaceOptions::default() };
        check_one("net.core.somaxconn", "1", &network).unwrap_err();
        check_one("net.core.somaxconn", "1", &ipc).unwrap();
        check_one("kernel.sem", "1", &ipc).unwrap_err();
        check_one("fs.mqueue.msg_max", "1", &ipc).unwrap_err();
        check_one("kernel.sem", "1", &network).unwrap();
    }
}
