//! The mounts of a container: parts of the host, and images.

use std::path::{Path, PathBuf};

use berth_api::v1;
use berth_model::mount::{BindMount, ImageMount, MountOption, Propagation};

use super::fields::{absolute_path, is_plain, known, mount_ids, shown};
use crate::Error;

/// Checks the mount with this index and translates it.
pub(super) fn mount((index, asked): (usize, &v1::Mount)) -> Result<BindMount, Error> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    let container_path = PathBuf::from(&asked.container_path);
    if !container_path.is_absolute() || asked.container_path.contains('\0') {
        let problem = format!("{} must be an absolute path", shown(&asked.container_path));
        return Err(Error::invalid(field("container_path"), problem));
    }
    let image = image(&field, asked)?;
    let host_path = match asked.host_path.as_str() {
        "" if image.is_some() => PathBuf::new(),
        "" => return Err(Error::invalid(field("host_path"), "is missing")),
        _ if image.is_some() => {
            return Err(Error::invalid(field("host_path"), "excludes an image"));
        }
        path => absolute_path(field("host_path"), path)?,
    };
    let propagation = match known(field("propagation"), asked.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let mount = BindMount {
        container_path,
        host_path,
        readonly: asked.readonly,
        recursive_readonly: asked.recursive_read_only,
        selinux_relabel: asked.selinux_relabel,
        propagation,
        image,
        options: options(&field, &asked.mount_options)?,
        ids: mount_ids(&field, asked)?,
    };
    check_readonly(&field, &mount)?;
    Ok(mount)
}

/// The image that is to be seen, if one is named.
fn image(field: &impl Fn(&str) -> String, asked: &v1::Mount) -> Result<Option<ImageMount>, Error> {
    let given = asked.image.as_ref().filter(|image| **image != v1::ImageSpec::default());
    let Some(given) = given else {
        return match asked.image_sub_path.as_str() {
            "" => Ok(None),
            _ => Err(Error::invalid(field("image_sub_path"), "needs an image")),
        };
    };
    if given.image.is_empty() {
        return Err(Error::invalid(field("image.image"), "is missing"));
    }
    let sub_path = Path::new(&asked.image_sub_path);
    if sub_path.is_absolute() || !is_plain(sub_path) {
        let problem =
            format!("{} must be a relative path without \"..\"", shown(&asked.image_sub_path));
        return Err(Error::invalid(field("image_sub_path"), problem));
    }
    Ok(Some(ImageMount {
        name: given.image.clone(),
        user_specified: given.user_specified_image.clone(),
        sub_path: asked.image_sub_path.clone(),
    }))
}

fn options(field: &impl Fn(&str) -> String, asked: &[String]) -> Result<Vec<MountOption>, Error> {
    let option = |name: &String| {
        MountOption::from_name(name).ok_or_else(|| {
            let problem =
                format!("{} is none of \"noexec\", \"nodev\" and \"nosuid\"", shown(name));
            Error::invalid(field("mount_options"), problem)
        })
    };
    let mut options = Vec::new();
    for option in asked.iter().map(option) {
        let option = option?;
        if !options.contains(&option) {
            options.push(option);
        }
    }
    Ok(options)
}

/// What may not be half read-only: mounts below that others can add would stay writable
/// (KEP-3857), and nobody writes to an image (KEP-4639).
fn check_readonly(field: &impl Fn(&str) -> String, mount: &BindMount) -> Result<(), Error> {
    let private = mount.propagation == Propagation::Private;
    if mount.recursive_readonly && !mount.readonly {
        return Err(Error::invalid(field("recursive_read_only"), "needs readonly"));
    }
    if mount.recursive_readonly && !private {
        return Err(Error::invalid(field("recursive_read_only"), "needs private propagation"));
    }
    if mount.image.is_some() && !mount.readonly {
        return Err(Error::invalid(field("readonly"), "must be true for an image"));
    }
    if mount.image.is_some() && !private {
        return Err(Error::invalid(field("propagation"), "must be private for an image"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::chain;

    fn bind() -> v1::Mount {
        v1::Mount {
            container_path: "/c".to_owned(),
            host_path: "/h".to_owned(),
            ..Default::default()
        }
    }

    fn volume() -> v1::Mount {
        let image = v1::ImageSpec {
            image: "busybox".to_owned(),
            user_specified_image: "busybox:1".to_owned(),
            ..Default::default()
        };
        v1::Mount {
            container_path: "/c".to_owned(),
            image: Some(image),
            readonly: true,
            ..Default::default()
        }
    }

    #[track_caller]
    fn refused(name: &str, bad: v1::Mount) {
        let error = mount((1, &bad)).expect_err(name);
        let start = format!("config.mounts[1].{name}");
        assert!(chain(&error).starts_with(&start), "{error}");
    }

    #[test]
    fn a_part_of_the_host_is_translated_or_refused_by_name() {
        let asked = v1::Mount {
            readonly: true,
            selinux_relabel: true,
            recursive_read_only: true,
            mount_options: ["nosuid", "noexec", "nosuid"].map(str::to_owned).to_vec(),
            image: Some(v1::ImageSpec::default()),
            ..bind()
        };
        let expected = BindMount {
            container_path: "/c".into(),
            host_path: "/h".into(),
            readonly: true,
            recursive_readonly: true,
            selinux_relabel: true,
            options: vec![MountOption::NoSuid, MountOption::NoExec],
            ..BindMount::default()
        };
        assert_eq!(mount((0, &asked)).unwrap(), expected);
        let both = v1::MountPropagation::PropagationBidirectional.into();
        let shared = mount((0, &v1::Mount { propagation: both, ..bind() })).unwrap();
        assert_eq!(shared.propagation, Propagation::Bidirectional);
        let ids = || vec![v1::IdMapping::default()];
        for (field, bad) in [
            ("uidMappings", v1::Mount { uid_mappings: ids(), ..bind() }),
            ("uidMappings", v1::Mount { gid_mappings: ids(), ..bind() }),
            ("host_path is missing", v1::Mount { host_path: String::new(), ..bind() }),
            ("host_path", v1::Mount { host_path: "relative".to_owned(), ..bind() }),
            ("host_path", v1::Mount { host_path: "/a/../b".to_owned(), ..bind() }),
            ("container_path", v1::Mount { container_path: "relative".to_owned(), ..bind() }),
            ("propagation", v1::Mount { propagation: 3, ..bind() }),
            ("image_sub_path", v1::Mount { image_sub_path: "etc".to_owned(), ..bind() }),
            ("mount_options", v1::Mount { mount_options: vec!["exec".to_owned()], ..bind() }),
            ("mount_options", v1::Mount { mount_options: vec!["rw,suid".to_owned()], ..bind() }),
        ] {
            refused(field, bad);
        }
    }

    #[test]
    fn recursive_read_only_has_its_conditions() {
        let asked = v1::Mount { readonly: true, recursive_read_only: true, ..bind() };
        assert!(mount((0, &asked)).is_ok());
        refused("recursive_read_only", v1::Mount { readonly: false, ..asked.clone() });
        for propagation in [1, 2] {
            refused("recursive_read_only", v1::Mount { propagation, ..asked.clone() });
        }
    }

    #[test]
    fn an_image_is_translated_or_refused_by_name() {
        let found = mount((0, &v1::Mount { image_sub_path: "etc/".to_owned(), ..volume() }));
        let expected = ImageMount {
            name: "busybox".to_owned(),
            user_specified: "busybox:1".to_owned(),
            sub_path: "etc/".to_owned(),
        };
        assert_eq!(found.unwrap().image, Some(expected));
        let unnamed =
            v1::ImageSpec { user_specified_image: "busybox".to_owned(), ..Default::default() };
        for (field, bad) in [
            ("readonly", v1::Mount { readonly: false, ..volume() }),
            ("host_path excludes", v1::Mount { host_path: "/h".to_owned(), ..volume() }),
            ("propagation", v1::Mount { propagation: 1, ..volume() }),
            ("image.image", v1::Mount { image: Some(unnamed), ..volume() }),
            ("image_sub_path", v1::Mount { image_sub_path: "../etc".to_owned(), ..volume() }),
            ("image_sub_path", v1::Mount { image_sub_path: "/etc".to_owned(), ..volume() }),
        ] {
            refused(field, bad);
        }
    }
}
