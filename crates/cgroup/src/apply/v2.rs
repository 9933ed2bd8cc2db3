//! What only v2 has: weights, `cpu.max`, and files named by the request.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::files::Directory;
use crate::hierarchy::{Mounts, Version};
use crate::limits::CpuLimits;
use crate::{CgroupPath, Error};

/// Period when only a quota is given, microseconds (kernel's default).
const PERIOD: u64 = 100_000;
/// Longest value written to a file that the request names.
const VALUE_LIMIT: usize = 4096;

pub(super) fn cpu(directory: &Directory, cpu: &CpuLimits) -> Result<(), Error> {
    if let Some(idle) = cpu.idle {
        directory.write("cpu.idle", if idle { "1" } else { "0" })?;
    }
    if let Some(shares) = cpu.shares {
        directory.write("cpu.weight", &weight(shares).to_string())?;
    }
    let mut writes = Vec::new();
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu.quota.filter(|quota| *quota > 0);
        let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        writes.push(("cpu.max", format!("{quota} {}", cpu.period.unwrap_or(PERIOD))));
    }
    if let Some(burst) = cpu.burst {
        writes.push(("cpu.max.burst", burst.to_string()));
    }
    super::write_in_some_order(directory, &mut writes)
}

/// v1 shares as a v2 weight: runc's curve through the least (2 → 1), the default (1024 → 100)
/// and the greatest (262144 → 10000) of both scales, rounded up.
fn weight(shares: u64) -> u32 {
    let shares = u32::try_from(shares.clamp(2, 262_144)).expect("262144 fits");
    let log = f64::from(shares).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let exact = 10_f64.powf(exponent);
    // The least whole number that is not below, without a lossy conversion.
    let (mut low, mut high) = (1, 10_000);
    while low < high {
        let middle = u32::midpoint(low, high);
        if f64::from(middle) >= exact { high = middle } else { low = middle + 1 }
    }
    low
}

/// The v1 shares that stand for a v2 weight: the least of those that [`weight`] makes it of,
/// or 1024, the default, if it is one of them.
pub(crate) fn shares(given: u64) -> u64 {
    if given == u64::from(weight(1024)) {
        return 1024;
    }
    let (mut low, mut high) = (2, 262_144);
    while low < high {
        let middle = u64::midpoint(low, high);
        if u64::from(weight(middle)) >= given { high = middle } else { low = middle + 1 }
    }
    low
}

/// Writes the files that the request names itself, line by line as the kernel wants them.
pub(super) fn unified(
    mounts: &Mounts,
    path: &CgroupPath,
    files: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let invalid =
        |name: &str, reason| Err(Error::InvalidLimit { name: format!("unified {name}"), reason });
    for (name, value) in files {
        if let Some(reason) = refusal(name, value) {
            return invalid(name, reason);
        }
    }
    let (Version::V2, Some(directory)) = (mounts.version(), mounts.unified(path)) else {
        let name = files.keys().next().map_or("", String::as_str);
        return invalid(name, "this host's controllers are not in cgroup v2");
    };
    for (name, value) in files {
        for line in value.lines() {
            match directory.write(name, line) {
                // A kernel without swap accounting has no swap to give, or to forbid.
                Err(Error::MissingFile { .. })
                    if name == "memory.swap.max" && matches!(line.trim(), "max" | "0") => {}
                // The root and the kernel protect some files from everyone.
                Err(Error::Write { source: Errno::EACCES | Errno::EPERM, .. }) => {
                    return invalid(name, "the kernel does not let it be written");
                }
                other => other?,
            }
        }
    }
    Ok(())
}

/// Why a file may not be named: it must be a controller's own.
fn refusal(name: &str, value: &str) -> Option<&'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let structure = ["cgroup.max.depth", "cgroup.max.descendants"];
    if name.is_empty() || name.len() > 255 || !name.bytes().all(word) {
        return Some("not the name of a cgroup file");
    }
    if name.starts_with('.') || !name.contains('.') || name.contains("..") {
        return Some("not of the form controller.parameter");
    }
    if name.starts_with("cgroup.") && !structure.contains(&name) {
        return Some("belongs to the runtime");
    }
    (value.is_empty() || value.len() > VALUE_LIMIT).then_some("empty or too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_runc() {
        let known = [(2, 1), (1024, 100), (262_144, 10_000), (102, 17), (512, 59), (4096, 303)];
        for (shares, expected) in known {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn shares_are_those_that_a_weight_was_made_of() {
        for exact in [2, 1024] {
            assert_eq!(shares(weight(exact).into()), exact);
        }
        for weight in [1, 2, 17, 59, 100, 303, 10_000] {
            assert_eq!(u64::from(super::weight(shares(weight))), weight);
        }
        // A weight below all others is that of an idle cgroup.
        assert_eq!((shares(0), shares(u64::MAX)), (2, 262_144));
    }

    #[test]
    fn only_files_of_controllers_may_be_named() {
        for good in ["memory.high", "io.max", "hugetlb.2MB.max", "cgroup.max.depth"] {
            assert_eq!(refusal(good, "1"), None, "{good}");
        }
        for bad in ["", "memory", "../memory.max", "a/b.c", ".hidden", "memory..max", "a b.c"] {
            assert!(refusal(bad, "1").is_some(), "{bad}");
        }
        for ours in ["cgroup.procs", "cgroup.kill", "cgroup.subtree_control"] {
            assert_eq!(refusal(ours, "1"), Some("belongs to the runtime"));
        }
        assert!(refusal("memory.high", "").is_some());
    }
}
