//! The mounts of a spec, in order.

use std::path::{Path, PathBuf};

use berth_model::IdMappings;
use oci_spec::runtime::{Mount, Spec};

use super::clean_absolute;
use super::ids;
use super::mount_options::MountOptions;
use super::rootfs::RootMount;
use crate::error::Error;

/// One mount in the container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MountPlan {
    /// Where, in the container; clean, never `/`.
    pub(crate) destination: PathBuf,
    pub(crate) what: MountWhat,
    pub(crate) options: MountOptions,
    /// Whether the source of a bind mount is a path without symbolic links, so that one on
    /// the way has been put there since: refused rather than followed.
    pub(crate) exact: bool,
    /// SELinux context that its root gets, where the file system takes none as an option.
    pub(crate) label: Option<String>,
    /// How the owners of its files are shown; `None` as they are.
    pub(crate) ids: Option<IdMappings>,
}

/// Annotation with a JSON list of the destinations of such mounts.
const EXACT_ANNOTATION: &str = "dev.berth.mounts.exact";

/// What is mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum MountWhat {
    /// A directory or file of the host; a relative source is in the bundle.
    Bind {
        /// On the host.
        source: PathBuf,
        /// Whether the mounts below it come along.
        recursive: bool,
    },
    /// The `/dev/shm` of the sandbox.
    SharedShm,
    /// A directory of an image.
    Image {
        /// How the image's layers are mounted.
        layers: RootMount,
        /// The directory; absolute, `/` being the root of the image.
        sub_path: PathBuf,
    },
    /// The cgroup file systems of the host, whatever their version.
    Cgroup,
    /// A new instance of a file system.
    Filesystem {
        /// As in `/proc/filesystems`.
        fs_type: String,
        /// What the type wants as a source, often meaningless.
        source: String,
    },
    /// Nothing: the mount that is there gets other attributes.
    Remount,
}

impl MountPlan {
    /// For messages.
    pub(crate) fn type_name(&self) -> &str {
        match &self.what {
            MountWhat::Bind { .. } => "bind",
            MountWhat::SharedShm => "berth-shared",
            MountWhat::Image { .. } => "berth-image",
            MountWhat::Cgroup => "cgroup",
            MountWhat::Filesystem { fs_type, .. } => fs_type,
            MountWhat::Remount => "remount",
        }
    }

    /// proc, sysfs and cgroups have the contexts that the policy gives them.
    fn label_with(&mut self, label: &str) {
        match &mut self.what {
            MountWhat::SharedShm => self.label = Some(label.to_owned()),
            MountWhat::Filesystem { fs_type, .. } if fs_type == "mqueue" => {
                self.label = Some(label.to_owned());
            }
            MountWhat::Filesystem { fs_type, .. } if fs_type != "proc" && fs_type != "sysfs" => {
                self.options.data.push(("context".to_owned(), Some(label.to_owned())));
            }
            MountWhat::Image { layers, .. } => layers.label_with(label),
            _ => {}
        }
    }

    /// Whether no part of the destination may be a symbolic link: in the file systems of the
    /// kernel a link is an attack, or soon will be (CVE-2019-19921, CVE-2026-41579).
    pub(crate) fn strict(&self) -> bool {
        let kernels = ["/proc", "/sys", "/dev"];
        kernels.iter().any(|top| self.destination.starts_with(top))
            || matches!(&self.what, MountWhat::Filesystem { fs_type, .. }
                if fs_type == "proc" || fs_type == "sysfs")
    }
}

/// Reads the mounts of `spec`; file systems made for the container get the context `label`.
pub(super) fn plan(spec: &Spec, label: Option<&str>) -> Result<Vec<MountPlan>, Error> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut all = mounts.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    if let Some(label) = label {
        all.iter_mut().for_each(|mount| mount.label_with(label));
    }
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(EXACT_ANNOTATION));
    if let Some(annotation) = annotation {
        let exact: Vec<PathBuf> = serde_json::from_str(annotation).map_err(|error| {
            Error::invalid("annotation dev.berth.mounts.exact", error.to_string())
        })?;
        for mount in &mut all {
            mount.exact = exact.contains(&mount.destination);
        }
    }
    Ok(all)
}

/// Whether `/dev` is to be filled: not when a directory of the host is bound there.
pub(super) fn dev_is_ours(mounts: &[MountPlan]) -> bool {
    !mounts.iter().any(|mount| {
        mount.destination == Path::new("/dev")
            && matches!(mount.what, MountWhat::Bind { .. } | MountWhat::Image { .. })
    })
}

fn one(mount: &Mount) -> Result<MountPlan, Error> {
    const FIELD: &str = "mounts";
    // OCI 1.0 allows a relative destination and reads it as one from the root.
    let destination = clean_absolute(&Path::new("/").join(mount.destination()))
        .filter(|path| path.as_path() != Path::new("/"))
        .ok_or_else(|| {
            Error::invalid(FIELD, format!("destination {}", mount.destination().display()))
        })?;
    let at = |reason: &str| format!("{}: {reason}", destination.display());
    let (uids, gids) = (mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
    let ids = ids::read("mounts.uidMappings", uids, gids)?;
    let mut options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
    if ids.is_some() {
        // Says what the mappings say already (config-linux.md, "Mounts").
        options.data.retain(|(name, value)| name != "idmap" || value.is_some());
    }
    if let Some((name, _)) = options.data.iter().find(|(name, _)| {
        matches!(name.as_str(), "idmap" | "ridmap" | "tmpcopyup" | "copy" | "loop")
    }) {
        return Err(Error::unsupported(FIELD, at(&format!("option {name}"))));
    }
    let fs_type = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().clone().unwrap_or_default();
    let what = match fs_type {
        _ if options.remount => MountWhat::Remount,
        "berth-shared" if source == Path::new("shm") => MountWhat::SharedShm,
        "berth-shared" => {
            return Err(Error::invalid(FIELD, at("nothing is shared by that name")));
        }
        "berth-image" => image(&mut options, &source, ids.clone())
            .map_err(|reason| Error::invalid(FIELD, at(reason)))?,
        "bind" | "rbind" | "none" | "" if options.bind.is_some() || fs_type.ends_with("bind") => {
            let recursive = fs_type == "rbind" || options.bind == Some(true);
            MountWhat::Bind { source, recursive }
        }
        _ if options.bind.is_some() => {
            MountWhat::Bind { source, recursive: options.bind == Some(true) }
        }
        "none" | "" => return Err(Error::invalid(FIELD, at("neither a type nor a bind mount"))),
        "cgroup" | "cgroup2" => MountWhat::Cgroup,
        _ => MountWhat::Filesystem {
            fs_type: fs_type.to_owned(),
            source: source
                .into_os_string()
                .into_string()
                .map_err(|_| Error::invalid(FIELD, at("source is not UTF-8")))?,
        },
    };
    let new = matches!(what, MountWhat::Cgroup | MountWhat::Filesystem { .. });
    if !new && let Some((name, _)) = options.data.first() {
        return Err(Error::invalid(FIELD, at(&format!("option {name} means nothing to a bind"))));
    }
    if let MountWhat::Bind { source, .. } = &what
        && source.as_os_str().is_empty()
    {
        return Err(Error::invalid(FIELD, at("a bind mount needs a source")));
    }
    if ids.is_some() && !matches!(what, MountWhat::Bind { .. } | MountWhat::Image { .. }) {
        return Err(Error::invalid(FIELD, at("only a bind mount can map ids")));
    }
    Ok(MountPlan { destination, what, options, ids, exact: false, label: None })
}

/// The layers of an image and the directory in it; what is left of the options is the
/// mount's own.
fn image(
    options: &mut MountOptions,
    source: &Path,
    ids: Option<IdMappings>,
) -> Result<MountWhat, &'static str> {
    let mut data = std::mem::take(&mut options.data);
    let place = data.iter().position(|(name, _)| name == "subpath");
    let sub_path = place.and_then(|place| data.remove(place).1).unwrap_or_default();
    let bind = options.bind.take();
    if bind.is_none() && !matches!(data.as_slice(), [(name, Some(_))] if name == "lowerdir") {
        return Err("an image is made of lower directories");
    }
    let source = source.to_str().ok_or("source is not UTF-8")?.to_owned();
    let fs_type = if bind.is_some() { "bind" } else { "overlay" }.to_owned();
    let own = MountOptions { bind, data, ..MountOptions::default() };
    let sub_path = clean_absolute(&Path::new("/").join(sub_path)).ok_or("subpath")?;
    Ok(MountWhat::Image { layers: RootMount { fs_type, source, options: own, ids }, sub_path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<MountPlan, Error> {
        one(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_type_or_an_option_makes_a_bind() {
        for json in [
            r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind"]}"#,
            r#"{"destination":"/a","type":"none","source":"/s","options":["rbind"]}"#,
            r#"{"destination":"a","source":"/s","options":["rbind"]}"#,
            r#"{"destination":"/b/../a","type":"ext4","source":"/s","options":["rbind"]}"#,
        ] {
            let mount = read(json).unwrap();
            let source = PathBuf::from("/s");
            assert_eq!(mount.what, MountWhat::Bind { source, recursive: true }, "{json}");
            assert_eq!(mount.destination, Path::new("/a"));
        }
    }

    #[test]
    fn a_mount_that_makes_no_sense_is_refused() {
        for json in [
            r#"{"destination":"/","type":"tmpfs"}"#,
            r#"{"destination":"/a/..","type":"tmpfs"}"#,
            r#"{"destination":"/a","type":"none","source":"/s"}"#,
            r#"{"destination":"/a","type":"bind"}"#,
            r#"{"destination":"/a","type":"bind","source":"/s","options":["size=1"]}"#,
            r#"{"destination":"/a","type":"berth-shared","source":"other"}"#,
            r#"{"destination":"/a","type":"berth-image","source":"overlay"}"#,
            r#"{"destination":"/a","type":"berth-image","options":["upperdir=/u"]}"#,
            r#"{"destination":"/a","type":"berth-image","options":["lowerdir=/l","upperdir=/u"]}"#,
        ] {
            assert!(matches!(read(json), Err(Error::InvalidSpec { .. })), "{json}");
        }
    }

    #[test]
    fn a_label_is_the_file_systems_that_are_made() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","mounts":[
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/dev","type":"tmpfs","source":"tmpfs"},
            {"destination":"/dev/mqueue","type":"mqueue","source":"mqueue"},
            {"destination":"/dev/shm","type":"berth-shared","source":"shm"},
            {"destination":"/v","type":"berth-image","options":["lowerdir=/a:/b"]},
            {"destination":"/b","type":"bind","source":"/s"}]}"#,
        )
        .unwrap();
        let all = plan(&spec, Some("u:r:t:s0:c1,c2")).unwrap();
        let data: Vec<_> = all.iter().map(|mount| mount.options.data_string()).collect();
        assert_eq!(data, ["", "context=u:r:t:s0:c1,c2", "", "", "", ""]);
        let labelled: Vec<_> = all.iter().map(|mount| mount.label.is_some()).collect();
        assert_eq!(labelled, [false, false, true, true, false, false]);
        let MountWhat::Image { layers, .. } = &all[4].what else { panic!("{all:?}") };
        let expected = "lowerdir=/a:/b,context=\"u:r:t:s0:c1,c2\"";
        assert_eq!(layers.options.data_string(), expected);
        assert!(plan(&spec, None).unwrap().iter().all(|mount| mount.label.is_none()));
    }

    #[test]
    fn an_image_has_layers_and_a_directory_in_them() {
        let json = r#"{"destination":"/a","type":"berth-image","source":"overlay",
            "options":["ro","nosuid","rprivate","lowerdir=/l/2:/l/1","subpath=x,y/../../z"]}"#;
        let mount = read(json).unwrap();
        assert_eq!((mount.options.attributes.set, mount.options.data.len()), (3, 0));
        let MountWhat::Image { layers, sub_path } = mount.what else { panic!("{mount:?}") };
        assert_eq!((layers.fs_type.as_str(), sub_path.as_path()), ("overlay", "/z".as_ref()));
        assert_eq!(layers.options.data_string(), "lowerdir=/l/2:/l/1");
        assert!(layers.options.attributes.is_empty());
    }

    #[test]
    fn links_are_not_followed_in_the_kernels_file_systems() {
        let strict = |at: &str| {
            let json = format!("{{\"destination\":\"{at}\",\"type\":\"bind\",\"source\":\"/s\"}}");
            read(&json).unwrap().strict()
        };
        assert!(strict("/proc") && strict("/dev/shm") && strict("/sys/fs/cgroup"));
        assert!(!strict("/etc/hosts") && !strict("/development"));
    }
}
