//! How much of a hostile client's bytes is kept. Alone in its process, since it measures it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use berth_streaming::spdy::frame::{self, Head, kind};
use support::{ALL, Client, Node, request, upgrade};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a node may lose to its clients (security.md, D11).
const BOUND: usize = 32 << 20;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Sends until the server takes no more; whether it took everything.
async fn stuff(client: &mut Client, bytes: &[u8], times: usize) -> bool {
    for _ in 0..times {
        let sent = client.socket.write_all(bytes);
        match tokio::time::timeout(std::time::Duration::from_millis(50), sent).await {
            Ok(Ok(())) => {}
            _ => return false,
        }
    }
    true
}

/// Opens streams of forwarded connections, `count` of each of `kinds`; the last kind's.
async fn open(client: &mut Client, kinds: &[&str], count: usize) -> Vec<u32> {
    let mut ids = Vec::new();
    for request in 0..count {
        let (request, mut id) = (request.to_string(), 0);
        for kind in kinds {
            let headers = [("streamtype", *kind), ("port", "80"), ("requestid", &request)];
            id = client.open(&headers).await;
        }
        ids.push(id);
    }
    ids
}

/// Sends payload on all streams in turn, until the server takes no more.
async fn stuff_all(client: &mut Client, ids: &[u32], times: usize) {
    let payload = vec![0; 16 << 10];
    for id in (0..times).flat_map(|_| ids) {
        let head = Head::Data { id: *id, flags: 0, length: 16 << 10 }.bytes();
        if !stuff(client, &[&head[..], &payload].concat(), 1).await {
            return;
        }
    }
}

/// teeth: crates/streaming/src/mux/state.rs: `let taken = data.len().min(room).min(STREAM_BYTES.saturating_sub(stream.inbound.len()));` → `let taken = data.len();`
#[tokio::test]
async fn d11_what_clients_send_is_not_kept_beyond_a_bound() {
    let node = Node::start();
    // What is made once, such as the allocator's own, counts for nobody.
    let mut first = Client::connect(&node.exec(&["who"], ALL), "v4.channel.k8s.io").await;
    first.open_all(["error", "stdin", "stdout", "stderr"]).await;
    while first.streams.values().any(|(_, ended)| !ended) {
        assert!(first.read().await);
    }
    drop(first);
    let before = resident();
    let mut clients = Vec::new();

    // Payload in the largest frames for a process that reads nothing. Few clients, since what
    // their own ends need, above all to compress, is counted too.
    let head = Head::Data { id: 3, flags: 0, length: (1 << 24) - 1 }.bytes();
    let chunk = vec![0; 1 << 20];
    for _ in 0..8 {
        let url = node.exec(&["sleep"], ALL);
        let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
        client.open_all(["error", "stdin", "stdout", "stderr"]).await;
        client.send(&head).await;
        stuff(&mut client, &chunk, 15).await;
        clients.push(client);
    }
    // Pings whose answers are never read.
    let ping = frame::control(kind::PING, 0, &[1], &[]).repeat(10_000);
    let mut client = Client::connect(&node.forward(&[]), "portforward.k8s.io").await;
    stuff(&mut client, &ping, 200).await;
    clients.push(client);
    // As many streams as there may be, and more, that nobody reads: connections in halves.
    let mut client = Client::connect(&node.forward(&[]), "portforward.k8s.io").await;
    let ids = open(&mut client, &["data"], 1100).await;
    stuff_all(&mut client, &ids, 4).await;
    clients.push(client);
    // As many whole connections as there may be, each of which sends back what it gets, to
    // a client that never reads.
    let mut client = Client::connect(&node.forward(&[]), "portforward.k8s.io").await;
    let ids = open(&mut client, &["error", "data"], 600).await;
    stuff_all(&mut client, &ids, 8).await;
    clients.push(client);
    let kept = resident().saturating_sub(before);
    assert!(kept < BOUND, "{kept} bytes are kept");

    // Counts and lengths that say more than follows.
    let settings = frame::control(kind::SETTINGS, 0, &[1 << 31], &[]);
    let long = Head::Control { kind: kind::SYN_STREAM, flags: 0, length: (1 << 24) - 1 }.bytes();
    for frame in [&settings[..], &long] {
        let mut client = Client::connect(&node.exec(&["sleep"], ALL), "v4.channel.k8s.io").await;
        client.send(frame).await;
        while client.read().await {}
        assert_eq!(client.gone, Some(1));
    }
    // Requests that never end.
    let good = upgrade("v4.channel.k8s.io");
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    for _ in 0..50 {
        let many = vec!["X: y"; 5000];
        let all = [&good[..], &many].concat();
        let (mut socket, head) = request(&node.exec(&["sleep"], ALL), "POST", &all).await;
        assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
        _ = socket.read_to_end(&mut Vec::new()).await;
    }
    let kept = resident().saturating_sub(before);
    assert!(kept < BOUND, "{kept} bytes are kept");
    drop(clients);
    node.fake.is_idle().await;
    node.end().await;
}
