//! One specification file (CDI specification, "CDI JSON Specification").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::Edits;
use crate::name::{is_device, is_kind};

/// The versions there are; what a later one adds is refused as an unknown field.
const VERSIONS: [&str; 9] =
    ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "1.2.0"];

/// A file, understood.
#[derive(Debug)]
pub(crate) struct Document {
    /// `vendor/class`.
    pub(crate) kind: String,
    /// What all of its devices have in common.
    pub(crate) common: Part,
    /// Each device's own.
    pub(crate) devices: BTreeMap<String, Part>,
}

/// What a device, or all devices of a file, bring.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) edits: Edits,
    /// What it asks for that Berth does not do.
    pub(crate) unsupported: Option<&'static str>,
}

/// A device node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the node.
    pub host_path: PathBuf,
    /// What it is; `None` is whatever it is on the node.
    pub kind: Option<NodeKind>,
    /// Major number; `None` is that of the node's.
    pub major: Option<u32>,
    /// Minor number; `None` is that of the node's.
    pub minor: Option<u32>,
    /// Permission bits; `None` are those of the node's.
    pub mode: Option<u32>,
    /// What cgroup device rules allow: a string of `r`, `w`, `m`.
    pub access: String,
    /// Owner; `None` is the container's user.
    pub uid: Option<u32>,
    /// Group; `None` is the container's.
    pub gid: Option<u32>,
}

/// What a device node is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize)]
pub enum NodeKind {
    /// A block device.
    #[serde(rename = "b")]
    Block,
    /// A character device.
    #[serde(rename = "c", alias = "u")]
    Char,
    /// A named pipe.
    #[serde(rename = "p")]
    Fifo,
}

/// A program of the vendor's, run while the container is made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hook {
    /// When, and in whose namespaces.
    pub point: HookPoint,
    /// The program, on the node; in the container for [`HookPoint::StartContainer`].
    pub path: PathBuf,
    /// Its arguments, its name first.
    pub args: Vec<String>,
    /// Its environment, `NAME=value`.
    pub env: Vec<String>,
    /// How many seconds it may take.
    pub timeout: Option<u32>,
}

/// When a hook runs (OCI runtime specification, config.md, "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookPoint {
    /// As `CreateRuntime`, and before it.
    Prestart,
    /// In the node's namespaces, before the container's root is entered.
    CreateRuntime,
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, before its program is executed.
    StartContainer,
    /// In the node's namespaces, after the program was executed.
    Poststart,
    /// In the node's namespaces, after the container is gone.
    Poststop,
}

/// A mount, as the OCI runtime specification has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// In the container.
    pub container_path: PathBuf,
    /// On the node.
    pub host_path: String,
    /// File system type; empty is a bind mount.
    pub fs_type: String,
    /// Options as mount(8) has them.
    pub options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFile {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "it is there for people")]
    annotations: IgnoredAny,
    devices: Vec<RawDevice>,
    #[serde(default)]
    container_edits: RawEdits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawDevice {
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "it is there for people")]
    annotations: IgnoredAny,
    #[serde(default)]
    container_edits: RawEdits,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawEdits {
    env: Option<Vec<String>>,
    device_nodes: Option<Vec<RawNode>>,
    net_devices: Option<Vec<IgnoredAny>>,
    hooks: Option<Vec<RawHook>>,
    mounts: Option<Vec<RawMount>>,
    intel_rdt: Option<IgnoredAny>,
    additional_gids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawNode {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type")]
    kind: Option<NodeKind>,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawHook {
    hook_name: HookPoint,
    path: String,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawMount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type", default)]
    fs_type: String,
}

impl Document {
    /// Reads a file's content, which is YAML unless its name ends in `.json`; an error is
    /// for people.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let raw: RawFile = match path.extension().is_some_and(|kind| kind == "json") {
            true => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
            false => serde_saphyr::from_slice(bytes).map_err(|error| error.to_string()),
        }?;
        if !VERSIONS.contains(&raw.cdi_version.as_str()) {
            return Err(format!("cdiVersion {:?} is not known", raw.cdi_version));
        }
        if !is_kind(&raw.kind) {
            return Err(format!("kind {:?} is not of the form vendor/class", raw.kind));
        }
        let mut devices = BTreeMap::new();
        for device in raw.devices {
            if !is_device(&device.name) {
                return Err(format!("{:?} is no name of a device", device.name));
            }
            let part = Part::new(device.container_edits)?;
            if devices.insert(device.name.clone(), part).is_some() {
                return Err(format!("device {} is there twice", device.name));
            }
        }
        if devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        Ok(Self { kind: raw.kind, common: Part::new(raw.container_edits)?, devices })
    }
}

impl Part {
    fn new(raw: RawEdits) -> Result<Self, String> {
        let hooks = raw.hooks.unwrap_or_default().into_iter().map(hook);
        let hooks: Vec<Hook> = hooks.collect::<Result<_, _>>()?;
        let late = |hook: &Hook| matches!(hook.point, HookPoint::Poststart | HookPoint::Poststop);
        let unsupported = if hooks.iter().any(late) {
            Some("poststart or poststop hooks")
        } else if raw.net_devices.is_some_and(|devices| !devices.is_empty()) {
            Some("network devices")
        } else {
            raw.intel_rdt.map(|_| "intelRdt")
        };
        let nodes = raw.device_nodes.unwrap_or_default().into_iter().map(node);
        let mounts = raw.mounts.unwrap_or_default().into_iter().map(mount);
        // Group 0 would be no restriction but a right (CDI specification, "additionalGids").
        let mut groups = raw.additional_gids.unwrap_or_default();
        groups.retain(|group| *group != 0);
        let edits = Edits {
            env: raw
                .env
                .unwrap_or_default()
                .iter()
                .map(|entry| variable(entry))
                .collect::<Result<_, _>>()?,
            nodes: nodes.collect::<Result<_, _>>()?,
            mounts: mounts.collect::<Result<_, _>>()?,
            groups,
            hooks,
        };
        Ok(Self { edits, unsupported })
    }
}

fn variable(entry: &str) -> Result<(String, String), String> {
    match entry.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("env {entry:?} is not of the form NAME=value")),
    }
}

fn node(raw: RawNode) -> Result<DeviceNode, String> {
    let access = raw.permissions.filter(|text| !text.is_empty()).unwrap_or_else(|| "rwm".into());
    if !access.bytes().all(|c| matches!(c, b'r' | b'w' | b'm')) {
        return Err(format!("permissions {access:?} are not made of 'r', 'w' and 'm'"));
    }
    let path = absolute(&raw.path)?;
    let host_path = match raw.host_path.as_deref() {
        None | Some("") => path.clone(),
        Some(host_path) => absolute(host_path)?,
    };
    Ok(DeviceNode {
        path,
        host_path,
        kind: raw.kind,
        major: raw.major,
        minor: raw.minor,
        mode: raw.file_mode.map(|mode| mode & 0o7777),
        access,
        uid: raw.uid,
        gid: raw.gid,
    })
}

fn hook(raw: RawHook) -> Result<Hook, String> {
    let env = raw.env.unwrap_or_default();
    for entry in &env {
        variable(entry)?;
    }
    let args = raw.args.unwrap_or_default();
    if env.iter().chain(&args).any(|text| text.contains('\0')) || raw.timeout == Some(0) {
        return Err(format!("hook {:?} cannot be run", raw.path));
    }
    let path = absolute(&raw.path)?;
    Ok(Hook { point: raw.hook_name, path, args, env, timeout: raw.timeout })
}

fn mount(raw: RawMount) -> Result<Mount, String> {
    if raw.host_path.is_empty() || raw.host_path.contains('\0') {
        return Err(format!("mount at {:?} has no source", raw.container_path));
    }
    Ok(Mount {
        container_path: absolute(&raw.container_path)?,
        host_path: raw.host_path,
        fs_type: raw.fs_type,
        options: raw.options,
    })
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err(format!("path {text:?} is not absolute"));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Result<Document, String> {
        Document::parse(Path::new("/etc/cdi/a.yaml"), text.as_bytes())
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let text = r#"{"cdiVersion":"0.6.0","kind":"v.com/gpu","annotations":{"a":"b"},
            "devices":[{"name":"0","containerEdits":{"env":["A=1=2"],
              "deviceNodes":[{"path":"/dev/x","hostPath":"/dev/null","permissions":"rw","fileMode":438}],
              "mounts":[{"hostPath":"/usr/lib/v","containerPath":"/lib/v","options":["ro"]}],
              "additionalGids":[0,7]}}],
            "containerEdits":{"env":["B="]}}"#;
        for path in ["/a.json", "/a.yaml", "/a.yml"] {
            let document = Document::parse(Path::new(path), text.as_bytes()).unwrap();
            assert_eq!(document.kind, "v.com/gpu");
            let edits = &document.devices["0"].edits;
            assert_eq!(edits.env, [("A".to_owned(), "1=2".to_owned())]);
            assert_eq!(document.common.edits.env, [("B".to_owned(), String::new())]);
            let node = &edits.nodes[0];
            assert_eq!((node.path.as_path(), node.access.as_str()), ("/dev/x".as_ref(), "rw"));
            assert_eq!((node.host_path.as_path(), node.mode), ("/dev/null".as_ref(), Some(0o666)));
            assert_eq!(edits.mounts[0].options, ["ro"]);
            assert_eq!(edits.groups, [7]);
        }
    }

    #[test]
    fn hooks_are_taken_as_their_vendor_wrote_them() {
        let first = "{hookName: createContainer, path: /usr/bin/tool, args: [tool, hook], \
                     env: ['DEBUG=false'], timeout: 5}";
        let document = yaml(&format!(
            "cdiVersion: 1.0.0\nkind: v/c\ndevices: [{{name: d}}]\ncontainerEdits: \
             {{hooks: [{first}, {{hookName: prestart, path: /bin/x}}]}}"
        ));
        let hooks = document.unwrap().common.edits.hooks;
        let first = Hook {
            point: HookPoint::CreateContainer,
            path: "/usr/bin/tool".into(),
            args: vec!["tool".into(), "hook".into()],
            env: vec!["DEBUG=false".into()],
            timeout: Some(5),
        };
        assert_eq!((&hooks[0], hooks[1].point), (&first, HookPoint::Prestart));
    }

    #[test]
    fn what_berth_does_not_do_is_noted_and_costs_nobody_else() {
        let document = yaml(
            "cdiVersion: 1.0.0\nkind: v/c\ndevices:\n\
             - name: a\n  containerEdits:\n    hooks:\n    - hookName: poststop\n      path: /bin/x\n\
             - name: b\n  containerEdits:\n    intelRdt: {closID: x}\n\
             - name: c\n",
        );
        let document = document.unwrap();
        let unsupported = |name: &str| document.devices[name].unsupported;
        assert_eq!(
            [unsupported("a"), unsupported("b"), unsupported("c")],
            [Some("poststart or poststop hooks"), Some("intelRdt"), None]
        );
    }

    #[test]
    fn what_is_wrong_is_an_error_in_words() {
        let file = |kind: &str, device: &str| {
            yaml(&format!("cdiVersion: 0.5.0\nkind: {kind}\ndevices: [{device}]"))
        };
        assert!(file("v/c", "{name: d}").is_ok());
        for (kind, device) in [
            ("v", "{name: d}"),
            ("v/c", ""),
            ("v/c", "{name: d}, {name: d}"),
            ("v/c", "{name: 'd/..'}"),
            ("v/c", "{name: d, unknown: 1}"),
            ("v/c", "{name: d, containerEdits: {env: ['=x']}}"),
            ("v/c", "{name: d, containerEdits: {deviceNodes: [{path: dev}]}}"),
            ("v/c", "{name: d, containerEdits: {deviceNodes: [{path: /d, permissions: x}]}}"),
            ("v/c", "{name: d, containerEdits: {deviceNodes: [{path: /d, type: q}]}}"),
            ("v/c", "{name: d, containerEdits: {mounts: [{hostPath: '', containerPath: /a}]}}"),
            ("v/c", "{name: d, containerEdits: {hooks: [{hookName: later, path: /a}]}}"),
            ("v/c", "{name: d, containerEdits: {hooks: [{hookName: prestart, path: a}]}}"),
            (
                "v/c",
                "{name: d, containerEdits: {hooks: [{hookName: prestart, path: /a, timeout: 0}]}}",
            ),
            ("v/c", "{name: d, containerEdits: {future: 1}}"),
        ] {
            assert!(file(kind, device).is_err(), "{kind} {device}");
        }
        assert!(yaml("cdiVersion: 9.0.0\nkind: v/c\ndevices: [{name: d}]").is_err());
        assert!(yaml("]").is_err());
        // An attack by repetition ends at the parser's own limits.
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for level in 1..40 {
            let before = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(","));
        }
        assert!(yaml(&bomb).is_err());
    }
}
