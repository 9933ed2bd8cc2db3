//! A client of SPDY/3.1, and requests by hand.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::HashMap;
use std::time::Duration;

use berth_streaming::spdy::frame::{self, FIN, HEAD_BYTES, Head, kind};
use berth_streaming::spdy::{Decoder, Encoder, Headers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than anything takes that works.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Address and path of a URL.
pub(crate) fn split(url: &str) -> (&str, String) {
    let rest = url.split_once("://").unwrap().1;
    let (address, path) = rest.split_once('/').unwrap();
    (address, format!("/{path}"))
}

/// Makes a request and reads the head of its answer: status line and headers.
pub(crate) async fn request(url: &str, method: &str, headers: &[&str]) -> (TcpStream, String) {
    let socket = TcpStream::connect(split(url).0).await.unwrap();
    request_over(socket, url, method, headers).await
}

/// The same over a connection that is there.
pub(crate) async fn request_over(
    mut socket: TcpStream,
    url: &str,
    method: &str,
    headers: &[&str],
) -> (TcpStream, String) {
    let (address, path) = split(url);
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tokio::time::timeout(LIMIT, socket.read_u8()).await.unwrap() {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    (socket, String::from_utf8(head).unwrap())
}

/// The headers of a SPDY upgrade.
pub(crate) fn upgrade(protocol: &str) -> [String; 3] {
    [
        "Connection: Upgrade".to_owned(),
        "Upgrade: SPDY/3.1".to_owned(),
        format!("X-Stream-Protocol-Version: {protocol}"),
    ]
}

/// A client of SPDY/3.1 that, as Kubernetes' own, counts no windows.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) socket: S,
    encoder: Encoder,
    decoder: Decoder,
    next: u32,
    /// What came on each stream, and whether it was all.
    pub(crate) streams: HashMap<u32, (Vec<u8>, bool)>,
    /// Streams that were given up.
    pub(crate) resets: HashMap<u32, u32>,
    pub(crate) accepted: Vec<u32>,
    pub(crate) credits: HashMap<u32, u64>,
    pub(crate) pings: Vec<u32>,
    pub(crate) gone: Option<u32>,
}

impl Client {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let socket = TcpStream::connect(split(url).0).await.unwrap();
        Self::connect_over(socket, url, protocol).await
    }

    pub(crate) async fn connect_over(socket: TcpStream, url: &str, protocol: &str) -> Self {
        let headers = upgrade(protocol);
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let (socket, head) = request_over(socket, url, "POST", &headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_ascii_lowercase().contains("upgrade: spdy/3.1"), "{head}");
        Self::over(socket)
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<S> {
    pub(crate) fn over(socket: S) -> Self {
        Self {
            socket,
            encoder: Encoder::new().unwrap(),
            decoder: Decoder::new(),
            next: 1,
            streams: HashMap::new(),
            resets: HashMap::new(),
            accepted: Vec::new(),
            credits: HashMap::new(),
            pings: Vec::new(),
            gone: None,
        }
    }

    pub(crate) async fn send(&mut self, frame: &[u8]) {
        self.socket.write_all(frame).await.unwrap();
        self.socket.flush().await.unwrap();
    }

    /// Opens a stream, and does not wait for the answer.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let block = self.encoder.encode(&headers.iter().copied().collect::<Headers>()).unwrap();
        let rest = [&[0, 0], block.as_slice()].concat();
        self.send(&frame::control(kind::SYN_STREAM, 0, &[id, 0], &rest)).await;
        self.streams.insert(id, (Vec::new(), false));
        id
    }

    /// Opens the streams of a process, by their types.
    pub(crate) async fn open_all<const N: usize>(&mut self, types: [&str; N]) -> [u32; N] {
        let mut ids = [0; N];
        for (id, name) in ids.iter_mut().zip(types) {
            *id = self.open(&[("streamtype", name)]).await;
        }
        ids
    }

    pub(crate) async fn write(&mut self, id: u32, bytes: &[u8], last: bool) {
        let length = u32::try_from(bytes.len()).unwrap();
        let head = Head::Data { id, flags: if last { FIN } else { 0 }, length }.bytes();
        self.send(&head).await;
        self.send(bytes).await;
    }

    /// Reads one frame; `false` at the end of the connection.
    pub(crate) async fn read(&mut self) -> bool {
        let mut head = [0; HEAD_BYTES];
        let read = tokio::time::timeout(LIMIT, self.socket.read_exact(&mut head)).await;
        if read.expect("the server sends a frame").is_err() {
            return false;
        }
        let (length, data) = match Head::parse(head).unwrap() {
            Head::Data { length, id, flags } => (length, Some((id, flags))),
            Head::Control { length, .. } => (length, None),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.socket.read_exact(&mut payload).await.unwrap();
        if let Some((id, flags)) = data {
            let (bytes, ended) = self.streams.get_mut(&id).unwrap();
            assert!(!*ended, "data after the end of stream {id}");
            bytes.extend_from_slice(&payload);
            *ended = flags & FIN != 0;
            return true;
        }
        let Head::Control { kind, .. } = Head::parse(head).unwrap() else { unreachable!() };
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            kind::SYN_REPLY => {
                assert_eq!(self.decoder.decode(&payload[4..]).unwrap(), Headers::default());
                self.accepted.push(word(0));
            }
            kind::RST_STREAM => drop(self.resets.insert(word(0), word(4))),
            kind::WINDOW_UPDATE => *self.credits.entry(word(0)).or_default() += u64::from(word(4)),
            kind::PING => self.pings.push(word(0)),
            kind::GOAWAY => self.gone = Some(word(4)),
            other => panic!("a frame of type {other}"),
        }
        true
    }

    /// Whether the server has taken a stream, or refused it.
    pub(crate) fn is_answered(&self, id: u32) -> bool {
        self.accepted.contains(&id) || self.resets.contains_key(&id)
    }

    /// Reads until `done`.
    pub(crate) async fn read_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.read().await, "the connection ended early");
        }
    }

    /// Everything that comes on a stream.
    pub(crate) async fn read_all(&mut self, id: u32) -> String {
        self.read_until(|client| client.streams[&id].1).await;
        String::from_utf8(self.streams[&id].0.clone()).unwrap()
    }
}
