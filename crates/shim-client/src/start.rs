//! Runs a shim's `start` and `delete` commands.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use berth_failpoint::Point;
use berth_sys::spawn::{Command, Spawned};
use containerd_shim_protos::api::DeleteResponse;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use protobuf::Message;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use crate::bootstrap::{Bootstrap, MAX_ANSWER, params};
use crate::process::send;
use crate::task::timestamp;
use crate::{Error, Exited, Shim};

/// A configured shim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Runtime {
    /// Absolute path of the binary.
    pub path: PathBuf,
    /// containerd namespace it is told (`k8s.io`).
    pub namespace: String,
    /// Whether it is given `BootstrapParams` on its standard input (containerd 2.3 and
    /// later). The in-tree shim and older ones need none.
    pub params: bool,
}

/// A shim to start.
#[derive(Debug)]
pub struct StartRequest {
    /// Id it is told: the sandbox's.
    pub id: String,
    /// Its working directory.
    pub bundle: PathBuf,
    /// Path of the [`EventServer`](crate::EventServer)'s socket.
    pub events: PathBuf,
    /// Where the in-tree shim shall listen (`BERTH_SOCKET`); others choose themselves.
    pub socket: Option<PathBuf>,
    /// Descriptors it inherits, and the numbers they get there, from 3 on.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// `tasks` or `cgroup.procs` files of the cgroups it shall join by itself, opened for
    /// writing. Only the in-tree shim does (`BERTH_CGROUP_FDS`); they get the numbers
    /// from 32 on.
    pub cgroup: Vec<OwnedFd>,
    /// Added to this process's environment; later entries win.
    pub env: Vec<(OsString, OsString)>,
    /// File for its standard error, appended to; `None` discards it.
    pub log: Option<PathBuf>,
    /// Whether it shall log more.
    pub debug: bool,
    /// How long it may take until it answers on its socket.
    pub deadline: Duration,
}

/// A shim that was started.
#[derive(Clone, Debug)]
pub struct Started {
    /// The connection to it.
    pub shim: Shim,
    /// How to find it again; worth storing.
    pub bootstrap: Bootstrap,
}

/// First descriptor number for [`StartRequest::cgroup`].
const CGROUP_FDS: RawFd = 32;

/// Starts a shim and connects to it.
pub async fn start(runtime: &Runtime, request: StartRequest) -> Result<Started, Error> {
    let (until, id) = (Instant::now() + request.deadline, request.id.clone());
    let answer = run(runtime, request, "start", until).await?;
    let listens = berth_failpoint::reach(Point::RUN_SHIM_LISTENS).await;
    listens.map_err(|source| Error::Io { what: "use pipe", id, source })?;
    let bootstrap = Bootstrap::parse(&answer)?;
    let left = until.saturating_duration_since(Instant::now());
    let shim = Shim::connect(&bootstrap, left, true).await?;
    Ok(Started { shim, bootstrap })
}

/// Runs the `delete` command, which cleans up what a dead shim left behind, and says
/// how its container ended.
pub async fn delete(runtime: &Runtime, request: StartRequest) -> Result<Exited, Error> {
    let until = Instant::now() + request.deadline;
    let answer = run(runtime, request, "delete", until).await?;
    let method = "delete";
    let response = DeleteResponse::parse_from_bytes(&answer)
        .map_err(|source| Error::Message { method, source })?;
    let at = response.exited_at.as_ref().map(timestamp).unwrap_or_default();
    Ok(Exited { code: i32::try_from(response.exit_status).unwrap_or(255), at })
}

/// What the command printed; an error unless it exits with 0 in time.
pub(crate) async fn run(
    runtime: &Runtime,
    request: StartRequest,
    action: &'static str,
    until: Instant,
) -> Result<Vec<u8>, Error> {
    let (id, deadline) = (request.id.clone(), request.deadline);
    let failed = |what| {
        let id = id.clone();
        move |source| Error::Io { what, id, source }
    };
    let (output, stdout) = pipe().map_err(failed("make pipe"))?;
    let mut command = command(runtime, &request, action).map_err(failed("form command line"))?;
    command.fd(stdout, 1);
    if runtime.params {
        let input = input(runtime, &request).map_err(failed("make pipe"))?;
        command.fd(input, 0);
    }
    if let Some(path) = &request.log {
        command.fd(log(path).map_err(failed("open log"))?, 2);
    }
    for (fd, number) in request.fds {
        command.fd(fd, number);
    }
    for (fd, number) in request.cgroup.into_iter().zip(CGROUP_FDS..) {
        command.fd(fd, number);
    }
    let spawned =
        command.spawn().map_err(|source| Error::Spawn { path: runtime.path.clone(), source })?;
    let ended = collect(spawned, output, until).await.map_err(failed("read answer"))?;
    let Some((status, answer)) = ended else {
        return Err(Error::Unanswered { id, action, deadline });
    };
    if status != 0 {
        let output = String::from_utf8_lossy(answer.trim_ascii()).chars().take(1024).collect();
        return Err(Error::Refused { id, action, status, output });
    }
    Ok(answer)
}

fn pipe() -> io::Result<(File, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read.into(), write))
}

fn log(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.into())
}

/// A pipe with the bootstrap parameters in it: a few hundred bytes, below any pipe's size.
fn input(runtime: &Runtime, request: &StartRequest) -> io::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let events = request.events.to_string_lossy();
    let message = params(&request.id, &runtime.namespace, &events, request.debug);
    File::from(write).write_all(&message)?;
    Ok(read)
}

fn command(runtime: &Runtime, request: &StartRequest, action: &str) -> io::Result<Command> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let mut command = Command::new(text(runtime.path.as_os_str().as_bytes())?);
    let events = request.events.as_os_str().as_bytes();
    let flags: [(&str, &[u8]); 4] = [
        ("-namespace", runtime.namespace.as_bytes()),
        ("-address", events),
        ("-publish-binary", b""),
        ("-id", request.id.as_bytes()),
    ];
    for (name, value) in flags {
        command.arg(text(name.as_bytes())?).arg(text(value)?);
    }
    if request.debug {
        command.arg(c"-debug".to_owned());
    }
    if action == "delete" {
        let bundle = request.bundle.as_os_str().as_bytes();
        command.arg(c"-bundle".to_owned()).arg(text(bundle)?);
    }
    command.arg(text(action.as_bytes())?);
    command.cwd(text(request.bundle.as_os_str().as_bytes())?);
    for (name, value) in environment(runtime, request) {
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        command.env(text(&entry)?);
    }
    Ok(command)
}

/// This process's environment, what containerd tells its shims, and the request's own.
fn environment(runtime: &Runtime, request: &StartRequest) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    env.remove(OsStr::new("NOTIFY_SOCKET"));
    let mut set = |name: &str, value: OsString| env.insert(name.into(), value);
    set("TTRPC_ADDRESS", request.events.clone().into());
    set("GRPC_ADDRESS", request.events.clone().into());
    set("NAMESPACE", runtime.namespace.clone().into());
    set("MAX_SHIM_VERSION", "3".into());
    if let Some(socket) = &request.socket {
        set("BERTH_SOCKET", socket.clone().into());
    }
    if !request.cgroup.is_empty() {
        let numbers = CGROUP_FDS.unsigned_abs()..;
        let numbers: Vec<String> =
            request.cgroup.iter().zip(numbers).map(|(_, number)| number.to_string()).collect();
        set("BERTH_CGROUP_FDS", numbers.join(",").into());
    }
    env.extend(request.env.iter().cloned());
    env
}

/// Reads until the process ended, not until the pipe did: a shim may keep it open. The
/// exit code and what was read; `None` if it was killed because its time was over.
///
/// However this returns the process is gone: nothing of it comes to be later.
async fn collect(
    spawned: Spawned,
    output: File,
    until: Instant,
) -> io::Result<Option<(i32, Vec<u8>)>> {
    let mut answer = Vec::new();
    let pidfd = &spawned.pidfd;
    let ended = timeout_at(until, follow(pidfd, &output, &mut answer)).await;
    if !matches!(ended, Ok(Ok(()))) {
        send(pidfd, Signal::SIGKILL)?;
    }
    // It has ended, or ends at once.
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    match ended {
        Ok(followed) => followed?,
        Err(_) => return Ok(None),
    }
    let status = status.and_then(|status| {
        status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
    });
    Ok(Some((status.unwrap_or(255), answer)))
}

/// Reads what the process prints until it has ended.
async fn follow(pidfd: &OwnedFd, output: &File, answer: &mut Vec<u8>) -> io::Result<()> {
    berth_failpoint::reach(Point::RUN_SHIM_EXECUTED).await?;
    let (exit, output) = (watch(pidfd.as_fd())?, watch(output.as_fd())?);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            ready = output.readable(), if open => {
                let mut ready = ready?;
                match ready.try_io(|output| drain(*output.get_ref(), answer)) {
                    Ok(more) => open = more?,
                    Err(_would_block) => {}
                }
            }
            ready = exit.readable() => {
                ready?.retain_ready();
                break;
            }
        }
    }
    while open && matches!(drain(*output.get_ref(), answer), Ok(true)) {}
    Ok(())
}

/// Tells tokio to watch a descriptor.
#[expect(deprecated, reason = "sound for a descriptor that is owned, and never replaced")]
fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Reads once; whether there may be more. What exceeds the limit is read and dropped.
fn drain(output: BorrowedFd<'_>, answer: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 4096];
    let read = nix::unistd::read(output, &mut chunk)?;
    let room = MAX_ANSWER.saturating_sub(answer.len());
    answer.extend_from_slice(&chunk[..read.min(room)]);
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::PermissionsExt;

    use berth_model::ErrorKind;

    /// A "shim" that is a shell script.
    async fn run_script(script: &str, deadline: Duration) -> Result<Vec<u8>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let runtime = Runtime { path, namespace: "k8s.io".into(), params: false };
        let request = StartRequest {
            id: "a".into(),
            bundle: dir.path().into(),
            events: "/events".into(),
            socket: Some("/socket".into()),
            fds: vec![(File::open("/dev/zero").unwrap().into(), 10)],
            cgroup: vec![File::open("/dev/null").unwrap().into()],
            env: vec![("NAMESPACE".into(), "mine".into())],
            log: None,
            debug: true,
            deadline,
        };
        run(&runtime, request, "start", Instant::now() + deadline).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_shim_gets_the_arguments_environment_and_descriptors_of_the_protocol() {
        let script = "echo $* $BERTH_SOCKET $TTRPC_ADDRESS $NAMESPACE $BERTH_CGROUP_FDS\n\
                      readlink /proc/$$/fd/10 /proc/$$/fd/32";
        let answer = String::from_utf8(run_script(script, LONG).await.unwrap()).unwrap();
        let expected = "-namespace k8s.io -address /events -publish-binary -id a -debug start \
                        /socket /events mine 32\n/dev/zero\n/dev/null\n";
        assert_eq!(answer, expected);
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_pipe_open_does_not_hold_up_the_answer() {
        let began = Instant::now();
        let answer = run_script("sleep 3 & echo unix:///a", LONG).await.unwrap();
        assert_eq!(answer, b"unix:///a\n");
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_refusal_carries_what_the_shim_said() {
        let error = run_script("echo no such thing; exit 3", LONG).await.unwrap_err();
        let Error::Refused { status: 3, output, .. } = error else { panic!("{error}") };
        assert_eq!(output, "no such thing");
        let error = run_script("kill -9 $$", LONG).await.unwrap_err();
        assert!(matches!(error, Error::Refused { status: 137, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_start_that_hangs_is_killed_at_its_deadline() {
        let error = run_script("exec sleep 60", Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_at_the_limit() {
        let script = "dd if=/dev/zero bs=1024 count=200 2>/dev/null";
        assert_eq!(run_script(script, LONG).await.unwrap().len(), MAX_ANSWER);
    }
}
