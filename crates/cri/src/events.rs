//! What happens to sandboxes and containers, as it happens.

use berth_api::v1::*;
use berth_engine::{Engine, Event, EventKind, Events, EventsEnd};
use berth_model::container::Timestamp;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::Error;
use crate::batch::Parts;
use crate::translate::{container_status, sandbox_status};

/// Metadata of a request that goes on after the event with this `created_at`. The request
/// itself has no field for it.
pub(crate) const AFTER: &str = "berth-events-after";

/// Where the caller left off, if it says so.
pub(crate) fn after(metadata: &MetadataMap) -> Result<Option<Timestamp>, Error> {
    let Some(value) = metadata.get(AFTER) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    let problem = "must be the created_at of an event";
    number.map(|at| Some(Timestamp(at))).ok_or_else(|| Error::invalid(AFTER, problem))
}

/// Each event from now on, until the client goes away or does not keep up.
pub(crate) async fn events(
    engine: &Engine,
    after: Option<Timestamp>,
) -> Result<Parts<ContainerEventResponse>, Error> {
    let events = engine.listen(after).map_err(Error::Events)?;
    let told = futures_util::stream::unfold(Some(events), async |events| next(events?).await);
    Ok(Box::pin(told))
}

/// The next event, and where it goes on; an error is the last that is told.
async fn next(
    mut events: Events,
) -> Option<(Result<ContainerEventResponse, Status>, Option<Events>)> {
    match events.next().await {
        Ok(event) => Some((Ok(told(&event)), Some(events))),
        Err(end) => {
            if end == EventsEnd::Missed {
                tracing::warn!("a client of container events does not keep up");
            }
            Some((Err(Error::Events(end).status()), None))
        }
    }
}

fn told(event: &Event) -> ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at.0,
        pod_sandbox_status: Some(sandbox_status(&event.sandbox)),
        containers_statuses: event
            .containers
            .iter()
            .map(|status| container_status(status))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_go_on_from_is_a_number() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(AFTER, text.parse().unwrap());
            after(&metadata)
        };
        assert_eq!(after(&MetadataMap::new()).unwrap(), None);
        assert_eq!(read("17").unwrap(), Some(Timestamp(17)));
        assert!(read("soon").unwrap_err().to_string().contains(AFTER));
    }
}
