//! Running → Exited, because somebody wants it so.
//!
//! ```text
//! signal --grace--> SIGKILL by the shim --1 s--> kill by cgroup, each second, at most ten
//! ```
//!
//! Whoever asks again joins the stop that goes on; the shortest grace counts.

use std::time::Duration;

use berth_failpoint::Point;
use berth_model::container::ContainerEvent;
use berth_shim_client::Shim;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::decide::{self, Effort, SHIM_ANSWER, Verdict};
use super::driver::Driver;
use crate::core::{cgroup_error, step, step_blocking, warn_failure};
use crate::sandbox::{Reply, answer};
use crate::{Error, clock};

/// Longest grace period that means what it says; a clock has an end.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

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
#[derive(Debug)]
pub(super) struct Stopping {
    /// What was tried last.
    effort: Effort,
    /// When more is tried.
    pub(super) next: Instant,
    waiters: Vec<Waiter>,
}

impl Driver {
    /// Begins a stop, joins one, or answers at once. Says whether the container is gone.
    pub(super) async fn stop(&mut self, grace: Duration, waiter: Waiter) -> bool {
        if decide::stop(&self.record.state) != Verdict::Act {
            return self.settle(vec![waiter]).await;
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.waiters.push(waiter);
            if stopping.effort == Effort::Asked {
                stopping.next = stopping.next.min(Instant::now() + grace.min(FOREVER));
            }
            return false;
        }
        let next = Instant::now() + grace.min(FOREVER);
        self.stopping = Some(Stopping { effort: Effort::Asked, next, waiters: vec![waiter] });
        if grace.is_zero() {
            self.try_harder().await;
            return false;
        }
        // A name that was checked when the container was created.
        let signal =
            berth_spec::signal::number(&self.record.stop_signal).unwrap_or(Signal::SIGTERM as i32);
        if self.kill_by_shim(signal).await.is_err() {
            self.try_harder().await;
        }
        false
    }

    /// The last effort did not end it in time.
    pub(super) async fn try_harder(&mut self) {
        let Some(effort) = self.stopping.as_ref().map(|stopping| stopping.effort) else { return };
        let Some(mut next) = effort.next() else { return self.give_up() };
        if next == Effort::Killed && self.kill_by_shim(Signal::SIGKILL as i32).await.is_err() {
            next = Effort::Bypassed(1);
        }
        if let Effort::Bypassed(_) = next {
            self.bypass().await;
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.effort = next;
            stopping.next = Instant::now() + SHIM_ANSWER;
        }
    }

    /// A shim that does not take the signal is told so once, in the log.
    async fn kill_by_shim(&mut self, signal: i32) -> Result<(), ()> {
        let Some(shim) = self.container.sandbox.shim.get() else { return Err(()) };
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
        match shim.kill(id, signal, all, SHIM_ANSWER).await {
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

    /// Kills by cgroup. When nothing is left there and the shim is silent, the exit is
    /// recorded without it.
    async fn bypass(&mut self) {
        match self.kill_by_cgroup().await {
            Ok(0) if self.effort_was_bypassed() => {
                let kills = self.oom_kills().await;
                let exit = decide::killed_unreported(clock::now(), kills);
                tracing::warn!("shim did not report the end of a killed container");
                if let Err(error) = self.enter(ContainerEvent::Exited(exit)).await {
                    warn_failure("store the end of a container", &error);
                    return;
                }
                // Nobody else will say it.
                self.ending = Some(Box::pin(std::future::ready(None)));
            }
            Ok(_) => {}
            Err(error) => warn_failure("kill container by its cgroup", &error),
        }
    }

    fn effort_was_bypassed(&self) -> bool {
        matches!(&self.stopping, Some(Stopping { effort: Effort::Bypassed(_), .. }))
    }

    /// Kills every process of the cgroup; how many there were.
    pub(super) async fn kill_by_cgroup(&mut self) -> Result<usize, Error> {
        let (core, path) = (self.core.clone(), self.container.cgroup.clone());
        let kill = move || {
            let Some(cgroup) = core.cgroup(&path)? else { return Ok(0) };
            let pids = cgroup.pids().map_err(cgroup_error("read processes of", &path))?.len();
            cgroup.kill_all().map_err(cgroup_error("kill processes of", &path))?;
            step_blocking(Point::STOP_CGROUP_KILLED)?;
            Ok(pids)
        };
        self.core.disk.run(kill).await?
    }

    /// Its processes do not die (uninterruptible sleep); another stop tries again.
    fn give_up(&mut self) {
        let Some(stopping) = self.stopping.take() else { return };
        for waiter in stopping.waiters {
            let (Waiter::Stopped(reply) | Waiter::Halted(reply) | Waiter::Removed(reply)) = waiter;
            let what = format!("end of killed container {}", self.container.id);
            answer(reply, Err(Error::Deadline { what, limit: Effort::limit() }));
        }
    }

    /// It does not run: answers whoever waited for that, in the order of what they wait
    /// for. Says whether the container is gone.
    pub(super) async fn settle(&mut self, mut waiters: Vec<Waiter>) -> bool {
        if let Some(stopping) = self.stopping.take() {
            waiters.extend(stopping.waiters);
        }
        let mut later = Vec::new();
        for waiter in waiters {
            match waiter {
                Waiter::Stopped(reply) => answer(reply, Ok(())),
                other => later.push(other),
            }
        }
        self.release_task().await;
        let mut removers = Vec::new();
        for waiter in later {
            match waiter {
                Waiter::Removed(reply) => removers.push(reply),
                Waiter::Stopped(reply) | Waiter::Halted(reply) => answer(reply, Ok(())),
            }
        }
        self.remove_for(removers).await
    }
}
