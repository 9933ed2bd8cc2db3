//! What a request must be before its connection becomes something else.
//!
//! Words and codes are those of Kubernetes' streaming server: 404 for a token that is not
//! good, 400 for a request that is no upgrade, 403 for protocols that are not spoken.

use ::http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::remote::{VERSIONS, Version};
use crate::token::Promise;
use crate::websocket::{self, Protocol};

pub(crate) type Answer = Response<Full<Bytes>>;

/// What a connection becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    /// Streams by name, for exec and attach.
    Spdy(Version),
    /// Pairs of streams, for port-forward.
    SpdyPairs,
    WebSocket(Protocol),
}

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
const PORT_FORWARD: &str = "portforward.k8s.io";
/// RFC 6455, section 4.1: the only version there is.
const WEBSOCKET_VERSION: &str = "13";

/// The verb and the token of a request, out of its path.
pub(crate) fn verb_and_token(parts: &Parts) -> Result<(&str, &str), Box<Answer>> {
    let path = parts.uri.path().strip_prefix('/').and_then(|path| path.split_once('/'));
    let Some((verb @ ("exec" | "attach" | "portforward"), token)) = path else {
        return Err(not_found());
    };
    if !matches!(parts.method, Method::GET | Method::POST) {
        return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
    }
    let empty = parts.headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
    if !empty || parts.headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(refusal(StatusCode::BAD_REQUEST, "a request with a body cannot be upgraded"));
    }
    Ok((verb, token))
}

/// The protocol that client and server agree on, and the answer that says so.
pub(crate) fn negotiate(
    parts: &Parts,
    promise: &Promise,
) -> Result<(Transport, Answer), Box<Answer>> {
    let upgrades = tokens(&parts.headers, &CONNECTION).any(|word| contains(word, "upgrade"));
    let mut wanted = tokens(&parts.headers, &UPGRADE);
    if upgrades && wanted.any(|word| word.eq_ignore_ascii_case("websocket")) {
        return web_socket(parts, promise);
    }
    spdy(parts, promise, upgrades)
}

fn spdy(
    parts: &Parts,
    promise: &Promise,
    upgrades: bool,
) -> Result<(Transport, Answer), Box<Answer>> {
    let forward = matches!(promise, Promise::Forward(_));
    let offered: Vec<&str> = tokens(&parts.headers, &PROTOCOL_VERSION).collect();
    if offered.is_empty() {
        let words = format!("unable to upgrade: header {PROTOCOL_VERSION} names no protocol");
        return Err(refusal(StatusCode::BAD_REQUEST, words));
    }
    let known: Vec<&str> = match forward {
        true => vec![PORT_FORWARD],
        false => VERSIONS.iter().map(|version| version.name).collect(),
    };
    let Some(name) = offered.iter().find_map(|name| known.iter().find(|known| *known == name))
    else {
        let words = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, \
             server accepts {known:?}"
        );
        let mut refused = refusal(StatusCode::FORBIDDEN, words);
        for name in known {
            refused.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(refused);
    };
    if !upgrades || !tokens(&parts.headers, &UPGRADE).any(|word| contains(word, SPDY)) {
        let words = "unable to upgrade: missing upgrade headers in request";
        return Err(refusal(StatusCode::BAD_REQUEST, words));
    }
    let version = VERSIONS.iter().find(|version| version.name == *name);
    let transport = version.map_or(Transport::SpdyPairs, |version| Transport::Spdy(*version));
    let mut answer = switching(SPDY);
    answer.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(name));
    Ok((transport, answer))
}

fn web_socket(parts: &Parts, promise: &Promise) -> Result<(Transport, Answer), Box<Answer>> {
    let headers = &parts.headers;
    let known = match promise {
        Promise::Forward(_) => &websocket::FORWARD[..],
        _ => &websocket::REMOTE[..],
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let whole = base64::engine::general_purpose::STANDARD.decode(key);
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if parts.method != Method::GET
        || version.is_none_or(|version| version != WEBSOCKET_VERSION)
        || whole.is_ok_and(|key| key.len() != 16)
    {
        let mut refused = refusal(StatusCode::BAD_REQUEST, "not a handshake of RFC 6455");
        let version = HeaderValue::from_static(WEBSOCKET_VERSION);
        refused.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
        return Err(refused);
    }
    let mut offered: Vec<&str> = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    if offered.is_empty() {
        offered.push("");
    }
    let Some(protocol) =
        offered.iter().find_map(|name| known.iter().find(|protocol| protocol.name == *name))
    else {
        let names: Vec<_> = known.iter().map(|protocol| protocol.name).collect();
        let words =
            format!("requested protocols are not supported: {offered:?}; supported: {names:?}");
        return Err(refusal(StatusCode::FORBIDDEN, words));
    };
    if let Promise::Forward(target) = promise
        && protocol.codec != websocket::Codec::Raw
    {
        let wrong = match target.ports.len() {
            0 => Some("no port was asked for"),
            1..=websocket::MAX_PORTS => None,
            _ => Some("more ports were asked for than there are channels"),
        };
        if let Some(words) = wrong {
            return Err(refusal(StatusCode::BAD_REQUEST, words));
        }
    }
    let mut answer = switching("websocket");
    let accept = HeaderValue::try_from(derive_accept_key(key))
        .map_err(|_| refusal(StatusCode::BAD_REQUEST, "not a handshake of RFC 6455"))?;
    answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.name.is_empty() {
        let name = HeaderValue::from_static(protocol.name);
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok((Transport::WebSocket(*protocol), answer))
}

/// The words of a list that may stand in several headers.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn contains(word: &str, part: &str) -> bool {
    word.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
}

fn switching(protocol: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    answer
}

pub(crate) fn not_found() -> Box<Answer> {
    refusal(StatusCode::NOT_FOUND, "404 page not found")
}

/// An answer that is none of the protocols. The connection ends with it.
pub(crate) fn refusal(status: StatusCode, words: impl Into<String>) -> Box<Answer> {
    let mut text = words.into();
    text.push('\n');
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Box::new(answer)
}
