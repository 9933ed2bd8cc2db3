//! What can go wrong in the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_model::{ContainerId, ErrorKind, SandboxId};

/// A failure that several waiters share.
pub(crate) type SharedError = Arc<Error>;

/// Why an engine operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sandbox has that id.
    #[error("sandbox {0} not found")]
    SandboxNotFound(SandboxId),
    /// No container has that id.
    #[error("container {0} not found")]
    ContainerNotFound(ContainerId),
    /// The configuration knows no such runtime handler.
    #[error("runtime handler {0:?} is not configured")]
    UnknownRuntime(String),
    /// A sandbox of that name exists and is not what was asked for.
    #[error("sandbox name {name} is used by sandbox {id}")]
    SandboxNameTaken {
        /// The name, for people.
        name: String,
        /// Who has it.
        id: SandboxId,
    },
    /// A sandbox of that name is being made, and is not what was asked for.
    #[error("sandbox name {name} is being given to a sandbox of another configuration")]
    SandboxNameClaimed {
        /// The name, for people.
        name: String,
    },
    /// A container of that name exists in the sandbox.
    #[error("container name {name} of sandbox {sandbox} is used by container {id}")]
    ContainerNameTaken {
        /// The name, for people.
        name: String,
        /// The sandbox.
        sandbox: SandboxId,
        /// Who has it.
        id: ContainerId,
    },
    /// A container of that name is being made, and is not what was asked for.
    #[error(
        "container name {name} of sandbox {sandbox} is being given to a container of another \
         configuration"
    )]
    ContainerNameClaimed {
        /// The name, for people.
        name: String,
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// The sandbox is stopped, or being stopped.
    #[error("{verb} in sandbox {id}: the sandbox is not ready")]
    SandboxNotReady {
        /// What was asked for.
        verb: &'static str,
        /// Which sandbox.
        id: SandboxId,
    },
    /// The container is in a state that forbids the verb.
    #[error("{verb} container {id}: it is {state}")]
    ContainerState {
        /// What was asked for.
        verb: &'static str,
        /// Which container.
        id: ContainerId,
        /// Where it is.
        state: &'static str,
    },
    /// A bug: the driver saw an event that its state cannot take.
    #[error("container {id}")]
    Transition {
        /// Which container.
        id: ContainerId,
        /// The event and the state.
        source: Box<berth_model::container::InvalidTransition>,
    },
    /// The request is wrong whatever the state of the node.
    #[error("{field}: {problem}")]
    Invalid {
        /// The part of the request.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A bind mount names what the host does not have, and what cannot be made there.
    #[error("find mount source {}", path.display())]
    MissingMountSource {
        /// The host path.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// An image that a mount names is not here, or cannot be mounted.
    #[error("image volume {image:?}")]
    ImageVolume {
        /// How the mount calls the image.
        image: String,
        /// Why not.
        source: Box<Error>,
    },
    /// The program of a container could not be executed.
    #[error("start container {id}: {message}")]
    Exec {
        /// Which container.
        id: ContainerId,
        /// Which program and why.
        message: String,
        /// What a front makes of it.
        kind: ErrorKind,
    },
    /// A command could not be executed in a container.
    #[error("exec in container {id}: {message}")]
    ExecSync {
        /// Which container.
        id: ContainerId,
        /// Which program and why.
        message: String,
        /// What a front makes of it.
        kind: ErrorKind,
    },
    /// A client read slower than the container wrote, for whom nobody waits.
    #[error("attach to container {id}: {bytes} bytes of output were not read in time")]
    OutputMissed {
        /// Which container.
        id: ContainerId,
        /// How much.
        bytes: u64,
    },
    /// The shim has gone away.
    #[error("attach to container {0}: its shim went away")]
    OutputLost(ContainerId),
    /// A port of a sandbox cannot be reached.
    #[error("forward to port {port} of sandbox {sandbox}")]
    Forward {
        /// Which sandbox.
        sandbox: SandboxId,
        /// Which port.
        port: u16,
        /// Nobody listens, or the connection broke.
        source: std::io::Error,
    },
    /// The container was to be stopped before it was started.
    #[error("start container {0}: it was stopped meanwhile")]
    StartInterrupted(ContainerId),
    /// A deadline passed.
    #[error("{what} took longer than {} ms", limit.as_millis())]
    Deadline {
        /// What was done.
        what: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The daemon is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// A file or directory of ours, or one that was named to us, refuses.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A namespace could not be made or set up.
    #[error("make namespaces of sandbox {sandbox}: {step}")]
    Namespaces {
        /// For which sandbox.
        sandbox: SandboxId,
        /// Which step failed.
        step: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The stores of record.
    #[error("{action}")]
    Metadata {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: Box<berth_metadata::Error>,
    },
    /// The network.
    #[error("{action} of sandbox {sandbox}")]
    Network {
        /// What was tried.
        action: &'static str,
        /// For which sandbox.
        sandbox: SandboxId,
        /// Why it failed.
        source: berth_network::Error,
    },
    /// The network could not be set up when the engine was opened.
    #[error("the sandbox network is not available: {0}")]
    NetworkDown(String),
    /// Berth does not do this yet.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The network as a whole.
    #[error("set up the sandbox network")]
    NetworkBase {
        /// Why it failed.
        source: berth_network::Error,
    },
    /// Plugins refused it, or contradicted each other.
    #[error("plugins of this node did not agree to {id}")]
    Plugins {
        /// The sandbox or container.
        id: String,
        /// Who, and why.
        source: Box<berth_nri::Error>,
    },
    /// The interface to plugins could not be made.
    #[error("open the interface to plugins")]
    Nri {
        /// Why it failed.
        source: Box<berth_nri::Error>,
    },
    /// A cgroup.
    #[error("{action} {path}")]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// Which cgroup.
        path: String,
        /// Why it failed.
        source: berth_cgroup::Error,
    },
    /// A snapshot.
    #[error("{action} {key}")]
    Snapshot {
        /// What was tried.
        action: &'static str,
        /// Which snapshot.
        key: String,
        /// Why it failed.
        source: berth_snapshot::Error,
    },
    /// An image.
    #[error("{action} {reference}")]
    Image {
        /// What was tried.
        action: &'static str,
        /// Which image.
        reference: String,
        /// Why it failed.
        source: Box<berth_image::Error>,
    },
    /// The OCI runtime specification of a container cannot be built.
    #[error("container {name}")]
    Spec {
        /// The client's name of it.
        name: String,
        /// What is wrong.
        source: berth_spec::Error,
    },
    /// An AppArmor profile that was named.
    #[error("AppArmor profile {name:?}: {problem}")]
    ProfileMissing {
        /// Its name.
        name: String,
        /// Why it cannot apply.
        problem: &'static str,
    },
    /// Devices by the names of their vendors.
    #[error("find devices of container {name}")]
    Cdi {
        /// The client's name of the container.
        name: String,
        /// Why not.
        source: berth_cdi::Error,
    },
    /// A shim.
    #[error("{action} {id}")]
    Shim {
        /// What was tried.
        action: &'static str,
        /// Which sandbox or container.
        id: String,
        /// Why it failed.
        source: berth_shim_client::Error,
    },
    /// A task or thread of ours died; its panic was logged.
    #[error("{0} died")]
    TaskDied(&'static str),
    /// The same failure as that of the work this request joined.
    #[error(transparent)]
    Shared(SharedError),
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::SandboxNotFound(_) | Self::ContainerNotFound(_) => ErrorKind::NotFound,
            Self::UnknownRuntime(_) | Self::Invalid { .. } | Self::MissingMountSource { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::SandboxNameTaken { .. }
            | Self::SandboxNameClaimed { .. }
            | Self::ContainerNameTaken { .. }
            | Self::ContainerNameClaimed { .. } => ErrorKind::AlreadyExists,
            Self::SandboxNotReady { .. }
            | Self::ContainerState { .. }
            | Self::ProfileMissing { .. } => ErrorKind::FailedPrecondition,
            Self::Exec { kind, .. } | Self::ExecSync { kind, .. } => *kind,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::ShuttingDown | Self::StartInterrupted(_) => ErrorKind::Cancelled,
            Self::Io { source, .. } | Self::Namespaces { source, .. } => ErrorKind::of_io(source),
            Self::Metadata { source, .. } => source.kind(),
            Self::Network { source, .. } | Self::NetworkBase { source } => network_kind(source),
            Self::Plugins { source, .. } | Self::Nri { source } => source.kind(),
            Self::Cgroup { source, .. } => source.kind(),
            Self::Snapshot { source, .. } => source.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::Spec { source, .. } => source.kind(),
            Self::Cdi { source, .. } => source.kind(),
            Self::Shim { source, .. } => source.kind(),
            Self::TaskDied(_) | Self::Transition { .. } => ErrorKind::Internal,
            Self::OutputMissed { .. } => ErrorKind::ResourceExhausted,
            Self::NetworkDown(_) | Self::Forward { .. } | Self::OutputLost(_) => {
                ErrorKind::Unavailable
            }
            Self::Unsupported(_) => ErrorKind::Unimplemented,
            Self::Shared(error) => error.kind(),
            Self::ImageVolume { source, .. } => source.kind(),
        }
    }

    /// Whether a registry cannot be reached or does not answer in time: the image may be
    /// there another time.
    #[must_use]
    pub fn is_registry_unavailable(&self) -> bool {
        match self {
            Self::Image { source, .. } => {
                let passing = [ErrorKind::Unavailable, ErrorKind::DeadlineExceeded];
                source.is_of_registry() && passing.contains(&source.kind())
            }
            Self::Shared(error) => error.is_registry_unavailable(),
            _ => false,
        }
    }

    /// Whether an image that was to be a volume is the reason.
    #[must_use]
    pub fn is_image_volume(&self) -> bool {
        match self {
            Self::ImageVolume { .. } => true,
            Self::Shared(error) => error.is_image_volume(),
            _ => false,
        }
    }

    /// The error and what caused it, on one line for people.
    pub(crate) fn told(&self) -> String {
        berth_model::chain(self).chars().take(4096).collect()
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn image(
        action: &'static str,
        reference: &str,
    ) -> impl FnOnce(berth_image::Error) -> Self {
        let reference = reference.to_owned();
        move |source| Self::Image { action, reference, source: Box::new(source) }
    }

    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }
}

/// The store of leases is ours: to the network its failures are all alike.
fn network_kind(error: &berth_network::Error) -> ErrorKind {
    let (berth_network::Error::Lease { source, .. } | berth_network::Error::ListLeases(source)) =
        error
    else {
        return error.kind();
    };
    let stored = source.downcast_ref::<berth_metadata::Error>();
    stored.map_or_else(|| error.kind(), berth_metadata::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_registry_that_is_silent_is_unavailable_as_one_that_is_away() {
        // The kernel accepts for a listener that never does.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let away = "127.0.0.1:1/a".to_owned();
        let silent_one = format!("{}/a", silent.local_addr().unwrap());
        let config = berth_registry::Config {
            response_timeout: Duration::from_millis(20),
            backoff: Duration::from_millis(1),
            ..<_>::default()
        };
        let client = berth_registry::Client::new(config).unwrap();
        for (name, kind) in
            [(away, ErrorKind::Unavailable), (silent_one, ErrorKind::DeadlineExceeded)]
        {
            let asked = client.repository(&name.parse().unwrap(), None).resolve().await;
            let source = Box::new(asked.unwrap_err());
            let failed = berth_image::Error::Registry { action: "resolve image", source };
            let error = Error::image("pull", &name)(failed);
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.is_registry_unavailable(), "{error:?}");
            assert!(Error::Shared(Arc::new(error)).is_registry_unavailable());
        }
        let limit = Duration::from_secs(1);
        let slow = berth_image::Error::Deadline { reference: "a".into(), limit };
        assert!(!Error::image("pull", "a")(slow).is_registry_unavailable());
    }

    #[test]
    fn a_full_disk_is_seen_through_the_network() {
        let full = berth_metadata::Error::File {
            action: "write",
            path: "/pods.db".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let sandbox = SandboxId::new("pod").unwrap();
        let source = berth_network::Error::Lease {
            operation: "lease address",
            sandbox: sandbox.clone(),
            source: Box::new(full),
        };
        let error = Error::Network { action: "attach network", sandbox, source };
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    }
}
