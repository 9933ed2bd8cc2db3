//! AppArmor: which profile a container is confined by.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use berth_model::container::{Profile, Security};

use crate::{Error, files};

/// Whether the kernel has it and it is switched on.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// What is loaded, a line each: `name (mode)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// Most of it that is read, bytes.
const MAX_LOADED: u64 = 4 << 20;
/// The profile of containers that name none.
pub(crate) const DEFAULT: &str = "berth-default";

/// The compiler of profiles, where distributions have it: the kernel takes them compiled.
const PARSERS: [&str; 2] = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];

/// What the default profile forbids to everybody in a container, whatever rights he has:
/// mounting, tracing what is confined otherwise, and what steers the node in procfs and
/// sysfs.
const DEFAULT_TEXT: &str = "\
abi <abi/3.0>,
profile berth-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=berth-default,
  ptrace (trace,tracedby,read,readby) peer=berth-default,
  deny mount,
  deny @{PROC}/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny @{PROC}/sys/kernel/{[^smd]*,s[^h]*,m[^s]*,d[^o]*}{,/**} w,
  deny @{PROC}/sys/{fs,vm,dev,debug,abi}/{[^m]*,m[^q]*}{,/**} w,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
";

/// The module, switched on.
#[derive(Debug)]
pub(crate) struct Apparmor {
    /// Whether [`DEFAULT`] is loaded.
    default: bool,
}

impl Apparmor {
    /// `None` on a node without it. A default profile that cannot be loaded leaves
    /// containers that name none as the daemon is, and is logged.
    pub(super) fn find() -> Option<Self> {
        let enabled = files::read_bounded(Path::new(ENABLED), 16).ok()?;
        if !enabled.starts_with(b"Y") {
            return None;
        }
        let default = is_loaded(DEFAULT) || load_default();
        Some(Self { default })
    }
}

/// The profile to run a container with; `None` is none.
pub(super) fn profile(
    apparmor: Option<&Apparmor>,
    security: &Security,
) -> Result<Option<String>, Error> {
    match (&security.apparmor, apparmor) {
        (Profile::Localhost(name), None) => Err(missing(name, "the kernel does not have AppArmor")),
        (Profile::Localhost(name), Some(_)) if !is_loaded(name) => {
            Err(missing(name, "it is not loaded"))
        }
        (Profile::Localhost(name), Some(_)) => Ok(Some(name.clone())),
        (Profile::RuntimeDefault, Some(Apparmor { default: true })) if !security.privileged => {
            Ok(Some(DEFAULT.to_owned()))
        }
        _ => Ok(None),
    }
}

fn missing(name: &str, problem: &'static str) -> Error {
    Error::ProfileMissing { name: name.to_owned(), problem }
}

fn is_loaded(name: &str) -> bool {
    let Ok(loaded) = files::read_bounded(Path::new(LOADED), MAX_LOADED) else { return false };
    has(&String::from_utf8_lossy(&loaded), name)
}

/// Whether the kernel's list has the profile, in whatever mode.
fn has(loaded: &str, name: &str) -> bool {
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

fn load_default() -> bool {
    let Some(parser) = PARSERS.iter().find(|parser| Path::new(parser).exists()) else {
        tracing::warn!("no apparmor_parser: containers run without the default AppArmor profile");
        return false;
    };
    let load = || {
        let mut child = Command::new(parser)
            .args(["--replace", "--skip-cache"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(DEFAULT_TEXT.as_bytes())?;
        }
        child.wait()
    };
    match load() {
        Ok(status) if status.success() => return true,
        Ok(status) => tracing::warn!(%status, "load the default AppArmor profile"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "load the default AppArmor profile");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(apparmor: Profile) -> Security {
        Security { apparmor, ..Security::default() }
    }

    #[test]
    fn a_profile_that_is_named_is_never_passed_over() {
        let named = asked(Profile::Localhost("no-such-profile".into()));
        for node in [None, Some(Apparmor { default: true })] {
            let error = profile(node.as_ref(), &named).unwrap_err();
            assert!(error.to_string().contains("no-such-profile"), "{error}");
            assert_eq!(error.kind(), berth_model::ErrorKind::FailedPrecondition);
        }
    }

    #[test]
    fn the_default_applies_where_there_is_one_but_for_the_privileged() {
        let node = Some(Apparmor { default: true });
        let given = |node: &Option<Apparmor>, security: &Security| {
            profile(node.as_ref(), security).unwrap()
        };
        let default = asked(Profile::RuntimeDefault);
        assert_eq!(given(&node, &default).as_deref(), Some(DEFAULT));
        assert_eq!(given(&None, &default), None);
        assert_eq!(given(&Some(Apparmor { default: false }), &default), None);
        assert_eq!(given(&node, &asked(Profile::Unconfined)), None);
        assert_eq!(given(&node, &Security { privileged: true, ..default }), None);
    }

    #[test]
    fn names_in_the_kernels_list_are_whole() {
        let list = "berth-default (enforce)\nwith space (complain)\n/usr/bin/x (enforce)\n";
        assert!(has(list, "berth-default") && has(list, "with space") && has(list, "/usr/bin/x"));
        assert!(!has(list, "berth") && !has(list, "with") && !has("", "a") && !has(list, ""));
    }
}
