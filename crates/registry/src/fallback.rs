//! The hosts of one repository: who is asked, and who after that.
//!
//! ```text
//! ask: the hosts that may be asked for this, in the order of the file
//!      ── one fails ──▶ the next; it is asked last from now on
//!      ── all fail ──▶ what each of them answered
//! ```
//!
//! A host that failed once in a pull is asked after the others in the rest of it, so that
//! nobody waits for a dead mirror with each layer, and layers come from where the manifest
//! came from. The next pull begins anew.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use berth_model::{Digest, Reference};
use tokio::sync::OnceCell;

use crate::access::Access;
use crate::hosts::{self, Host, Wanted};
use crate::transport::Transport;
use crate::{Auth, Blob, Distrusted, Error, Subject};

/// What a host is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    Pull,
    Resolve,
}

/// One repository at each host that serves it.
#[derive(Debug)]
pub(crate) struct Repositories {
    transport: Arc<Transport>,
    reference: Reference,
    auth: Option<Auth>,
    /// Found out at the first question, which has to read files.
    found: OnceCell<Vec<Arc<Access>>>,
}

impl Repositories {
    pub(crate) fn new(transport: Arc<Transport>, reference: Reference, auth: Option<Auth>) -> Self {
        Self { transport, reference, auth, found: OnceCell::new() }
    }

    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The blob, of the first host that has it; `None` if none but `distrusted` may be asked.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        distrusted: &Distrusted,
    ) -> Result<Option<Blob>, Error> {
        let mut hosts = self.able(Need::Pull, &self.reference, Some(*digest)).await?;
        hosts.retain(|host| !distrusted.contains(host));
        let errors = distrusted.errors();
        if let (Some((liar, error)), Some(next)) = (errors.last(), hosts.front()) {
            note(liar, next, error);
        }
        if hosts.is_empty() {
            return Ok(None);
        }
        Blob::open(hosts, errors, digest, size).await.map(Some)
    }

    /// Asks one host after the other; `ask` is told whether it has the last one.
    pub(crate) async fn ask<T, F>(
        &self,
        need: Need,
        about: &Reference,
        ask: impl Fn(Arc<Access>, bool) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut able = self.able(need, about, None).await?;
        let mut errors = Vec::new();
        let mut access = able.pop_front().expect("there is one that is able");
        loop {
            let error = match ask(Arc::clone(&access), able.is_empty()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(next) = able.pop_front() else { return Err(sum(errors, &access, error)) };
            note(&access, &next, &error);
            errors.push((access, error));
            access = next;
        }
    }

    /// Those that may be asked, in their order; at least one.
    async fn able(
        &self,
        need: Need,
        about: &Reference,
        blob: Option<Digest>,
    ) -> Result<VecDeque<Arc<Access>>, Error> {
        let all = self.found.get_or_try_init(|| self.find()).await?;
        let is_able = |access: &&Arc<Access>| match need {
            Need::Pull => access.host().capabilities.pull,
            Need::Resolve => access.host().capabilities.resolve,
        };
        let mut able: Vec<_> = all.iter().filter(is_able).cloned().collect();
        if able.is_empty() {
            let host = about.domain().to_owned();
            return Err(Error::NoHost(Subject::new(about.clone(), blob, host)));
        }
        able.sort_by_key(|access| access.has_failed());
        Ok(able.into())
    }

    async fn find(&self) -> Result<Vec<Arc<Access>>, Error> {
        let base = self.transport.plain_hosts.base(&self.reference);
        let itself = || vec![Host::registry(base.clone())];
        // A node without mirrors pays one look, which waits for no thread.
        let configured = self.transport.config.hosts.clone().filter(|root| root.exists());
        let hosts = match configured {
            None => itself(),
            Some(root) => {
                let (transport, base) = (Arc::clone(&self.transport), base.clone());
                let domain = self.reference.domain().to_owned();
                let read = move || {
                    let authorities = &transport.config.certificate_authorities;
                    let wanted = Wanted { root: &root, domain: &domain, base: &base, authorities };
                    hosts::find(&wanted, &|material, timeout| {
                        transport.own_client(&material, timeout)
                    })
                };
                let found = tokio::task::spawn_blocking(read)
                    .await
                    .expect("reading files neither panics nor is cancelled")?;
                found.unwrap_or_else(itself)
            }
        };
        let access = |host| {
            let (transport, reference) = (Arc::clone(&self.transport), self.reference.clone());
            Arc::new(Access::new(transport, reference, host, self.auth.as_ref()))
        };
        Ok(hosts.into_iter().map(access).collect())
    }
}

/// Notes that `failed` is asked after `next` from now on.
pub(crate) fn note(failed: &Access, next: &Access, error: &Error) {
    failed.note_failure();
    tracing::warn!(
        host = failed.host().name(),
        next = next.host().name(),
        error = error as &dyn std::error::Error,
        "a host of a registry failed; the next is asked"
    );
}

/// What to tell of `last` of `access` after the `errors` of other hosts. What the registry
/// itself says comes last, and says of what kind the whole is.
pub(crate) fn sum(
    mut errors: Vec<(Arc<Access>, Error)>,
    access: &Arc<Access>,
    last: Error,
) -> Error {
    if errors.is_empty() {
        return last;
    }
    errors.push((Arc::clone(access), last));
    errors.sort_by_key(|(access, _)| access.host().is_registry);
    Error::EachHost(errors.into_iter().map(|(_, error)| error).collect())
}
