//! The engine as the fronts see it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_image::Images;
use berth_metadata::PodStore;
use berth_model::container::{Resources, Timestamp};
use berth_model::image::ImageRecord;
use berth_model::sandbox::PodLimits;
use berth_model::{ChainId, ContainerId, ContainerSpec, Reference, SandboxId, SandboxSpec};
use berth_network::NetworkConfig;
use tracing::field::Empty;
use tracing::{Instrument as _, debug_span, info_span};

use crate::client::{Duplex, Io};
use crate::container::Command as ContainerCommand;
use crate::core::{Core, step, warn_failure};
use crate::sandbox::Command as SandboxCommand;
use crate::status::{
    Condition, ContainerStats, ContainerStatus, ExecOutput, Handler, NodeMetrics, NodeStatus,
    SandboxStats, SandboxStatus, UndoStatus,
};
use crate::{
    Auth, Config, Error, Events, EventsEnd, FsInfo, RuntimeConfig, ShimInfo, attach, container,
    exec, forward, hooks, network, open, recovery, sandbox, stats,
};

/// How long work in flight may hold up a shutdown.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a client waits for limits that the kernel is slow to take: kubelet waits 2
/// minutes. It goes on without the client.
const UPDATE: Duration = Duration::from_secs(110);
/// How long a shim may hold up a status that describes it.
const SHIM_INFO: Duration = Duration::from_secs(1);

/// The engine; clones share everything.
#[derive(Clone, Debug)]
pub struct Engine {
    core: Arc<Core>,
}

impl Engine {
    /// Opens the stores under `config.root`, adopts what runs, marks what ended, and
    /// removes what no record names. Must be called on a tokio runtime.
    ///
    /// One engine per root: the caller keeps a second daemon away.
    pub async fn open(config: Config, images: Images) -> Result<Self, Error> {
        let opening = tokio::task::spawn_blocking(move || open::open(config, images));
        let opened = opening.await.map_err(|_| Error::TaskDied("the thread that opens"))??;
        let (core, stored) = opened;
        let core = Arc::new(core);
        step(Point::RECOVER_OPENED).await?;
        recovery::rebuild_images(&core, &stored).await?;
        let pods = Arc::clone(&core.pods);
        let recovered = core.images.recover(move || chains_in_use(&pods)).await;
        let recovered = recovered.map_err(Error::image("recover images of", "this node"))?;
        tracing::debug!(?recovered, "images recovered");
        step(Point::RECOVER_IMAGES).await?;
        recovery::recover(&core, stored).instrument(info_span!("recover")).await?;
        core.tasks.spawn(network::reattach_all(Arc::clone(&core)));
        berth_failpoint::reached(Point::RECOVER_RECOVERED).await;
        // Plugins are told what is true, and hear of every request there will be.
        if let Some(nri) = &core.nri {
            let host = Arc::new(hooks::Host(Arc::downgrade(&core)));
            nri.start(host).await.map_err(|source| Error::Nri { source: Box::new(source) })?;
        }
        Ok(Self { core })
    }

    /// Ends the engine's own tasks; sandboxes and containers keep running. Work in flight
    /// has ten seconds to end; what a restart finds half done it takes back.
    pub async fn shutdown(&self) {
        self.core.feed.close();
        self.core.images.shutdown().await;
        self.core.shutdown.cancel();
        self.core.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.core.tasks.wait()).await.is_err() {
            let left = self.core.tasks.len();
            tracing::warn!(left, "work in flight is left to the next start");
        }
        if let Some(nri) = &self.core.nri {
            nri.shutdown().await;
        }
    }

    /// What sandboxes and containers made from now on get that name nothing else.
    pub fn set_defaults(&self, pids_limit: Option<i64>, shm_bytes: u64) {
        let defaults = berth_spec::Defaults { pids_limit, ..(*self.core.defaults.get()).clone() };
        self.core.defaults.set(Arc::new(defaults));
        self.core.shm_bytes.set(shm_bytes);
    }

    /// The network that sandboxes get.
    #[must_use]
    pub fn network(&self) -> &NetworkConfig {
        &self.core.config.network
    }

    /// The plugins that hear of pods; `None` if there can be none.
    #[must_use]
    pub fn plugins(&self) -> Option<berth_nri::Status> {
        self.core.nri.as_ref().map(berth_nri::Nri::status)
    }

    /// The devices that containers can have by name.
    ///
    /// # Errors
    /// [`Error::TaskDied`].
    pub async fn named_devices(&self) -> Result<berth_cdi::Overview, Error> {
        let core = Arc::clone(&self.core);
        self.core.disk.run(move || core.cdi.overview()).await
    }

    /// Whether pods can have users of their own on this node.
    pub async fn user_namespaces(&self) -> bool {
        crate::users::probe(&self.core).await.is_ok()
    }

    /// Makes and starts a sandbox. A request with the name of one in the making awaits
    /// that one; with the name of a ready one it returns its id.
    pub async fn run_sandbox(&self, spec: SandboxSpec) -> Result<SandboxId, Error> {
        let span = debug_span!("run_sandbox", sandbox.id = Empty, pod = %spec.name.name);
        sandbox::run(&self.core, spec).instrument(span).await
    }

    /// Kills the sandbox's containers, gives its address back and lets its namespaces go.
    /// A stopped or unknown sandbox is success.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        match self.core.sandboxes.get(id) {
            Some(sandbox) => sandbox.ask(SandboxCommand::Stop).await,
            None => Ok(()),
        }
    }

    /// Stops the sandbox if need be and forgets it and its containers. An unknown one is
    /// success.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        match self.core.sandboxes.get(id) {
            Some(sandbox) => sandbox.ask(SandboxCommand::Remove).await,
            None => Ok(()),
        }
    }

    /// What is known of one sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> Result<Arc<SandboxStatus>, Error> {
        Ok(self.core.sandbox(id)?.status.get())
    }

    /// Every sandbox, in no order.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<SandboxStatus>> {
        self.core.sandboxes.all().iter().map(|sandbox| sandbox.status.get()).collect()
    }

    /// Prepares a container in a ready sandbox. A request with the name of one in the
    /// making awaits that one; with the name of a created one it returns its id.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let span = debug_span!(
            "create_container",
            sandbox.id = %sandbox,
            container.id = Empty,
            image.ref = %spec.image,
        );
        container::create(&self.core, sandbox, spec).instrument(span).await
    }

    /// Executes a created container's program; answers after execve(2). A running one is
    /// success; one that exited is `FailedPrecondition`.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.core.container(id)?.ask(ContainerCommand::Start).await
    }

    /// Asks the container to stop, and kills it after `grace`. One that does not run, or
    /// is unknown, is success.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        match self.core.containers.get(id) {
            Some(container) => container.ask(|reply| ContainerCommand::Stop(grace, reply)).await,
            None => Ok(()),
        }
    }

    /// Kills the container if it runs, and forgets it. An unknown one is success.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        match self.core.containers.get(id) {
            Some(container) => container.ask(ContainerCommand::Remove).await,
            None => Ok(()),
        }
    }

    /// What is known of one container.
    pub fn container(&self, id: &ContainerId) -> Result<Arc<ContainerStatus>, Error> {
        Ok(self.core.container(id)?.status.get())
    }

    /// Every container, in no order.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<ContainerStatus>> {
        self.core.containers.all().iter().map(|container| container.status.get()).collect()
    }

    /// Runs `command` in a running container to its end. After `timeout` it is killed and
    /// the answer is `DeadlineExceeded`; it is killed too when the future is dropped.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let span = debug_span!("exec_sync", container.id = %id);
        exec::exec_sync(&self.core, id, command, timeout).instrument(span).await
    }

    /// Whether a command can run in the container now: what is worth asking before a client
    /// is sent elsewhere for [`Engine::exec`].
    pub fn may_exec(&self, id: &ContainerId) -> Result<(), Error> {
        exec::find(&self.core, id).map(drop)
    }

    /// Runs `command` in a running container for a client, to its end: its exit code, once
    /// the client has all of its output. It is killed when the future is dropped.
    pub async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        tty: bool,
        io: Io,
    ) -> Result<i32, Error> {
        let span = debug_span!("exec", container.id = %id, tty);
        exec::exec(&self.core, id, command, tty, io).instrument(span).await
    }

    /// Whether a client can be attached to the container now, and whether it would get a
    /// terminal: that is the container's, whatever the client asks for.
    pub fn may_attach(&self, id: &ContainerId) -> Result<bool, Error> {
        attach::find(&self.core, id).map(|(container, _)| container.status.get().spec.tty)
    }

    /// Connects a client with the streams of a container's first process, until that has
    /// ended. The client leaves by dropping the future, which the container does not notice,
    /// or by ending its input: only that of a container with `stdin_once` and without a
    /// terminal ends then, and its output is heard on.
    pub async fn attach(&self, id: &ContainerId, io: Io) -> Result<(), Error> {
        let span = debug_span!("attach", container.id = %id);
        attach::attach(&self.core, id, io).instrument(span).await
    }

    /// Whether a port of the sandbox can be forwarded now.
    pub fn may_forward(&self, id: &SandboxId) -> Result<(), Error> {
        forward::find(&self.core, id).map(drop)
    }

    /// Connects a client with whoever listens on `port` of the sandbox's loopback address,
    /// until both sides are done.
    pub async fn port_forward(
        &self,
        id: &SandboxId,
        port: u16,
        client: Box<dyn Duplex>,
    ) -> Result<(), Error> {
        let span = debug_span!("port_forward", sandbox.id = %id, port);
        forward::port_forward(&self.core, id, port, client).instrument(span).await
    }

    /// Makes the container's log file anew after its rotation; returns when it exists.
    /// Without a log it is success.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let container = self.core.container(id)?;
        let status = container.status.get();
        if status.pid().is_none() {
            let state = status.state.name();
            return Err(Error::ContainerState { verb: "reopen log of", id: id.clone(), state });
        }
        if status.log_path.is_none() {
            return Ok(());
        }
        let shim = container.sandbox.live_shim("reopen log")?;
        shim.reopen_log(id).await.map_err(|source| Error::Shim {
            action: "reopen log of container",
            id: id.to_string(),
            source,
        })
    }

    /// What the shim of a sandbox is, for people; `None` if there is none, or it does not
    /// say so at once.
    pub async fn shim_info(&self, id: &SandboxId) -> Result<Option<ShimInfo>, Error> {
        let Ok(shim) = self.core.sandbox(id)?.live_shim("describe shim") else { return Ok(None) };
        match shim.info(SHIM_INFO).await {
            Ok(info) => Ok(Some(info)),
            Err(source) => {
                let (action, id) = ("describe shim of sandbox", id.to_string());
                warn_failure("status", &Error::Shim { action, id, source });
                Ok(None)
            }
        }
    }

    /// Changes the limits of a container to what is set; zero and nothing leave a limit as it
    /// is. All of them are in force afterwards, or none.
    pub async fn update_container(&self, id: &ContainerId, limits: Resources) -> Result<(), Error> {
        let span = debug_span!("update_container", container.id = %id);
        let container = self.core.container(id)?;
        let limits = hooks::update_container(&self.core, &container, limits).await?;
        let asked = container.ask(|reply| ContainerCommand::Update(Box::new(limits), reply));
        let what = || format!("new limits of container {id}");
        let done = tokio::time::timeout(UPDATE, asked.instrument(span)).await;
        done.map_err(|_| Error::Deadline { what: what(), limit: UPDATE })??;
        hooks::post_update_container(&self.core, &container).await;
        Ok(())
    }

    /// Takes note of what a whole pod may use. Its client has limited the pod's cgroup.
    pub async fn update_sandbox(&self, id: &SandboxId, limits: PodLimits) -> Result<(), Error> {
        let sandbox = self.core.sandbox(id)?;
        hooks::update_sandbox(&self.core, &sandbox, &limits).await?;
        sandbox.ask(|reply| SandboxCommand::Update(Box::new(limits), reply)).await?;
        hooks::post_update_sandbox(&self.core, &sandbox).await;
        Ok(())
    }

    /// Begins to listen to what happens: from now on, or after the event at `after`, if all
    /// since then are known still.
    pub fn listen(&self, after: Option<Timestamp>) -> Result<Events, EventsEnd> {
        self.core.feed.listen(after)
    }

    /// The present, in the time of events: what is read after it is no older than any event
    /// before it.
    #[must_use]
    pub fn moment(&self) -> Timestamp {
        self.core.feed.moment()
    }

    /// Ends every listener: the daemon is about to end.
    pub fn end_events(&self) {
        self.core.feed.close();
    }

    /// Usage of one container.
    pub async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, Error> {
        stats::container(&self.core, self.core.container(id)?).await
    }

    /// What `tell` makes of the usage of every container that is `wanted`; both are called
    /// where it is read, on several threads.
    pub async fn containers_stats<T: Send + 'static>(
        &self,
        wanted: impl Fn(&ContainerStatus) -> bool + Send + Sync + 'static,
        tell: impl Fn(ContainerStats) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        stats::containers(&self.core, wanted, tell).await
    }

    /// Usage of one sandbox.
    pub async fn sandbox_stats(&self, id: &SandboxId) -> Result<SandboxStats, Error> {
        stats::sandbox(&self.core, self.core.sandbox(id)?).await
    }

    /// What `tell` makes of the usage of every sandbox that is `wanted`; see
    /// [`Engine::containers_stats`].
    pub async fn sandboxes_stats<T: Send + 'static>(
        &self,
        wanted: impl Fn(&SandboxStatus) -> bool + Send + Sync + 'static,
        tell: impl Fn(SandboxStats) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        stats::sandboxes(&self.core, wanted, tell).await
    }

    /// All that is measured, for monitoring.
    pub async fn metrics(&self) -> Result<NodeMetrics, Error> {
        stats::metrics(&self.core).await
    }

    /// Pulls an image, or joins the pull of the same reference.
    pub async fn pull_image(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<ImageRecord, Error> {
        let span = debug_span!("pull_image", image.ref = %reference);
        let pulled = self.core.images.pull(reference, auth).instrument(span).await;
        pulled.map_err(Error::image("pull image", &reference.to_string()))
    }

    /// Every image.
    pub async fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        self.core.images.list().await.map_err(Error::image("list images", ""))
    }

    /// The image that `name` (an id or a reference) means; `None` if there is none.
    pub async fn image_status(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        self.core.images.status(name).await.map_err(Error::image("find image", name))
    }

    /// Removes the image that `name` means, with all of its names. An unknown one is
    /// success.
    pub async fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.core.images.remove(name).await.map_err(Error::image("remove image", name))
    }

    /// Where images and writable layers are, and how much they use.
    pub async fn image_fs_info(&self) -> Result<FsInfo, Error> {
        self.core.images.fs_info().await.map_err(Error::image("measure", "images"))
    }

    /// Whether the node can run sandboxes. A network that somebody took away is made again.
    pub async fn status(&self) -> NodeStatus {
        let fault = network::fault(&self.core).await;
        NodeStatus {
            runtime: Condition { ready: true, ..Condition::default() },
            network: Condition {
                ready: fault.is_none(),
                reason: fault.as_ref().map_or("", |_| "NetworkNotReady").to_owned(),
                message: fault.unwrap_or_default(),
            },
        }
    }

    /// What of failed work could not be taken back yet, and is tried again.
    #[must_use]
    pub fn undo_status(&self) -> UndoStatus {
        self.core.pending.status()
    }

    /// The configured runtime handlers, the default first.
    #[must_use]
    pub fn handlers(&self) -> Vec<Handler> {
        let config = &self.core.config;
        let (default, others): (Vec<_>, Vec<_>) =
            config.runtimes.iter().partition(|(name, _)| **name == config.default_runtime);
        let handler = |(name, runtime): (&String, &RuntimeConfig)| Handler {
            name: name.clone(),
            in_tree: runtime.in_tree,
        };
        default.into_iter().chain(others).map(handler).collect()
    }
}

/// The layers that containers stand on.
fn chains_in_use(
    pods: &PodStore,
) -> Result<HashSet<ChainId>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(pods
        .containers()?
        .into_iter()
        .flat_map(|container| container.layers().collect::<Vec<_>>())
        .collect())
}
