//! AppArmor profiles and SELinux contexts.

use berth_api::v1;
use berth_model::container::{Profile, SelinuxOptions};

use super::fields::{known, shown};
use crate::Error;

/// Longest name of a profile, or part of a context.
const LONGEST: usize = 256;

/// The profile wins over the deprecated name. None at all is the runtime's default
/// (Kubernetes, "Restrict a Container's Access to Resources with AppArmor").
pub(super) fn apparmor(
    field: &str,
    profile: Option<&v1::SecurityProfile>,
    deprecated: &str,
) -> Result<Profile, Error> {
    use v1::security_profile::ProfileType;
    let Some(profile) = profile else { return deprecated_apparmor(field, deprecated) };
    match known::<ProfileType>(field, profile.profile_type)? {
        ProfileType::RuntimeDefault => Ok(Profile::RuntimeDefault),
        ProfileType::Unconfined => Ok(Profile::Unconfined),
        ProfileType::Localhost => {
            // kubelet passes the name as the pod has it, others as it once was.
            let name = profile.localhost_ref.as_str();
            loaded(
                &format!("{field}.localhost_ref"),
                name.strip_prefix("localhost/").unwrap_or(name),
            )
        }
    }
}

fn deprecated_apparmor(field: &str, name: &str) -> Result<Profile, Error> {
    match name {
        "" | "runtime/default" => Ok(Profile::RuntimeDefault),
        "unconfined" => Ok(Profile::Unconfined),
        other => {
            let field = format!("{field}_profile");
            match other.strip_prefix("localhost/") {
                Some(name) => loaded(&field, name),
                None => {
                    Err(Error::invalid(field, format!("{} is no kind of profile", shown(other))))
                }
            }
        }
    }
}

/// An empty name would mean "none" to who writes it to the kernel.
fn loaded(field: &str, name: &str) -> Result<Profile, Error> {
    let word = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    if name.is_empty() || name.len() > LONGEST || !name.chars().all(word) {
        return Err(Error::invalid(field, format!("{} is no name of a profile", shown(name))));
    }
    Ok(Profile::Localhost(name.to_owned()))
}

/// Options without content mean none: kubelet sends those by default.
pub(super) fn selinux(
    field: &str,
    options: Option<&v1::SeLinuxOption>,
) -> Result<Option<SelinuxOptions>, Error> {
    let Some(options) = options.filter(|options| **options != v1::SeLinuxOption::default()) else {
        return Ok(None);
    };
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    for (name, text) in
        [("user", &options.user), ("role", &options.role), ("type", &options.r#type)]
    {
        if text.len() > LONGEST || !text.chars().all(word) {
            let problem = format!("{} is not part of an SELinux context", shown(text));
            return Err(Error::invalid(format!("{field}.{name}"), problem));
        }
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        let problem = format!("{} is not of the form s0:c1,c2", shown(&options.level));
        return Err(Error::invalid(format!("{field}.level"), problem));
    }
    Ok(Some(SelinuxOptions {
        user: options.user.clone(),
        role: options.role.clone(),
        kind: options.r#type.clone(),
        level: options.level.clone(),
    }))
}

/// `s0`, `s0-s1`, with `:` and categories alone (`c1`) or in ranges (`c1.c9`), by commas.
fn is_level(text: &str) -> bool {
    let numbered = |text: &str, letter: char, digits: usize| {
        let number = text.strip_prefix(letter);
        number.is_some_and(|n| {
            (1..=digits).contains(&n.len()) && n.bytes().all(|c| c.is_ascii_digit())
        })
    };
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    let category = |text: &str| text.splitn(2, '.').all(|one| numbered(one, 'c', 4));
    text.len() <= LONGEST
        && sensitivity.splitn(2, '-').all(|one| numbered(one, 's', 2))
        && categories.is_none_or(|all| all.split(',').all(category))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_told_apart_and_the_new_field_wins() {
        let profile = |kind: i32, name: &str| v1::SecurityProfile {
            profile_type: kind,
            localhost_ref: name.to_owned(),
        };
        let given = |profile: &v1::SecurityProfile| apparmor("f", Some(profile), "localhost/old");
        assert_eq!(given(&profile(0, "")).unwrap(), Profile::RuntimeDefault);
        assert_eq!(given(&profile(1, "")).unwrap(), Profile::Unconfined);
        for name in ["mine", "localhost/mine"] {
            assert_eq!(given(&profile(2, name)).unwrap(), Profile::Localhost("mine".into()));
        }
        let old = |name: &str| apparmor("f", None, name);
        assert_eq!(old("").unwrap(), Profile::RuntimeDefault);
        assert_eq!(old("runtime/default").unwrap(), Profile::RuntimeDefault);
        assert_eq!(old("unconfined").unwrap(), Profile::Unconfined);
        assert_eq!(old("localhost/mine").unwrap(), Profile::Localhost("mine".into()));
        for bad in ["mine", "localhost/", "localhost/a b", "localhost/a\nb", "runtime/other"] {
            assert!(old(bad).unwrap_err().to_string().starts_with("f_profile"), "{bad:?}");
        }
        for (kind, bad) in [(2, ""), (2, "localhost/"), (2, "a b"), (3, "mine")] {
            assert!(given(&profile(kind, bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_context_is_made_of_words() {
        let level = |level: &str| {
            let options = v1::SeLinuxOption { level: level.to_owned(), ..Default::default() };
            selinux("f", Some(&options))
        };
        assert_eq!(selinux("f", None).unwrap(), None);
        assert_eq!(level("").unwrap(), None);
        for good in ["s0", "s0:c1", "s0:c1,c2", "s0-s0:c0.c1023", "s0-s15:c1.c3,c9"] {
            assert_eq!(level(good).unwrap().unwrap().level, good);
        }
        for bad in ["s", "s0:", "s0,c4,c5", "s0:c", "s0:c1,", "s0:c12345", "c1", "s0:c1\n", "s0 "] {
            assert!(level(bad).is_err(), "{bad:?}");
        }
        let bad = v1::SeLinuxOption { r#type: "a:b".to_owned(), ..Default::default() };
        assert!(selinux("f", Some(&bad)).unwrap_err().to_string().starts_with("f.type"));
    }
}
