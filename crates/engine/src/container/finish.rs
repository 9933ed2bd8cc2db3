//! What the store, or the node, refuses is tried again until it is done.
//!
//! The shim keeps an end that the store does not take, so that a restart learns of it too.
//! Who waits for the end is told of it all the same: the processes are dead.

use std::sync::Arc;

use berth_failpoint::Point;
use berth_model::ContainerState;
use berth_model::container::{ContainerEvent, Exit};

use super::driver::Driver;
use crate::again::Again;
use crate::core::step;
use crate::error::SharedError;
use crate::{Error, hooks};

/// What is to be tried again.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// The end that the store did not take, and why.
    end: Option<(Exit, SharedError)>,
    /// Whether the store may hold a state that was taken back.
    record: bool,
    /// Whether it is to be removed, even if nobody waits for that any more.
    pub(super) removal: bool,
    pub(super) again: Again,
}

impl Unfinished {
    pub(super) fn new(again: Again) -> Self {
        Self { end: None, record: false, removal: false, again }
    }

    /// The store has taken a newer state.
    pub(super) fn stored(&mut self) {
        self.record = false;
        self.done();
    }

    /// Something was done; perhaps it was the last.
    pub(super) fn done(&mut self) {
        if self.end.is_none() && !self.record && !self.removal {
            self.again.never();
        }
    }

    /// Whether it has ended, and its record does not say so yet.
    pub(super) fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// Why its end is not stored, if it is not.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.end.as_ref().map(|(_, error)| Error::Shared(Arc::clone(error)))
    }
}

impl Driver {
    /// Whether it has ended, by its record or by what its record is about to say.
    pub(super) fn is_over(&self) -> bool {
        self.unfinished.has_end() || matches!(self.record.state, ContainerState::Exited { .. })
    }

    /// Stores how it ended, now or as soon as the store takes it.
    pub(super) async fn end(&mut self, exit: Exit) {
        self.ending = None;
        if let Err(error) = self.store_end(exit.clone()).await {
            self.unstored(exit, error);
        }
    }

    /// The store did not take its end.
    pub(super) fn unstored(&mut self, exit: Exit, error: Error) {
        self.unfinished.again.later("store the end of container", &error);
        self.unfinished.end = Some((exit, Arc::new(error)));
    }

    async fn store_end(&mut self, exit: Exit) -> Result<(), Error> {
        step(Point::STOP_ENDED).await?;
        self.enter(ContainerEvent::Exited(exit)).await?;
        hooks::stop_container(&self.core, &self.container).await;
        Ok(())
    }

    /// Stores what is published: the store may have taken what it said it did not.
    pub(super) async fn restore(&mut self) {
        match self.core.save_container(&self.record).await {
            Ok(()) => self.unfinished.stored(),
            Err(error) => {
                self.unfinished.record = true;
                self.unfinished.again.later("store the state of container", &error);
            }
        }
    }

    /// Tries again what could not be done. Says whether the container is gone.
    pub(super) async fn try_again(&mut self) -> bool {
        if self.unfinished.record {
            self.restore().await;
        }
        if let Some((exit, _)) = self.unfinished.end.clone() {
            match self.store_end(exit.clone()).await {
                Ok(()) => {
                    self.unfinished.end = None;
                    self.unfinished.done();
                }
                Err(error) => self.unstored(exit, error),
            }
        }
        let runs = matches!(self.record.state, ContainerState::Running { .. }) && !self.is_over();
        if runs || self.starting.is_some() {
            return false;
        }
        self.settle(Vec::new()).await
    }
}
