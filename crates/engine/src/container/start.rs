//! Created → Running, or → Exited when the program cannot be executed.
//!
//! The shim works on it beside the driver, which hears other requests meanwhile: a stop
//! does not wait for a start. A start is given up
//!
//! - when the shim gives no sign of life for [`PROBE`] and [`SILENCE`], 10 s;
//! - when it takes longer than [`START`], so that a client which waits 2 minutes, as
//!   kubelet does, learns why;
//! - when a stop has waited a second for it.
//!
//! What was given up is killed by cgroup, and has ended without having run.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::container::{ContainerEvent, Timestamp};
use berth_model::mount::Mount;
use berth_model::sandbox::NamespaceMode;
use berth_model::{ContainerId, ContainerState, ErrorKind, IdMappings, IdRange, SandboxId};
use berth_nri::Passage;
use berth_shim_client::{CreateRequest, Input, Output, Shim};
use berth_snapshot::{Durability, SnapshotKey};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument as _, Span, debug_span};

use super::decide::{self, SHIM_ANSWER, Verdict};
use super::driver::Driver;
use super::release::forget;
use super::stop::Waiter;
use super::{Command, Container, exit};
use crate::core::{Core, step, warn_failure};
use crate::sandbox::{Reply, answer};
use crate::{Error, clock, hooks};

/// Longest that a start may take: mounts of network file systems may be slow.
const START: Duration = Duration::from_secs(115);
/// How often a shim that works on a start is asked for a sign of life.
const PROBE: Duration = Duration::from_secs(5);
/// How long it may take to give it.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a shim may take to forget a task that is in the way.
const STALE: Duration = Duration::from_secs(5);

/// What is known once the program was executed: the pid, and a time before which nothing
/// ran, since a short program has ended before the answer is here.
type Executed = (Shim, u32, Timestamp, Option<Passage>);

/// Why a start did not come to its end.
pub(super) enum Failure {
    /// The shim was not asked.
    Before(Error),
    /// The shim refused, or gave no sign of life; or a plugin refused.
    Shim(Error),
    /// It was given up.
    Late,
}

/// A start under way.
pub(super) struct Starting {
    /// The span of the request that began it: what it leads to is told there as well.
    request: Span,
    work: Pin<Box<dyn Future<Output = Result<Executed, Failure>> + Send>>,
    /// When it is given up.
    until: Instant,
    starters: Vec<Reply>,
    /// Who wants it stopped, and with what grace.
    stoppers: Vec<(Duration, Waiter)>,
}

impl Starting {
    /// The span of the request that began it.
    pub(super) fn request(starting: Option<&Self>) -> Span {
        starting.map_or_else(Span::none, |starting| starting.request.clone())
    }

    /// How it ended; never without one.
    pub(super) async fn outcome(starting: &mut Option<Self>) -> Result<Executed, Failure> {
        let Some(starting) = starting else { return std::future::pending().await };
        let outcome = timeout_at(starting.until, &mut starting.work).await;
        outcome.unwrap_or(Err(Failure::Late))
    }

    /// Somebody wants it stopped: it has a moment left to succeed.
    pub(super) fn stop(&mut self, grace: Duration, waiter: Waiter) {
        self.until = self.until.min(Instant::now() + SHIM_ANSWER);
        self.stoppers.push((grace, waiter));
    }
}

impl Driver {
    /// Begins a start, joins one, or answers at once.
    pub(super) fn start(&mut self, reply: Reply) {
        match self.may_start() {
            Ok(Some(shim)) => {
                let work = Work {
                    core: Arc::clone(&self.core),
                    container: Arc::clone(&self.container),
                    chain: self.record.chain.clone(),
                    request: self.request(),
                    // A task that a daemon made and did not live to start.
                    stale: self.task,
                };
                let span = debug_span!("start_container");
                self.starting = Some(Starting {
                    request: Span::current(),
                    work: Box::pin(work.run(shim).instrument(span)),
                    until: Instant::now() + START,
                    starters: vec![reply],
                    stoppers: Vec::new(),
                });
                self.task = true;
            }
            Ok(None) => match &mut self.starting {
                Some(starting) => starting.starters.push(reply),
                None => answer(reply, Ok(())),
            },
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// The shim to start it with; `None` if it was started, or is being.
    fn may_start(&self) -> Result<Option<Shim>, Error> {
        let refused = |state| {
            let id = self.container.id.clone();
            Err(Error::ContainerState { verb: "start", id, state })
        };
        if self.unfinished.removal {
            return refused("being removed");
        }
        match decide::start(&self.record.state) {
            Verdict::Act if self.is_over() => return refused("exited"),
            Verdict::Act if self.starting.is_some() => return Ok(None),
            Verdict::Act => {}
            Verdict::Done => return Ok(None),
            Verdict::Refuse => return refused(self.record.state.name()),
        }
        if self.target_has_ended() {
            return refused("to see the processes of a container that has ended");
        }
        let sandbox = &self.container.sandbox;
        if !sandbox.is_ready() {
            return Err(Error::SandboxNotReady { verb: "start container", id: sandbox.id.clone() });
        }
        sandbox.live_shim("start container").map(Some)
    }

    /// The namespace to join is named by the pid that its target had when this container was
    /// made: by now that may be another process, of another pod or of the node.
    fn target_has_ended(&self) -> bool {
        let NamespaceMode::Target(id) = &self.record.spec.security.namespaces.pid else {
            return false;
        };
        let target = ContainerId::new(id).ok().and_then(|id| self.core.container(&id).ok());
        target.is_none_or(|target| target.status.get().pid().is_none())
    }

    /// What comes of a start. Says whether the container is gone.
    pub(super) async fn begun(&mut self, outcome: Result<Executed, Failure>) -> bool {
        let Some(Starting { mut starters, stoppers, .. }) = self.starting.take() else {
            return false;
        };
        let interrupted = !stoppers.is_empty();
        let outcome = match outcome {
            Ok(executed) => self.started(executed).await,
            Err(failure) => Err(self.not_started(failure, interrupted).await),
        };
        // Who asked for the start while it went on gets its outcome: by the time a second
        // one had its turn, a short program would have ended, and its start be refused.
        while let Ok(asked) = self.commands.try_recv() {
            match asked {
                (_, Command::Start(reply)) => starters.push(reply),
                other => self.taken.push_back(other),
            }
        }
        let outcome = outcome.map_err(Arc::new);
        for reply in starters {
            answer(reply, outcome.clone().map_err(Error::Shared));
        }
        if !matches!(self.record.state, ContainerState::Running { .. }) {
            let waiters = stoppers.into_iter().map(|(_, waiter)| waiter).collect();
            return self.settle(waiters).await;
        }
        for (grace, waiter) in stoppers {
            self.stop(grace, waiter).await;
        }
        false
    }

    async fn started(&mut self, executed: Executed) -> Result<(), Error> {
        let (shim, pid, at, passage) = executed;
        if let Err(error) = self.enter(ContainerEvent::Started { pid, at }).await {
            // A container that no record says is running must not run.
            self.kill_all().await;
            match forget(&shim, &self.container.id, STALE).await {
                Ok(()) => {
                    self.task = false;
                    self.restore().await;
                }
                // It cannot be started anew while the shim has the old task.
                Err(_) => self.end(decide::start_error(clock::now(), error.told())).await,
            }
            return Err(error);
        }
        self.ending = Some(exit::watch(shim, self.container.id.clone()));
        hooks::post_start_container(&self.core, &self.container).await;
        drop(passage);
        berth_failpoint::reached(Point::START_PUBLISHED).await;
        Ok(())
    }

    /// The container has ended without having run; why is told to the client and kept.
    async fn not_started(&mut self, failure: Failure, interrupted: bool) -> Error {
        let id = self.container.id.clone();
        let error = match failure {
            Failure::Before(error) => return error,
            Failure::Late if interrupted => Error::StartInterrupted(id),
            Failure::Late => Error::Deadline { what: format!("start of {id}"), limit: START },
            Failure::Shim(error) => error,
        };
        self.kill_all().await;
        // Before it is stored: what has no task and no record of an end was not started.
        self.release_task().await;
        let exit = decide::start_error(clock::now(), error.told());
        match step(Point::START_REFUSED).await {
            Ok(()) => self.end(exit).await,
            Err(unstored) => self.unstored(exit, unstored),
        }
        error
    }

    /// Kills what the cgroup holds, if anything.
    async fn kill_all(&mut self) {
        if let Err(error) = self.kill_until_empty().await {
            warn_failure("kill container by its cgroup", &error);
        }
    }

    fn request(&self) -> CreateRequest {
        let spec = &self.record.spec;
        let log = self.record.log_path.clone().map_or(Output::Null, Output::CriLog);
        CreateRequest {
            id: self.container.id.clone(),
            bundle: self.container.bundle.clone(),
            rootfs: Vec::new(),
            terminal: spec.tty,
            stdin: if spec.stdin { Input::Hold } else { Input::Null },
            stderr: if spec.tty { Output::Null } else { log.clone() },
            stdout: log,
        }
    }
}

/// What the shim is asked for a start.
struct Work {
    core: Arc<Core>,
    container: Arc<Container>,
    chain: Vec<berth_model::ChainId>,
    /// Without the root file system.
    request: CreateRequest,
    stale: bool,
}

impl Work {
    /// Answers after execve(2).
    async fn run(mut self, shim: Shim) -> Result<Executed, Failure> {
        self.prepare(&shim).await.map_err(Failure::Before)?;
        let passage = hooks::pass(&self.core, &self.container.id).await.map_err(Failure::Before)?;
        hooks::start_container(&self.core, &self.container).await.map_err(Failure::Shim)?;
        let silent = |failure| not_executed(&self.container.id, failure);
        let execute = self.execute(&shim);
        let executed = unless_silent(&shim, &self.container.sandbox.id, silent, execute).await;
        let (pid, at) = executed.map_err(Failure::Shim)?;
        Ok((shim, pid, at, passage))
    }

    async fn prepare(&mut self, shim: &Shim) -> Result<(), Error> {
        if self.stale {
            forget(shim, &self.container.id, STALE).await?;
        }
        step(Point::START_TASK_RELEASED).await?;
        self.request.rootfs = self.rootfs().await?;
        self.drain(shim).await?;
        step(Point::START_MOUNTS_KNOWN).await
    }

    /// Has what nobody logs read all the same, so that clients can be attached. An older
    /// shim cannot.
    async fn drain(&mut self, shim: &Shim) -> Result<(), Error> {
        if self.request.stdout != Output::Null {
            return Ok(());
        }
        let id = self.container.id.to_string();
        let failed = |source| Error::Shim { action: "start container", id, source };
        if shim.drains().await.map_err(failed)? {
            self.request.stdout = Output::Drain;
            if !self.request.terminal {
                self.request.stderr = Output::Drain;
            }
        }
        Ok(())
    }

    async fn execute(&self, shim: &Shim) -> Result<(u32, Timestamp), Error> {
        let id = &self.container.id;
        let failed = |failure| not_executed(id, failure);
        let created = shim.create(&self.request).instrument(debug_span!("task_create")).await;
        created.map_err(failed)?;
        step(Point::START_TASK_CREATED).await?;
        let at = clock::now().max(self.container.status.get().created_at);
        let pid = shim.start(id).instrument(debug_span!("task_start")).await.map_err(failed)?;
        step(Point::START_EXECUTED).await?;
        Ok((pid, at))
    }

    /// How its root file system is mounted.
    async fn rootfs(&self) -> Result<Vec<Mount>, Error> {
        let key = SnapshotKey::from(&self.container.id);
        let (snapshots, chain) = (self.core.snapshots.clone(), self.chain.clone());
        let ids = self.container.sandbox.spec.namespaces.user.clone();
        let mount = move || {
            let mut mounts = snapshots.mounts_unused(&key, &chain, Durability::Volatile)?;
            if let Some(ids) = ids {
                snapshots.map_root(&key, &chain, &ids)?;
                mounts.iter_mut().for_each(|mount| map(mount, &ids));
            }
            Ok(mounts)
        };
        self.core.disk.run(mount).await?.map_err(|source| Error::Snapshot {
            action: "mount snapshot",
            key: self.container.id.to_string(),
            source,
        })
    }
}

/// Has the layers of an overlay show their ids as the pod's users (containerd's names).
fn map(mount: &mut Mount, ids: &IdMappings) {
    for (name, ranges) in [("uidmap", &ids.uids), ("gidmap", &ids.gids)] {
        let range =
            |range: &IdRange| format!("{}:{}:{}", range.container, range.host, range.length);
        let ranges: Vec<_> = ranges.iter().map(range).collect();
        mount.options.push(format!("{name}={}", ranges.join(",")));
    }
}

/// Runs `work` for as long as the shim gives signs of life.
pub(crate) async fn unless_silent<T>(
    shim: &Shim,
    sandbox: &SandboxId,
    silent: impl FnOnce(berth_shim_client::Error) -> Error,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let silence = async {
        loop {
            sleep(PROBE).await;
            // Any other answer is one; and what broke, breaks the work as well.
            if let Err(error @ berth_shim_client::Error::Deadline { .. }) =
                shim.sandbox_ping(sandbox, SILENCE).await
            {
                return error;
            }
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        error = silence => Err(silent(error)),
    }
}

/// Why the shim did not execute the program.
fn not_executed(id: &ContainerId, failure: berth_shim_client::Error) -> Error {
    let id = id.clone();
    match failure.exec_failure() {
        Some(message) => Error::Exec {
            id,
            message: message.to_owned(),
            kind: match failure.kind() {
                // To a client "not found" would mean the container.
                ErrorKind::NotFound | ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
                kind => kind,
            },
        },
        None => Error::Shim { action: "start container", id: id.to_string(), source: failure },
    }
}
