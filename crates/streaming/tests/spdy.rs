//! Exec, attach and port-forward as kubelet's clients do them: over SPDY/3.1.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_model::ContainerId;
use berth_streaming::spdy::frame::{self, kind};
use berth_streaming::{Config, Streams};
use support::{ALL, Client, Node, OUT, request, upgrade};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

#[tokio::test]
async fn a_command_reads_to_the_end_of_the_clients_input_and_ends_all_streams() {
    let node = Node::start();
    let mut client = Client::connect(&node.exec(&["cat"], ALL), "v4.channel.k8s.io").await;
    let [error, stdin, stdout, stderr] =
        client.open_all(["error", "stdin", "stdout", "stderr"]).await;
    client.read_until(|client| client.accepted == [error, stdin, stdout, stderr]).await;
    client.write(stdin, b"some ", false).await;
    client.write(stdin, b"words", true).await;
    assert_eq!(client.read_all(stdout).await, "some words");
    assert_eq!(client.read_all(stderr).await, "10");
    assert_eq!(client.read_all(error).await, SUCCESS);
    // The client's waits for the end of this, too.
    client.read_all(stdin).await;
    drop(client);
    node.end().await;
}

#[tokio::test]
async fn each_version_tells_the_exit_code_in_its_own_way() {
    let node = Node::start();
    for (protocol, status) in [
        ("v4.channel.k8s.io", r#""reason":"ExitCode","message":"7""#),
        ("v3.channel.k8s.io", "command terminated with non-zero exit code: exit status 7"),
        ("v2.channel.k8s.io", "command terminated with non-zero exit code: exit status 7"),
        ("channel.k8s.io", "command terminated with non-zero exit code: exit status 7"),
        ("v9.channel.k8s.io, v4.channel.k8s.io", "NonZeroExitCode"),
    ] {
        let mut client = Client::connect(&node.exec(&["exit", "7"], OUT), protocol).await;
        let [error, stdout] = client.open_all(["error", "stdout"]).await;
        let text = client.read_all(error).await;
        assert!(text.contains(status), "{protocol}: {text}");
        assert_eq!(client.read_all(stdout).await, "");
    }
    let mut client = Client::connect(&node.exec(&["exit", "0"], OUT), "v3.channel.k8s.io").await;
    let [error, _] = client.open_all(["error", "stdout"]).await;
    assert_eq!(client.read_all(error).await, "");
    let mut client =
        Client::connect(&node.exec(&["fail", "no sh"], OUT), "v4.channel.k8s.io").await;
    let [error, _] = client.open_all(["error", "stdout"]).await;
    let text = client.read_all(error).await;
    assert!(text.contains("error executing command in container: no sh"), "{text}");
    drop(client);
    node.end().await;
}

#[tokio::test]
async fn a_terminal_learns_its_sizes() {
    let node = Node::start();
    let tty = Streams { stdin: false, stdout: true, stderr: false, tty: true };
    let mut client = Client::connect(&node.exec(&["sizes", "2"], tty), "v4.channel.k8s.io").await;
    let [_, stdout, resize] = client.open_all(["error", "stdout", "resize"]).await;
    client.write(resize, b"{\"Width\":80,\"Height\":24}\n{\"Wid", false).await;
    client.write(resize, b"th\":132,\"Height\":50}\n", false).await;
    assert_eq!(client.read_all(stdout).await, "80x24 132x50 ");
    drop(client);
    node.end().await;
}

/// teeth: crates/streaming/src/remote.rs: `    opened.close();\n` → `    std::mem::forget(opened); return streams;\n`
#[tokio::test]
async fn d11_streams_that_come_too_late_do_not_stop_the_others() {
    let node = Node::start();
    let mut client = Client::connect(&node.exec(&["cat"], ALL), "v4.channel.k8s.io").await;
    let [_, stdin, stdout, _] = client.open_all(["error", "stdin", "stdout", "stderr"]).await;
    for _ in 0..100 {
        client.open(&[("streamtype", "stdout")]).await;
    }
    client.write(stdin, b"words", true).await;
    assert_eq!(client.read_all(stdout).await, "words");
    drop(client);
    node.end().await;
}

/// Whether the kernel has a timer for keep-alives of a connection (proc(5), `net/tcp`).
fn is_kept_alive(server: std::net::SocketAddr, client: std::net::SocketAddr) -> bool {
    let [server, client] = [server, client].map(|address| format!(":{:04X}", address.port()));
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("sockets of this machine");
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        columns[1].ends_with(&server)
            && columns[2].ends_with(&client)
            && columns[5].starts_with("02:")
    })
}

/// teeth: crates/streaming/src/server.rs: `peer::keep_asking(&socket).ok()?;` → ``
#[tokio::test]
async fn d2_a_client_that_cannot_say_farewell_is_asked_for() {
    let node = Node::start();
    let mut client = Client::connect(&node.exec(&["sleep"], OUT), "v4.channel.k8s.io").await;
    client.open_all(["error", "stdout"]).await;
    let (own, server) = (client.socket.local_addr().unwrap(), client.socket.peer_addr().unwrap());
    let asked = async {
        // The timer of an acknowledgement may be there first.
        while !is_kept_alive(server, own) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::LIMIT, asked).await.unwrap();
    drop(client);
    node.end().await;
}

#[tokio::test]
async fn an_attach_has_the_streams_that_were_asked_for() {
    let node = Node::start();
    let url = node.urls.attach(ContainerId::new("c1").unwrap(), ALL).unwrap();
    let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
    let [error, stdin, stdout, _] = client.open_all(["error", "stdin", "stdout", "stderr"]).await;
    client.write(stdin, b"hello", true).await;
    assert_eq!(client.read_all(stdout).await, "hello");
    assert_eq!(client.read_all(error).await, SUCCESS);
    drop(client);
    node.end().await;
}

/// Ten times all buffers together, both ways: windows that were waited for would be waited
/// for in vain, since such a client updates none.
#[tokio::test]
async fn a_client_that_counts_no_windows_gets_everything() {
    let node = Node::start();
    let mut client =
        Client::connect(&node.exec(&["yes", "2000000"], OUT), "v4.channel.k8s.io").await;
    let [error, stdout] = client.open_all(["error", "stdout"]).await;
    assert_eq!(client.read_all(stdout).await.len(), 2_000_000);
    assert_eq!(client.read_all(error).await, SUCCESS);

    let client = Client::connect(&node.exec(&["cat"], ALL), "v4.channel.k8s.io").await;
    let mut client = client;
    let [_, stdin, stdout, _] = client.open_all(["error", "stdin", "stdout", "stderr"]).await;
    for part in 0..40 {
        client.write(stdin, &[b'x'; 50_000], part == 39).await;
        client.read_until(|client| client.streams[&stdout].0.len() >= part * 50_000).await;
    }
    assert_eq!(client.read_all(stdout).await.len(), 2_000_000);
    // It is told what was read, as the protocol wants.
    assert!(client.credits[&stdin] > 1_900_000, "{:?}", client.credits);
    assert!(client.credits[&0] > 1_900_000, "{:?}", client.credits);
    drop(client);
    node.end().await;
}

/// teeth: crates/streaming/src/mux/state.rs: `if self.counted { self.window } else { i64::MAX };` → `i64::MAX;`
#[tokio::test]
async fn windows_are_honoured_of_a_client_that_counts_them() {
    let node = Node::start();
    let mut client =
        Client::connect(&node.exec(&["yes", "200000"], OUT), "v4.channel.k8s.io").await;
    // SETTINGS: one entry, number 7, one thousand.
    client.send(&frame::control(kind::SETTINGS, 0, &[1, 7, 1000], &[])).await;
    let [_, stdout] = client.open_all(["error", "stdout"]).await;
    let pinged = |ping| move |client: &Client| client.pings.contains(&ping);
    let got = |client: &Client| client.streams[&stdout].0.len();
    client.read_until(|client| got(client) == 1000).await;
    // What is sent before an answer is sent before it.
    client.send(&frame::control(kind::PING, 0, &[1], &[])).await;
    client.read_until(pinged(1)).await;
    assert_eq!(got(&client), 1000);
    client.send(&frame::control(kind::WINDOW_UPDATE, 0, &[stdout, 100_000], &[])).await;
    // The window of the session is the next that closes: 64 KiB.
    client.read_until(|client| got(client) == 65_536).await;
    client.send(&frame::control(kind::PING, 0, &[3], &[])).await;
    client.read_until(pinged(3)).await;
    assert_eq!(got(&client), 65_536);
    client.send(&frame::control(kind::WINDOW_UPDATE, 0, &[0, 1 << 20], &[])).await;
    client.read_until(|client| got(client) == 101_000).await;
    client.send(&frame::control(kind::WINDOW_UPDATE, 0, &[stdout, 1 << 20], &[])).await;
    assert_eq!(client.read_all(stdout).await.len(), 200_000);
    drop(client);
    node.end().await;
}

/// teeth: crates/streaming/src/mux/state.rs: `data.len().min(room).min(OUTBOUND_BYTES.saturating_sub(kept))` → `data.len()`
#[tokio::test]
async fn a_client_that_does_not_read_stops_the_writer_and_nobody_else() {
    let node = Node::start();
    let mut slow =
        Client::connect(&node.exec(&["yes", "1000000000"], OUT), "v4.channel.k8s.io").await;
    slow.open_all(["error", "stdout"]).await;
    // Others are served meanwhile, until the writer stands still.
    let mut before = 0;
    loop {
        let mut other = Client::connect(&node.exec(&["who"], OUT), "v4.channel.k8s.io").await;
        let [_, stdout] = other.open_all(["error", "stdout"]).await;
        assert_eq!(other.read_all(stdout).await, "c1 false");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = node.fake.written.load(Ordering::SeqCst);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    // What the sockets hold on loopback, and little more.
    assert!(before < 64 << 20, "{before}");
    drop(slow);
    node.fake.is_idle().await;
    node.end().await;
}

/// teeth: crates/streaming/src/mux/mod.rs: `if self.0.peer.is_gone() {` → `if false {`
#[tokio::test]
async fn a_command_ends_with_its_client_even_when_it_reads_nothing() {
    let node = Node::start();
    let mut client = Client::connect(&node.exec(&["sleep"], ALL), "v4.channel.k8s.io").await;
    let [_, stdin, ..] = client.open_all(["error", "stdin", "stdout", "stderr"]).await;
    client.write(stdin, &[0; 100_000], false).await;
    drop(client);
    node.fake.is_idle().await;
    let client = Client::connect(&node.exec(&["sleep"], OUT), "v4.channel.k8s.io").await;
    drop(client);
    node.fake.is_idle().await;
    node.end().await;
}

#[tokio::test]
async fn ports_are_forwarded_in_pairs_of_streams() {
    let node = Node::start();
    let mut client = Client::connect(&node.forward(&[]), "portforward.k8s.io").await;
    let mut pairs = Vec::new();
    for (port, request) in [("80", "0"), ("8080", "1"), ("80", "2")] {
        let error =
            client.open(&[("streamtype", "error"), ("port", port), ("requestid", request)]).await;
        client.write(error, b"", true).await;
        let data =
            client.open(&[("streamtype", "data"), ("port", port), ("requestid", request)]).await;
        pairs.push((port, error, data));
    }
    for (port, error, data) in pairs {
        client.write(data, port.as_bytes(), true).await;
        assert_eq!(client.read_all(data).await, format!("s1:{port}\n{port}"));
        assert_eq!(client.read_all(error).await, "");
    }
    // Clients of old have no request ids.
    let error = client.open(&[("streamtype", "error"), ("port", "1")]).await;
    let data = client.open(&[("streamtype", "data"), ("port", "1")]).await;
    let text = client.read_all(error).await;
    assert!(text.contains("error forwarding port 1 to pod s1"), "{text}");
    assert!(text.contains("connection refused"), "{text}");
    assert_eq!(client.read_all(data).await, "");
    drop(client);
    node.end().await;
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused_one_by_one() {
    let node = Node::start();
    let mut client = Client::connect(&node.forward(&[80]), "portforward.k8s.io").await;
    for headers in [
        &[("streamtype", "data")][..],
        &[("port", "80")],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "+80")],
        &[("streamtype", "data"), ("port", "65536")],
        &[("streamtype", "data"), ("port", "81")],
        &[("streamtype", "stdin"), ("port", "80")],
    ] {
        let id = client.open(headers).await;
        client.read_until(|client| client.resets.contains_key(&id)).await;
        assert!(!client.accepted.contains(&id), "{headers:?}");
    }
    let pair = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "9")];
    client.open(&pair("error")).await;
    let data = client.open(&pair("data")).await;
    client.write(data, b"x", true).await;
    assert_eq!(client.read_all(data).await, "s1:80\nx");
    drop(client);

    let mut client = Client::connect(&node.exec(&["who"], OUT), "v4.channel.k8s.io").await;
    let [error, again, other, stdout] = client.open_all(["error", "error", "x", "stdout"]).await;
    assert_eq!(client.read_all(stdout).await, "c1 false");
    assert_eq!(client.read_all(error).await, SUCCESS);
    assert!(client.resets.contains_key(&again) && client.resets.contains_key(&other));
    drop(client);
    node.end().await;
}

#[tokio::test]
async fn a_client_that_opens_no_streams_is_sent_away() {
    let config = Config { creation_timeout: Duration::from_millis(50), ..Config::default() };
    let node = Node::with(Config { finish_timeout: Duration::from_millis(50), ..config.clone() });
    let mut client = Client::connect(&node.exec(&["who"], OUT), "v4.channel.k8s.io").await;
    client.open_all(["error"]).await;
    while client.read().await {}
    assert_eq!(client.gone, Some(0));

    let mut client = Client::connect(&node.forward(&[]), "portforward.k8s.io").await;
    let error = client.open(&[("streamtype", "error"), ("port", "80")]).await;
    let text = client.read_all(error).await;
    assert!(text.contains("timed out waiting for streams"), "{text}");
    drop(client);
    node.end().await;
    let idle = Config { idle_timeout: Duration::from_millis(50), ..Config::default() };
    let node = Node::with(idle);
    let mut client = Client::connect(&node.exec(&["sleep"], OUT), "v4.channel.k8s.io").await;
    client.open_all(["error", "stdout"]).await;
    while client.read().await {}
    node.fake.is_idle().await;
    node.end().await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_every_session() {
    let node = Node::start();
    let mut client = Client::connect(&node.exec(&["sleep"], OUT), "v4.channel.k8s.io").await;
    client.open_all(["error", "stdout"]).await;
    client.read_until(|client| client.accepted.len() == 2).await;
    node.end().await;
    while client.read().await {}
    assert_eq!(client.gone, Some(0));
}

/// teeth: crates/streaming/src/http.rs: `HeaderValue::from_static("close")` → `HeaderValue::from_static("keep-alive")`
#[tokio::test]
async fn d11_whatever_is_no_upgrade_ends_its_connection_and_is_no_redirect() {
    let node = Node::start();
    let good = upgrade("v4.channel.k8s.io");
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let url = node.exec(&["who"], OUT);
    let base = url.split("/exec").next().unwrap().to_owned();
    let unknown = upgrade("v9.channel.k8s.io");
    let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
    let origin = [&good[..], &["Origin: http://evil.example"]].concat();
    let host = [&good[..], &["Host: evil.example"]].concat();
    let body = [&good[..], &["Content-Length: 5"]].concat();
    let long = format!("X-Long: {}", "x".repeat(200_000));
    let long = [&good[..], &[long.as_str()]].concat();
    let fresh = || node.exec(&["who"], OUT);
    let forward = node.forward(&[]).replace("/portforward/", "/exec/");
    // What a browser asks before it lets a page set a header: it never gets the leave.
    let preflight = ["Origin: http://evil.example", "Access-Control-Request-Method: POST"];
    let cases: [(String, &str, &[&str], &str); 16] = [
        (fresh(), "OPTIONS", &preflight, "403"),
        (fresh(), "OPTIONS", &[&preflight[..], &["X-Forwarded-For: 10.0.0.7"]].concat(), "405"),
        (fresh(), "GET", &[], "400"),
        (fresh(), "GET", &good[2..], "400"),
        (fresh(), "GET", &good[..2], "400"),
        (fresh(), "POST", &unknown, "403"),
        (fresh(), "POST", &origin, "403"),
        (fresh(), "POST", &host, "403"),
        (fresh(), "POST", &body, "400"),
        (fresh(), "POST", &long, "431"),
        (fresh(), "PUT", &good, "405"),
        (format!("{}0", fresh()), "POST", &good, "404"),
        (fresh().replace("/exec/", "/attach/"), "POST", &good, "404"),
        (forward, "POST", &good, "404"),
        (format!("{base}/"), "GET", &[], "404"),
        (format!("{base}//evil.example/.."), "GET", &[], "404"),
    ];
    for (url, method, headers, status) in cases {
        let (mut socket, head) = request(&url, method, headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {status}: {head}");
        let lower = head.to_ascii_lowercase();
        assert!(!lower.contains("location:") && !lower.contains("access-control-"), "{head}");
        // The connection ends, and a second request on it is never answered.
        let mut rest = Vec::new();
        _ = socket.write_all(b"GET /exec/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
        _ = socket.read_to_end(&mut rest).await;
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{rest:?}");
    }
    // A token is spent by the first request, whatever became of it.
    request(&url, "GET", &[]).await;
    let (_, head) = request(&url, "POST", &good).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    node.end().await;
}
