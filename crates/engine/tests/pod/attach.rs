//! Clients of a container's own streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use berth_engine::{Engine, Error, Io, Size};
use berth_model::container::ExitReason;
use berth_model::{ContainerId, ContainerSpec, ErrorKind, SandboxId};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;

use crate::client::{Client, read_until, shell};
use crate::node::{Node, container_spec, fail, run};

const LONG: Duration = Duration::from_secs(20);

type Attached = JoinHandle<Result<(), Error>>;

/// Attaches in a task of its own.
fn attach(engine: &Engine, id: &ContainerId) -> (Client, Attached) {
    let (client, io) = Client::new();
    (client, attach_io(engine, id, io))
}

fn attach_io(engine: &Engine, id: &ContainerId, io: Io) -> Attached {
    let (engine, id) = (engine.clone(), id.clone());
    tokio::spawn(async move { engine.attach(&id, io).await })
}

async fn start(
    node: &Node,
    sandbox: &SandboxId,
    script: &str,
    change: impl FnOnce(&mut ContainerSpec),
) -> ContainerId {
    let mut spec = container_spec("main", script);
    change(&mut spec);
    let created = node.engine.create_container(sandbox, spec).await;
    let id = created.unwrap_or_else(|error| fail(&error));
    node.start_container(&id).await;
    id
}

async fn ended(attached: Attached) -> Result<(), Error> {
    tokio::time::timeout(LONG, attached).await.expect("it is attached for ever").unwrap()
}

/// Has the container read a word, once it is sure that the client is heard: an answer came.
async fn greet(client: &mut Client) {
    client.write("hello\n").await;
    client.read_until("got hello").await;
}

#[test]
fn a_client_talks_to_a_container_and_hears_its_end() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("talk").await;
        let script = "read w; echo got $w; echo err >&2; cat; echo bye; exit 4";
        for (logged, name) in [(true, "logged"), (false, "unlogged")] {
            let id = start(&node, &sandbox, script, |spec| {
                spec.name.name = name.to_owned();
                (spec.stdin, spec.stdin_once) = (true, true);
                spec.log_path = logged.then(|| "main.log".into());
            })
            .await;
            assert!(!node.engine.may_attach(&id).unwrap());
            let (mut client, attached) = attach(&node.engine, &id);
            greet(&mut client).await;
            assert_eq!(read_until(&mut client.stderr, "\n").await, "err\n");
            client.write("to be catted\n").await;
            client.read_until("to be catted").await;
            // The end of the first client's input is that of the container's.
            client.stdin = None;
            let mut rest = String::new();
            client.stdout.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "bye\n");
            ended(attached).await.unwrap();
            assert_eq!(node.exited(&id).await, (4, ExitReason::Error));
            if logged {
                node.log_with("talk", "main", "stdout F bye\n").await;
            }
            let refused = node.engine.may_attach(&id).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
        }
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn clients_come_and_go_and_the_container_does_not_notice() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("several").await;
        let script = "while read w; do echo got $w; echo err $w >&2; done; echo ended";
        let id = start(&node, &sandbox, script, |spec| spec.stdin = true).await;
        let (mut one, first) = attach(&node.engine, &id);
        greet(&mut one).await;
        let (mut two, second) = attach(&node.engine, &id);
        greet(&mut two).await;
        one.read_until("got hello").await;
        // One vanishes, one leaves by ending its input: without `stdin_once` the container
        // goes on to read.
        first.abort();
        drop(one);
        two.write("again\n").await;
        two.read_until("got again").await;
        two.stdin = None;
        ended(second).await.unwrap();
        let (mut three, third) = attach(&node.engine, &id);
        greet(&mut three).await;

        // A daemon that ends takes its clients along, and the next has new ones.
        let node = node.restart().await;
        assert!(ended(third).await.is_err());
        let (mut four, fourth) = attach(&node.engine, &id);
        greet(&mut four).await;
        let heard = read_until(&mut four.stderr, "\n").await;
        assert_eq!(heard, "err hello\n");
        node.engine.stop_container(&id, Duration::ZERO).await.unwrap();
        ended(fourth).await.unwrap();
        let log = node.log_with("several", "main", "again").await;
        assert_eq!(log.matches("stdout F got hello").count(), 4, "{log}");
        assert!(!log.contains("ended"), "{log}");
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn the_first_clients_disappearance_ends_input_that_is_for_once() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("once").await;
        let script = "while read w; do echo got $w; done; echo ended; exec sleep 1000";
        let id = start(&node, &sandbox, script, |spec| {
            (spec.stdin, spec.stdin_once) = (true, true);
        })
        .await;
        let (mut client, attached) = attach(&node.engine, &id);
        greet(&mut client).await;
        attached.abort();
        node.log_with("once", "main", "stdout F ended\n").await;
        // Who comes later hears, and is not heard.
        let (mut late, attached) = attach(&node.engine, &id);
        late.write("anybody?\n").await;
        late.stdin = None;
        tokio::time::timeout(Duration::from_millis(200), attached).await.unwrap_err();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_terminal_is_shared_and_has_the_size_of_its_client() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("terminal").await;
        for (name, logged) in [("logged", true), ("unlogged", false)] {
            let script = "while read w; do echo got $w; echo err >&2; stty size; done";
            let id = start(&node, &sandbox, script, |spec| {
                spec.name.name = name.to_owned();
                (spec.stdin, spec.tty) = (true, true);
                spec.log_path = logged.then(|| "main.log".into());
            })
            .await;
            assert!(node.engine.may_attach(&id).unwrap());
            let (mut client, attached) = attach(&node.engine, &id);
            greet(&mut client).await;
            client.sizes.send(Size { width: 101, height: 37 }).await.unwrap();
            let mut tries = 0;
            loop {
                client.write("size\n").await;
                if client.read_until("got size\r\nerr\r\n").await.contains("37 101") {
                    break;
                }
                tries += 1;
                assert!(tries < 200, "it was never resized");
            }
            // ^C by the terminal, not by us.
            client.write("\x03").await;
            ended(attached).await.unwrap();
            assert_eq!(node.exited(&id).await, (130, ExitReason::Error));
        }
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_and_learns_what_it_missed() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("slow").await;
        // More than all buffers between them hold.
        let script = "read w; echo got $w; line=$(head -c 3999 /dev/zero | tr '\\0' y); \
                      yes $line | head -n 10000; echo done";
        let id = start(&node, &sandbox, script, |spec| spec.stdin = true).await;
        let (mut slow, attached) = attach(&node.engine, &id);
        slow.write("hello\n").await;
        let read = slow.read_until("\n").await;
        let more = read.strip_prefix("got hello\n").expect("the line is the first");
        let (mut other, other_attached) = attach(&node.engine, &id);
        let reader = tokio::spawn(async move {
            let mut rest = Vec::new();
            other.stdout.read_to_end(&mut rest).await.unwrap();
            rest.len()
        });
        // It does not read, and the container ends all the same.
        assert_eq!(node.exited(&id).await, (0, ExitReason::Completed));
        let log = node.log_with("slow", "main", "stdout F done\n").await;
        assert_eq!(log.lines().count(), 10_002);
        let mut rest = Vec::new();
        slow.stdout.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() < 40_000_000);
        let missed = ended(attached).await.unwrap_err();
        let expected = 40_000_000 + "done\n".len() - more.len() - rest.len();
        assert!(missed.to_string().contains(&format!(": {expected} bytes")), "{missed}");
        assert!(reader.await.unwrap() > 0);
        ended(other_attached).await.ok();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn input_waits_for_a_container_that_does_not_read() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("wait").await;
        let script = "while [ ! -e /tmp/go ]; do sleep 0.01; done; wc -c";
        let id = start(&node, &sandbox, script, |spec| {
            (spec.stdin, spec.stdin_once) = (true, true);
        })
        .await;
        let (mut client, attached) = attach(&node.engine, &id);
        let mut stdin = client.stdin.take().unwrap();
        let writer = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut stdin, &[b'i'; 3_000_000]).await.unwrap();
        });
        let answered = node.engine.exec_sync(&id, shell("touch /tmp/go"), None).await.unwrap();
        assert_eq!(answered.code, 0);
        writer.await.unwrap();
        let mut counted = String::new();
        client.stdout.read_to_string(&mut counted).await.unwrap();
        assert_eq!(counted.trim(), "3000000");
        ended(attached).await.unwrap();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}
