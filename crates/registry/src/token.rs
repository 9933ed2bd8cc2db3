//! Tokens: what a bearer challenge is answered with.
//!
//! Docker's token specification: `GET realm?service=…&scope=…` with basic credentials or
//! none, or, for an identity token, its OAuth2 form by `POST`.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;

use crate::attempts::Failure;
use crate::auth::{basic, bearer};
use crate::body::Body;
use crate::challenge::Bearer;
use crate::error::Detail;
use crate::hosts::Host;
use crate::transport::Transport;
use crate::{Auth, Error, Subject};

/// Largest answer of a token service that is read, bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// What a token is good for if its service does not say, and the least it is good for.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A longer life is not relied on.
const MAX_LIFE: Duration = Duration::from_hours(24);
/// A token this close to its end is not used for another request.
const MARGIN: Duration = Duration::from_secs(10);

/// An access token.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    text: String,
    until: Instant,
}

impl Token {
    pub(crate) fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }

    pub(crate) fn is_shown_in(&self, text: &str) -> bool {
        !self.text.is_empty() && text.contains(&self.text)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

/// Asks the token service of `challenge`, whose realm was checked.
pub(crate) async fn fetch(
    transport: &Transport,
    host: &Host,
    subject: &Subject,
    challenge: &Bearer,
    auth: Option<&Auth>,
) -> Result<Token, Failure> {
    let asked = Instant::now();
    let scope = challenge
        .scope
        .clone()
        .unwrap_or_else(|| format!("repository:{}:pull", subject.reference().path()));
    let response = match auth {
        Some(Auth::IdentityToken(refresh)) => {
            let form = oauth2_form(challenge, &scope, refresh);
            transport.post(host, subject, &challenge.realm, form).await?
        }
        auth => {
            let uri = token_address(subject, challenge, &scope)?;
            let authorization = match auth {
                Some(Auth::Basic { username, password }) => Some(basic(username, password)),
                _ => None,
            };
            let headers = HeaderMap::new();
            transport.get(host, subject, &uri, &headers, authorization.as_ref()).await?.response
        }
    };
    read(transport, subject, response, auth, asked).await
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds; some services write it with a fraction.
    expires_in: Option<f64>,
}

async fn read(
    transport: &Transport,
    subject: &Subject,
    response: Response<Incoming>,
    auth: Option<&Auth>,
    asked: Instant,
) -> Result<Token, Failure> {
    let (head, body) = response.into_parts();
    let mut body = Body::new(body, &transport.config);
    let bytes = body.collect(MAX_ANSWER_BYTES).await.map_err(|why| why.about(subject))?;
    if head.status != StatusCode::OK {
        let is_secret = |text: &str| auth.is_some_and(|auth| auth.is_shown_in(text));
        let detail = Detail::of_body(&bytes, is_secret);
        return Err(refusal(subject, head.status, &head.headers, detail));
    }
    let useless = |why| Failure::last(Error::Challenge { subject: subject.clone(), why });
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|_| useless("the answer of its token service makes no sense"))?;
    let text = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let text = text.ok_or_else(|| useless("its token service gave no token"))?;
    let header = bearer(&text).ok_or_else(|| useless("its token service gave no valid token"))?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, lifetime);
    Ok(Token { header, text, until: asked + life - MARGIN })
}

/// A negative number, or none at all, is a life of the least length.
fn lifetime(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, MAX_LIFE)
}

/// What a status of failure means, whoever sent it.
pub(crate) fn refusal(
    subject: &Subject,
    status: StatusCode,
    headers: &HeaderMap,
    detail: Detail,
) -> Failure {
    let subject = subject.clone();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Failure::last(Error::Refused { subject, status, detail })
        }
        StatusCode::TOO_MANY_REQUESTS => Failure::deferred(Error::Throttled(subject), headers),
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Failure::deferred(Error::Status { subject, status, detail }, headers)
        }
        status => Failure::last(Error::Status { subject, status, detail }),
    }
}

fn token_address(subject: &Subject, challenge: &Bearer, scope: &str) -> Result<Uri, Failure> {
    let mut address = challenge.realm.to_string();
    let mut separator = if challenge.realm.query().is_some() { '&' } else { '?' };
    let service = challenge.service.iter().map(|service| ("service", service.as_str()));
    for (name, value) in service.chain(scope.split_whitespace().map(|scope| ("scope", scope))) {
        address.extend([separator.to_string().as_str(), name, "=", &encode(value)]);
        separator = '&';
    }
    let why = "the address of its token service is too long";
    address.parse().map_err(|_| Failure::last(Error::Challenge { subject: subject.clone(), why }))
}

fn oauth2_form(challenge: &Bearer, scope: &str, refresh: &str) -> String {
    let service = challenge.service.as_deref().unwrap_or_default();
    format!(
        "grant_type=refresh_token&client_id=berth&service={}&scope={}&refresh_token={}",
        encode(service),
        encode(scope),
        encode(refresh)
    )
}

/// Percent-encodes all but the unreserved characters (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject::new("r.example/a/b:t".parse().unwrap(), None, "r.example".into())
    }

    #[test]
    fn a_token_is_asked_for_by_service_and_each_scope() {
        let address = |realm, service: Option<&str>, scope| {
            let (realm, service) = (Uri::from_static(realm), service.map(str::to_owned));
            let challenge = Bearer { realm, service, scope: None };
            token_address(&subject(), &challenge, scope).unwrap().to_string()
        };
        assert_eq!(
            address("https://a/t", Some("r e&g"), "repository:a/b:pull"),
            "https://a/t?service=r%20e%26g&scope=repository%3Aa%2Fb%3Apull"
        );
        assert_eq!(
            address("https://a/t?x=y", None, "one two"),
            "https://a/t?x=y&scope=one&scope=two"
        );
    }

    #[test]
    fn a_life_is_bounded_on_both_sides() {
        for (seconds, expected) in [
            (300.0, 300),
            (0.0, 60),
            (-5.0, 60),
            (f64::NAN, 60),
            (f64::INFINITY, 60),
            (1e12, 86_400),
        ] {
            assert_eq!(lifetime(seconds), Duration::from_secs(expected), "{seconds}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let header = bearer("s3cret").unwrap();
        let token = Token { header, text: "s3cret".into(), until: Instant::now() };
        assert!(!format!("{token:?}").contains("s3cret"));
    }
}
