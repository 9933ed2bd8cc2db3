//! The only writer of a container.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_metadata::ContainerRecord;
use berth_model::ContainerState;
use berth_model::container::ContainerEvent;
use berth_shim_client::{Exited, Shim};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument as _, debug_span, info_span};

use super::finish::Unfinished;
use super::start::Starting;
use super::stop::{Stopping, Waiter};
use super::update::{Change, Updating, place};
use super::{Asked, Command, Container, exit, status_of};
use crate::Error;
use crate::again::Again;
use crate::core::{Core, step};
use crate::events::EventKind;
use crate::pending::Object;
use crate::sandbox::answer;

/// Resolves when the container's first process has ended; `None` when its shim is gone.
pub(super) type Ending = Pin<Box<dyn Future<Output = Option<Exited>> + Send>>;

pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    pub(super) container: Arc<Container>,
    pub(super) record: ContainerRecord,
    pub(super) commands: mpsc::Receiver<Asked>,
    /// Taken from the queue, and not obeyed yet.
    pub(super) taken: VecDeque<Asked>,
    /// Whether the shim may hold a task of it.
    pub(super) task: bool,
    /// Present while its program is being executed.
    pub(super) starting: Option<Starting>,
    /// Present while it runs.
    pub(super) ending: Option<Ending>,
    /// Present while somebody wants it stopped.
    pub(super) stopping: Option<Stopping>,
    /// Present while its limits are being changed.
    pub(super) updating: Option<Updating>,
    /// Changes of limits that wait, oldest first.
    pub(super) updates: VecDeque<Change>,
    /// Whether plugins know that it goes, however often that is tried.
    pub(super) told_gone: bool,
    /// What could not be done and is tried again.
    pub(super) unfinished: Unfinished,
}

/// What a restart found of a container.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    /// Whether it was created a moment ago, and nobody knows of it.
    pub(crate) new: bool,
    /// Whether the shim may hold a task of it.
    pub(crate) task: bool,
    /// The shim to wait with, if it runs.
    pub(crate) watch: Option<Shim>,
    /// How it ended meanwhile; `Some(None)` when it ran under a shim that is gone.
    pub(crate) ended: Option<Option<Exited>>,
}

/// Publishes a stored container, and starts its driver.
pub(crate) fn spawn(
    core: &Arc<Core>,
    container: Arc<Container>,
    record: ContainerRecord,
    commands: mpsc::Receiver<Asked>,
    found: Adoption,
) {
    let span = info_span!(
        parent: None, "container",
        container.id = %container.id,
        sandbox.id = %container.sandbox.id,
    );
    core.containers.insert(container.id.clone(), Arc::clone(&container));
    if found.new {
        core.tell(EventKind::Created, container.id.as_str(), &container.sandbox);
    }
    let ending = match (found.ended, found.watch) {
        (Some(ended), _) => Some(Box::pin(std::future::ready(ended)) as Ending),
        (None, Some(shim)) => Some(exit::watch(shim, container.id.clone())),
        (None, None) => None,
    };
    let core = Arc::clone(core);
    let tasks = core.tasks.clone();
    let object = Object::new("container", &container.id);
    let unfinished = Unfinished::new(Again::new(&core.pending, object));
    let updates = record.changing.clone().map(Change::cut_off).into_iter().collect();
    let driver = Driver {
        core,
        container,
        record,
        commands,
        taken: VecDeque::new(),
        task: found.task,
        starting: None,
        ending,
        stopping: None,
        updating: None,
        updates,
        told_gone: false,
        unfinished,
    };
    tasks.spawn(driver.run().instrument(span));
}

impl Driver {
    async fn run(mut self) {
        let shutdown = self.core.shutdown.clone();
        loop {
            let update_pool = self.update_pool();
            let next_effort = self.stopping.as_ref().map(|stopping| stopping.next);
            let gone = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                exited = ended(&mut self.ending) => {
                    self.ending = None;
                    self.ended(exited).instrument(debug_span!("exited")).await
                }
                outcome = Starting::outcome(&mut self.starting) => {
                    let request = Starting::request(self.starting.as_ref());
                    self.begun(outcome).instrument(request).await
                }
                outcome = Updating::outcome(&mut self.updating) => {
                    self.updated(outcome).await;
                    false
                }
                place = place(update_pool.as_ref()) => {
                    self.update_next(place).await;
                    false
                }
                () = Stopping::died(&mut self.stopping) => {
                    self.died().await
                }
                () = at(next_effort) => self.try_harder().await,
                () = self.unfinished.again.due() => {
                    self.try_again().instrument(debug_span!("try_again")).await
                }
                command = next(&mut self.taken, &mut self.commands) => match command {
                    Some((span, command)) => self.obey(command).instrument(span).await,
                    None => return,
                },
            };
            if gone {
                break;
            }
        }
        self.refuse_rest();
    }

    /// Says whether the container is gone for good.
    async fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Start(reply) => {
                self.start(reply);
                false
            }
            Command::Stop(grace, reply) => self.stop(grace, Waiter::Stopped(reply)).await,
            Command::Halt(reply) => self.stop(Duration::ZERO, Waiter::Halted(reply)).await,
            Command::Remove(reply) => self.stop(Duration::ZERO, Waiter::Removed(reply)).await,
            Command::Update(change, reply) => {
                self.updates.push_back(Change::asked(*change, reply));
                false
            }
            Command::Sync(reply) => {
                answer(reply, Ok(()));
                false
            }
        }
    }

    /// What still waits wants the container gone, which it is, or wants it started.
    fn refuse_rest(&mut self) {
        self.commands.close();
        let late = self.updating.take().and_then(Updating::into_reply);
        for reply in self.updates.drain(..).filter_map(Change::into_reply).chain(late) {
            answer(reply, Err(Error::ContainerNotFound(self.container.id.clone())));
        }
        while let Some((_, command)) =
            self.taken.pop_front().or_else(|| self.commands.try_recv().ok())
        {
            match command {
                Command::Start(reply) | Command::Update(_, reply) => {
                    let id = self.container.id.clone();
                    answer(reply, Err(Error::ContainerNotFound(id)));
                }
                Command::Stop(_, reply)
                | Command::Halt(reply)
                | Command::Remove(reply)
                | Command::Sync(reply) => {
                    answer(reply, Ok(()));
                }
            }
        }
    }

    /// Decide, store, publish: what follows from the change is the caller's.
    pub(super) async fn enter(&mut self, event: ContainerEvent) -> Result<(), Error> {
        let state = self.record.state.clone().apply(event).map_err(|refused| {
            Error::Transition { id: self.container.id.clone(), source: Box::new(refused) }
        })?;
        let record = ContainerRecord { state, ..self.record.clone() };
        self.core.save_container(&record).instrument(debug_span!("store")).await?;
        let running = matches!(record.state, ContainerState::Running { .. });
        step(if running { Point::START_STORED } else { Point::STOP_END_STORED }).await?;
        self.record = record;
        self.unfinished.stored();
        let spec = Arc::clone(&self.container.status.get().spec);
        self.container.status.set(Arc::new(status_of(&self.record, spec)));
        let kind = if running { EventKind::Started } else { EventKind::Stopped };
        self.core.tell(kind, self.container.id.as_str(), &self.container.sandbox);
        Ok(())
    }
}

/// The next command; what was taken is older than what is in the queue.
async fn next(taken: &mut VecDeque<Asked>, commands: &mut mpsc::Receiver<Asked>) -> Option<Asked> {
    match taken.pop_front() {
        Some(asked) => Some(asked),
        None => commands.recv().await,
    }
}

async fn ended(ending: &mut Option<Ending>) -> Option<Exited> {
    match ending {
        Some(ending) => ending.await,
        None => std::future::pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
