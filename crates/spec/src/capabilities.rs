//! Capabilities (capabilities(7)): the default set and a request's changes to it.

use berth_model::container::Security;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use crate::Error;

/// What a container has when nobody asks for more or less: docker's and containerd's set.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability of Linux 5.9 and newer, by its number in `linux/capability.h`.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Every capability Linux has.
#[must_use]
pub fn all() -> Capabilities {
    ALL.into_iter().collect()
}

/// The set of a container that asks for no change.
#[must_use]
pub fn default_set() -> Capabilities {
    DEFAULT.into_iter().collect()
}

/// The capabilities whose bits are set in `mask`, as `/proc/self/status` shows a set
/// (`CapBnd`); bits without a name are left out.
#[must_use]
pub fn from_mask(mask: u64) -> Capabilities {
    let set = |(number, _): &(usize, Capability)| mask & (1 << number) != 0;
    ALL.into_iter().enumerate().filter(set).map(|(_, capability)| capability).collect()
}

/// The capability called `name`, with or without `CAP_`, in any case.
pub fn parse(name: &str) -> Result<Capability, Error> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let known = ALL.into_iter().find(|capability| capability.to_string() == bare);
    known.ok_or_else(|| Error::Capability(name.chars().take(64).collect()))
}

/// The five sets of a container's process.
///
/// `available` is what `ALL` and privileged mean; what is named and is not in it is refused.
/// An added capability wins over `drop: ALL`, a dropped one over `add: ALL`. Inheritable stays empty, lest a file with
/// inheritable capabilities give them to any user (CVE-2022-29162 and relatives); an
/// ambient one needs its inheritable bit, so that one is set.
pub(crate) fn sets(
    security: &Security,
    available: &Capabilities,
) -> Result<LinuxCapabilities, Error> {
    let (add_all, added) = named(&security.add_capabilities)?;
    let (drop_all, dropped) = named(&security.drop_capabilities)?;
    let (ambient_all, mut ambient) = named(&security.add_ambient_capabilities)?;
    if ambient_all {
        ambient.extend(available);
    }
    if let Some(missing) = added.union(&ambient).find(|asked| !available.contains(asked)) {
        return Err(Error::CapabilityUnavailable(missing.to_string()));
    }
    let mut capabilities = match (security.privileged, add_all, drop_all) {
        (true, _, _) => available.clone(),
        (_, _, true) => Capabilities::new(),
        (_, true, false) => available.clone(),
        (_, false, false) => default_set(),
    };
    if !security.privileged {
        capabilities.extend(added);
        capabilities.retain(|capability| !dropped.contains(capability));
    }
    capabilities.extend(&ambient);
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(capabilities.clone())
        .effective(capabilities.clone())
        .permitted(capabilities)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .expect("every field has a default"))
}

fn named(names: &[String]) -> Result<(bool, Capabilities), Error> {
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
    let all = names.iter().any(|name| is_all(&name));
    let named = names.iter().filter(|name| !is_all(name)).map(|name| parse(name));
    Ok((all, named.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str], ambient: &[&str]) -> Security {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Security {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: owned(ambient),
            ..Security::default()
        }
    }

    fn bounding(add: &[&str], drop: &[&str]) -> Capabilities {
        let sets = sets(&security(add, drop, &[]), &all()).unwrap();
        assert_eq!(sets.bounding(), sets.effective());
        assert_eq!(sets.bounding(), sets.permitted());
        sets.bounding().clone().unwrap()
    }

    #[test]
    fn the_default_set_is_changed_by_name() {
        assert_eq!(bounding(&[], &[]), default_set());
        let changed = bounding(&["NET_ADMIN", "cap_sys_time"], &["MKNOD"]);
        assert_eq!(changed.len(), 15);
        assert!(changed.contains(&Capability::NetAdmin));
        assert!(changed.contains(&Capability::SysTime));
        assert!(!changed.contains(&Capability::Mknod));
    }

    #[test]
    fn all_can_be_added_and_dropped() {
        assert_eq!(bounding(&["ALL"], &[]), all());
        assert_eq!(bounding(&["all"], &["KILL"]).len(), 40);
        assert_eq!(bounding(&[], &["ALL"]).len(), 0);
        assert_eq!(bounding(&["KILL"], &["ALL"]), [Capability::Kill].into());
        assert_eq!(bounding(&["ALL", "KILL"], &["ALL"]), [Capability::Kill].into());
    }

    #[test]
    fn all_is_no_more_than_the_daemon_can_hand_on() {
        let available = from_mask(1 << 5 | 1 << 63);
        assert_eq!(available, [Capability::Kill].into());
        let privileged = Security { privileged: true, ..Security::default() };
        for security in [security(&["ALL"], &[], &[]), privileged] {
            let sets = sets(&security, &available).unwrap();
            assert_eq!(sets.bounding().as_ref(), Some(&available));
        }
    }

    /// teeth: crates/spec/src/capabilities.rs: `.inheritable(ambient.clone())` → `.inheritable(all())`
    #[test]
    fn r13_inheritable_is_empty_unless_ambient_was_asked_for() {
        let plain = sets(&security(&["ALL"], &[], &[]), &all()).unwrap();
        assert_eq!(plain.inheritable(), &Some(Capabilities::new()));
        assert_eq!(plain.ambient(), &Some(Capabilities::new()));

        let ambient = sets(&security(&[], &[], &["SYS_TIME"]), &all()).unwrap();
        let time: Capabilities = [Capability::SysTime].into();
        assert_eq!(ambient.ambient(), &Some(time.clone()));
        assert_eq!(ambient.inheritable(), &Some(time.clone()));
        for set in [ambient.bounding(), ambient.effective(), ambient.permitted()] {
            assert!(set.as_ref().unwrap().is_superset(&time));
        }
    }

    #[test]
    fn all_can_be_ambient() {
        let available = from_mask(1 << 5 | 1 << 10);
        let sets = sets(&security(&[], &["ALL"], &["ALL"]), &available).unwrap();
        for set in [sets.ambient(), sets.inheritable(), sets.effective(), sets.bounding()] {
            assert_eq!(set.as_ref(), Some(&available));
        }
    }

    /// teeth: crates/spec/src/capabilities.rs: `!available.contains(asked)` → `false`
    #[test]
    fn what_the_daemon_cannot_hand_on_is_refused_by_name() {
        let available = from_mask(1 << 5);
        for asked in [security(&["SYS_RESOURCE"], &[], &[]), security(&[], &[], &["SYS_RESOURCE"])]
        {
            let error = sets(&asked, &available).unwrap_err();
            assert!(error.to_string().contains("SYS_RESOURCE"), "{error}");
            assert_eq!(error.kind(), berth_model::ErrorKind::FailedPrecondition);
        }
        sets(&security(&["KILL"], &["SYS_RESOURCE"], &["KILL"]), &available).unwrap();
    }

    #[test]
    fn an_unknown_capability_is_named() {
        for bad in ["", "CAP_", "NO_SUCH", "NET_ADMIN ", "CAP_CAP_KILL"] {
            let error = sets(&security(&[bad], &[], &[]), &all()).unwrap_err();
            assert!(matches!(&error, Error::Capability(name) if name == bad), "{error}");
            assert!(sets(&security(&[], &[bad], &[]), &all()).is_err());
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(from_mask(1 << 21), [Capability::SysAdmin].into());
        assert_eq!(from_mask(1 << 40), [Capability::CheckpointRestore].into());
        assert_eq!(from_mask(u64::MAX), all());
        assert_eq!(all().len(), 41);
    }
}
