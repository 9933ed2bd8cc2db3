//! Several clients of one runtime at the same time.
//!
//! Each is a thread with a connection of its own, since waiting for a pod's output blocks.
//! All begin together. When whoever started them does not wait for them (the run was
//! interrupted), they stop after the pod that they are at.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_testkit::Cri;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::target::Target;

/// What `clients` have done.
#[derive(Debug)]
pub(crate) struct Done<T> {
    /// What came of each item.
    pub(crate) results: Vec<Result<T>>,
    /// From the first client's begin to the last one's end.
    pub(crate) wall: Duration,
}

/// Threads that are stopped and waited for when nobody wants them any more.
struct Threads {
    stop: Arc<AtomicBool>,
    handles: Vec<JoinHandle<()>>,
}

/// What a client sends.
enum Message<T> {
    /// What came of an item.
    Result(Result<T>),
    /// It has ended; when it began, and when it had no item left.
    Ended(Instant, Instant),
}

/// Has `clients` clients of `target` take the numbers below `items`, each the next one as
/// soon as it has done with one, and do `work` with them.
pub(crate) async fn run<T, W>(
    target: &Target,
    clients: usize,
    items: usize,
    work: W,
) -> Result<Done<T>>
where
    T: Send + 'static,
    W: AsyncFn(&mut Target, usize) -> Result<T> + Clone + Send + 'static,
{
    let (sender, receiver) = unbounded_channel();
    let mut threads = Threads { stop: Arc::new(AtomicBool::new(false)), handles: Vec::new() };
    let (next, begin) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(clients)));
    for client in 0..clients {
        let (next, begin, stop) = (next.clone(), begin.clone(), threads.stop.clone());
        let (mut target, work, sender) = (target.clone(), work.clone(), sender.clone());
        let thread = thread::Builder::new().name(format!("client-{client}"));
        let handle = thread.spawn(move || {
            let connected = connect(&mut target);
            begin.wait();
            let began = Instant::now();
            let ended = connected.map(|runtime| {
                let take = || {
                    let item = next.fetch_add(1, Ordering::Relaxed);
                    (item < items && !stop.load(Ordering::Relaxed)).then_some(item)
                };
                while let Some(item) = take() {
                    // Nobody listens any more: the run was interrupted.
                    let result = runtime.block_on(work(&mut target, item));
                    sender.send(Message::Result(result)).ok();
                }
            });
            send_end(&sender, ended, began);
        });
        threads.handles.push(handle.context("start a client")?);
    }
    drop(sender);
    collect(receiver, clients).await
}

fn connect(target: &mut Target) -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start a client")?;
    target.cri = runtime.block_on(Cri::connect(&target.socket))?;
    Ok(runtime)
}

fn send_end<T>(sender: &UnboundedSender<Message<T>>, ended: Result<()>, began: Instant) {
    if let Err(error) = ended {
        sender.send(Message::Result(Err(error))).ok();
    }
    sender.send(Message::Ended(began, Instant::now())).ok();
}

async fn collect<T>(
    mut receiver: UnboundedReceiver<Message<T>>,
    clients: usize,
) -> Result<Done<T>> {
    let (mut results, mut spans) = (Vec::new(), Vec::new());
    while let Some(message) = receiver.recv().await {
        match message {
            Message::Result(result) => results.push(result),
            Message::Ended(began, ended) => spans.push((began, ended)),
        }
    }
    ensure!(spans.len() == clients, "a client panicked");
    let began = spans.iter().map(|(began, _)| *began).min();
    let ended = spans.iter().map(|(_, ended)| *ended).max();
    let wall = began.zip(ended).map(|(began, ended)| ended.duration_since(began));
    Ok(Done { results, wall: wall.context("there are no clients")? })
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for handle in self.handles.drain(..) {
            // A panic in there was reported where it happened.
            handle.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_time_is_from_the_first_begin_to_the_last_end() {
        let (sender, receiver) = unbounded_channel();
        let at = Instant::now();
        let second = Duration::from_secs(1);
        sender.send(Message::Result(Ok(1))).unwrap();
        sender.send(Message::Ended(at + second, at + 3 * second)).unwrap();
        sender.send(Message::Ended(at + 2 * second, at + 6 * second)).unwrap();
        drop(sender);
        let done = collect(receiver, 2).await.unwrap();
        assert_eq!((done.results.len(), done.wall), (1, 5 * second));
    }

    #[tokio::test]
    async fn a_client_that_never_tells_of_its_end_is_an_error() {
        let (sender, receiver) = unbounded_channel::<Message<()>>();
        drop(sender);
        assert_eq!(collect(receiver, 1).await.unwrap_err().to_string(), "a client panicked");
    }
}
