//! A plugin that has registered.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_api::nri::{Container, Empty, Event, PodSandbox, StateChangeEvent};

use crate::connection::Connection;
use crate::error::CallError;
use crate::names::{bit, method};

/// A plugin that has registered.
#[derive(Debug)]
pub(crate) struct Plugin {
    /// Two digits; plugins are asked in this order.
    pub(crate) index: String,
    pub(crate) name: String,
    /// Bits of what it wants to hear.
    pub(crate) events: u32,
    pub(crate) connection: Connection,
    /// Bits of what it has no method for: it is older than that.
    without: AtomicU32,
    /// Containers that had ended when it was told of all that exists, and whose end it may
    /// be told of still.
    ended: Mutex<HashSet<String>>,
}

impl Plugin {
    pub(crate) fn new(index: String, name: String, events: u32, connection: Connection) -> Self {
        let without = AtomicU32::new(0);
        Self { index, name, events, connection, without, ended: Mutex::default() }
    }

    /// Index and name, for people and as the owner of what it adjusts.
    pub(crate) fn id(&self) -> String {
        format!("{}-{}", self.index, self.name)
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0 && !self.connection.is_closed()
    }

    /// It knows that these have ended.
    pub(crate) fn knows_ended(&self, ids: Vec<String>) {
        self.ended().extend(ids);
    }

    /// Whether it has not heard yet that the container has ended.
    pub(crate) fn may_hear_end(&self, id: &str) -> bool {
        !self.ended().remove(id)
    }

    pub(crate) fn forget(&self, id: &str) {
        self.ended().remove(id);
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and drops a plugin that does not answer.
    pub(crate) async fn ask<A: prost::Message + Default>(
        &self,
        verb: &'static str,
        request: &impl prost::Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let answer = self.connection.call(verb, request, limit).await;
        if let Err(error) = &answer
            && error.is_fatal()
        {
            tracing::warn!(plugin = self.id(), verb, %error, "plugin is dropped");
            self.connection.close();
        }
        answer
    }

    /// Tells of an event that has no answer. A plugin that is older than the event's own
    /// method is told by the one that it has.
    pub(crate) async fn tell(
        &self,
        event: Event,
        request: &impl prost::Message,
        pod: &PodSandbox,
        container: Option<&Container>,
        limit: Duration,
    ) -> Result<(), CallError> {
        if self.without.load(Ordering::Relaxed) & bit(event) == 0 {
            match self.ask::<Empty>(method(event), request, limit).await {
                Err(error) if error.is_unimplemented() => {
                    self.without.fetch_or(bit(event), Ordering::Relaxed);
                }
                other => return other.map(drop),
            }
        }
        let change = StateChangeEvent {
            event: event.into(),
            pod: Some(pod.clone()),
            container: container.cloned(),
        };
        match self.ask::<Empty>(method(Event::Unknown), &change, limit).await {
            // It subscribed to more than it has methods for.
            Err(error) if error.is_unimplemented() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Tells that the runtime goes; whether it hears that is its own affair.
    pub(crate) async fn shut_down(&self, limit: Duration) {
        let told = self.connection.call::<Empty>("Shutdown", &Empty {}, limit).await;
        if let Err(error) = told {
            tracing::debug!(plugin = self.id(), %error, "plugin did not hear of the shutdown");
        }
    }
}
