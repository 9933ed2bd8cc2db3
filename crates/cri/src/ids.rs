//! Ids in requests: whole, or their unique start, as crictl shows them.

use berth_engine::Engine;
use berth_model::{ContainerId, SandboxId};
use tracing::Span;

use crate::Error;

/// The sandbox that `given` means; recorded in the request's span.
pub(crate) fn sandbox(
    engine: &Engine,
    field: &'static str,
    given: &str,
) -> Result<SandboxId, Error> {
    let id = SandboxId::new(given).map_err(|source| Error::Id { field, source })?;
    let id = match engine.sandbox(&id) {
        Ok(_) => id,
        Err(_) => unique("sandbox", given, engine.sandboxes().iter().map(|status| &status.id))?,
    };
    Span::current().record("sandbox.id", id.as_str());
    Ok(id)
}

/// The container that `given` means; recorded in the request's span.
pub(crate) fn container(
    engine: &Engine,
    field: &'static str,
    given: &str,
) -> Result<ContainerId, Error> {
    let id = ContainerId::new(given).map_err(|source| Error::Id { field, source })?;
    let id = match engine.container(&id) {
        Ok(_) => id,
        Err(_) => unique("container", given, engine.containers().iter().map(|status| &status.id))?,
    };
    Span::current().record("container.id", id.as_str());
    Ok(id)
}

/// The id for a verb whose object need not exist: `None` when there is nothing to do.
pub(crate) fn if_exists<T>(id: Result<T, Error>) -> Result<Option<T>, Error> {
    match id {
        Ok(id) => Ok(Some(id)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unique<'a, T: AsRef<std::path::Path> + Clone + ToString + 'a>(
    what: &'static str,
    given: &str,
    ids: impl Iterator<Item = &'a T>,
) -> Result<T, Error> {
    let mut matching = ids.filter(|id| id.to_string().starts_with(given));
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(id.clone()),
        (None, _) => Err(Error::NotFound { what, id: given.to_owned() }),
        (Some(_), Some(_)) => Err(Error::Ambiguous { what, id: given.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(given: &str) -> Result<String, Error> {
        let ids = ["abc1", "abd2", "x"].map(|id| SandboxId::new(id).unwrap());
        unique("sandbox", given, ids.iter()).map(|id| id.to_string())
    }

    #[test]
    fn a_unique_start_is_enough() {
        assert_eq!(find("abc").unwrap(), "abc1");
        assert_eq!(find("x").unwrap(), "x");
    }

    #[test]
    fn no_match_and_several_matches_are_told_apart() {
        assert!(matches!(find("y"), Err(Error::NotFound { .. })));
        assert!(matches!(find("abc1x"), Err(Error::NotFound { .. })));
        assert!(matches!(find("ab"), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn only_what_is_missing_is_forgiven() {
        assert!(if_exists(find("y")).unwrap().is_none());
        assert!(if_exists(find("x")).unwrap().is_some());
        assert!(matches!(if_exists(find("ab")), Err(Error::Ambiguous { .. })));
    }
}
