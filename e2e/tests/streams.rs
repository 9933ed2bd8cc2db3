//! Exec, Attach and PortForward as kubelet has them: a URL by the CRI, then a WebSocket.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::{Node, container_config, script};
use tokio::task::block_in_place;
use tonic::Code;

/// Longest that a client waits for a byte.
const PATIENCE: Duration = Duration::from_secs(30);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// A client's end of a WebSocket with numbered channels.
struct Client(TcpStream);

impl Client {
    /// Takes the URL that the CRI gave, from within the node's network.
    fn open(node: &Node, url: &str, protocol: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").with_context(|| format!("not http: {url}"))?;
        let (host, path) = rest.split_once('/').with_context(|| format!("no path: {url}"))?;
        let address = host.to_owned();
        let mut stream = node.machine.run(move || Ok(TcpStream::connect(address)?))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("the server left")?;
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer)?;
        ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        Ok(Self(stream))
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        // One binary frame, masked with nothing (RFC 6455, 5.2).
        let length = u16::try_from(bytes.len() + 1)?.to_be_bytes();
        let mut frame = vec![0x82, 0x80 | 126, length[0], length[1], 0, 0, 0, 0, channel];
        frame.extend_from_slice(bytes);
        Ok(self.0.write_all(&frame)?)
    }

    /// Ends the input, as version 5 has it.
    fn end_input(&mut self) -> Result<()> {
        self.send(255, &[STDIN])
    }

    /// The next message; `None` once the server has closed.
    fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).context("the server left without a word")?;
            let length = match head[1] {
                126 => {
                    let mut length = [0; 2];
                    self.0.read_exact(&mut length)?;
                    usize::from(u16::from_be_bytes(length))
                }
                127 => {
                    let mut length = [0; 8];
                    self.0.read_exact(&mut length)?;
                    usize::try_from(u64::from_be_bytes(length))?
                }
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload)?;
            match (head[0] & 0xf, payload.split_first()) {
                (8, _) => return Ok(None),
                (1 | 2, Some((channel, bytes))) => return Ok(Some((*channel, bytes.to_vec()))),
                (1 | 2 | 9 | 10, _) => {}
                (opcode, _) => bail!("a frame of kind {opcode}"),
            }
        }
    }

    /// Reads one channel until it has `text`.
    fn until(&mut self, channel: u8, text: &str) -> Result<String> {
        let mut heard = String::new();
        while !heard.contains(text) {
            let message = self.receive()?.with_context(|| format!("no {text:?} in {heard:?}"))?;
            if message.0 == channel {
                heard += &String::from_utf8_lossy(&message.1);
            }
        }
        Ok(heard)
    }

    /// All that comes until the end: standard output, standard error, and the status.
    fn rest(&mut self) -> Result<[String; 3]> {
        let mut all = [Vec::new(), Vec::new(), Vec::new()];
        while let Some((channel, bytes)) = self.receive()? {
            ensure!((STDOUT..=ERROR).contains(&channel), "channel {channel}: {bytes:?}");
            all[usize::from(channel - STDOUT)].extend(bytes);
        }
        Ok(all.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

async fn exec(node: &mut Node, id: &str, text: &str, tty: bool) -> Result<Client> {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: ["sh", "-c", text].map(str::to_owned).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = node.cri.runtime.exec(request).await?.into_inner().url;
    block_in_place(|| Client::open(node, &url, "v5.channel.k8s.io"))
}

async fn attach(node: &mut Node, id: &str, tty: bool) -> Result<Client> {
    let request = v1::AttachRequest {
        container_id: id.to_owned(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = node.cri.runtime.attach(request).await?.into_inner().url;
    block_in_place(|| Client::open(node, &url, "v5.channel.k8s.io"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_clients_streams_and_tells_its_code() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let mut client =
        exec(&mut node, &id, "read w; echo got $w; echo err >&2; cat; exit 7", false).await?;
    block_in_place(|| {
        client.send(STDIN, b"hello\n")?;
        client.until(STDOUT, "got hello\n")?;
        client.send(STDIN, b"to be catted")?;
        client.end_input()?;
        let [out, err, status] = client.rest()?;
        assert_eq!(out, "to be catted");
        assert!(err.is_empty() || err == "err\n", "{err:?}");
        let status: serde_json::Value = serde_json::from_str(&status)?;
        assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
        assert_eq!(status["details"]["causes"][0]["message"], "7", "{status}");
        anyhow::Ok(())
    })?;

    let mut client = exec(&mut node, &id, "read w; stty size; echo err >&2", true).await?;
    block_in_place(|| {
        client.send(RESIZE, br#"{"Width":123,"Height":45}"#)?;
        client.send(STDIN, b"go\n")?;
        let [out, err, status] = client.rest()?;
        assert!(out.contains("err\r\n") && err.is_empty(), "{out:?} {err:?}");
        assert!(status.contains("Success"), "{status}");
        anyhow::Ok(())
    })?;
    let refused = v1::ExecRequest { container_id: id, stdout: true, ..Default::default() };
    let refused = node.cri.runtime.exec(refused).await.err().context("without a command")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_attached_before_and_after_a_restart() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let text = "while read w; do echo got $w; echo err $w >&2; done; echo bye";
    let mut config = script(&image, text);
    (config.stdin, config.stdin_once) = (true, false);
    let id = node.run(&pod, &config).await?;
    let (mut one, mut two) =
        (attach(&mut node, &id, false).await?, attach(&mut node, &id, false).await?);
    block_in_place(|| {
        // Each is surely attached once it was answered.
        one.send(STDIN, b"one\n")?;
        one.until(STDOUT, "got one\n")?;
        two.send(STDIN, b"two\n")?;
        two.until(STDERR, "err two\n")?;
        one.until(STDOUT, "got two\n")
    })?;
    drop((one, two));
    node.restart().await?;
    let mut three = attach(&mut node, &id, false).await?;
    block_in_place(|| {
        three.send(STDIN, b"three\n")?;
        three.until(STDOUT, "got three\n")
    })?;
    node.cri.stop_container(&id, 0).await?;
    let [_, _, status] = block_in_place(|| three.rest())?;
    assert!(!status.contains("Failure"), "{status}");
    let lines = node.read_log("pod", "main")?;
    let logged = berth_testkit::log::text(&lines, "stdout");
    assert_eq!(logged, "got one\ngot two\ngot three\n");
    let request = v1::AttachRequest { container_id: id, stdout: true, ..Default::default() };
    let refused = node.cri.runtime.attach(request).await.err().context("it has ended")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn input_for_once_ends_with_its_first_client() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "cat; echo ended; exit 3");
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.run(&pod, &config).await?;
    let mut client = attach(&mut node, &id, false).await?;
    block_in_place(|| {
        client.send(STDIN, b"words\n")?;
        client.until(STDOUT, "words\n")?;
        client.end_input()?;
        client.until(STDOUT, "ended\n")
    })?;
    assert_eq!(node.wait_exit(&id).await?.exit_code, 3);
    node.assert_clean().await
}

/// teeth: crates/engine/src/forward.rs: `=> _ = first.get_or_insert(error),` → `=> return Err(error),`
#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_are_forwarded_by_either_loopback_address() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for (port, listening, said, heard) in [
        (7070, "exec nc -ll -p 7070 -e cat", "knock", "knock"),
        (7071, "exec httpd -f -p [::1]:7071 -h /", "GET /none HTTP/1.0\r\n\r\n", "HTTP/1."),
    ] {
        let name = format!("main-{port}");
        let config = container_config(&name, &image, &["sh", "-c", listening]);
        let id = node.run(&pod, &config).await?;
        let own = node.cri.exec(&id, &["cat", "/proc/net/if_inet6"], 10).await?;
        if listening.contains("::1") && own.stdout.is_empty() {
            eprintln!("skipped: this kernel has no IPv6");
            continue;
        }
        // Bound a moment after its start: the kernel lists who listens (proc_net(5)).
        let bound = format!(":{port:04X} ");
        for file in ["tcp", "tcp6"].iter().cycle().take(4000) {
            let path = format!("/proc/net/{file}");
            let seen = node.cri.exec(&id, &["cat", &path], 10).await?;
            if String::from_utf8(seen.stdout)?.contains(&bound) {
                break;
            }
        }
        knock(&mut node, &pod.id, port, (said.as_bytes(), heard.as_bytes())).await?;
    }
    node.assert_clean().await
}

/// Says something to a port of a sandbox, and hears what begins as it should.
async fn knock(
    node: &mut Node,
    sandbox: &str,
    port: u16,
    (said, wanted): (&[u8], &[u8]),
) -> Result<()> {
    let request =
        v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![port.into()] };
    let url = node.cri.runtime.port_forward(request).await?.into_inner().url;
    // Both channels begin with the number of the port.
    let wanted = [&port.to_le_bytes()[..], wanted].concat();
    block_in_place(|| {
        let mut client = Client::open(node, &url, "v4.channel.k8s.io")?;
        client.send(0, said)?;
        let mut heard = Vec::new();
        while !heard.starts_with(&wanted) {
            ensure!(wanted.starts_with(&heard), "{}", String::from_utf8_lossy(&heard));
            let (channel, bytes) = client.receive()?.context("it was closed")?;
            match channel {
                0 => heard.extend(bytes),
                _ => ensure!(bytes == port.to_le_bytes(), "{}", String::from_utf8_lossy(&bytes)),
            }
        }
        Ok(())
    })
}
