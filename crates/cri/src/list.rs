//! Lists of sandboxes and containers, and their filters.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::Encoded;
use berth_api::v1::*;
use berth_engine::{ContainerStatus, Engine, SandboxStatus};

use crate::Error;
use crate::batch::{Parts, parts};
use crate::translate::{
    container_item, container_state, encoded_container, encoded_sandbox, sandbox_item,
    sandbox_state,
};

pub(crate) async fn sandboxes(
    engine: &Engine,
    request: ListPodSandboxRequest,
) -> Result<Encoded, Error> {
    let items = selected_sandboxes(engine, request.filter)?;
    Ok(Encoded { items: items.iter().map(|status| encoded_sandbox(status).to_vec()).collect() })
}

pub(crate) async fn sandboxes_in_parts(
    engine: &Engine,
    request: StreamPodSandboxesRequest,
) -> Result<Parts<StreamPodSandboxesResponse>, Error> {
    let items = selected_sandboxes(engine, request.filter)?.into_iter();
    let items = items.map(|status| sandbox_item(&status));
    Ok(parts(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

fn selected_sandboxes(
    engine: &Engine,
    filter: Option<PodSandboxFilter>,
) -> Result<Vec<Arc<SandboxStatus>>, Error> {
    let filter = filter.unwrap_or_default();
    let state = filter.state.map(|state| checked(state.state, state.state().into()));
    let state = state.transpose()?;
    let mut items = engine.sandboxes();
    items.retain(|status| {
        is_sandbox(status, &filter.id, &filter.label_selector)
            && state.is_none_or(|state| state == i32::from(sandbox_state(status)))
    });
    items.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(items)
}

pub(crate) async fn containers(
    engine: &Engine,
    request: ListContainersRequest,
) -> Result<Encoded, Error> {
    let items = selected_containers(engine, request.filter)?;
    Ok(Encoded { items: items.iter().map(|status| encoded_container(status).to_vec()).collect() })
}

pub(crate) async fn containers_in_parts(
    engine: &Engine,
    request: StreamContainersRequest,
) -> Result<Parts<StreamContainersResponse>, Error> {
    let items = selected_containers(engine, request.filter)?.into_iter();
    let items = items.map(|status| container_item(&status));
    Ok(parts(items, |containers| StreamContainersResponse { containers }))
}

fn selected_containers(
    engine: &Engine,
    filter: Option<ContainerFilter>,
) -> Result<Vec<Arc<ContainerStatus>>, Error> {
    let filter = filter.unwrap_or_default();
    let state = filter.state.map(|state| checked(state.state, state.state().into()));
    let state = state.transpose()?;
    let mut items = engine.containers();
    items.retain(|status| {
        is_container(status, &filter.id, &filter.pod_sandbox_id, &filter.label_selector)
            && state.is_none_or(|state| state == i32::from(container_state(status)))
    });
    items.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(items)
}

/// A value the enumeration does not have is read as its default, so it comes back changed.
fn checked(given: i32, read: i32) -> Result<i32, Error> {
    if given == read {
        return Ok(given);
    }
    Err(Error::invalid("filter.state", format!("has the unknown value {given}")))
}

/// Whether the sandbox matches all that is given; an id matches by its start.
pub(crate) fn is_sandbox(
    status: &SandboxStatus,
    id: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    status.id.as_str().starts_with(id) && has_all(&status.spec.labels, labels)
}

/// Whether the container matches all that is given; ids match by their start.
pub(crate) fn is_container(
    status: &ContainerStatus,
    id: &str,
    sandbox: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    status.id.as_str().starts_with(id)
        && status.sandbox.as_str().starts_with(sandbox)
        && has_all(&status.spec.labels, labels)
}

fn has_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn every_label_of_the_selector_must_match() {
        let own = labels(&[("a", "1"), ("b", "2")]);
        assert!(has_all(&own, &labels(&[])));
        assert!(has_all(&own, &labels(&[("a", "1"), ("b", "2")])));
        assert!(!has_all(&own, &labels(&[("a", "2")])));
        assert!(!has_all(&own, &labels(&[("a", "1"), ("c", "")])));
    }

    #[test]
    fn an_unknown_state_is_refused() {
        let state = |state| {
            let value = ContainerStateValue { state };
            checked(value.state, value.state().into())
        };
        assert_eq!(state(2).unwrap(), 2);
        assert!(state(9).is_err());
        assert!(state(-1).is_err());
    }
}
