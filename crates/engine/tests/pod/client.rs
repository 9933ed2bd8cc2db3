//! Interactive clients: what they write and read, through the engine.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use berth_engine::{Engine, Error, Io, Size};
use berth_model::container::ExitReason;
use berth_model::sandbox::NamespaceMode;
use berth_model::{ContainerId, ErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::node::{Node, run};

/// The far ends of a client's streams.
pub(crate) struct Client {
    pub(crate) stdin: Option<DuplexStream>,
    pub(crate) stdout: DuplexStream,
    pub(crate) stderr: DuplexStream,
    pub(crate) sizes: mpsc::Sender<Size>,
}

impl Client {
    /// A client of all three streams.
    pub(crate) fn new() -> (Self, Io) {
        let (stdin, input) = tokio::io::duplex(4096);
        let (stdout, output) = tokio::io::duplex(4096);
        let (stderr, errors) = tokio::io::duplex(4096);
        let (sizes, resizes) = mpsc::channel(4);
        let io = Io {
            stdin: Some(Box::new(input)),
            stdout: Some(Box::new(output)),
            stderr: Some(Box::new(errors)),
            resizes,
        };
        (Self { stdin: Some(stdin), stdout, stderr, sizes }, io)
    }

    pub(crate) async fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads standard output until it has `text`; all that was read.
    pub(crate) async fn read_until(&mut self, text: &str) -> String {
        read_until(&mut self.stdout, text).await
    }
}

pub(crate) async fn read_until(stream: &mut DuplexStream, text: &str) -> String {
    let mut got = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&got).contains(text) {
            if stream.read_buf(&mut got).await.unwrap() == 0 {
                break;
            }
        }
    };
    let late = tokio::time::timeout(Duration::from_secs(20), read).await.is_err();
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(!late && got.contains(text), "{text:?} was never read, but {got:?}");
    got
}

pub(crate) fn shell(script: &str) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

/// Runs a command in a task of its own.
fn exec(
    engine: &Engine,
    id: &ContainerId,
    script: &str,
    tty: bool,
    io: Io,
) -> tokio::task::JoinHandle<Result<i32, Error>> {
    let (engine, id, command) = (engine.clone(), id.clone(), shell(script));
    tokio::spawn(async move { engine.exec(&id, command, tty, io).await })
}

async fn sleeper(node: &Node, name: &str) -> (berth_model::SandboxId, ContainerId) {
    let sandbox = node.sandbox(name).await;
    let id = node.create(&sandbox, "main", "exec sleep 1000").await;
    node.start_container(&id).await;
    (sandbox, id)
}

#[test]
fn a_command_talks_to_its_client() {
    run(|| async {
        let node = Node::start().await;
        let (sandbox, id) = sleeper(&node, "talk").await;
        node.engine.may_exec(&id).unwrap();
        let script = "read word; echo \"$word\"; echo oops >&2; cat; exit 7";
        let (mut client, io) = Client::new();
        let command = exec(&node.engine, &id, script, false, io);
        client.write("hello\n").await;
        assert_eq!(client.read_until("\n").await, "hello\n");
        // More than the pipes between them hold, so that each side has to wait.
        let text: Vec<u8> = (0..500_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let mut stdin = client.stdin.take().unwrap();
        let sent = text.clone();
        let sender = tokio::spawn(async move {
            stdin.write_all(&sent).await.unwrap();
            // Closing it is the end of what `cat` reads.
        });
        let mut got = Vec::new();
        client.stdout.read_to_end(&mut got).await.unwrap();
        assert!(got == text, "{} of {} bytes", got.len(), text.len());
        let mut errors = String::new();
        client.stderr.read_to_string(&mut errors).await.unwrap();
        assert_eq!(errors, "oops\n");
        assert_eq!(command.await.unwrap().unwrap(), 7);
        sender.await.unwrap();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        let gone = node.engine.may_exec(&id).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
        node.assert_clean().await;
    });
}

#[test]
fn a_command_on_a_terminal_has_the_size_of_its_clients() {
    run(|| async {
        let node = Node::start().await;
        let (sandbox, id) = sleeper(&node, "tty").await;
        let (mut client, io) = Client::new();
        // `stty size` says rows, then columns.
        client.sizes.send(Size { width: 111, height: 22 }).await.unwrap();
        let script = "tty; stty size; echo ready; read line; stty size; echo err >&2; exit 3";
        let command = exec(&node.engine, &id, script, true, io);
        let first = client.read_until("ready").await;
        assert!(first.contains("/dev/pts/") && first.contains("22 111\r\n"), "{first:?}");
        client.sizes.send(Size { width: 132, height: 43 }).await.unwrap();
        let mut tries = 0;
        // The shim has it once another command sees it.
        loop {
            let look = "stty size < /dev/pts/0";
            let seen = node.engine.exec_sync(&id, shell(look), None).await.unwrap();
            if seen.stdout == b"43 132\n" {
                break;
            }
            tries += 1;
            assert!(tries < 200, "{seen:?}");
        }
        client.write("go\n").await;
        let mut rest = String::new();
        client.stdout.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("43 132\r\n") && rest.contains("err\r\n"), "{rest:?}");
        let mut errors = String::new();
        client.stderr.read_to_string(&mut errors).await.unwrap();
        assert_eq!(errors, "");
        assert_eq!(command.await.unwrap().unwrap(), 3);
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_command_ends_with_its_client() {
    run(|| async {
        let node = Node::start().await;
        let (sandbox, id) = sleeper(&node, "leave").await;
        for tty in [false, true] {
            let (mut client, io) = Client::new();
            let command = exec(&node.engine, &id, "echo up; exec sleep 98123", tty, io);
            client.read_until("up").await;
            command.abort();
            let mut tries = 0;
            loop {
                let seen = node.engine.exec_sync(&id, shell("ps"), None).await.unwrap();
                if !String::from_utf8_lossy(&seen.stdout).contains("sleep 98123") {
                    break;
                }
                tries += 1;
                assert!(tries < 500, "it runs on");
            }
        }
        // A client that has merely closed what it reads does not stop the command.
        let (client, mut io) = Client::new();
        io.stdin = None;
        drop(client);
        let code = node.engine.exec(&id, shell("head -c 300000 /dev/zero; exit 5"), false, io);
        assert_eq!(code.await.unwrap(), 5);
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_port_is_forwarded_into_the_sandboxs_network_and_the_nodes() {
    run(|| async {
        let node = Node::start().await;
        // This test's own network stands for the node's.
        let up = ["ip", "link", "set", "lo", "up"];
        assert!(std::process::Command::new("/bin/busybox").args(up).status().unwrap().success());
        let mut host = node.sandbox_spec("forward-host");
        host.namespaces.network = NamespaceMode::Node;
        let own = node.sandbox_spec("forward-own");
        for (spec, port) in [(own, 7001_u16), (host, 7002)] {
            let sandbox = node.engine.run_sandbox(spec).await.unwrap();
            let script = format!("nc -l -p {port} -e cat");
            let id = node.create(&sandbox, "main", &script).await;
            node.start_container(&id).await;
            node.engine.may_forward(&sandbox).unwrap();
            let mut tries = 0;
            let (mut read, mut write, forward) = loop {
                let (near, far) = tokio::io::duplex(1024);
                let (engine, sandbox) = (node.engine.clone(), sandbox.clone());
                let forward = tokio::spawn(async move {
                    engine.port_forward(&sandbox, port, Box::new(far)).await
                });
                let (mut read, mut write): (ReadHalf<_>, WriteHalf<_>) = tokio::io::split(near);
                write.write_all(b"knock").await.ok();
                let mut answer = [0; 5];
                // Refused until the server listens.
                if read.read_exact(&mut answer).await.is_ok() {
                    assert_eq!(&answer, b"knock");
                    break (read, write, forward);
                }
                let error = forward.await.unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                tries += 1;
                assert!(tries < 500, "nobody listens: {error:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            write.shutdown().await.unwrap();
            let mut rest = Vec::new();
            read.read_to_end(&mut rest).await.unwrap();
            forward.await.unwrap().unwrap();
            assert_eq!(node.exited(&id).await, (0, ExitReason::Completed));
            let (_near, far) = tokio::io::duplex(1024);
            let refused = node.engine.port_forward(&sandbox, 0, Box::new(far)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
            node.engine.remove_sandbox(&sandbox).await.unwrap();
        }
        node.assert_clean().await;
    });
}

#[test]
fn a_forwarded_port_does_not_keep_a_sandboxs_network() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("keep").await;
        // It neither reads nor ends when its client does.
        let id = node.create(&sandbox, "main", "nc -l -p 7003 -e sleep 1000").await;
        node.start_container(&id).await;
        let mut tries = 0;
        let (_near, forward) = loop {
            let (near, far) = tokio::io::duplex(1024);
            let (engine, id) = (node.engine.clone(), sandbox.clone());
            let forward =
                tokio::spawn(async move { engine.port_forward(&id, 7003, Box::new(far)).await });
            tokio::time::sleep(Duration::from_millis(30)).await;
            if !forward.is_finished() {
                break (near, forward);
            }
            tries += 1;
            assert!(tries < 200, "nobody listens");
        };
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), forward).await;
        ended.expect("it went on without its sandbox").unwrap().unwrap();
        node.assert_clean().await;
    });
}

/// Open files of a process that lie below a directory.
fn files_below(pid: u32, dir: &std::path::Path) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.starts_with(dir))).count()
}

/// How many clients come: few, unless the environment says otherwise.
fn clients() -> usize {
    let told = std::env::var("BERTH_TEST_CLIENTS").ok();
    told.map_or(90, |told| told.parse().unwrap())
}

/// How many of them are there at one time.
const AT_ONCE: usize = 6;

/// A client that is gone anywhere from before its first step to long after its last.
async fn come_and_go(engine: &Engine, id: &ContainerId, number: usize) {
    let (client, io) = Client::new();
    let tty = number.is_multiple_of(2);
    let task = match number % 3 {
        0 => {
            let (engine, id) = (engine.clone(), id.clone());
            tokio::spawn(async move { engine.attach(&id, io).await.map(|()| 0) })
        }
        _ => exec(engine, id, "exec sleep 98124", tty, io),
    };
    let wait = u64::try_from(number * 7919 % 41).unwrap();
    client.sizes.send(Size { width: 80, height: 25 }).await.ok();
    tokio::time::sleep(Duration::from_millis(wait)).await;
    task.abort();
}

/// teeth: crates/engine/src/exec/session.rs: `(true, false) => leftover.end().await` → `(true, false) => drop(leftover)`
#[test]
fn d2_interactive_clients_that_vanish_leave_nothing() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("vanish").await;
        let mut spec = crate::node::container_spec("main", "exec sleep 1000");
        (spec.stdin, spec.tty) = (true, true);
        let id = node.engine.create_container(&sandbox, spec).await.unwrap();
        node.start_container(&id).await;
        let shim = node.engine.sandbox(&sandbox).unwrap().shim_pid;
        let open = || std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
        let own = || files_below(std::process::id(), node.path());
        // The first client's input is kept open for the next.
        let (mut first, io) = Client::new();
        let (engine, container) = (node.engine.clone(), id.clone());
        let attached = tokio::spawn(async move { engine.attach(&container, io).await });
        first.write("echo").await;
        first.read_until("echo").await;
        let shims = open() - 1;
        attached.abort();
        let ours = own();
        let lanes = (0..AT_ONCE).map(|lane| {
            let (engine, id) = (node.engine.clone(), id.clone());
            tokio::spawn(async move {
                for number in (lane..clients()).step_by(AT_ONCE) {
                    come_and_go(&engine, &id, number).await;
                }
            })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await.unwrap();
        }
        let execs = node.path().join("state/exec");
        let mut tries = 0;
        loop {
            let left = std::fs::read_dir(&execs).unwrap().count();
            let seen = node.engine.exec_sync(&id, shell("ps"), None).await.unwrap();
            let runs = String::from_utf8_lossy(&seen.stdout).contains("sleep 98124");
            if left == 0 && !runs && open() <= shims && own() <= ours {
                break;
            }
            tries += 1;
            let (open, own) = (open(), own());
            assert!(tries < 2000, "{left} left, {open} of {shims}, {own} of {ours}, runs: {runs}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}
