//! Several clients of one runtime at the same time.
//!
//! Each is a thread with a connection of its own, since waiting for a pod's output blocks.
//! All begin together. When whoever started them does not wait for them (the run was
//! interrupted), they stop after the pod that they are at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
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
    /// One for each: a client begins when it is told to, and ends when nobody can any more.
    begin: Vec<Sender<()>>,
    handles: Vec<JoinHandle<()>>,
}

/// What a client sends.
enum Message<T> {
    /// It could begin.
    Ready,
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
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Threads { stop, begin: Vec::new(), handles: Vec::new() };
    let next = Arc::new(AtomicUsize::new(0));
    for client in 0..clients {
        let (next, stop) = (next.clone(), threads.stop.clone());
        let (begin, told) = channel();
        threads.begin.push(begin);
        let (mut target, work, sender) = (target.clone(), work.clone(), sender.clone());
        let thread = thread::Builder::new().name(format!("client-{client}"));
        let handle = thread.spawn(move || {
            let connected = connect(&mut target);
            sender.send(Message::Ready).ok();
            if told.recv().is_err() {
                return;
            }
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
    collect(receiver, &threads.begin).await
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

/// Has all clients begin when the last of them is ready, and waits for their ends.
async fn collect<T>(
    mut receiver: UnboundedReceiver<Message<T>>,
    begin: &[Sender<()>],
) -> Result<Done<T>> {
    let (mut ready, mut results, mut spans) = (0, Vec::new(), Vec::new());
    while let Some(message) = receiver.recv().await {
        match message {
            Message::Ready => {
                ready += 1;
                if ready == begin.len() {
                    // One that is gone has panicked: its end will be missed.
                    begin.iter().for_each(|client| client.send(()).unwrap_or_default());
                }
            }
            Message::Result(result) => results.push(result),
            Message::Ended(began, ended) => spans.push((began, ended)),
        }
    }
    ensure!(spans.len() == begin.len(), "a client panicked");
    let began = spans.iter().map(|(began, _)| *began).min();
    let ended = spans.iter().map(|(_, ended)| *ended).max();
    let wall = began.zip(ended).map(|(began, ended)| ended.duration_since(began));
    Ok(Done { results, wall: wall.context("there are no clients")? })
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.begin.clear();
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
        let (begin, told): (Vec<_>, Vec<_>) = (0..2).map(|_| channel()).unzip();
        let at = Instant::now();
        let second = Duration::from_secs(1);
        sender.send(Message::Ready).unwrap();
        sender.send(Message::Ready).unwrap();
        sender.send(Message::Result(Ok(1))).unwrap();
        sender.send(Message::Ended(at + second, at + 3 * second)).unwrap();
        sender.send(Message::Ended(at + 2 * second, at + 6 * second)).unwrap();
        drop(sender);
        let done = collect(receiver, &begin).await.unwrap();
        assert_eq!((done.results.len(), done.wall), (1, 5 * second));
        assert!(told.iter().all(|told| told.try_recv().is_ok()), "all were told to begin");
    }

    #[tokio::test]
    async fn nobody_begins_before_all_are_ready_and_an_end_that_is_missing_is_an_error() {
        let (sender, receiver) = unbounded_channel::<Message<()>>();
        let (begin, told): (Vec<_>, Vec<_>) = (0..2).map(|_| channel()).unzip();
        sender.send(Message::Ready).unwrap();
        drop(sender);
        let error = collect(receiver, &begin).await.unwrap_err();
        assert_eq!(error.to_string(), "a client panicked");
        assert!(told.iter().all(|told| told.try_recv().is_err()));
    }
}
