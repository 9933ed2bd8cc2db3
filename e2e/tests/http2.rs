//! Floods of the CRI's socket, and requests for streams that nobody could use.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_no_client_could_use_are_refused_before_there_is_a_url() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let exec = v1::ExecRequest {
        container_id: id.clone(),
        cmd: vec!["true".to_owned()],
        stdout: true,
        ..Default::default()
    };
    for (request, code, word) in [
        (v1::ExecRequest { cmd: vec![], ..exec.clone() }, Code::InvalidArgument, "cmd"),
        (v1::ExecRequest { stdout: false, ..exec.clone() }, Code::InvalidArgument, "stdin"),
        (
            v1::ExecRequest { tty: true, stderr: true, ..exec.clone() },
            Code::InvalidArgument,
            "stderr",
        ),
        (
            v1::ExecRequest { container_id: String::new(), ..exec.clone() },
            Code::InvalidArgument,
            "container_id",
        ),
    ] {
        let status = node.cri.runtime.exec(request).await.err().context("a URL")?;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(word), "{status:?}");
    }
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80, 0] };
    let status = node.cri.runtime.port_forward(request).await.err().context("a URL")?;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "port[1] 0 is no port"));
    node.cri.stop_container(&id, 0).await?;
    let status = node.cri.runtime.exec(exec).await.err().context("a URL")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    node.assert_clean().await
}

/// What a node may lose to its clients (security.md, D12).
const BOUND: usize = 32 << 20;
/// Frames of each flood: a million in the worst reports, of which the first thousands tell.
const FRAMES: u32 = 50_000;

/// Types and flags of HTTP/2 (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a request for `Version`, none of them compressed (RFC 7541).
fn request() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (index, text) in [
        (&[0x04][..], "/runtime.v1.RuntimeService/Version"),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        block.extend_from_slice(index);
        block.push(u8::try_from(text.len()).unwrap_or(0));
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// Sends `FRAMES` times what `of` makes of a number, and reads no answer until the end.
/// Gives the connection back: what is kept for it is kept.
fn flood(socket: &Path, of: impl Fn(u32) -> Vec<u8>) -> Result<UnixStream> {
    let mut client = UnixStream::connect(socket)?;
    client.set_write_timeout(Some(Duration::from_millis(500)))?;
    client.set_read_timeout(Some(Duration::from_millis(500)))?;
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    client.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut batch = Vec::new();
    for number in 0..FRAMES {
        batch.extend(of(number));
        if batch.len() > 16 << 10 {
            // A server that has had enough reads no more, or has gone.
            if client.write_all(&batch).is_err() {
                break;
            }
            batch.clear();
        }
    }
    let mut sink = [0; 16 << 10];
    while matches!(client.read(&mut sink), Ok(1..)) {}
    Ok(client)
}

fn resident(pid: u32) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? << 10)
}

/// teeth: crates/cri/src/serve.rs: `http.max_concurrent_streams(MAX_STREAMS)` → `http.max_concurrent_streams(None)`
#[tokio::test(flavor = "multi_thread")]
async fn d12_floods_of_http2_leave_the_daemon_as_it_was() -> Result<()> {
    let mut node = Node::start().await?;
    node.cri.runtime.version(v1::VersionRequest::default()).await?;
    let pid = node.daemon().pid().context("no daemon")?;
    let socket = node.daemon().socket().to_owned();
    let before = resident(pid)?;
    let headers = |flags| move |number: u32| frame(HEADERS, flags, 2 * number + 1, &request());
    let (open, whole) = (headers(END_HEADERS), headers(END_HEADERS | END_STREAM));
    let cancel = |number| frame(RST_STREAM, 0, 2 * number + 1, &8u32.to_be_bytes());
    let unended = |number, frame: Vec<u8>| match number {
        0 => open(0),
        _ => frame,
    };
    let clients = [
        flood(&socket, |number| [open(number), cancel(number)].concat())?,
        flood(&socket, whole)?,
        flood(&socket, open)?,
        flood(&socket, |number| unended(number, frame(DATA, 0, 1, &[])))?,
        flood(&socket, |number| unended(number, frame(HEADERS, END_HEADERS, 1, &request())))?,
        flood(&socket, |_| frame(PING, 0, 0, &[0; 8]))?,
        flood(&socket, |_| frame(SETTINGS, 0, 0, &[]))?,
        flood(&socket, |number| match number {
            0 => frame(HEADERS, 0, 1, &request()),
            // A header of 200 bytes, over and over.
            _ => frame(CONTINUATION, 0, 1, &[&[0, 1, b'a', 127, 73][..], &[b'b'; 200]].concat()),
        })?,
    ];
    node.cri.runtime.version(v1::VersionRequest::default()).await?;
    assert_eq!(node.daemon().pid(), Some(pid));
    let kept = resident(pid)?.saturating_sub(before);
    assert!(kept < BOUND, "{kept} bytes are kept");
    drop(clients);
    node.assert_clean().await
}
