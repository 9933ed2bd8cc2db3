//! Exec, attach and port-forward over WebSocket, by a client that others wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_streaming::{Config, Streams};
use futures_util::{SinkExt as _, StreamExt as _};
use support::{ALL, Client, LIMIT, Node, OUT, request, split};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

type Socket = WebSocketStream<TcpStream>;

async fn connect(url: &str, protocol: &str) -> Result<Socket, Error> {
    let (address, _) = split(url);
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let socket = TcpStream::connect(address).await.unwrap();
    client_async(request, socket).await.map(|(socket, _)| socket)
}

async fn send(socket: &mut Socket, channel: u8, bytes: &[u8]) {
    let message = [&[channel], bytes].concat();
    socket.send(Message::binary(message)).await.unwrap();
}

/// Everything that comes on each channel, until the server closes the connection.
async fn read_all(socket: &mut Socket) -> BTreeMap<u8, String> {
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let read = async {
        while let Some(message) = socket.next().await {
            match message {
                Ok(Message::Binary(bytes)) => {
                    channels.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
                }
                Ok(Message::Text(text)) => {
                    let (channel, bytes) = text.as_bytes().split_first().unwrap();
                    let bytes = STANDARD.decode(bytes).unwrap();
                    channels.entry(channel - b'0').or_default().extend_from_slice(&bytes);
                }
                Ok(Message::Close(frame)) => {
                    assert!(frame.is_none_or(|frame| u16::from(frame.code) == 1000));
                }
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(LIMIT, read).await.unwrap();
    let text = |(channel, bytes)| (channel, String::from_utf8(bytes).unwrap());
    channels.into_iter().map(text).collect()
}

#[tokio::test]
async fn version_five_ends_the_input_of_a_command() {
    let node = Node::start();
    let url = node.exec(&["cat"], ALL);
    let mut socket = connect(&url, "v9.channel.k8s.io, v5.channel.k8s.io").await.unwrap();
    // The first message says that the session has begun.
    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first, Message::binary(vec![STDOUT]));
    send(&mut socket, STDIN, b"some ").await;
    send(&mut socket, STDIN, b"words").await;
    send(&mut socket, 255, &[STDIN]).await;
    let channels = read_all(&mut socket).await;
    assert_eq!(channels[&STDOUT], "some words");
    assert_eq!(channels[&STDERR], "10");
    assert_eq!(channels[&ERROR], SUCCESS);
    node.end().await;
}

/// teeth: crates/streaming/src/websocket/drive.rs: `message.rest.len() + bytes.len() > 1` → `false`
#[tokio::test]
async fn d11_a_close_signal_is_not_kept_beyond_its_channel() {
    let node = Node::start();
    let url = node.exec(&["cat"], ALL);
    let mut socket = connect(&url, "v5.channel.k8s.io").await.unwrap();
    // The first part of a message of which the end does not come.
    let raw = socket.get_mut();
    raw.write_all(&[0x02, 0x83, 0, 0, 0, 0, 255, STDIN, STDIN]).await.unwrap();
    let ended = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(frame) = message {
                return frame.map(|frame| u16::from(frame.code));
            }
        }
        None
    };
    assert_eq!(tokio::time::timeout(LIMIT, ended).await.unwrap(), Some(1002));
    node.end().await;
}

#[tokio::test]
async fn each_version_tells_the_exit_code_in_its_own_way() {
    let node = Node::start();
    let text = "command terminated with non-zero exit code: exit status 7";
    for (protocol, status) in [
        ("v5.channel.k8s.io", r#""reason":"ExitCode","message":"7""#),
        ("v4.channel.k8s.io", r#""reason":"ExitCode","message":"7""#),
        ("v4.base64.channel.k8s.io", r#""reason":"ExitCode","message":"7""#),
        ("channel.k8s.io", text),
        ("base64.channel.k8s.io", text),
        ("", text),
    ] {
        let mut socket = connect(&node.exec(&["exit", "7"], OUT), protocol).await.unwrap();
        let channels = read_all(&mut socket).await;
        assert!(channels[&ERROR].contains(status), "{protocol}: {channels:?}");
        assert_eq!(channels[&STDOUT], "");
    }
    node.end().await;
}

#[tokio::test]
async fn base64_may_be_cut_anywhere() {
    let node = Node::start();
    let url = node.exec(&["cat"], ALL);
    let mut socket = connect(&url, "v4.base64.channel.k8s.io").await.unwrap();
    for word in ["a", "bc", "def", "ghij"] {
        let text = format!("0{}", STANDARD.encode(word));
        socket.send(Message::text(text)).await.unwrap();
    }
    let mut got = String::new();
    while got != "abcdefghij" {
        let Some(Ok(Message::Text(text))) = socket.next().await else { panic!("{got}") };
        let bytes = STANDARD.decode(text.strip_prefix('1').unwrap()).unwrap();
        got.push_str(&String::from_utf8(bytes).unwrap());
    }
    drop(socket);
    node.fake.is_idle().await;
    let mut socket = connect(&node.exec(&["cat"], ALL), "base64.channel.k8s.io").await.unwrap();
    socket.send(Message::text("0not base64!")).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    node.fake.is_idle().await;
    node.end().await;
}

#[tokio::test]
async fn a_terminal_learns_its_sizes_and_pings_are_answered() {
    let node = Node::start();
    let tty = Streams { stdin: true, stdout: true, stderr: false, tty: true };
    let mut socket = connect(&node.exec(&["sizes", "2"], tty), "v5.channel.k8s.io").await.unwrap();
    socket.send(Message::Ping(b"still there"[..].into())).await.unwrap();
    while socket.next().await.unwrap().unwrap() != Message::Pong(b"still there"[..].into()) {}
    send(&mut socket, RESIZE, br#"{"Width":80,"Height":24}"#).await;
    send(&mut socket, RESIZE, br#"{"Width":132,"Height":50}"#).await;
    assert_eq!(read_all(&mut socket).await[&STDOUT], "80x24 132x50 ");
    node.end().await;
}

/// Ten times all buffers together, both ways.
#[tokio::test]
async fn a_slow_client_loses_nothing() {
    let node = Node::start();
    let url = node.exec(&["yes", "2000000"], OUT);
    let mut socket = connect(&url, "v4.channel.k8s.io").await.unwrap();
    let channels = read_all(&mut socket).await;
    assert_eq!((channels[&STDOUT].len(), channels[&ERROR].as_str()), (2_000_000, SUCCESS));

    let socket = connect(&node.exec(&["cat"], ALL), "v5.channel.k8s.io").await.unwrap();
    let (mut write, mut read) = socket.split();
    let writer = tokio::spawn(async move {
        // One message that is larger than what is kept of it, and many that are not.
        write.send(Message::binary(vec![STDIN; 1_000_001])).await.unwrap();
        for _ in 0..1000 {
            write.send(Message::binary(vec![STDIN; 1001])).await.unwrap();
        }
        write.send(Message::binary(vec![255, STDIN])).await.unwrap();
        write
    });
    let mut got = 0;
    while let Some(Ok(message)) = read.next().await {
        if let Message::Binary(bytes) = message
            && bytes[0] == STDOUT
        {
            got += bytes.len() - 1;
        }
    }
    assert_eq!(got, 2_000_000);
    drop(writer.await.unwrap());
    node.end().await;
}

#[tokio::test]
async fn a_command_ends_with_its_client_even_when_it_reads_nothing() {
    let node = Node::start();
    let mut socket = connect(&node.exec(&["sleep"], ALL), "v5.channel.k8s.io").await.unwrap();
    for _ in 0..10 {
        send(&mut socket, STDIN, &[0; 10_000]).await;
    }
    drop(socket);
    node.fake.is_idle().await;
    let mut socket = connect(&node.exec(&["sleep"], OUT), "v5.channel.k8s.io").await.unwrap();
    socket.close(None).await.unwrap();
    read_all(&mut socket).await;
    node.fake.is_idle().await;
    node.end().await;
}

#[tokio::test]
async fn numbered_channels_forward_the_ports_of_the_request() {
    let node = Node::start();
    for protocol in ["v4.channel.k8s.io", ""] {
        let mut socket = connect(&node.forward(&[80, 0x1234]), protocol).await.unwrap();
        send(&mut socket, 2, b"hello").await;
        let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        while channels.get(&2).is_none_or(|bytes| !bytes.ends_with(b"hello")) {
            let bytes = socket.next().await.unwrap().unwrap().into_data();
            channels.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
        }
        assert_eq!(channels[&2], b"\x34\x12s1:4660\nhello");
        assert_eq!(channels[&3], b"\x34\x12");
        assert_eq!(channels[&1], b"\x50\0");
        assert!(channels[&0].starts_with(b"\x50\0"), "{channels:?}");
        drop(socket);
        node.fake.is_idle().await;
    }
    let mut socket = connect(&node.forward(&[1]), "v4.channel.k8s.io").await.unwrap();
    let channels = read_all(&mut socket).await;
    assert!(channels[&1].contains("error forwarding port 1 to pod s1"), "{channels:?}");
    let refused = connect(&node.forward(&[]), "v4.channel.k8s.io").await.unwrap_err();
    assert!(matches!(refused, Error::Http(answer) if answer.status() == 400));
    node.end().await;
}

/// Which of them is asked first, the socket or the session, is left to chance: hence many times.
///
/// teeth: crates/streaming/src/upgrade.rs: `let session = forward::over_channels(context.backend.clone(), target, &mux);` → `let session = async { forward::over_channels(context.backend.clone(), target, &mux).await };`
#[tokio::test]
async fn what_a_client_sends_at_once_reaches_the_port() {
    let node = Node::start();
    for _ in 0..30 {
        let url = node.forward(&[80]);
        let (address, path) = split(&url);
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        // One message on channel 0, masked with zeros, right behind the request.
        let frame = b"\x82\x86\0\0\0\0\0hello";
        socket.write_all(&[head.as_bytes(), frame].concat()).await.unwrap();
        let mut heard = Vec::new();
        let echo = async {
            while !heard.windows(5).any(|bytes| bytes == b"hello") {
                assert_ne!(socket.read_buf(&mut heard).await.unwrap(), 0, "{heard:?}");
            }
        };
        let echoed = tokio::time::timeout(LIMIT, echo).await;
        assert!(echoed.is_ok(), "{:?}", String::from_utf8_lossy(&heard));
    }
    node.fake.is_idle().await;
    node.end().await;
}

/// teeth: crates/streaming/src/websocket/mod.rs: `pub(crate) const MAX_PORTS: usize = 128;` → `pub(crate) const MAX_PORTS: usize = usize::MAX;`
#[tokio::test]
async fn d11_more_ports_than_there_are_channels_are_refused() {
    let node = Node::start();
    let ports: Vec<u16> = (1000..1129).collect();
    let refused = connect(&node.forward(&ports), "v4.channel.k8s.io").await.unwrap_err();
    assert!(matches!(refused, Error::Http(answer) if answer.status() == 400));
    let mut socket = connect(&node.forward(&ports[1..]), "v4.channel.k8s.io").await.unwrap();
    send(&mut socket, 254, b"hello").await;
    let mut last = Vec::new();
    while last != b"\x68\x04s1:1128\nhello" {
        let bytes = socket.next().await.unwrap().unwrap().into_data();
        match bytes[0] {
            254 => last.extend_from_slice(&bytes[1..]),
            255 => assert_eq!(bytes[1..], *b"\x68\x04"),
            _ => {}
        }
    }
    drop(socket);
    node.fake.is_idle().await;
    node.end().await;
}

#[tokio::test]
async fn spdy_travels_inside_of_messages() {
    let node = Node::start();
    let url = node.forward(&[]);
    let mut socket = connect(&url, "SPDY/3.1+portforward.k8s.io").await.unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let carry = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(far);
        let mut chunk = [0; 7];
        loop {
            tokio::select! {
                // Message by message of seven bytes: none is a frame.
                sent = read.read(&mut chunk) => match sent {
                    Ok(length @ 1..) => {
                        socket.send(Message::binary(chunk[..length].to_vec())).await.unwrap();
                    }
                    _ => break,
                },
                got = socket.next() => match got {
                    Some(Ok(message)) => write.write_all(&message.into_data()).await.unwrap(),
                    _ => break,
                },
            }
        }
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    });
    let mut client = Client::over(near);
    let pair = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "1")];
    client.open(&pair("error")).await;
    let data = client.open(&pair("data")).await;
    client.write(data, b"hello", true).await;
    assert_eq!(client.read_all(data).await, "s1:80\nhello");
    drop(client);
    tokio::time::timeout(LIMIT, carry).await.unwrap().unwrap();
    node.fake.is_idle().await;
    node.end().await;
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    let node = Node::start();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let good = ["Connection: keep-alive, Upgrade", "Upgrade: websocket", key];
    let version = "Sec-WebSocket-Version: 13";
    let with = |more: &[&'static str]| [&good[..], more].concat();
    let cases: [(&str, Vec<&str>, &str); 6] = [
        ("GET", with(&[version]), "101"),
        ("GET", with(&[]), "400"),
        ("GET", with(&["Sec-WebSocket-Version: 8"]), "400"),
        ("POST", with(&[version]), "400"),
        ("GET", [&good[..2], &[version, "Sec-WebSocket-Key: c2hvcnQ="]].concat(), "400"),
        ("GET", with(&[version, "Sec-WebSocket-Protocol: v9.channel.k8s.io"]), "403"),
    ];
    for (method, headers, status) in cases {
        let (_, head) = request(&node.exec(&["who"], OUT), method, &headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{headers:?}: {head}");
        if status == "101" {
            // The example of RFC 6455, section 1.3.
            let accept = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
            assert!(head.to_ascii_lowercase().contains(&accept.to_ascii_lowercase()), "{head}");
        }
    }
    node.end().await;
}

#[tokio::test]
async fn the_end_of_the_server_and_silence_end_every_session() {
    let node = Node::start();
    let mut socket = connect(&node.exec(&["sleep"], OUT), "v5.channel.k8s.io").await.unwrap();
    socket.next().await.unwrap().unwrap();
    node.end().await;
    read_all(&mut socket).await;

    let idle = Config { idle_timeout: Duration::from_millis(50), ..Config::default() };
    let node = Node::with(idle);
    let mut socket = connect(&node.exec(&["sleep"], OUT), "v5.channel.k8s.io").await.unwrap();
    read_all(&mut socket).await;
    node.fake.is_idle().await;
    node.end().await;
}
