//! Checks of single fields, and the refusals that name them.

use std::path::{Component, Path, PathBuf};

use berth_api::v1;
use berth_model::sandbox::NamespaceMode;
use berth_model::{IdMappings, IdRange};

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

/// The users of a pod: its own, with exactly one range of each kind that begins with id 0, or
/// the node's (KEP-127). The default of the message's `mode` is POD, so a present but empty
/// message asks for users without saying where they lie.
pub(super) fn user_namespace(
    field: &str,
    options: Option<&v1::UserNamespace>,
) -> Result<Option<IdMappings>, Error> {
    let Some(options) = options else { return Ok(None) };
    match known(format!("{field}.mode"), options.mode)? {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => {
            Err(Error::invalid(field, "has mappings, and mode NODE has none"))
        }
        mode @ (v1::NamespaceMode::Container | v1::NamespaceMode::Target) => {
            let problem = format!("cannot be {}", mode.as_str_name());
            Err(Error::invalid(format!("{field}.mode"), problem))
        }
        v1::NamespaceMode::Pod => {
            let one = |kind: &str, mappings: &[v1::IdMapping]| match mappings {
                [only] => whole_range(&format!("{field}.{kind}[0]"), only),
                _ => {
                    let problem = format!("has {} mappings, and must have one", mappings.len());
                    Err(Error::invalid(format!("{field}.{kind}"), problem))
                }
            };
            let (uids, gids) = (one("uids", &options.uids)?, one("gids", &options.gids)?);
            if uids.length != gids.length {
                let problem = format!("{} is not that of uids, {}", gids.length, uids.length);
                return Err(Error::invalid(format!("{field}.gids[0].length"), problem));
            }
            Ok(Some(IdMappings { uids: vec![uids], gids: vec![gids] }))
        }
    }
}

/// A range that begins with id 0 and does not hold the node's root.
fn whole_range(field: &str, asked: &v1::IdMapping) -> Result<IdRange, Error> {
    let range = id_range(asked);
    if range.container != 0 {
        return Err(Error::invalid(format!("{field}.container_id"), "is not 0"));
    }
    if range.host == 0 {
        return Err(Error::invalid(format!("{field}.host_id"), "is 0, the node's root"));
    }
    let ids = IdMappings { uids: vec![range], gids: vec![range] };
    ids.check().map_err(|_| {
        let problem = format!("{} does not fit", range.length);
        Error::invalid(format!("{field}.length"), problem)
    })?;
    Ok(range)
}

fn id_range(asked: &v1::IdMapping) -> IdRange {
    IdRange { container: asked.container_id, host: asked.host_id, length: asked.length }
}

/// How the owners of a mount's files are shown; `None` if nothing is said.
pub(super) fn mount_ids(
    field: &impl Fn(&str) -> String,
    asked: &v1::Mount,
) -> Result<Option<IdMappings>, Error> {
    let (uids, gids) = (&asked.uid_mappings, &asked.gid_mappings);
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let all = |mappings: &[v1::IdMapping]| mappings.iter().map(id_range).collect();
    let ids = IdMappings { uids: all(uids), gids: all(gids) };
    ids.check().map_err(|bad| {
        let name = if bad.is_of_groups() { "gidMappings" } else { "uidMappings" };
        Error::invalid(field(name), bad.to_string())
    })?;
    Ok(Some(ids))
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
        assert_eq!(user_namespace("f", Some(&node)).unwrap(), None);
        assert_eq!(user_namespace("f", None).unwrap(), None);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let named = |error: Error| {
            assert!(matches!(&error, Error::Unsupported { field, .. } if field == "f"), "{error}");
        };
        named(refuse_windows("f", Some(&())).unwrap_err());
    }

    fn mapping(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping { container_id, host_id, length }
    }

    #[test]
    fn users_of_a_pods_own_have_one_range_that_begins_with_root() {
        let asked = |mode: i32, uids: &[v1::IdMapping], gids: &[v1::IdMapping]| {
            let asked = v1::UserNamespace { mode, uids: uids.to_vec(), gids: gids.to_vec() };
            user_namespace("f", Some(&asked))
        };
        let good = mapping(0, 1000, 100_000);
        let ids = asked(0, &[good], &[mapping(0, 5000, 100_000)]).unwrap().unwrap();
        assert_eq!((ids.host_uid(0), ids.host_gid(99_999)), (Some(1000), Some(104_999)));
        let two = [good, mapping(0, 2000, 100_000)];
        let refused = |field: &str, answer: Result<_, Error>| {
            let error = answer.unwrap_err();
            assert!(
                matches!(&error, Error::Invalid { field: named, .. } if named == field),
                "{error}"
            );
        };
        refused("f.uids", asked(0, &[], &[]));
        refused("f.uids", asked(0, &two, &two));
        refused("f.gids", asked(0, &[good], &two));
        refused("f.gids", asked(0, &[good], &[]));
        refused("f.uids[0].container_id", asked(0, &[mapping(1, 1000, 9)], &[good]));
        refused("f.gids[0].container_id", asked(0, &[good], &[mapping(1, 1000, 9)]));
        refused("f.uids[0].host_id", asked(0, &[mapping(0, 0, 9)], &[good]));
        refused("f.uids[0].length", asked(0, &[mapping(0, 1000, 0)], &[good]));
        refused("f.uids[0].length", asked(0, &[mapping(0, u32::MAX, 9)], &[good]));
        refused("f.gids[0].length", asked(0, &[good], &[mapping(0, 1000, 9)]));
        refused("f.mode", asked(1, &[good], &[good]));
        refused("f.mode", asked(3, &[good], &[good]));
        refused("f.mode", asked(9, &[good], &[good]));
        refused("f", asked(2, &[good], &[good]));
    }

    #[test]
    fn owners_of_a_mount_are_mapped_by_users_and_groups_or_not_at_all() {
        let asked = |uids: &[v1::IdMapping], gids: &[v1::IdMapping]| {
            let (uid_mappings, gid_mappings) = (uids.to_vec(), gids.to_vec());
            let asked = v1::Mount { uid_mappings, gid_mappings, ..Default::default() };
            mount_ids(&|name: &str| format!("m.{name}"), &asked)
        };
        let good = mapping(0, 1000, 9);
        assert_eq!(asked(&[], &[]).unwrap(), None);
        assert_eq!(asked(&[good], &[good]).unwrap().unwrap().host_uid(8), Some(1008));
        for (field, uids, gids) in [
            ("m.uidMappings", vec![], vec![good]),
            ("m.gidMappings", vec![good], vec![]),
            ("m.uidMappings", vec![good, good], vec![good]),
            ("m.gidMappings", vec![good], vec![mapping(0, 1, 0)]),
        ] {
            let error = asked(&uids, &gids).unwrap_err();
            assert!(
                matches!(&error, Error::Invalid { field: named, .. } if named == field),
                "{error}"
            );
        }
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
