//! What a URL stands for: single-use tokens that end soon.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_model::ContainerId;
use tokio::time::Instant;

use crate::Error;
use crate::forward::Target;
use crate::remote::Wanted;

/// Random bytes in a token: 192 bits that nobody guesses.
const TOKEN_BYTES: usize = 24;
/// How long a token may wait for its client.
pub(crate) const LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that wait for their clients.
const MAX_TOKENS: usize = 1000;

/// What a client may do once.
#[derive(Clone, Debug)]
pub(crate) enum Promise {
    Exec { container: ContainerId, command: Vec<String>, wanted: Wanted },
    Attach { container: ContainerId, wanted: Wanted },
    Forward(Target),
}

impl Promise {
    /// The first part of the path of its URL.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::Forward(_) => "portforward",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (Promise, Instant)>>);

impl Tokens {
    /// A new token for `promise`.
    pub(crate) fn issue(&self, promise: Promise, now: Instant) -> Result<String, Error> {
        let token = random()?;
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, end)| *end > now);
        if tokens.len() >= MAX_TOKENS {
            return Err(Error::TooMany);
        }
        tokens.insert(token.clone(), (promise, now + LIFETIME));
        Ok(token)
    }

    /// What `token` stands for, which ends it, whether or not it is for `verb`.
    pub(crate) fn redeem(&self, verb: &str, token: &str, now: Instant) -> Option<Promise> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (promise, end) = tokens.remove(token)?;
        (end > now && promise.verb() == verb).then_some(promise)
    }
}

fn random() -> Result<String, Error> {
    let mut bytes = [0; TOKEN_BYTES];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise() -> Promise {
        let wanted = Wanted { stdin: false, stdout: true, stderr: false, tty: false };
        Promise::Attach { container: ContainerId::new("c").unwrap(), wanted }
    }

    /// teeth: crates/streaming/src/token.rs: `tokens.remove(token)?` → `tokens.get(token).cloned()?`
    #[test]
    fn d11_a_token_is_good_once_for_one_verb_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(promise(), now).unwrap();
        assert!(token.len() * 4 >= 128, "{token}");
        assert!(tokens.redeem("attach", &token, now).is_some());
        assert!(tokens.redeem("attach", &token, now).is_none());

        let token = tokens.issue(promise(), now).unwrap();
        assert!(tokens.redeem("exec", &token, now).is_none());
        assert!(tokens.redeem("attach", &token, now).is_none());

        let token = tokens.issue(promise(), now).unwrap();
        let late = now + Duration::from_secs(60);
        assert!(tokens.redeem("attach", &token, late).is_none());
        assert!(tokens.redeem("attach", "", now).is_none());
    }

    #[test]
    fn tokens_nobody_redeems_have_a_number_and_an_end() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..MAX_TOKENS {
            tokens.issue(promise(), now).unwrap();
        }
        assert!(matches!(tokens.issue(promise(), now), Err(Error::TooMany)));
        tokens.issue(promise(), now + LIFETIME).unwrap();
    }
}
