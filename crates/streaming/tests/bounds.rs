//! How many streams a client may have, and what it may call them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use support::{Client, Node};

/// Most streams of one connection.
const STREAMS: usize = 1000;
/// Reasons of `RST_STREAM` (section 2.6.3 of SPDY/3.1).
const PROTOCOL: u32 = 1;
const REFUSED: u32 = 3;

async fn connect(node: &Node) -> Client {
    let client = Client::connect(&node.forward(&[]), "portforward.k8s.io").await;
    // Two thousand small frames, each of which waits for its answer, and for no other.
    client.socket.set_nodelay(true).unwrap();
    client
}

/// Opens a stream of a forwarded connection, and waits for its answer.
async fn open(client: &mut Client, kind: &str, request: &str) -> Result<u32, u32> {
    let id = client.open(&[("streamtype", kind), ("port", "80"), ("requestid", request)]).await;
    client.read_until(|client| client.is_answered(id)).await;
    client.resets.get(&id).map_or(Ok(id), |why| Err(*why))
}

/// Opens a forwarded connection: its streams for errors and for data.
async fn open_pair(client: &mut Client, request: &str) -> Result<(u32, u32), u32> {
    let error = open(client, "error", request).await?;
    client.write(error, b"", true).await;
    Ok((error, open(client, "data", request).await?))
}

/// Uses a connection to its end.
async fn use_up(client: &mut Client, (error, data): (u32, u32)) {
    client.write(data, b"words", true).await;
    assert_eq!(client.read_all(data).await, "s1:80\nwords");
    assert_eq!(client.read_all(error).await, "");
}

/// teeth: crates/streaming/src/spdy/drive.rs: `const MAX_STREAMS: usize = 1000;` → `const MAX_STREAMS: usize = usize::MAX;`
#[tokio::test]
async fn d11_a_stream_beyond_the_limit_is_refused_and_the_others_go_on() {
    let node = Node::start();
    let mut client = connect(&node).await;
    let mut pairs = Vec::new();
    for request in 0..STREAMS / 2 {
        pairs.push(open_pair(&mut client, &request.to_string()).await.unwrap());
    }
    assert_eq!(open(&mut client, "error", "one too many").await, Err(REFUSED));
    assert_eq!(open(&mut client, "data", "one too many").await, Err(REFUSED));
    let last = pairs.pop().unwrap();
    use_up(&mut client, last).await;
    // One connection has ended: there is room for another, and for no more.
    let next = open_pair(&mut client, "the next one").await.unwrap();
    assert_eq!(open(&mut client, "error", "too many again").await, Err(REFUSED));
    use_up(&mut client, next).await;
    for pair in pairs {
        use_up(&mut client, pair).await;
    }
    drop(client);
    node.end().await;
}

/// teeth: crates/streaming/src/forward.rs: `Some(id) if id.len() > MAX_REQUEST_ID_BYTES => None,` → ``
#[tokio::test]
async fn d11_a_long_request_id_is_refused_and_the_others_go_on() {
    let node = Node::start();
    let mut client = connect(&node).await;
    let before = open_pair(&mut client, "1").await.unwrap();
    for kind in ["error", "data"] {
        for length in [65, 16_000] {
            assert_eq!(open(&mut client, kind, &"7".repeat(length)).await, Err(PROTOCOL));
        }
    }
    let longest = open_pair(&mut client, &"7".repeat(64)).await.unwrap();
    for pair in [longest, before] {
        use_up(&mut client, pair).await;
    }
    drop(client);
    node.end().await;
}
