//! Running → Exited, because somebody wants it so.
//!
//! ```text
//! signal --grace--> SIGKILL by the shim --1 s--> kill by cgroup, each second, ten times;
//!                                                then each ten, and nobody waits for it
//! ```
//!
//! A shim that does not answer within a second is bypassed: the signal goes to the first
//! process, whose end is watched, and the end is recorded without the shim.
//!
//! Whoever asks again joins the stop that goes on; the shortest grace counts.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use berth_failpoint::Point;
use berth_shim_client::{ProcessId, Shim};
use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use tokio::time::Instant;
use tracing::{Instrument as _, debug_span};

use super::decide::{self, Effort, SHIM_ANSWER, Verdict};
use super::driver::Driver;
use crate::Error;
use crate::core::{cgroup_error, step, step_blocking, warn_failure};
use crate::sandbox::{Reply, answer, ended};

/// Longest grace period that means what it says; a clock has an end.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long killed processes may take to go, before something else is done meanwhile.
const DIE: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(5);

/// Resolves at the end of a process.
type Death = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who waits for a stop, and until when.
#[derive(Debug)]
pub(super) enum Waiter {
    /// Until it has ended.
    Stopped(Reply),
    /// Until the shim has forgotten it.
    Halted(Reply),
    /// Until nothing of it is left.
    Removed(Reply),
}

/// A stop that goes on.
pub(super) struct Stopping {
    /// What was tried last.
    effort: Effort,
    /// When more is tried.
    pub(super) next: Instant,
    /// The end of the first process, where the shim will not tell it.
    death: Option<Death>,
    waiters: Vec<Waiter>,
}

impl Stopping {
    /// Resolves at the end of the first process that the shim does not tell.
    pub(super) async fn died(stopping: &mut Option<Self>) {
        match stopping.as_mut().and_then(|stopping| stopping.death.as_mut()) {
            Some(death) => death.await,
            None => std::future::pending().await,
        }
    }

    /// Somebody else wants it too.
    fn join(&mut self, grace: Duration, waiter: Waiter) {
        self.waiters.push(waiter);
        if self.effort == Effort::Asked {
            self.next = self.next.min(Instant::now() + grace.min(FOREVER));
        } else if self.effort.is_hopeless() {
            (self.effort, self.next) = (Effort::Killed, Instant::now());
        }
    }
}

impl Driver {
    /// Begins a stop, joins one, or answers at once. Says whether the container is gone.
    pub(super) async fn stop(&mut self, grace: Duration, waiter: Waiter) -> bool {
        if let Some(starting) = &mut self.starting {
            starting.stop(grace, waiter);
            return false;
        }
        if self.is_over() || decide::stop(&self.record.state) != Verdict::Act {
            return self.settle(vec![waiter]).await;
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.join(grace, waiter);
            return false;
        }
        let next = Instant::now() + grace.min(FOREVER);
        self.stopping =
            Some(Stopping { effort: Effort::Asked, next, death: None, waiters: vec![waiter] });
        if grace.is_zero() {
            return self.try_harder().await;
        }
        // A name that was checked when the container was created.
        let signal =
            berth_spec::signal::number(&self.record.stop_signal).unwrap_or(Signal::SIGTERM as i32);
        if self.kill_by_shim(signal).await.is_ok() {
            return false;
        }
        match self.signal_itself(signal).await {
            Ok(Some(death)) => {
                if let Some(stopping) = &mut self.stopping {
                    stopping.death = Some(death);
                }
                false
            }
            Ok(None) => self.died().await,
            Err(error) => {
                warn_failure("signal container without its shim", &error);
                self.died().await
            }
        }
    }

    /// Its first process has ended, or cannot be asked: the rest needs no grace.
    pub(super) async fn died(&mut self) -> bool {
        if let Some(stopping) = &mut self.stopping {
            (stopping.death, stopping.effort) = (None, Effort::Killed);
        }
        self.try_harder().await
    }

    /// The last effort did not end it in time. Says whether the container is gone.
    pub(super) async fn try_harder(&mut self) -> bool {
        let Some(effort) = self.stopping.as_ref().map(|stopping| stopping.effort) else {
            return false;
        };
        let mut next = effort.next();
        if next.is_hopeless() {
            let error = self.undying();
            self.unfinished.again.show("kill container", &error);
            self.give_up();
        }
        if next == Effort::Killed && self.kill_by_shim(Signal::SIGKILL as i32).await.is_err() {
            next = Effort::Bypassed(1);
        }
        if let Some(stopping) = &mut self.stopping {
            (stopping.effort, stopping.next) = (next, Instant::now() + next.pause());
        }
        match next {
            Effort::Bypassed(times) => self.bypass(times).await,
            Effort::Asked | Effort::Killed => false,
        }
    }

    /// A shim that does not take the signal is told so once, in the log.
    async fn kill_by_shim(&mut self, signal: i32) -> Result<(), ()> {
        let shim = self.container.sandbox.shim.get().filter(|shim| !shim.is_silent());
        let Some(shim) = shim else { return Err(()) };
        // With a process namespace of its own, the end of the first process is the end of all.
        let all = signal == Signal::SIGKILL as i32 && !self.owns_pid_namespace();
        match self.signal(&shim, signal, all).await {
            Ok(()) => Ok(()),
            Err(error) => {
                warn_failure("signal container", &error);
                Err(())
            }
        }
    }

    async fn signal(&mut self, shim: &Shim, signal: i32, all: bool) -> Result<(), Error> {
        let id = &self.container.id;
        let sent = shim.kill(id, signal, all, SHIM_ANSWER);
        match sent.instrument(debug_span!("task_kill")).await {
            // It ended by itself a moment ago; the shim will say so.
            Err(error) if error.kind() == berth_model::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|source| Error::Shim {
                action: "signal container",
                id: id.to_string(),
                source,
            })?,
        }
        let killed = signal == Signal::SIGKILL as i32;
        step(if killed { Point::STOP_KILLED } else { Point::STOP_SIGNALLED }).await
    }

    /// Signals the first process without the shim, and watches for its end; `None` if it is
    /// not there any more.
    async fn signal_itself(&mut self, signal: i32) -> Result<Option<Death>, Error> {
        let Some(pid) = self.container.status.get().pid() else { return Ok(None) };
        let Ok(process) = ProcessId::of(pid) else { return Ok(None) };
        let (core, path) = (self.core.clone(), self.container.cgroup.clone());
        let id = self.container.id.to_string();
        let send = move || {
            let Some(cgroup) = core.cgroup(&path)? else { return Ok(None) };
            // A number outlives its process; what is in the cgroup is ours in any case.
            let pids = cgroup.pids().map_err(cgroup_error("read processes of", &path))?;
            if !pids.contains(&pid) {
                return Ok(None);
            }
            let signal = Signal::try_from(signal).unwrap_or(Signal::SIGTERM);
            let failed = |source| Error::Shim { action: "signal container", id, source };
            process.kill(signal).map_err(failed)?;
            Ok(Some(process))
        };
        let found = self.core.disk.run(send).await??;
        Ok(found.map(|process| -> Death {
            Box::pin(async move {
                // An error means that it cannot be watched: then the grace is waited for.
                while !matches!(ended(process, FOREVER).await, Ok(true)) {
                    tokio::time::sleep(SHIM_ANSWER).await;
                }
            })
        }))
    }

    /// Kills by cgroup. Once nothing is left there, the end is recorded without the shim, if
    /// it has had its time to tell it. Says whether the container is gone.
    async fn bypass(&mut self, times: u32) -> bool {
        match self.kill_until_empty().await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                warn_failure("kill container by its cgroup", &error);
                return false;
            }
        }
        let told = self.ending.as_mut().and_then(|ending| ending.as_mut().now_or_never());
        if let Some(exited) = told {
            self.ending = None;
            return self.ended(exited).await;
        }
        let silent = self.container.sandbox.shim.get().is_some_and(|shim| shim.is_silent());
        if !silent && times == 1 {
            return false;
        }
        tracing::warn!("shim did not report the end of a killed container");
        let exit = self.unreported().await;
        self.end(exit).await;
        self.settle(Vec::new()).await
    }

    /// Kills every process of the cgroup; how many there were.
    pub(super) async fn kill_by_cgroup(&mut self) -> Result<usize, Error> {
        let (core, path) = (self.core.clone(), self.container.cgroup.clone());
        let kill = move || {
            let Some(cgroup) = core.cgroup(&path)? else { return Ok(0) };
            let pids = cgroup.pids().map_err(cgroup_error("read processes of", &path))?.len();
            if pids > 0 {
                cgroup.kill_all().map_err(cgroup_error("kill processes of", &path))?;
            }
            step_blocking(Point::STOP_CGROUP_KILLED)?;
            Ok(pids)
        };
        self.core.disk.run(kill).await?
    }

    /// Kills every process of the cgroup, and gives them a moment to go; whether they did.
    pub(super) async fn kill_until_empty(&mut self) -> Result<bool, Error> {
        let until = Instant::now() + DIE;
        while self.kill_by_cgroup().await? > 0 {
            if Instant::now() > until {
                return Ok(false);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(true)
    }

    /// Its processes do not die (uninterruptible sleep). They are killed again from time to
    /// time, and what was asked for is done when they are gone; nobody waits for it here.
    fn give_up(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        for waiter in std::mem::take(&mut stopping.waiters) {
            let reply = match waiter {
                Waiter::Stopped(reply) | Waiter::Halted(reply) => reply,
                Waiter::Removed(reply) => {
                    self.unfinished.removal = true;
                    reply
                }
            };
            answer(reply, Err(self.undying()));
        }
    }

    fn undying(&self) -> Error {
        let what = format!("end of killed container {}", self.container.id);
        Error::Deadline { what, limit: Effort::limit() }
    }

    /// It does not run: answers whoever waited for that, in the order of what they wait
    /// for. Says whether the container is gone.
    pub(super) async fn settle(&mut self, mut waiters: Vec<Waiter>) -> bool {
        if let Some(stopping) = self.stopping.take() {
            waiters.extend(stopping.waiters);
        }
        let (mut halted, mut removers) = (Vec::new(), Vec::new());
        for waiter in waiters {
            match waiter {
                Waiter::Stopped(reply) => answer(reply, Ok(())),
                Waiter::Halted(reply) => halted.push(reply),
                Waiter::Removed(reply) => removers.push(reply),
            }
        }
        self.unfinished.removal |= !removers.is_empty();
        self.unfinished.done();
        // The shim keeps an end that is not stored, unless nobody will ask for it.
        if self.unfinished.removal || !self.unfinished.has_end() {
            self.release_task().await;
        }
        for reply in halted {
            answer(reply, self.unfinished.refusal().map_or(Ok(()), Err));
        }
        self.unfinished.removal && self.remove_for(removers).await
    }
}
