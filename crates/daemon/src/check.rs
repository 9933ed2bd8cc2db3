//! `berthd check`: what this host supports, in words, and what is missing.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Result;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, socket, sockopt,
};
use nix::sys::utsname::uname;

use crate::config::Config;

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

/// Writes one line for each finding; returns whether pods can run here, as `config` has it.
pub(crate) fn check(out: &mut impl Write, config: &Config) -> Result<bool> {
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
        user_namespaces(),
        devices(config),
        plugins(config),
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

/// Layers are seen through idmapped mounts, which overlay takes from 5.19 on.
fn user_namespaces() -> Finding {
    const SUBJECT: &str = "user namespaces";
    let missing = |words: String| finding(SUBJECT, Verdict::Missing, words);
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if limit.trim().parse::<u64>().unwrap_or_default() == 0 {
        return missing(
            "switched off (user.max_user_namespaces); no pods with hostUsers: false".into(),
        );
    }
    let release = uname().map(|uts| uts.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    if version(&release).is_none_or(|found| found < (5, 19)) {
        return missing(
            "overlay on idmapped mounts needs Linux 5.19; no pods with hostUsers: false".into(),
        );
    }
    finding(SUBJECT, Verdict::Ok, "if the file system of the root can be idmapped (crictl info)")
}

fn devices(config: &Config) -> Finding {
    const SUBJECT: &str = "CDI devices";
    let directories = &config.container.cdi_spec_dirs;
    let there: Vec<_> = directories.iter().filter(|directory| directory.is_dir()).collect();
    let told: Vec<_> = there.iter().map(|directory| directory.display().to_string()).collect();
    match told.is_empty() {
        true => finding(SUBJECT, Verdict::Missing, "none of container.cdi_spec_dirs is there"),
        false => finding(SUBJECT, Verdict::Ok, format!("by name from {}", told.join(", "))),
    }
}

fn plugins(config: &Config) -> Finding {
    const SUBJECT: &str = "NRI socket";
    let socket = &config.nri.socket;
    if !config.nri.enabled || socket.as_os_str().is_empty() {
        return finding(SUBJECT, Verdict::Missing, "switched off in the configuration");
    }
    let path = socket.display();
    match listener(socket) {
        Ok(None) => finding(SUBJECT, Verdict::Ok, format!("{path} is free")),
        Ok(Some(name)) if name == "berthd" => {
            finding(SUBJECT, Verdict::Ok, format!("{path} is served by a running berthd"))
        }
        Ok(Some(name)) => finding(
            SUBJECT,
            Verdict::Missing,
            format!("{path} is {name}'s, so no plugin can connect; set nri.socket"),
        ),
        Err(error) => finding(SUBJECT, Verdict::Missing, format!("{path}: {error}")),
    }
}

/// The name of the program that listens on the socket, if one does.
fn listener(socket: &Path) -> io::Result<Option<String>> {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => {
            let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            return if nobody.contains(&error.kind()) { Ok(None) } else { Err(error) };
        }
    };
    let pid = getsockopt(&stream, sockopt::PeerCredentials)?.pid();
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    Ok(Some(name.map_or_else(|_| format!("process {pid}"), |name| name.trim_end().to_owned())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

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
        let mut config = Config::default();
        config.nri.enabled = false;
        let able = check(&mut out, &config).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 15, "{text}");
        assert_eq!(text.trim_end().ends_with("pods can run on this host"), able, "{text}");
    }

    #[test]
    fn a_socket_of_plugins_that_another_program_has_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.nri.socket = directory.path().join("nri.sock");
        assert_eq!(plugins(&config).verdict, Verdict::Ok);
        let other = UnixListener::bind(&config.nri.socket).unwrap();
        let found = plugins(&config);
        assert_eq!(found.verdict, Verdict::Missing, "{}", found.words);
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(found.words.contains(name.trim_end()), "{}", found.words);
        drop(other);
        assert_eq!(plugins(&config).verdict, Verdict::Ok, "a socket that nobody serves");
        config.nri.enabled = false;
        assert_eq!(plugins(&config).verdict, Verdict::Missing);
    }

    #[test]
    fn directories_of_devices_are_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.container.cdi_spec_dirs = vec![directory.path().join("none")];
        assert_eq!(devices(&config).verdict, Verdict::Missing);
        config.container.cdi_spec_dirs.push(directory.path().to_owned());
        let found = devices(&config);
        assert_eq!(found.verdict, Verdict::Ok);
        assert_eq!(found.words, format!("by name from {}", directory.path().display()));
    }
}
