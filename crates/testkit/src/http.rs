//! The few HTTP requests that pushing to a registry on loopback takes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

const DEADLINE: Duration = Duration::from_secs(30);
const MAX_RESPONSE: u64 = 1 << 20;

/// Status and headers of a response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
}

/// Sends one HTTP/1.1 request on a connection of its own and reads the whole answer.
pub(crate) fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    content: Option<(&str, &[u8])>,
) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)
        .with_context(|| format!("connect to the registry at {to}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let (media_type, body) = content.unwrap_or(("application/octet-stream", b""));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\
         Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut answer).context("read the registry's answer")?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Result<Response> {
    let mut lines = answer.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let Some(status) = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()) else {
        bail!("not an HTTP response: {status_line:?}");
    };
    let location = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("location"))
        .map(|(_, value)| value.trim().to_owned());
    Ok(Response { status, location })
}
