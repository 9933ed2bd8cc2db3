//! What the services share: the containers, and what happens to them.
//!
//! Work that changes something runs in a task of its own: ttrpc drops the requests of a
//! connection that breaks, and half a creation must not be dropped with berthd.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use berth_cgroup::Hierarchy;
use berth_model::mount::Mount;
use berth_oci_runtime::{CreateRequest, create};
use berth_sys::allocator::trim;
use oci_spec::runtime::Process as OciProcess;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::container::{Container, read_spec};
use crate::end;
use crate::error::Error;
use crate::events::Publisher;
use crate::io::{Streams, Uris};
use crate::process::{Process, Status, make};
use crate::reaper::{Exit, Reaper};
use crate::sandbox::{Options, Sandbox};

/// How long after the last work memory is given back: nothing that is in a hurry is left.
const QUIET: Duration = Duration::from_secs(1);

/// Pause between looks whether a container that is being made is there.
const MADE: Duration = Duration::from_millis(20);

/// The shim's state.
#[derive(Debug)]
pub(crate) struct Shim {
    /// The id it was started with: the sandbox's, or its first container's.
    pub(crate) id: String,
    pub(crate) sandbox: Sandbox,
    pub(crate) reaper: Arc<Reaper>,
    containers: Mutex<HashMap<String, Slot>>,
    events: Publisher,
    cgroups: OnceLock<Hierarchy>,
    /// Set when the shim shall end once it has no containers.
    pub(crate) finished: Notify,
    /// Whether a container was ever asked for.
    used: AtomicBool,
    /// Told when [`Shim::is_used`] may have changed.
    pub(crate) use_changed: Notify,
    /// Told after work that leaves freed memory behind.
    worked: Arc<Notify>,
}

/// What an id stands for.
#[derive(Debug)]
enum Slot {
    /// A container is being made under it.
    Taken,
    Container(Arc<Container>),
}

/// A request to create a container.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) uris: Uris,
}

/// Runs `work` to its end even if the request that wants it is dropped.
pub(crate) async fn owned<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io("run a request", std::io::Error::other(error))),
    }
}

/// Gives freed memory back to the kernel, once, a moment after the last work: a parsed
/// spec is larger than the rest of the shim.
async fn give_back(worked: Arc<Notify>) {
    loop {
        worked.notified().await;
        sleep(QUIET).await;
        trim();
    }
}

impl Shim {
    pub(crate) fn new(id: &str, events: Publisher) -> Arc<Self> {
        let reaper = Arc::new(Reaper::default());
        tokio::spawn(Arc::clone(&reaper).run());
        let worked = Arc::new(Notify::new());
        tokio::spawn(give_back(Arc::clone(&worked)));
        Arc::new(Self {
            id: id.to_owned(),
            sandbox: Sandbox::default(),
            reaper,
            containers: Mutex::default(),
            events,
            cgroups: OnceLock::new(),
            finished: Notify::new(),
            used: AtomicBool::new(false),
            use_changed: Notify::new(),
            worked,
        })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.slots().get(id) {
            Some(Slot::Container(container)) => Ok(Arc::clone(container)),
            Some(Slot::Taken) => Err(Error::State { id: id.to_owned(), state: "being created" }),
            None => Err(Error::container(id)),
        }
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        let slots = self.slots();
        let containers = slots.values().filter_map(|slot| match slot {
            Slot::Container(container) => Some(Arc::clone(container)),
            Slot::Taken => None,
        });
        containers.collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots().is_empty()
    }

    /// Whether a process of some container is alive, or a container is being made.
    pub(crate) fn is_busy(&self) -> bool {
        self.slots().values().any(|slot| match slot {
            Slot::Container(container) => !matches!(container.init.status(), Status::Stopped(_)),
            Slot::Taken => true,
        })
    }

    /// Waits until none is.
    pub(crate) async fn idle(&self) {
        while self.is_busy() {
            for container in self.containers() {
                container.init.wait().await;
            }
            if self.is_busy() {
                // One is being made, and will be there or not; or one was made meanwhile.
                sleep(MADE).await;
            }
        }
    }

    /// Whether anything was ever made here, or is being.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed) || self.sandbox.is_used()
    }

    /// Makes what the containers of the sandbox share.
    pub(crate) async fn create_sandbox(
        self: Arc<Self>,
        id: String,
        options: Options,
    ) -> Result<(), Error> {
        let made = self.sandbox.create(&id, options, &self.reaper).await;
        // One that failed is none.
        self.use_changed.notify_one();
        made
    }

    fn cgroups(&self) -> Result<&Hierarchy, Error> {
        if let Some(found) = self.cgroups.get() {
            return Ok(found);
        }
        let found = Hierarchy::detect()?;
        Ok(self.cgroups.get_or_init(|| found))
    }

    /// Makes a container whose process waits for its start; the pid.
    pub(crate) async fn create(self: Arc<Self>, wanted: Wanted) -> Result<u32, Error> {
        self.worked.notify_one();
        if wanted.id.is_empty() {
            return Err(Error::invalid("id", "it is empty"));
        }
        {
            let mut slots = self.slots();
            if slots.contains_key(&wanted.id) {
                return Err(Error::Exists { what: "container", id: wanted.id });
            }
            slots.insert(wanted.id.clone(), Slot::Taken);
            self.used.store(true, Ordering::Relaxed);
        }
        self.use_changed.notify_one();
        let id = wanted.id.clone();
        match self.make_unless_stopped(wanted).await {
            Ok(container) => {
                let pid = container.init.pid();
                let bundle = container.bundle.to_string_lossy().into_owned();
                self.slots().insert(id.clone(), Slot::Container(Arc::clone(&container)));
                self.events.created(&id, &bundle, pid);
                self.follow_init(&container);
                Ok(pid)
            }
            Err(error) => {
                self.slots().remove(&id);
                Err(error)
            }
        }
    }

    /// The sandbox may be stopped while a container is made, and must stay empty then.
    async fn make_unless_stopped(&self, wanted: Wanted) -> Result<Arc<Container>, Error> {
        let stopped = || Error::State { id: self.id.clone(), state: "stopped" };
        if self.sandbox.is_stopped() {
            return Err(stopped());
        }
        let container = self.make(wanted).await?;
        if !self.sandbox.is_stopped() {
            return Ok(container);
        }
        container.kill_now()?;
        if let Some(exit) = self.ended(&container.init).await {
            container.init.finish(exit);
        }
        container.remove().await?;
        Err(stopped())
    }

    async fn make(&self, wanted: Wanted) -> Result<Arc<Container>, Error> {
        let bundle = Path::new(&wanted.bundle);
        if !bundle.is_absolute() {
            return Err(Error::invalid("bundle", "it is not an absolute path"));
        }
        let spec = read_spec(bundle)?;
        let path = || bundle.to_owned();
        end::forget(bundle).map_err(|source| Error::Path {
            what: "clear bundle",
            path: path(),
            source,
        })?;
        let mut opened = Streams::open(&wanted.uris, true)?;
        let shared = self.sandbox.shared();
        let creating = create(CreateRequest {
            id: &wanted.id,
            bundle,
            spec: &spec,
            rootfs: &wanted.rootfs,
            stdio: opened.stdio,
            shared: &shared,
            cgroups: self.cgroups()?,
        })?;
        drop(shared);
        let mut made = make(creating, &self.reaper, &mut opened.streams).await?;
        let cgroup = made.cgroup.take();
        let init = Process::created(&wanted.id, wanted.uris, made, opened.streams);
        Ok(Arc::new(Container::new(&wanted.id, bundle, Arc::new(init), cgroup, &spec)))
    }

    /// Waits, in the background, for the end of a container's first process.
    fn follow_init(self: &Arc<Self>, container: &Arc<Container>) {
        let (shim, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let init = &container.init;
            let Some(exit) = shim.ended(init).await else { return };
            let killed = container.keep_end(init.as_told(exit));
            container.init_ended();
            if let Some(streams) = init.streams() {
                streams.ended().await;
            }
            if killed > 0 {
                shim.events.out_of_memory(&container.id);
            }
            let exit = init.told(init.finish(exit)).await;
            shim.events.exited(&container.id, &container.id, init.pid(), exit);
        });
    }

    fn follow_exec(self: &Arc<Self>, container: &Arc<Container>, process: &Arc<Process>) {
        let (shim, id) = (Arc::clone(self), container.id.clone());
        let process = Arc::clone(process);
        tokio::spawn(async move {
            let Some(exit) = shim.ended(&process).await else { return };
            if let Some(streams) = process.streams() {
                streams.ended().await;
            }
            let exit = process.finish(exit);
            shim.events.exited(&id, &process.id, process.pid(), exit);
        });
    }

    /// Waits for the end of a process that was made; `None` if somebody else does already.
    async fn ended(&self, process: &Process) -> Option<Exit> {
        Some(self.reaper.wait(process.take_child()?).await)
    }

    /// Notes a process to be added to a container.
    pub(crate) fn exec(
        &self,
        id: &str,
        exec: &str,
        uris: Uris,
        process: &[u8],
    ) -> Result<(), Error> {
        if exec.is_empty() {
            return Err(Error::invalid("exec_id", "it is empty"));
        }
        let process: OciProcess = serde_json::from_slice(process)
            .map_err(|error| Error::invalid("spec", error.to_string()))?;
        self.container(id)?.add_exec(exec, uris, process)
    }

    /// Starts a process; answers once its program was executed. Its pid.
    pub(crate) async fn start(self: Arc<Self>, id: String, exec: String) -> Result<u32, Error> {
        let container = self.container(&id)?;
        let process = container.process(&exec)?;
        self.worked.notify_one();
        if !exec.is_empty() {
            let follow = || self.follow_exec(&container, &process);
            return container.start_exec(&process, &self.reaper, follow).await;
        }
        let starting = process.starting();
        let started = process.start().await;
        if started.is_err()
            && let Status::Stopped(exit) = process.status()
        {
            // Its end may have been kept before it was known to be a failure.
            container.keep_end(exit);
        }
        let pid = started?;
        self.events.started(&id, pid);
        drop(starting);
        Ok(pid)
    }

    /// Forgets an ended process; with the first one the whole container. Pid and end.
    pub(crate) async fn delete(
        self: Arc<Self>,
        id: String,
        exec: String,
    ) -> Result<(u32, Exit), Error> {
        let container = self.container(&id)?;
        let process = container.process(&exec)?;
        let exit = match process.status() {
            Status::Stopped(exit) => exit,
            Status::Running => {
                return Err(Error::State { id: process.id.clone(), state: "running" });
            }
            // Never started, and never to be.
            Status::Created if exec.is_empty() => {
                container.kill_now()?;
                container.ended().await?;
                process.wait().await
            }
            // It would run on with nobody to know it.
            Status::Created if !process.is_pending() => {
                return Err(Error::State { id: process.id.clone(), state: "being started" });
            }
            Status::Created => Exit { code: 0, at: berth_failpoint::now() },
        };
        if exec.is_empty() {
            container.remove().await?;
            self.slots().remove(&id);
        } else {
            container.remove_exec(&exec).await;
        }
        self.events.deleted(&id, &process.id, process.pid(), exit);
        Ok((process.pid(), exit))
    }

    /// Kills every container, waits for their end and drops what they shared.
    pub(crate) async fn stop_sandbox(self: Arc<Self>) -> Result<(), Error> {
        self.sandbox.stopping();
        let containers = self.containers();
        // All are killed before the first is waited for.
        let mut outcome = Ok(());
        for container in &containers {
            outcome = outcome.and(container.kill_now());
        }
        for container in &containers {
            outcome = outcome.and(container.ended().await);
        }
        outcome?;
        self.sandbox.stop(&self.reaper).await
    }
}

impl Shim {
    /// Ends the shim, if it has neither containers nor a sandbox in use.
    pub(crate) fn shutdown(&self) {
        if self.is_empty() && !self.sandbox.is_active() {
            self.finished.notify_one();
        }
    }

    /// Stops the sandbox and forgets its containers, then ends the shim.
    pub(crate) async fn shutdown_sandbox(self: Arc<Self>) -> Result<(), Error> {
        Arc::clone(&self).stop_sandbox().await?;
        for container in self.containers() {
            Arc::clone(&self).delete(container.id.clone(), String::new()).await?;
        }
        self.shutdown();
        Ok(())
    }
}
