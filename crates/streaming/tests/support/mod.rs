//! A backend that has no containers.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

pub(crate) mod client;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth_model::{ContainerId, SandboxId};
use berth_streaming::{Backend, Config, Duplex, Error, Io, Outcome, Server, Streams, Urls};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

pub(crate) use client::{Client, LIMIT, request, split, upgrade};

/// Does what the first word of a command says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    /// Processes that run.
    pub(crate) running: Arc<AtomicUsize>,
    /// Bytes that processes wrote.
    pub(crate) written: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn enter(&self) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.running.clone())
    }

    /// Waits until nothing runs any more.
    pub(crate) async fn is_idle(&self) {
        let idle = async {
            while self.running.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, idle).await.unwrap();
    }
}

impl Backend for Fake {
    fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        tty: bool,
        mut io: Io,
    ) -> Outcome<i32> {
        let (fake, container) = (self.clone(), container.clone());
        let running = self.enter();
        Box::pin(async move {
            let _running = running;
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["who"] => {
                    let words = format!("{container} {tty}");
                    io.stdout.unwrap().write_all(words.as_bytes()).await?;
                    Ok(0)
                }
                // Everything it reads, and on standard error how much that was.
                ["cat"] => {
                    let (mut stdin, mut stdout) = (io.stdin.unwrap(), io.stdout.unwrap());
                    let copied = tokio::io::copy(&mut stdin, &mut stdout).await?;
                    if let Some(mut stderr) = io.stderr {
                        stderr.write_all(copied.to_string().as_bytes()).await?;
                    }
                    Ok(0)
                }
                ["exit", code] => Ok(code.parse()?),
                ["fail", why] => Err((*why).to_owned().into()),
                ["sizes", count] => {
                    let mut stdout = io.stdout.unwrap();
                    for _ in 0..count.parse()? {
                        let size = io.resizes.recv().await.unwrap();
                        let words = format!("{}x{} ", size.width, size.height);
                        stdout.write_all(words.as_bytes()).await?;
                    }
                    Ok(0)
                }
                ["yes", bytes] => {
                    let mut left: usize = bytes.parse()?;
                    let mut stdout = io.stdout.unwrap();
                    while left > 0 {
                        let chunk = left.min(4096);
                        stdout.write_all(&[b'y'; 4096][..chunk]).await?;
                        fake.written.fetch_add(chunk, Ordering::SeqCst);
                        left -= chunk;
                    }
                    Ok(0)
                }
                // Holds its streams and touches none.
                ["sleep"] => std::future::pending().await,
                other => Err(format!("no command {other:?}").into()),
            }
        })
    }

    fn attach(&self, container: &ContainerId, io: Io) -> Outcome<()> {
        let exec = self.exec(container, vec!["cat".to_owned()], false, io);
        Box::pin(async move { exec.await.map(drop) })
    }

    fn port_forward(
        &self,
        sandbox: &SandboxId,
        port: u16,
        mut stream: Box<dyn Duplex>,
    ) -> Outcome<()> {
        let sandbox = sandbox.clone();
        let running = self.enter();
        Box::pin(async move {
            let _running = running;
            if port == 1 {
                return Err("connection refused".into());
            }
            stream.write_all(format!("{sandbox}:{port}\n").as_bytes()).await?;
            let (mut reader, mut writer) = tokio::io::split(stream);
            tokio::io::copy(&mut reader, &mut writer).await?;
            writer.shutdown().await?;
            Ok(())
        })
    }
}

/// A server with a fake behind it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) fake: Fake,
    pub(crate) urls: Urls,
    pub(crate) shutdown: CancellationToken,
    served: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        let server = Server::bind(config).unwrap();
        let (fake, urls) = (Fake::default(), server.urls());
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(server.serve(fake.clone(), shutdown.clone()));
        Self { fake, urls, shutdown, served }
    }

    pub(crate) fn exec(&self, command: &[&str], streams: Streams) -> String {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.urls.exec(ContainerId::new("c1").unwrap(), command, streams).unwrap()
    }

    pub(crate) fn forward(&self, ports: &[u16]) -> String {
        self.urls.port_forward(SandboxId::new("s1").unwrap(), ports.to_vec()).unwrap()
    }

    /// Ends the server: everything that it did must have ended with it.
    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.served).await.unwrap().unwrap().unwrap();
        assert_eq!(self.fake.running.load(Ordering::SeqCst), 0);
    }
}

/// Standard input and both outputs.
pub(crate) const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
/// Standard output alone.
pub(crate) const OUT: Streams = Streams { stdin: false, stdout: true, stderr: false, tty: false };
