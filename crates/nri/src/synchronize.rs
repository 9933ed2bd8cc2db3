//! Tells a plugin that joins of all that exists, so that it misses nothing.
//!
//! While it is told, nothing comes to be or ceases to be ([`crate::Nri::pass`]), and no
//! other plugin is asked. What happens otherwise meanwhile (a container ends) waits for its
//! turn, and is told afterwards.

use std::sync::Arc;

use berth_api::nri::{Container, PodSandbox, SynchronizeRequest, SynchronizeResponse};
use prost::Message as _;
use tokio::time::timeout;

use crate::frames::MAX_MESSAGE;
use crate::nri::Shared;
use crate::plugin::Plugin;

/// Most bytes of pods and containers in one message; what wraps them needs little.
const MAX_PART: usize = MAX_MESSAGE - (64 << 10);

/// Makes `plugin` one of those that are asked; an error says why it cannot be.
pub(crate) async fn synchronize(shared: &Arc<Shared>, plugin: &Arc<Plugin>) -> Result<(), String> {
    let limit = shared.config.registration_timeout.max(shared.config.request_timeout);
    let runtime = shared.runtime().ok_or("the runtime has not started")?;
    // Before anything is looked at: what is published afterwards asks for its turn.
    let _expected = shared.expect();
    let going_away = |_| "the runtime goes".to_owned();
    let still = timeout(limit, shared.stand_still()).await;
    let still = still.map_err(|_| format!("changes went on for {limit:?}"))?;
    let _still = still.map_err(going_away)?;
    let _turn = shared.turn().await.map_err(going_away)?;
    let snapshot = runtime.snapshot().await;
    plugin.knows_ended(snapshot.ended);
    let parts = parts(snapshot.pods, snapshot.containers);
    let last = parts.len() - 1;
    let mut updates = Vec::new();
    for (number, mut part) in parts.into_iter().enumerate() {
        part.more = number < last;
        let answer = plugin.ask::<SynchronizeResponse>("Synchronize", &part, limit).await;
        let answer = answer.map_err(|error| format!("synchronize: {}", error.told()))?;
        if part.more && (!answer.more || !answer.update.is_empty()) {
            return Err("it does not take what exists in parts".to_owned());
        }
        updates = answer.update;
    }
    shared.add(Arc::clone(plugin));
    if !updates.is_empty() {
        let runtime = Arc::clone(runtime);
        shared.tasks.spawn(async move {
            for failed in runtime.update(updates, Vec::new()).await {
                tracing::warn!(
                    container.id = failed.container_id,
                    "update asked at joining failed"
                );
            }
        });
    }
    Ok(())
}

/// What exists, in messages that are small enough; at least one.
fn parts(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut parts = vec![SynchronizeRequest::default()];
    let mut bytes = 0;
    let mut room = |parts: &mut Vec<SynchronizeRequest>, size: usize| {
        // Tag and length of an entry.
        let size = size + 8;
        if bytes > 0 && bytes + size > MAX_PART {
            parts.push(SynchronizeRequest::default());
            bytes = 0;
        }
        bytes += size;
    };
    for pod in pods {
        room(&mut parts, pod.encoded_len());
        if let Some(part) = parts.last_mut() {
            part.pods.push(pod);
        }
    }
    for container in containers {
        room(&mut parts, container.encoded_len());
        if let Some(part) = parts.last_mut() {
            part.containers.push(container);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_in_one_message_goes_in_several_and_nothing_is_lost() {
        let pod = |n: usize| PodSandbox {
            id: n.to_string(),
            annotations: [("text".to_owned(), "x".repeat(100_000))].into(),
            ..Default::default()
        };
        let container = |n: usize| Container { id: n.to_string(), ..Default::default() };
        let parts = parts((0..100).map(pod).collect(), (0..1000).map(container).collect());
        assert!(parts.len() > 2);
        assert!(parts.iter().all(|part| part.encoded_len() <= MAX_MESSAGE));
        let pods: Vec<_> = parts.iter().flat_map(|part| &part.pods).map(|pod| &pod.id).collect();
        assert_eq!(
            pods,
            (0..100).map(|n| n.to_string()).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
        assert_eq!(parts.iter().map(|part| part.containers.len()).sum::<usize>(), 1000);
    }

    #[test]
    fn an_empty_node_is_one_empty_message() {
        assert_eq!(parts(Vec::new(), Vec::new()), [SynchronizeRequest::default()]);
    }
}
