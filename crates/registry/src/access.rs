//! One repository at one host, and the right to read it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use berth_model::{Digest, Reference};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};

use crate::attempts::Failure;
use crate::auth::{basic, bearer};
use crate::body::Body;
use crate::challenge::{self, Bearer, Challenge};
use crate::error::Detail;
use crate::hosts::Host;
use crate::token::{self, Token};
use crate::transport::{Reply, Transport};
use crate::{Auth, Config, Error, Subject};

/// Largest body of a failure that is read, bytes.
const MAX_FAILURE_BYTES: u64 = 64 << 10;

/// One repository at one host, as one set of credentials sees it.
#[derive(Debug)]
pub(crate) struct Access {
    transport: Arc<Transport>,
    reference: Reference,
    host: Host,
    /// What of the credentials this host may be shown.
    auth: Option<Auth>,
    /// Whether it could not give what it was asked for; others are asked before it then.
    failed: AtomicBool,
    /// What the last challenge was answered with; never held across an await.
    grant: Mutex<Option<Grant>>,
}

#[derive(Clone, Debug)]
enum Grant {
    Basic(HeaderValue),
    Bearer(Token, Bearer),
}

impl Access {
    pub(crate) fn new(
        transport: Arc<Transport>,
        reference: Reference,
        host: Host,
        auth: Option<&Auth>,
    ) -> Self {
        let auth = auth.and_then(|auth| auth.shown_to(&host, reference.domain()));
        let (failed, grant) = (AtomicBool::new(false), Mutex::new(None));
        Self { transport, reference, host, auth, failed, grant }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn note_failure(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    pub(crate) fn config(&self) -> &Config {
        &self.transport.config
    }

    pub(crate) fn subject(&self, reference: Reference, blob: Option<Digest>) -> Subject {
        Subject::new(reference, blob, self.host.name().to_owned())
    }

    /// Asks for `path` below the repository, and answers one challenge if there is one.
    ///
    /// A status of failure is the caller's to look at.
    pub(crate) async fn get(
        &self,
        subject: &Subject,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Reply, Failure> {
        let uri = self.host.address(self.reference.path(), path);
        let authorization = self.authorization(subject).await?;
        let reply =
            self.transport.get(&self.host, subject, &uri, headers, authorization.as_ref()).await?;
        // Who is not the registry is not told who we are, however it asks.
        if reply.response.status() != StatusCode::UNAUTHORIZED || !reply.from_origin {
            return Ok(reply);
        }
        let asked = challenge::choose(reply.response.headers());
        let Some(authorization) = self.answer(subject, asked).await? else { return Ok(reply) };
        self.transport.drain(reply.response).await;
        self.transport.get(&self.host, subject, &uri, headers, Some(&authorization)).await
    }

    /// What a reply that is no success means.
    pub(crate) async fn refusal(&self, subject: &Subject, reply: Reply) -> Failure {
        let (head, body) = reply.response.into_parts();
        if head.status == StatusCode::NOT_FOUND {
            return Failure::last(Error::NotFound(subject.clone()));
        }
        let mut body = Body::new(body, self.config());
        // Without its words the status still says what happened.
        let bytes = body.collect(MAX_FAILURE_BYTES).await.unwrap_or_default();
        let detail = Detail::of_body(&bytes, |text| self.is_secret(text));
        token::refusal(subject, head.status, &head.headers, detail)
    }

    /// What to send without being asked.
    async fn authorization(&self, subject: &Subject) -> Result<Option<HeaderValue>, Failure> {
        if let Some(Auth::RegistryToken(token)) = &self.auth {
            let why = "the registry token cannot be sent in a header";
            let invalid = || Failure::last(Error::Challenge { subject: subject.clone(), why });
            return bearer(token).map(Some).ok_or_else(invalid);
        }
        match self.grant() {
            None => Ok(None),
            Some(Grant::Basic(header)) => Ok(Some(header)),
            Some(Grant::Bearer(token, _)) if token.is_fresh() => Ok(Some(token.header)),
            Some(Grant::Bearer(_, challenge)) => self.renew(subject, challenge).await.map(Some),
        }
    }

    /// What to send now that the registry asks; `None` if there is nothing better than
    /// what it has refused.
    async fn answer(
        &self,
        subject: &Subject,
        asked: Option<Challenge>,
    ) -> Result<Option<HeaderValue>, Failure> {
        match (asked, &self.auth) {
            (None, _) | (_, Some(Auth::RegistryToken(_))) => Ok(None),
            (Some(Challenge::Bearer(challenge)), _) => {
                self.check_realm(subject, &challenge.realm)?;
                self.renew(subject, challenge).await.map(Some)
            }
            (Some(Challenge::Basic), Some(Auth::Basic { username, password })) => {
                if matches!(self.grant(), Some(Grant::Basic(_))) {
                    return Ok(None);
                }
                let header = basic(username, password);
                self.set_grant(Grant::Basic(header.clone()));
                Ok(Some(header))
            }
            (Some(Challenge::Basic), _) => Ok(None),
        }
    }

    async fn renew(&self, subject: &Subject, challenge: Bearer) -> Result<HeaderValue, Failure> {
        let (transport, auth) = (&self.transport, self.auth.as_ref());
        let token = token::fetch(transport, &self.host, subject, &challenge, auth).await?;
        let header = token.header.clone();
        self.set_grant(Grant::Bearer(token, challenge));
        Ok(header)
    }

    /// A token service gets the credentials, so it must be under TLS as its registry is.
    fn check_realm(&self, subject: &Subject, realm: &Uri) -> Result<(), Failure> {
        let plain = |uri: &Uri| uri.scheme() == Some(&Scheme::HTTP);
        let allowed = !plain(realm)
            || (plain(&self.host.base)
                && (realm.host() == self.host.base.host()
                    || self.transport.plain_hosts.allow(realm, true)));
        let why = "its token service is not under TLS";
        if allowed {
            Ok(())
        } else {
            Err(Failure::last(Error::Challenge { subject: subject.clone(), why }))
        }
    }

    fn is_secret(&self, text: &str) -> bool {
        let token = match self.grant() {
            Some(Grant::Bearer(token, _)) => token.is_shown_in(text),
            _ => false,
        };
        token
            || self.host.is_shown_in(text)
            || self.auth.as_ref().is_some_and(|auth| auth.is_shown_in(text))
    }

    fn grant(&self) -> Option<Grant> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_grant(&self, grant: Grant) {
        *self.grant.lock().unwrap_or_else(PoisonError::into_inner) = Some(grant);
    }
}
