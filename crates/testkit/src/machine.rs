//! The network and mount namespaces of a test's own, in which its whole "machine" lives.
//!
//! One thread enters new namespaces and never leaves them; what must happen inside is sent
//! to that thread. Processes started there inherit them, so a registry, a daemon and its
//! bridge never meet the real machine's network. Mounts made inside are not seen outside,
//! and are shared among those inside, as systemd has it: what a container must not
//! propagate to its node would show.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Pid, gettid};

const NONE: Option<&str> = None;

type Job = Box<dyn FnOnce() + Send>;

/// Namespaces and the thread that lives in them.
#[derive(Debug)]
pub struct Machine {
    /// The thread's id.
    tid: Pid,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    /// Makes a network with nothing but a loopback interface that is up, and the real
    /// machine's mounts.
    pub fn new() -> Result<Self> {
        Self::living(enter)
    }

    /// Joins the network of the process `pid`, with the mounts of this process: what is
    /// served on loopback in there, that process reaches.
    pub fn in_network_of(pid: u32) -> Result<Self> {
        Self::living(move || {
            let path = format!("/proc/{pid}/ns/net");
            let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
            setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("join {path}"))?;
            Ok(gettid())
        })
    }

    fn living(enter: impl FnOnce() -> Result<Pid> + Send + 'static) -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (ready, made) = channel::<Result<Pid>>();
        let thread = thread::Builder::new()
            .name("machine".into())
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
            .context("start the machine's thread")?;
        let tid = made.recv().context("the machine's thread ended")??;
        Ok(Self { tid, jobs: Some(jobs), thread: Some(thread) })
    }

    /// How the absolute `path`, as it is inside, is reached from outside, whatever is
    /// mounted on the way.
    #[must_use]
    pub fn outside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/self/task/{}/root", self.tid));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Runs `work` inside and returns what it returns.
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
        let jobs = self.jobs.as_ref().context("the machine is gone")?;
        jobs.send(job).map_err(|_| anyhow!("the machine's thread ended"))?;
        answered.recv().context("work in the machine panicked")?
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported where it happened.
            thread.join().ok();
        }
    }
}

fn enter() -> Result<Pid> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("make namespaces")?;
    for propagation in [MsFlags::MS_SLAVE, MsFlags::MS_SHARED] {
        mount(NONE, "/", NONE, propagation | MsFlags::MS_REC, NONE)
            .context("set the propagation of mounts")?;
    }
    berth_sys::network::loopback_up().context("bring loopback up")?;
    Ok(gettid())
}
