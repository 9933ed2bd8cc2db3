//! A network namespace of a test's own, in which its whole "machine" lives.
//!
//! One thread enters a new namespace and never leaves it; what must happen inside is sent
//! to that thread. Processes started there inherit the namespace, so a registry, a daemon
//! and its bridge never meet the machine's own network.

use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that lives in it.
#[derive(Debug)]
pub struct NetworkNamespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl NetworkNamespace {
    /// Makes a namespace with nothing but a loopback interface that is up.
    pub fn new() -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (ready, made) = channel::<Result<()>>();
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let entered = enter();
                let usable = entered.is_ok();
                if ready.send(entered).is_err() || !usable {
                    return;
                }
                while let Ok(job) = queue.recv() {
                    job();
                }
            })
            .context("start the namespace's thread")?;
        made.recv().context("the namespace's thread ended")??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `work` inside the namespace and returns what it returns.
    pub fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let (answer, answered) = channel();
        let job: Job = Box::new(move || {
            // A caller that is gone does not want the answer.
            answer.send(work()).ok();
        });
        let jobs = self.jobs.as_ref().context("the namespace is closed")?;
        jobs.send(job).map_err(|_| anyhow!("the namespace's thread ended"))?;
        answered.recv().context("work in the namespace panicked")?
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported where it happened.
            thread.join().ok();
        }
    }
}

fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    berth_sys::network::loopback_up().context("bring loopback up")
}
