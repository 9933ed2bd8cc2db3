//! What of `/proc` and `/sys` a container cannot read or write.

use oci_spec::runtime::LinuxSeccomp;

use berth_model::container::Profile;

use crate::{Error, Wanted, seccomp};

/// Paths that show or steer more than the container's own: hidden (security tests R22).
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/firmware",
];

/// Paths whose writing changes the node.
const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Paths hidden in a container that does not say which; those a host lacks are passed over
/// by the runtime.
#[must_use]
pub fn default_masked_paths() -> Vec<String> {
    MASKED.map(str::to_owned).to_vec()
}

/// Paths made read-only in a container that does not say which.
#[must_use]
pub fn default_readonly_paths() -> Vec<String> {
    READONLY.map(str::to_owned).to_vec()
}

pub(crate) fn masked_paths(wanted: &Wanted<'_>) -> Vec<String> {
    paths(wanted, wanted.spec.security.masked_paths.as_ref(), default_masked_paths)
}

pub(crate) fn readonly_paths(wanted: &Wanted<'_>) -> Vec<String> {
    paths(wanted, wanted.spec.security.readonly_paths.as_ref(), default_readonly_paths)
}

fn paths(
    wanted: &Wanted<'_>,
    asked: Option<&Vec<String>>,
    default: fn() -> Vec<String>,
) -> Vec<String> {
    match asked {
        _ if wanted.privileged() => Vec::new(),
        Some(asked) => asked.clone(),
        None => default(),
    }
}

/// The profile in force; `None` means no filter.
pub(crate) fn seccomp_profile(
    wanted: &Wanted<'_>,
    bounding: &oci_spec::runtime::Capabilities,
) -> Result<Option<LinuxSeccomp>, Error> {
    match (&wanted.spec.security.seccomp, wanted.localhost_seccomp) {
        _ if wanted.privileged() => Ok(None),
        (Profile::Unconfined, _) => Ok(None),
        (Profile::RuntimeDefault, _) => Ok(Some(seccomp::default_profile(bounding))),
        (Profile::Localhost(name), Some(bytes)) => seccomp::parse(name, bytes, bounding).map(Some),
        (Profile::Localhost(name), None) => Err(Error::SeccompMissing(name.clone())),
    }
}
