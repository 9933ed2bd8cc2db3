//! Checks of single fields, and the refusals that name them.

use std::path::{Component, Path, PathBuf};

use berth_api::v1;
use berth_model::sandbox::NamespaceMode;

use crate::Error;

/// Longest name of a sandbox or container, bytes.
const MAX_NAME_BYTES: usize = 1024;
/// Longest path (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;

/// A name that is there, of reasonable length, without control characters.
pub(super) fn name(field: &'static str, text: &str) -> Result<String, Error> {
    if text.is_empty() {
        return Err(Error::Missing(field));
    }
    if text.len() > MAX_NAME_BYTES || text.contains(char::is_control) {
        let problem = format!("must be at most {MAX_NAME_BYTES} bytes, without control characters");
        return Err(Error::invalid(field, problem));
    }
    Ok(text.to_owned())
}

/// An absolute path without `..`.
pub(super) fn absolute_path(field: impl Into<String>, text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    if !path.is_absolute() || !is_plain(path) {
        let problem = format!("{} must be an absolute path without \"..\"", shown(text));
        return Err(Error::invalid(field, problem));
    }
    Ok(path.to_owned())
}

/// A relative path that stays where it starts; `None` if empty.
pub(super) fn inner_path(field: &'static str, text: &str) -> Result<Option<PathBuf>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let path = Path::new(text);
    let ends_in_a_name = matches!(path.components().next_back(), Some(Component::Normal(_)));
    if path.is_absolute() || !is_plain(path) || !ends_in_a_name || text.ends_with('/') {
        let problem = format!("{} must be a relative path to a file, without \"..\"", shown(text));
        return Err(Error::invalid(field, problem));
    }
    Ok(Some(path.to_owned()))
}

/// What was given, quoted and not longer than a line.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(128).collect::<String>())
}

/// Not too long, and without NUL and `..`.
pub(super) fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.len() < MAX_PATH_BYTES
        && !bytes.contains(&0)
        && !path.components().any(|component| component == Component::ParentDir)
}

/// A number that must fit into fewer or unsigned bits.
pub(super) fn number<T: TryFrom<i64>>(field: impl Into<String>, value: i64) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::invalid(field, format!("{value} is out of range")))
}

/// A value of an enumeration the CRI knows.
pub(super) fn known<T: TryFrom<i32>>(field: impl Into<String>, value: i32) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::invalid(field, format!("has the unknown value {value}")))
}

pub(crate) fn refuse_windows<T>(field: &str, given: Option<&T>) -> Result<(), Error> {
    match given {
        Some(_) => Err(Error::unsupported(field, "Windows is")),
        None => Ok(()),
    }
}

/// Namespaces of a user other than the node's are refused. The default of the message's
/// `mode` is POD, so a present but empty message asks for one.
pub(super) fn refuse_user_namespace(
    field: &str,
    options: Option<&v1::UserNamespace>,
) -> Result<(), Error> {
    let Some(options) = options else { return Ok(()) };
    match known(field, options.mode)? {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(()),
        v1::NamespaceMode::Node => {
            Err(Error::invalid(field, "has mappings, and mode NODE has none"))
        }
        v1::NamespaceMode::Pod | v1::NamespaceMode::Container | v1::NamespaceMode::Target => {
            Err(Error::unsupported(field, "a user namespace is"))
        }
    }
}

/// A namespace mode out of those that make sense for its kind.
pub(super) fn namespace_mode(
    field: impl Into<String>,
    value: i32,
    target: Option<&str>,
    allowed: &[v1::NamespaceMode],
) -> Result<NamespaceMode, Error> {
    let field = field.into();
    let mode = known::<v1::NamespaceMode>(field.clone(), value)?;
    if !allowed.contains(&mode) {
        return Err(Error::invalid(field, format!("cannot be {}", mode.as_str_name())));
    }
    Ok(match mode {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => match target {
            Some(target) if !target.is_empty() => NamespaceMode::Target(target.to_owned()),
            _ => return Err(Error::invalid(field, "is TARGET without a target_id")),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i5_paths_cannot_leave_their_place() {
        for bad in ["", "a", "..", "/..", "/a/../b", "/a\0", &format!("/{}", "a".repeat(5000))] {
            assert!(absolute_path("f", bad).is_err(), "{bad:?}");
        }
        for bad in ["/a", "..", "../a", "a/../b", "a/..", ".", "a/", "a\0"] {
            assert!(inner_path("f", bad).is_err(), "{bad:?}");
        }
        assert_eq!(inner_path("f", "").unwrap(), None);
        assert_eq!(inner_path("f", "a/0.log").unwrap(), Some("a/0.log".into()));
        assert_eq!(absolute_path("f", "/a/b").unwrap(), PathBuf::from("/a/b"));
    }

    #[test]
    fn kubelets_ordinary_defaults_pass() {
        let node = v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() };
        refuse_user_namespace("f", Some(&node)).unwrap();
        refuse_user_namespace("f", None).unwrap();
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let named = |error: Error| {
            assert!(matches!(&error, Error::Unsupported { field, .. } if field == "f"), "{error}");
        };
        named(refuse_user_namespace("f", Some(&v1::UserNamespace::default())).unwrap_err());
        named(refuse_windows("f", Some(&())).unwrap_err());
    }

    #[test]
    fn unknown_enumeration_values_are_refused() {
        let all = [v1::NamespaceMode::Pod, v1::NamespaceMode::Target];
        let mode = |value, target| namespace_mode("f", value, target, &all);
        assert_eq!(mode(0, None).unwrap(), NamespaceMode::Pod);
        assert_eq!(mode(3, Some("id")).unwrap(), NamespaceMode::Target("id".to_owned()));
        for (value, target) in
            [(4, None), (-1, None), (1, None), (2, None), (3, None), (3, Some(""))]
        {
            assert!(mode(value, target).is_err(), "{value}");
        }
    }
}
