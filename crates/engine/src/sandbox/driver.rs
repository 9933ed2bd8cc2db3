//! The only writer of a sandbox.

use std::sync::Arc;

use berth_failpoint::Point;
use berth_metadata::{SandboxPhase, SandboxRecord};
use berth_shim_client::Shim;
use tokio::sync::mpsc;
use tracing::{Instrument as _, debug_span, info_span};

use super::{Asked, Command, Sandbox, status_of};
use crate::Error;
use crate::again::Again;
use crate::core::{Core, step};
use crate::events::EventKind;
use crate::pending::Object;

pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) record: SandboxRecord,
    commands: mpsc::Receiver<Asked>,
    /// Whether plugins know that it was stopped, and that it goes.
    pub(super) told: Told,
    /// What could not be done and is tried again.
    unfinished: Option<Unfinished>,
    again: Again,
}

/// What plugins are told once, however often it is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) stopped: bool,
    pub(super) gone: bool,
}

/// What is tried again until it is done, whether somebody asks for it or not. The greater
/// one includes the others.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Unfinished {
    /// The record that the shim is gone.
    Loss,
    Stop,
    Removal,
}

impl Unfinished {
    /// For people.
    fn told(self) -> &'static str {
        match self {
            Self::Loss => "store that the shim is gone",
            Self::Stop => "stop sandbox",
            Self::Removal => "remove sandbox",
        }
    }
}

/// Publishes a stored sandbox, and starts its driver. Nobody knows of a `new` one yet.
pub(crate) fn spawn(
    core: &Arc<Core>,
    sandbox: Arc<Sandbox>,
    record: SandboxRecord,
    commands: mpsc::Receiver<Asked>,
    new: bool,
) {
    let span = info_span!(parent: None, "sandbox", sandbox.id = %sandbox.id);
    if sandbox.is_ready() {
        core.parents.add(&sandbox.cgroup, &sandbox.id);
    }
    core.sandboxes.insert(sandbox.id.clone(), Arc::clone(&sandbox));
    if new {
        // It is its namespaces, and these are there.
        core.tell(EventKind::Created, sandbox.id.as_str(), &sandbox);
        core.tell(EventKind::Started, sandbox.id.as_str(), &sandbox);
    }
    let again = Again::new(&core.pending, Object::new("sandbox", &sandbox.id));
    // A restart finds nothing left of one that was stopped.
    let stopped =
        record.phase == SandboxPhase::NotReady && record.shim.is_none() && record.network.is_none();
    let told = Told { stopped, gone: false };
    let driver =
        Driver { core: Arc::clone(core), sandbox, record, commands, told, unfinished: None, again };
    core.tasks.spawn(driver.run().instrument(span));
}

impl Driver {
    async fn run(mut self) {
        let shutdown = self.core.shutdown.clone();
        loop {
            let shim = self.sandbox.shim.get();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                command = self.commands.recv() => {
                    let Some((span, command)) = command else { return };
                    if self.obey(command).instrument(span).await {
                        break;
                    }
                }
                () = gone(shim.as_ref()) => {
                    let lost = self.lost().await;
                    self.noted(Unfinished::Loss, &lost);
                }
                () = self.again.due() => {
                    if self.try_again().instrument(debug_span!("try_again")).await {
                        break;
                    }
                }
            }
        }
        // What still waits wants no more than what was done.
        self.commands.close();
        while let Ok((_, command)) = self.commands.try_recv() {
            match command {
                Command::Stop(reply) | Command::Remove(reply) | Command::Reattach(reply) => {
                    answer(reply, Ok(()));
                }
                Command::Update(_, reply) => {
                    answer(reply, Err(Error::SandboxNotFound(self.sandbox.id.clone())));
                }
            }
        }
    }

    /// Says whether the sandbox is gone for good.
    async fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Stop(reply) => {
                let stopped = self.stop().instrument(debug_span!("stop_sandbox")).await;
                self.noted(Unfinished::Stop, &stopped);
                answer(reply, stopped);
                false
            }
            Command::Update(limits, reply) => {
                let stored = Some(Point::UPDATE_SANDBOX_STORED);
                let noted = self.change(stored, |record| record.limits = Some(*limits)).await;
                answer(reply, noted);
                false
            }
            Command::Reattach(reply) => {
                let reattached = self.reattach().instrument(debug_span!("reattach")).await;
                answer(reply, reattached);
                false
            }
            Command::Remove(reply) => {
                let removed = self.remove().instrument(debug_span!("remove_sandbox")).await;
                self.noted(Unfinished::Removal, &removed);
                let gone = removed.is_ok();
                answer(reply, removed);
                gone
            }
        }
    }

    /// Of a sandbox that is being stopped nothing is put back.
    async fn reattach(&self) -> Result<(), Error> {
        match &self.record.network {
            Some(network) if self.record.phase == SandboxPhase::Ready => {
                super::teardown::reattach(&self.core, self.sandbox.id.clone(), network.clone())
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Tries again what could not be done. Says whether the sandbox is gone for good.
    async fn try_again(&mut self) -> bool {
        let Some(what) = self.unfinished else { return false };
        let done = match what {
            Unfinished::Loss => self.store_loss().await,
            Unfinished::Stop => self.stop().await,
            Unfinished::Removal => self.remove().await,
        };
        self.noted(what, &done);
        what == Unfinished::Removal && done.is_ok()
    }

    /// Remembers what failed, and forgets what was done with all that it includes.
    fn noted(&mut self, what: Unfinished, outcome: &Result<(), Error>) {
        if let Err(error) = outcome {
            let greatest = self.unfinished.map_or(what, |unfinished| unfinished.max(what));
            self.unfinished = Some(greatest);
            self.again.later(greatest.told(), error);
        } else if self.unfinished <= Some(what) {
            self.unfinished = None;
            self.again.never();
        }
    }

    /// Decide, store, publish: what follows from the change is the caller's.
    pub(super) async fn enter(&mut self, phase: SandboxPhase) -> Result<(), Error> {
        if self.record.phase != phase {
            let stored = Point::STOP_NOT_READY_STORED;
            self.change(Some(stored), |record| record.phase = phase).await?;
            self.core.tell(EventKind::Stopped, self.sandbox.id.as_str(), &self.sandbox);
        }
        Ok(())
    }

    /// Stores a changed record, passes `stored` if that is one, then publishes it.
    pub(super) async fn change(
        &mut self,
        stored: Option<Point>,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<(), Error> {
        let mut record = self.record.clone();
        change(&mut record);
        self.core.save_sandbox(&record).instrument(debug_span!("store")).await?;
        if let Some(stored) = stored {
            step(stored).await?;
        }
        self.record = record;
        let status = status_of(&self.record, Arc::clone(&self.sandbox.spec));
        let ended = status.netns.is_none();
        let ready = self.record.phase == SandboxPhase::Ready;
        self.sandbox.status.set(Arc::new(status));
        if ended {
            self.sandbox.counters.release();
        }
        if !ready {
            self.core.parents.remove(&self.sandbox.cgroup, &self.sandbox.id);
            self.core.sampler.let_go(&self.sandbox.cgroup);
        }
        Ok(())
    }
}

/// The client may have gone away.
pub(crate) fn answer(reply: super::Reply, outcome: Result<(), Error>) {
    let _unheard = reply.send(outcome);
}

async fn gone(shim: Option<&Shim>) {
    match shim {
        Some(shim) => shim.closed().await,
        None => std::future::pending().await,
    }
}
