//! `berthd check`: what this host supports, in words, and what is missing.

use std::fmt;
use std::fs;
use std::io::Write;

use anyhow::Result;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::utsname::uname;

/// How a finding bears on running pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// It is there.
    Ok,
    /// Pods run without it; the finding says what is lost.
    Missing,
    /// No pod runs without it.
    Fatal,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Fatal => "FATAL",
        })
    }
}

struct Finding {
    subject: &'static str,
    verdict: Verdict,
    words: String,
}

fn finding(subject: &'static str, verdict: Verdict, words: impl Into<String>) -> Finding {
    Finding { subject, verdict, words: words.into() }
}

/// Writes one line for each finding; returns whether pods can run here.
pub(crate) fn check(out: &mut impl Write) -> Result<bool> {
    let findings = [
        root(),
        kernel(),
        cgroups(),
        overlay(),
        volatile_overlay(),
        netlink("bridge and veth", SockProtocol::NetlinkRoute),
        netlink("nftables", SockProtocol::NetlinkNetFilter),
        seccomp(),
        oom_score(),
        security_module("AppArmor", "apparmor"),
        security_module("SELinux", "selinux"),
    ];
    for Finding { subject, verdict, words } in &findings {
        writeln!(out, "{verdict:<8} {subject:<16} {words}")?;
    }
    let able = findings.iter().all(|finding| finding.verdict != Verdict::Fatal);
    let sum = if able { "pods can run on this host" } else { "pods cannot run on this host" };
    writeln!(out, "\n{sum}")?;
    Ok(able)
}

fn root() -> Finding {
    const NEEDED: &[(u32, &str)] = &[(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    let effective = effective_capabilities();
    let lacking: Vec<_> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        return finding("privileges", Verdict::Ok, "capabilities for mounts, namespaces and links");
    }
    finding("privileges", Verdict::Fatal, format!("lacks {}; run as root", lacking.join(" and ")))
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn kernel() -> Finding {
    let release =
        uname().map(|uts| uts.release().to_string_lossy().into_owned()).unwrap_or_default();
    match version(&release) {
        Some(found) if found >= (5, 15) => {
            finding("kernel", Verdict::Ok, format!("Linux {release}"))
        }
        Some(_) => {
            finding("kernel", Verdict::Fatal, format!("Linux {release}; 5.15 or newer is needed"))
        }
        None => {
            finding("kernel", Verdict::Missing, format!("release {release:?} is not understood"))
        }
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn cgroups() -> Finding {
    match berth_cgroup::Hierarchy::detect() {
        Ok(hierarchy) => finding("cgroups", Verdict::Ok, hierarchy.to_string()),
        Err(error) => finding("cgroups", Verdict::Fatal, error.to_string()),
    }
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim().ends_with("overlay")) {
        return finding("overlay", Verdict::Ok, "snapshots of image layers");
    }
    finding("overlay", Verdict::Fatal, "the kernel does not list it; try: modprobe overlay")
}

fn volatile_overlay() -> Finding {
    let subject = "overlay volatile";
    match berth_snapshot::volatile_supported() {
        true => finding(subject, Verdict::Ok, "containers stop without flushing their files"),
        false => finding(subject, Verdict::Missing, "each stop flushes the container's files"),
    }
}

fn netlink(subject: &'static str, protocol: SockProtocol) -> Finding {
    let opened = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
    match opened {
        Ok(_) => finding(subject, Verdict::Ok, "configured through netlink, no tools needed"),
        Err(errno) => finding(
            subject,
            Verdict::Missing,
            format!("no netlink socket ({errno}); host network only"),
        ),
    }
}

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.is_empty() {
        return finding("seccomp", Verdict::Missing, "containers with a profile will not start");
    }
    finding("seccomp", Verdict::Ok, actions.trim())
}

fn oom_score() -> Finding {
    const SYS_RESOURCE: u32 = 24;
    if effective_capabilities() & (1 << SYS_RESOURCE) != 0 {
        return finding("oom_score_adj", Verdict::Ok, "may be lowered for shims and containers");
    }
    let words = "no CAP_SYS_RESOURCE: a score is never lowered, only raised";
    finding("oom_score_adj", Verdict::Missing, words)
}

fn security_module(subject: &'static str, name: &str) -> Finding {
    let active = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if active.trim().split(',').any(|module| module == name) {
        return finding(subject, Verdict::Ok, "active on this host; containers are told to it");
    }
    finding(subject, Verdict::Missing, "not active on this host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read_as_numbers() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn every_finding_is_a_line_and_the_sum_comes_last() {
        let mut out = Vec::new();
        let able = check(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 12, "{text}");
        assert_eq!(text.trim_end().ends_with("pods can run on this host"), able, "{text}");
    }
}
