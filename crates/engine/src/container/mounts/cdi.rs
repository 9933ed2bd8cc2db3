//! What devices by the names of their vendors bring, as it is on this node.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use berth_cdi::{Catalogue, DeviceNode, Edits, HookPoint, NodeKind};
use berth_model::container::EnvVar;
use berth_model::{ContainerSpec, IdMappings};
use berth_spec::user::ResolvedUser;
use berth_spec::{DeviceMount, HostDevice};
use oci_spec::runtime::{Hooks, LinuxDeviceType};
use serde_json::json;

use super::narrow;
use crate::Error;

/// The devices that `spec` asks for by name, and `more`.
pub(in crate::container) fn edits(
    catalogue: &Catalogue,
    spec: &ContainerSpec,
    more: &[String],
) -> Result<Edits, Error> {
    let name = spec.name.name.clone();
    let names = spec.cdi_devices.iter().chain(more);
    catalogue.resolve(names).map_err(|source| Error::Cdi { name, source })
}

/// Variables, which count more than those of the request.
pub(in crate::container) fn environment(edits: &Edits) -> impl Iterator<Item = EnvVar> + '_ {
    let variable = |(name, value): &(String, String)| EnvVar {
        name: name.clone(),
        value: value.clone().into_bytes(),
    };
    edits.env.iter().map(variable)
}

/// Programs to run while the container is made.
pub(in crate::container) fn hooks(edits: &Edits) -> Result<Option<Hooks>, Error> {
    if edits.hooks.is_empty() {
        return Ok(None);
    }
    let mut all = serde_json::Map::new();
    for hook in &edits.hooks {
        let point = match hook.point {
            HookPoint::Prestart => "prestart",
            HookPoint::CreateRuntime => "createRuntime",
            HookPoint::CreateContainer => "createContainer",
            HookPoint::StartContainer => "startContainer",
            HookPoint::Poststart => "poststart",
            HookPoint::Poststop => "poststop",
        };
        let mut one = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(timeout) = hook.timeout {
            one["timeout"] = json!(timeout);
        }
        let list = all.entry(point).or_insert_with(|| json!([]));
        list.as_array_mut().into_iter().for_each(|list| list.push(one.clone()));
    }
    let hooks = serde_json::from_value(all.into());
    hooks.map(Some).map_err(|error| Error::invalid("CDI hooks", error.to_string()))
}

/// Mounts; one without a type is a bind mount.
pub(in crate::container) fn mounts(edits: &Edits) -> Vec<DeviceMount> {
    let mount = |mount: &berth_cdi::Mount| {
        let bind = mount.fs_type.is_empty() || mount.fs_type == "none";
        let mut options = mount.options.clone();
        if bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.insert(0, "rbind".to_owned());
        }
        DeviceMount {
            path: mount.container_path.clone(),
            source: PathBuf::from(&mount.host_path),
            kind: if bind { "bind".to_owned() } else { mount.fs_type.clone() },
            options,
        }
    };
    edits.mounts.iter().map(mount).collect()
}

/// Device nodes: what a specification leaves out is as the node has it, but an owner: that
/// is the container's user, since nobody else is to use it. `ids` is where the pod's own users
/// lie on the node.
pub(in crate::container) fn nodes(
    edits: &Edits,
    user: &ResolvedUser,
    ids: Option<&IdMappings>,
) -> Result<Vec<HostDevice>, Error> {
    let mapped = ids.and_then(|ids| Some((ids.host_uid(user.uid)?, ids.host_gid(user.gid)?)));
    let owner = mapped.unwrap_or((user.uid, user.gid));
    edits.nodes.iter().map(|node| device(node, owner)).collect()
}

fn device(node: &DeviceNode, owner: (u32, u32)) -> Result<HostDevice, Error> {
    let (kind, major, minor, mode) = match (node.kind, node.major, node.minor) {
        (Some(NodeKind::Fifo), ..) => (NodeKind::Fifo, 0, 0, node.mode.unwrap_or(0o666)),
        (Some(kind), Some(major), Some(minor)) if node.mode.is_some() => {
            (kind, major, minor, node.mode.unwrap_or_default())
        }
        _ => on_node(node)?,
    };
    Ok(HostDevice {
        path: node.path.clone(),
        kind: match kind {
            NodeKind::Block => LinuxDeviceType::B,
            NodeKind::Char => LinuxDeviceType::C,
            NodeKind::Fifo => LinuxDeviceType::P,
        },
        major,
        minor,
        mode,
        uid: node.uid.unwrap_or(owner.0),
        gid: node.gid.unwrap_or(owner.1),
        access: node.access.clone(),
    })
}

fn on_node(node: &DeviceNode) -> Result<(NodeKind, u32, u32, u32), Error> {
    let refused = |problem: String| {
        Error::invalid("CDI device", format!("{}: {problem}", node.host_path.display()))
    };
    let found = fs::metadata(&node.host_path).map_err(|error| refused(error.to_string()))?;
    let kind = match found.file_type() {
        kind if kind.is_block_device() => NodeKind::Block,
        kind if kind.is_char_device() => NodeKind::Char,
        kind if kind.is_fifo() => NodeKind::Fifo,
        _ => return Err(refused("it is not a device".to_owned())),
    };
    if node.kind.is_some_and(|asked| asked != kind) {
        return Err(refused("it is a device of another kind".to_owned()));
    }
    let number = found.rdev();
    let major = node.major.unwrap_or(narrow(nix::sys::stat::major(number)));
    let minor = node.minor.unwrap_or(narrow(nix::sys::stat::minor(number)));
    Ok((kind, major, minor, node.mode.unwrap_or(found.mode() & 0o7777)))
}

#[cfg(test)]
mod tests {
    use berth_model::IdRange;

    use super::*;

    fn node(host_path: &str) -> DeviceNode {
        DeviceNode {
            path: "/dev/given".into(),
            host_path: host_path.into(),
            kind: None,
            major: None,
            minor: None,
            mode: None,
            access: "rw".to_owned(),
            uid: None,
            gid: Some(9),
        }
    }

    #[test]
    fn what_a_specification_leaves_out_is_as_the_node_has_it() {
        let null = device(&node("/dev/null"), (5, 6)).unwrap();
        assert_eq!((null.kind, null.major, null.minor), (LinuxDeviceType::C, 1, 3));
        assert_eq!((null.uid, null.gid, null.access.as_str()), (5, 9, "rw"));
        let whole = DeviceNode {
            kind: Some(NodeKind::Block),
            major: Some(8),
            minor: Some(1),
            mode: Some(0o600),
            ..node("/nonexistent")
        };
        let whole = device(&whole, (5, 6)).unwrap();
        assert_eq!((whole.kind, whole.major, whole.mode), (LinuxDeviceType::B, 8, 0o600));
        for bad in [
            node("/nonexistent"),
            node("/etc/passwd"),
            DeviceNode { kind: Some(NodeKind::Block), ..node("/dev/null") },
        ] {
            assert!(device(&bad, (5, 6)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_node_without_an_owner_is_for_the_containers_user_where_he_lies_on_the_node() {
        let user = ResolvedUser { uid: 5, gid: 6, groups: vec![], home: None };
        let edits = Edits {
            nodes: vec![DeviceNode { gid: None, ..node("/dev/null") }, node("/dev/null")],
            ..Edits::default()
        };
        let range = |host| vec![IdRange { container: 0, host, length: 10 }];
        let ids = IdMappings { uids: range(1000), gids: range(2000) };
        let owners = |ids: Option<&IdMappings>| {
            let nodes = nodes(&edits, &user, ids).unwrap();
            nodes.iter().map(|node| (node.uid, node.gid)).collect::<Vec<_>>()
        };
        assert_eq!(owners(None), [(5, 6), (5, 9)]);
        assert_eq!(owners(Some(&ids)), [(1005, 2006), (1005, 9)]);
    }

    #[test]
    fn a_mount_without_a_type_is_a_bind_mount() {
        let mount = |fs_type: &str, options: &[&str]| berth_cdi::Mount {
            container_path: "/c".into(),
            host_path: "/h".to_owned(),
            fs_type: fs_type.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
        };
        let edits = Edits {
            mounts: vec![mount("", &["ro"]), mount("", &["bind"]), mount("tmpfs", &["size=1m"])],
            ..Edits::default()
        };
        let mounts: Vec<_> =
            mounts(&edits).into_iter().map(|m| (m.kind, m.options.join(","))).collect();
        let expected = [("bind", "rbind,ro"), ("bind", "bind"), ("tmpfs", "size=1m")];
        assert_eq!(mounts, expected.map(|(kind, options)| (kind.to_owned(), options.to_owned())));
    }
}
