//! The files of a sandbox that its containers see: `/etc/resolv.conf`, `/etc/hosts`,
//! `/etc/hostname`; and bounded reading of the node's own.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use berth_model::sandbox::DnsConfig;

use crate::Error;

/// Longest file of the node that is copied into sandboxes, bytes.
const MAX_NODE_FILE: u64 = 1 << 20;

/// Longest host name Linux takes, bytes (`__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;

/// What a sandbox's files say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SandboxFiles {
    pub(crate) hostname: String,
    pub(crate) hosts: Vec<u8>,
    pub(crate) resolv_conf: Vec<u8>,
}

impl SandboxFiles {
    /// Writes them into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Error> {
        write_file(&dir.join("hostname"), format!("{}\n", self.hostname).as_bytes())?;
        write_file(&dir.join("hosts"), &self.hosts)?;
        write_file(&dir.join("resolv.conf"), &self.resolv_conf)
    }
}

/// Gives the files of a sandbox to a user and group of the node.
pub(crate) fn give(dir: &Path, (uid, gid): (u32, u32)) -> Result<(), Error> {
    for name in ["hostname", "hosts", "resolv.conf"] {
        let path = dir.join(name);
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid))
            .map_err(Error::io("change owner of", path))?;
    }
    Ok(())
}

/// `/etc/hosts` of a sandbox with its own network.
pub(crate) fn hosts(hostname: &str, address: Option<IpAddr>) -> Vec<u8> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    if let Some(address) = address {
        writeln!(text, "{address}\t{hostname}").expect("writing to a string cannot fail");
    }
    text.into_bytes()
}

/// `resolv.conf` as asked for; `None` when nothing was asked for, which means the node's.
pub(crate) fn resolv_conf(dns: Option<&DnsConfig>) -> Result<Option<Vec<u8>>, Error> {
    let Some(dns) = dns else { return Ok(None) };
    let entries = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(bad) = entries.into_iter().find(|entry| !is_word(entry)) {
        return Err(Error::invalid("dns configuration", format!("{bad:?} is not one word")));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok((!text.is_empty()).then(|| text.into_bytes()))
}

/// One word: nothing in it can start a new entry or a new line.
fn is_word(entry: &str) -> bool {
    !entry.is_empty() && entry.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

/// The host name of a sandbox: as asked for, or the start of its id.
pub(crate) fn hostname(asked: &str, id: &str) -> Result<String, Error> {
    if asked.is_empty() {
        return Ok(id.chars().take(12).collect());
    }
    let fits = asked.len() <= MAX_HOSTNAME
        && asked.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_'));
    if !fits {
        let problem = format!(
            "{asked:?} is not a host name of at most {MAX_HOSTNAME} letters, digits, '-', '.'"
        );
        return Err(Error::invalid("hostname", problem));
    }
    Ok(asked.to_owned())
}

/// Where a container's log goes: `log_path` below `directory`, never outside it.
pub(crate) fn log_path(
    directory: Option<&Path>,
    log_path: Option<&Path>,
) -> Result<Option<PathBuf>, Error> {
    use std::path::Component;
    let (Some(directory), Some(log_path)) = (directory, log_path) else { return Ok(None) };
    if !directory.is_absolute() {
        let problem = format!("{} is not absolute", directory.display());
        return Err(Error::invalid("log directory", problem));
    }
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if log_path.components().next().is_none() || !log_path.components().all(inside) {
        let problem = format!("{:?} does not stay in the log directory", log_path.display());
        return Err(Error::invalid("log path", problem));
    }
    Ok(Some(directory.join(log_path)))
}

/// Reads a file of the node, at most `limit` bytes of it.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::options()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(Error::io("open", path))?;
    // Room for all of it and a byte, so that one read(2) has it and the next finds its end;
    // files of the kernel say that they are empty.
    let size = file.metadata().map_or(0, |file| file.len()).min(limit);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|read| read > limit) {
        let source = std::io::ErrorKind::FileTooLarge.into();
        return Err(Error::Io { action: "read", path: path.to_owned(), source });
    }
    Ok(bytes)
}

/// One of the node's own files; empty if it has none.
pub(crate) fn node_file(path: &str) -> Result<Vec<u8>, Error> {
    match read_bounded(path.as_ref(), MAX_NODE_FILE) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Writes a file of ours, readable by everybody.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o644)
}

/// Writes a file that is for the daemon alone.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, bytes, 0o600)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(Error::io("write", path))
}

/// Makes a directory of ours and what is missing above it.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(Error::io("make directory", path))
}

/// Removes a directory and all in it; a missing one is success.
pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove directory", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resolv_conf_says_what_was_asked_for() {
        let dns = DnsConfig {
            servers: words(&["10.0.0.10", "fd00::10"]),
            searches: words(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: words(&["ndots:5"]),
        };
        let text = resolv_conf(Some(&dns)).unwrap().unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "search default.svc.cluster.local svc.cluster.local\n\
             nameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n"
        );
    }

    #[test]
    fn an_empty_dns_configuration_means_the_nodes() {
        assert_eq!(resolv_conf(None).unwrap(), None);
        assert_eq!(resolv_conf(Some(&DnsConfig::default())).unwrap(), None);
    }

    #[test]
    fn a_dns_entry_cannot_smuggle_a_line() {
        for bad in ["", "a b", "a\nnameserver 6.6.6.6", "a\0"] {
            let dns = DnsConfig { options: words(&[bad]), ..DnsConfig::default() };
            assert!(resolv_conf(Some(&dns)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hosts_leads_from_the_name_to_the_address() {
        let text = String::from_utf8(hosts("web-1", Some([10, 0, 0, 9].into()))).unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with("10.0.0.9\tweb-1\n"), "{text}");
        assert!(!String::from_utf8(hosts("web-1", None)).unwrap().contains("web-1"));
    }

    #[test]
    fn a_host_name_is_the_one_asked_for_or_the_ids_start() {
        assert_eq!(hostname("", "0123456789abcdef").unwrap(), "0123456789ab");
        assert_eq!(hostname("web-1.example", "x").unwrap(), "web-1.example");
        let long = "a".repeat(65);
        for bad in ["a b", "a\n127.0.0.1 evil", "a/b", &long] {
            assert!(hostname(bad, "x").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_log_stays_in_its_directory() {
        let join = |path: &str| log_path(Some("/var/log/pod".as_ref()), Some(path.as_ref()));
        assert_eq!(join("c/0.log").unwrap(), Some("/var/log/pod/c/0.log".into()));
        assert_eq!(join("./0.log").unwrap(), Some("/var/log/pod/./0.log".into()));
        for bad in ["", "/etc/passwd", "../x", "a/../../x"] {
            assert!(join(bad).is_err(), "{bad:?}");
        }
        assert!(log_path(Some("relative".as_ref()), Some("a".as_ref())).is_err());
        assert_eq!(log_path(None, Some("a".as_ref())).unwrap(), None);
        assert_eq!(log_path(Some("/a".as_ref()), None).unwrap(), None);
    }

    #[test]
    fn reading_stops_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_file(&path, &[7; 100]).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap().len(), 100);
        assert!(read_bounded(&path, 99).is_err());
        assert_eq!(node_file("/nonexistent/file").unwrap(), b"");
        remove_dir(dir.path()).unwrap();
        remove_dir(dir.path()).unwrap();
    }
}
