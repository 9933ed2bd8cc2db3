//! One container: its first process, those added to it, and its cgroup.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_cgroup::Cgroup;
use berth_oci_runtime::{ExecRequest, exec, update};
use nix::sys::signal::Signal;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process as OciProcess, Spec};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::end;
use crate::error::Error;
use crate::io::{Streams, Uris};
use crate::log;
use crate::process::{Process, Status, make};
use crate::reaper::{Exit, Reaper};

/// Largest `config.json` read, bytes.
const MAX_SPEC: u64 = 4 << 20;
/// How long a killed container's processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How long a container may take to freeze.
const FREEZE: Duration = Duration::from_secs(2);
/// How long copies to slow readers may go on after a container's end.
const OUTPUT: Duration = Duration::from_secs(1);

/// A container that was created.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) init: Arc<Process>,
    pub(crate) cgroup: Option<Cgroup>,
    /// Whether the kernel kills its processes when its first one ends.
    own_pids: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    execs: HashMap<String, Arc<Process>>,
    paused: bool,
}

impl Container {
    pub(crate) fn new(
        id: &str,
        bundle: &Path,
        init: Arc<Process>,
        cgroup: Option<Cgroup>,
        spec: &Spec,
    ) -> Self {
        Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            init,
            cgroup,
            own_pids: has_own_pids(spec),
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process an `exec_id` means; empty is the first one.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.inner().execs.get(exec).cloned();
        found.ok_or_else(|| Error::NotFound { what: "process", id: exec.to_owned() })
    }

    /// Notes a process that is to be added.
    pub(crate) fn add_exec(
        &self,
        exec: &str,
        uris: Uris,
        process: OciProcess,
    ) -> Result<(), Error> {
        if self.init.status() != Status::Running {
            return Err(Error::State { id: self.id.clone(), state: "not running" });
        }
        let mut inner = self.inner();
        if inner.execs.contains_key(exec) {
            return Err(Error::Exists { what: "process", id: exec.to_owned() });
        }
        let process = Process::pending(exec, uris, process);
        inner.execs.insert(exec.to_owned(), Arc::new(process));
        Ok(())
    }

    /// Makes and starts an added process; `started` is called once it is known.
    pub(crate) async fn start_exec(
        self: &Arc<Self>,
        process: &Arc<Process>,
        reaper: &Arc<Reaper>,
        known: impl FnOnce(),
    ) -> Result<u32, Error> {
        if self.paused() {
            // It would join the frozen cgroup, and never get as far as its program.
            return Err(Error::State { id: self.id.clone(), state: "paused" });
        }
        let mut wanted = process.take_pending()?;
        if wanted.oom_score_adj().is_none() {
            wanted.set_oom_score_adj(oom_score(self.init.pid()));
        }
        match self.make_exec(process, &wanted, reaper).await {
            Ok(()) => {
                known();
                process.start().await
            }
            Err(error) => {
                process.failed();
                // It ended meanwhile, and what the process was to join is gone with it.
                if self.init.status() != Status::Running {
                    return Err(Error::State { id: self.id.clone(), state: "not running" });
                }
                Err(error)
            }
        }
    }

    async fn make_exec(
        &self,
        process: &Process,
        wanted: &OciProcess,
        reaper: &Arc<Reaper>,
    ) -> Result<(), Error> {
        // Read again rather than kept: a parsed spec takes more memory than the shim.
        let spec = read_spec(&self.bundle)?;
        let stopped = || Error::State { id: self.id.clone(), state: "stopped" };
        let init = self.init.pidfd().ok_or_else(stopped)?;
        let mut opened = Streams::open(&process.uris, false)?;
        let creating = exec(ExecRequest {
            id: &self.id,
            init: init.as_fd(),
            spec: &spec,
            process: wanted,
            stdio: opened.stdio,
            cgroup: self.cgroup.as_ref(),
        })?;
        drop(spec);
        let made = make(creating, reaper, &mut opened.streams).await?;
        process.made(made, opened.streams);
        Ok(())
    }

    pub(crate) fn paused(&self) -> bool {
        self.inner().paused
    }

    /// Freezes or thaws every process.
    pub(crate) async fn set_paused(&self, paused: bool) -> Result<(), Error> {
        let cgroup = self.cgroup.as_ref().ok_or(Error::Unimplemented("pause without a cgroup"))?;
        let until = Instant::now() + FREEZE;
        let mut pause = Duration::from_millis(1);
        while !cgroup.set_frozen(paused)? {
            if Instant::now() >= until {
                cgroup.set_frozen(false)?;
                let what = "freezing a container";
                return Err(Error::Timeout { what, seconds: FREEZE.as_secs() });
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        self.inner().paused = paused;
        Ok(())
    }

    /// Changes its limits to those of `resources`, an OCI `LinuxResources` as JSON.
    pub(crate) fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|error| Error::invalid("resources", error.to_string()))?;
        if matches!(self.init.status(), Status::Stopped(_)) {
            return Err(Error::State { id: self.id.clone(), state: "stopped" });
        }
        let cgroup = self.cgroup.as_ref().ok_or(Error::Unimplemented("Update without a cgroup"))?;
        Ok(update(cgroup, &resources)?)
    }

    pub(crate) fn pids(&self) -> Result<Vec<u32>, Error> {
        match &self.cgroup {
            Some(cgroup) => Ok(cgroup.pids()?),
            None => Ok(vec![self.init.pid()]),
        }
    }

    /// Signals every process.
    pub(crate) fn kill_all(&self, signal: i32) -> Result<(), Error> {
        let Some(cgroup) = &self.cgroup else { return self.init.kill(signal) };
        if signal == Signal::SIGKILL as i32 {
            return Ok(cgroup.kill_all()?);
        }
        Ok(cgroup.signal_all(signal)?)
    }

    /// Keeps how its first process ended in its bundle; how many of its processes the kernel
    /// killed for their memory.
    pub(crate) fn keep_end(&self, exit: Exit) -> u64 {
        let killed = self.cgroup.as_ref().map(Cgroup::oom_kills);
        let killed = killed.and_then(Result::ok).unwrap_or_default();
        end::keep(&self.bundle, exit, self.init.was_executed(), killed);
        killed
    }

    /// After the end of the first process: none of the others outlives it.
    pub(crate) fn init_ended(&self) {
        if self.own_pids {
            return;
        }
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.kill_all()
        {
            log::warn(format_args!("kill the rest of container {}: {error}", self.id));
        }
    }

    /// Signals one process. SIGKILL ends a paused container too: a frozen process of cgroup
    /// v1 dies only once it is thawed.
    pub(crate) fn kill(&self, process: &Process, signal: i32) -> Result<(), Error> {
        process.kill(signal)?;
        if signal == Signal::SIGKILL as i32
            && self.paused()
            && let Some(cgroup) = &self.cgroup
        {
            cgroup.set_frozen(false)?;
            self.inner().paused = false;
        }
        Ok(())
    }

    /// Kills every process, the first one whether it was started or not.
    pub(crate) fn kill_now(&self) -> Result<(), Error> {
        match self.kill(&self.init, Signal::SIGKILL as i32) {
            Err(Error::NotFound { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        match &self.cgroup {
            Some(cgroup) => Ok(cgroup.kill_all()?),
            None => Ok(()),
        }
    }

    /// Waits for the end of the first process, which was killed.
    pub(crate) async fn ended(&self) -> Result<(), Error> {
        let late = |_| Error::Timeout { what: "the end of a container", seconds: GONE.as_secs() };
        timeout(GONE, self.init.wait()).await.map_err(late)?;
        Ok(())
    }

    /// Removes what is left of an ended container: stray processes and the cgroup.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        let outputs = self.init.streams().map(|streams| streams.take_outputs()).unwrap_or_default();
        if let Some(cgroup) = &self.cgroup {
            remove_cgroup(cgroup).await?;
        }
        delivered(outputs).await;
        Ok(())
    }

    /// Forgets an added process, when its readers have what it wrote.
    pub(crate) async fn remove_exec(&self, exec: &str) {
        let streams = self.process(exec).ok().and_then(|process| process.streams());
        delivered(streams.map(|streams| streams.take_outputs()).unwrap_or_default()).await;
        self.inner().execs.remove(exec);
    }
}

/// Kills what is in a cgroup and removes it.
pub(crate) async fn remove_cgroup(cgroup: &Cgroup) -> Result<(), Error> {
    let until = Instant::now() + GONE;
    let mut pause = Duration::from_millis(1);
    loop {
        cgroup.kill_all()?;
        match cgroup.remove() {
            Err(berth_cgroup::Error::Busy { .. }) if Instant::now() < until => {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            result => return Ok(result?),
        }
    }
}

/// Waits for copies to reach their readers, and gives up those that are too slow.
async fn delivered(outputs: Vec<JoinHandle<()>>) {
    for mut output in outputs {
        if timeout(OUTPUT, &mut output).await.is_err() {
            output.abort();
        }
    }
}

/// Reads a bundle's `config.json`.
pub(crate) fn read_spec(bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let failed = |source| Error::Path { what: "open", path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    serde_json::from_reader(BufReader::new(file.take(MAX_SPEC)))
        .map_err(|source| Error::Spec { path: path.clone(), source })
}

/// What an added process is given unless the request says otherwise: its container's
/// score, and not the shim's, which would protect it.
fn oom_score(pid: u32) -> Option<i32> {
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
    score.trim().parse().ok()
}

/// Whether the container is the only one in its pid namespace.
fn has_own_pids(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|namespaces| {
        namespaces.iter().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(linux: &str, expected: bool) {
        let json = format!(r#"{{"ociVersion":"1.0.2","linux":{linux}}}"#);
        let spec: Spec = serde_json::from_str(&json).unwrap();
        assert_eq!(has_own_pids(&spec), expected, "{linux}");
    }

    #[test]
    fn only_a_new_pid_namespace_is_the_containers_own() {
        check(r#"{"namespaces":[{"type":"pid"}]}"#, true);
        check(r#"{"namespaces":[{"type":"pid","path":"/proc/self/fd/13"}]}"#, false);
        check(r#"{"namespaces":[{"type":"mount"}]}"#, false);
        check("{}", false);
    }

    #[test]
    fn a_missing_or_damaged_spec_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_spec(dir.path()).unwrap_err();
        assert_eq!(error.kind(), berth_model::ErrorKind::NotFound);
        std::fs::write(dir.path().join("config.json"), b"{").unwrap();
        let error = read_spec(dir.path()).unwrap_err();
        assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument);
        assert!(error.chain().contains("config.json: EOF"), "{}", error.chain());
    }
}
