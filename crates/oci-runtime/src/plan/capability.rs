//! Capabilities by the names of the specification.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::thread::CapabilitySet;

/// The sets a process gets. Inheritable is not among them: it equals `ambient`, since the
/// kernel wants ambient capabilities inheritable and nothing else may be (CVE-2022-29162).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: CapabilitySet,
    pub(crate) effective: CapabilitySet,
    pub(crate) permitted: CapabilitySet,
    pub(crate) ambient: CapabilitySet,
}

impl CapabilitySets {
    /// What a spec without `process.capabilities` means: none at all.
    pub(crate) const NONE: Self = Self {
        bounding: CapabilitySet::empty(),
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        ambient: CapabilitySet::empty(),
    };

    /// Reads `process.capabilities`. Ambient capabilities that are not permitted are left
    /// out, as the kernel would refuse them (capabilities(7)).
    pub(crate) fn new(capabilities: Option<&LinuxCapabilities>) -> Self {
        let Some(wanted) = capabilities else { return Self::NONE };
        let permitted = set(wanted.permitted().as_ref());
        Self {
            bounding: set(wanted.bounding().as_ref()),
            effective: set(wanted.effective().as_ref()).intersection(permitted),
            permitted,
            ambient: set(wanted.ambient().as_ref()).intersection(permitted),
        }
    }
}

fn set(names: Option<&Capabilities>) -> CapabilitySet {
    names.into_iter().flatten().map(|name| bit(*name)).collect()
}

/// The kernel's bit for a name.
fn bit(capability: Capability) -> CapabilitySet {
    match capability {
        Capability::AuditControl => CapabilitySet::AUDIT_CONTROL,
        Capability::AuditRead => CapabilitySet::AUDIT_READ,
        Capability::AuditWrite => CapabilitySet::AUDIT_WRITE,
        Capability::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        Capability::Bpf => CapabilitySet::BPF,
        Capability::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
        Capability::Chown => CapabilitySet::CHOWN,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        Capability::Fowner => CapabilitySet::FOWNER,
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::IpcLock => CapabilitySet::IPC_LOCK,
        Capability::IpcOwner => CapabilitySet::IPC_OWNER,
        Capability::Kill => CapabilitySet::KILL,
        Capability::Lease => CapabilitySet::LEASE,
        Capability::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        Capability::MacAdmin => CapabilitySet::MAC_ADMIN,
        Capability::MacOverride => CapabilitySet::MAC_OVERRIDE,
        Capability::Mknod => CapabilitySet::MKNOD,
        Capability::NetAdmin => CapabilitySet::NET_ADMIN,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::NetBroadcast => CapabilitySet::NET_BROADCAST,
        Capability::NetRaw => CapabilitySet::NET_RAW,
        Capability::Perfmon => CapabilitySet::PERFMON,
        Capability::Setgid => CapabilitySet::SETGID,
        Capability::Setfcap => CapabilitySet::SETFCAP,
        Capability::Setpcap => CapabilitySet::SETPCAP,
        Capability::Setuid => CapabilitySet::SETUID,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysBoot => CapabilitySet::SYS_BOOT,
        Capability::SysChroot => CapabilitySet::SYS_CHROOT,
        Capability::SysModule => CapabilitySet::SYS_MODULE,
        Capability::SysNice => CapabilitySet::SYS_NICE,
        Capability::SysPacct => CapabilitySet::SYS_PACCT,
        Capability::SysPtrace => CapabilitySet::SYS_PTRACE,
        Capability::SysRawio => CapabilitySet::SYS_RAWIO,
        Capability::SysResource => CapabilitySet::SYS_RESOURCE,
        Capability::SysTime => CapabilitySet::SYS_TIME,
        Capability::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        Capability::Syslog => CapabilitySet::SYSLOG,
        Capability::WakeAlarm => CapabilitySet::WAKE_ALARM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ambient_capability_has_to_be_permitted() {
        let json = r#"{"bounding":["CAP_KILL","CAP_CHOWN"],"permitted":["CAP_KILL"],
            "effective":["CAP_KILL","CAP_CHOWN"],"inheritable":["CAP_CHOWN"],
            "ambient":["CAP_KILL","CAP_CHOWN"]}"#;
        let sets = CapabilitySets::new(Some(&serde_json::from_str(json).unwrap()));
        assert_eq!(sets.ambient, CapabilitySet::KILL);
        assert_eq!(sets.effective, CapabilitySet::KILL);
        assert_eq!(sets.bounding, CapabilitySet::KILL | CapabilitySet::CHOWN);
    }

    #[test]
    fn no_capabilities_means_none() {
        assert_eq!(CapabilitySets::new(None), CapabilitySets::NONE);
    }
}
