//! Programs of the plugin directory: found, started with their socket, ended.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_sys::process::reap;
use berth_sys::spawn::{Command, Spawned, send_signal};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::nri::{Config, MAX_PLUGINS};
use crate::{Error, names};

/// The descriptor that a program finds its socket at.
const SOCKET: i32 = 3;
/// Largest configuration of a plugin, bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// How long a program may take to end by itself once its socket is closed.
const GRACE: Duration = Duration::from_millis(500);
/// How long a killed one may take to go.
const DIE: Duration = Duration::from_secs(5);

/// A program of the plugin directory.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) index: String,
    pub(crate) name: String,
    pub(crate) config: String,
    path: PathBuf,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

/// The programs of the plugin directory, by name. One that is not there has none.
pub(crate) async fn programs(config: &Config) -> Result<Vec<Program>, Error> {
    let config = config.clone();
    let found = tokio::task::spawn_blocking(move || find(&config)).await;
    found.unwrap_or(Err(Error::ShuttingDown))
}

fn find(config: &Config) -> Result<Vec<Program>, Error> {
    let directory = &config.plugins;
    let failed =
        |source| Error::Io { action: "read plugin directory", path: directory.clone(), source };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut programs = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let executable =
            |found: std::fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
        if !std::fs::metadata(&path).is_ok_and(executable) {
            continue;
        }
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((index, name)) = names::split(file) else {
            let path = path.display();
            tracing::warn!(%path, "not started: a plugin's name is two digits, a dash and a name");
            continue;
        };
        let (index, name) = (index.to_owned(), name.to_owned());
        let config = configuration(&config.configurations, &index, &name)?;
        programs.push(Program { index, name, config, path });
    }
    programs.sort_by(|a, b| (&a.index, &a.name).cmp(&(&b.index, &b.name)));
    programs.truncate(MAX_PLUGINS);
    Ok(programs)
}

/// What a plugin's administrator wrote for it: under its whole name, or under the one
/// without its index.
fn configuration(directory: &Path, index: &str, name: &str) -> Result<String, Error> {
    use io::Read as _;
    for file in [format!("{index}-{name}.conf"), format!("{name}.conf")] {
        let path = directory.join(file);
        let mut text = String::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_CONFIG + 1).read_to_string(&mut text));
        match read {
            Ok(bytes) if u64::try_from(bytes).is_ok_and(|bytes| bytes > MAX_CONFIG) => {
                let source = io::Error::from(io::ErrorKind::FileTooLarge);
                return Err(Error::Io { action: "read plugin configuration", path, source });
            }
            Ok(_) => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Io { action: "read plugin configuration", path, source });
            }
        }
    }
    Ok(String::new())
}

/// A program that was started.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    ended: bool,
}

/// Starts a program with its end of a socket, and nothing else of ours.
pub(crate) fn start(program: &Program) -> Result<(UnixStream, Process), Error> {
    let failed = |source| Error::Io { action: "start plugin", path: program.path.clone(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|error| failed(error.into()));
    let mut command = Command::new(text(program.path.as_os_str().as_bytes())?);
    command
        .env(text(format!("NRI_PLUGIN_NAME={}", program.name).as_bytes())?)
        .env(text(format!("NRI_PLUGIN_IDX={}", program.index).as_bytes())?)
        .env(text(format!("NRI_PLUGIN_SOCKET={SOCKET}").as_bytes())?)
        .fd(theirs.into(), SOCKET);
    let Spawned { pidfd, .. } = command.spawn().map_err(|errno| failed(errno.into()))?;
    let process = Process { pidfd, ended: false };
    Ok((UnixStream::from_std(ours).map_err(failed)?, process))
}

impl Process {
    /// Waits for its end, which the closing of its socket should bring, and kills it else.
    pub(crate) async fn end(&mut self) {
        if timeout(GRACE, self.wait()).await.is_err() {
            self.kill();
            if timeout(DIE, self.wait()).await.is_err() {
                tracing::warn!("a killed plugin does not end");
            }
        }
    }

    async fn wait(&mut self) {
        let Ok(watched) = watch(self.pidfd.as_fd()) else { return std::future::pending().await };
        while !self.ended {
            // Only an error of the reactor itself ends this early; the kill follows then.
            let Ok(mut ready) = watched.readable().await else { return };
            match reap(self.pidfd.as_fd()) {
                Ok(None) => ready.clear_ready(),
                Ok(Some(_)) | Err(_) => self.ended = true,
            }
        }
    }

    fn kill(&self) {
        // One that is gone already is what this wants.
        let _gone = send_signal(self.pidfd.as_fd(), Signal::KILL.as_raw());
    }
}

/// Tells tokio to watch a descriptor.
#[expect(deprecated, reason = "sound for a descriptor that is owned, and never replaced")]
fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _reaped = reap(self.pidfd.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        Config {
            socket: None,
            plugins: dir.join("plugins"),
            configurations: dir.join("conf.d"),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            runtime: ("berth".into(), "0".into()),
        }
    }

    fn program(dir: &Path, name: &str, mode: u32) {
        let path = dir.join("plugins").join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// teeth: crates/nri/src/launch.rs: `tracing::warn!(%path, "not started` → `return Err(Error::ShuttingDown); tracing::warn!(%path, "not started`
    #[test]
    fn programs_are_found_in_order_with_their_configurations() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        assert!(find(&config).unwrap().is_empty(), "no directory is no plugin");
        std::fs::create_dir_all(&config.plugins).unwrap();
        std::fs::create_dir_all(&config.configurations).unwrap();
        std::fs::write(config.configurations.join("b.conf"), "of b").unwrap();
        std::fs::write(config.configurations.join("10-b.conf"), "of 10-b").unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-b", 0o755), ("10-a", 0o700), ("README", 0o644)] {
            program(dir.path(), name, mode);
        }
        let found = find(&config).unwrap();
        let found: Vec<_> = found.iter().map(|p| (p.to_string(), p.config.as_str())).collect();
        let expected = [("10-a", ""), ("10-b", "of 10-b"), ("20-b", "of b")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text)));

        // Somebody's backup is no reason to start without the others, or not at all.
        program(dir.path(), "nameless", 0o755);
        assert_eq!(find(&config).unwrap().len(), 3);
    }
}
