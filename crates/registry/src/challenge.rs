//! What a registry asks for with status 401: `WWW-Authenticate`.
//!
//! Bearer challenges are those of docker's token specification, which OCI registries
//! follow: `Bearer realm="https://…/token",service="…",scope="repository:a/b:pull"`.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, Uri};

use crate::host::is_plain_address;

/// How a registry wants to be convinced.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Challenge {
    Bearer(Bearer),
    Basic,
}

/// Where to get a token, and what to ask it for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Bearer {
    pub(crate) realm: Uri,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

/// The challenge to answer: the first usable bearer, else basic; `None` if there is neither.
pub(crate) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<_> = values.flat_map(parse).collect();
    let bearer = all.iter().filter(|it| it.scheme.eq_ignore_ascii_case("bearer"));
    if let Some(bearer) = bearer.filter_map(Raw::bearer).next() {
        return Some(Challenge::Bearer(bearer));
    }
    all.iter().any(|it| it.scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic)
}

#[derive(Debug, Eq, PartialEq)]
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn parameter(&self, wanted: &str) -> Option<String> {
        let found = self.parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    fn bearer(&self) -> Option<Bearer> {
        let realm: Uri = self.parameter("realm")?.parse().ok()?;
        let (service, scope) = (self.parameter("service"), self.parameter("scope"));
        is_plain_address(&realm).then_some(Bearer { realm, service, scope })
    }
}

/// RFC 9110, section 11.6.1, leniently: what fits nowhere is passed over.
fn parse(text: &str) -> Vec<Raw> {
    let mut challenges: Vec<Raw> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| !is_token(c));
        if rest.is_empty() {
            return challenges;
        }
        let name = take(&mut rest, is_token);
        let value = rest.trim_start().strip_prefix('=');
        match (value, challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                rest = value.trim_start();
                let value = match rest.strip_prefix('"') {
                    Some(quoted) => unquote(quoted, &mut rest),
                    None => take(&mut rest, |c| c != ',' && !c.is_whitespace()).to_owned(),
                };
                challenge.parameters.push((name.to_owned(), value));
            }
            _ => challenges.push(Raw { scheme: name.to_owned(), parameters: Vec::new() }),
        }
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn take<'a>(rest: &mut &'a str, accept: impl Fn(char) -> bool) -> &'a str {
    let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
    let (taken, left) = rest.split_at(end);
    *rest = left;
    taken
}

/// The text up to the closing quote; `rest` is what follows that.
fn unquote<'a>(quoted: &'a str, rest: &mut &'a str) -> String {
    let mut text = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => {
                *rest = &quoted[at + 1..];
                return text;
            }
            '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
            c => text.push(c),
        }
    }
    *rest = "";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose_from(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        choose(&headers)
    }

    fn bearer(realm: &'static str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: Uri::from_static(realm),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn a_bearer_challenge_is_taken_apart() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(choose_from(&[hub]), Some(expected));
        let odd = r#"bearer  REALM = "https://a/t" , service="\"s\\" , error="x, y""#;
        assert_eq!(choose_from(&[odd]), Some(bearer("https://a/t", Some(r#""s\"#), None)));
        let bare = r"Bearer realm=https://a/t,service=s";
        assert_eq!(choose_from(&[bare]), Some(bearer("https://a/t", Some("s"), None)));
    }

    #[test]
    fn bearer_is_preferred_wherever_it_stands() {
        let expected = Some(bearer("https://a/t", None, None));
        assert_eq!(choose_from(&["Basic realm=x", "Bearer realm=\"https://a/t\""]), expected);
        assert_eq!(choose_from(&["Basic realm=\"x\", Bearer realm=\"https://a/t\""]), expected);
        assert_eq!(choose_from(&["Negotiate YWJj==, Bearer realm=\"https://a/t\""]), expected);
        assert_eq!(choose_from(&["Bearer, Basic realm=\"x\""]), Some(Challenge::Basic));
    }

    #[test]
    fn what_makes_no_sense_is_passed_over() {
        for bad in ["", "=", "\"", "Bearer", "Bearer realm", "Bearer realm=", "Digest realm=x"] {
            assert_eq!(choose_from(&[bad]), None, "{bad}");
        }
        for realm in ["ftp://a/", "https://u:p@a/", "/token", "https://", "https://a b/"] {
            assert_eq!(choose_from(&[&format!("Bearer realm=\"{realm}\"")]), None, "{realm}");
        }
        assert_eq!(
            choose_from(&["Bearer realm=\"https://a/t"]),
            Some(bearer("https://a/t", None, None))
        );
    }
}
