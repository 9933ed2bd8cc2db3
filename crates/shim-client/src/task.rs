//! The Task API: one container's processes.

use std::path::PathBuf;
use std::time::Duration;

use berth_model::container::Timestamp;
use berth_model::mount::Mount;
use berth_model::{ContainerId, ExecId};
use containerd_shim_protos::api;
use nix::sys::signal::Signal;
use protobuf::well_known_types::any::Any;

use crate::{Error, Shim};

/// Creating may perform mounts of slow file systems; the in-tree shim gives up after 110 s.
const CREATE: Duration = Duration::from_secs(120);
/// Starting waits for execve(2), and making an added process comes before that.
const START: Duration = Duration::from_secs(120);
/// Deleting waits for the last processes of a container, 10 s in the in-tree shim, and for
/// readers of its output.
const DELETE: Duration = Duration::from_secs(15);
/// What touches no disk and starts nothing.
const QUICK: Duration = Duration::from_secs(10);
/// Type under which containerd sends an OCI process.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Type under which containerd sends limits.
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Where a process reads its standard input.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Input {
    /// Nothing to read.
    #[default]
    Null,
    /// A FIFO (fifo(7)) made by the caller.
    Fifo(PathBuf),
    /// A pipe that the in-tree shim holds open, for who attaches later.
    Hold,
}

/// Where a process writes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// A pipe that the in-tree shim reads, for who attaches ([`Shim::drains`]).
    Drain,
    /// A FIFO (fifo(7)) made by the caller.
    Fifo(PathBuf),
    /// A CRI log file, which the in-tree shim writes itself. Both streams of a process
    /// must name the same file.
    CriLog(PathBuf),
}

impl Input {
    fn uri(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Fifo(path) => path.to_string_lossy().into_owned(),
            Self::Hold => "hold:".to_owned(),
        }
    }
}

impl Output {
    fn uri(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Drain => "drain:".to_owned(),
            Self::Fifo(path) => path.to_string_lossy().into_owned(),
            Self::CriLog(path) => format!("cri-log://{}", path.display()),
        }
    }
}

/// A container to create from the bundle that holds its `config.json`.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The container.
    pub id: ContainerId,
    /// Absolute directory with `config.json`.
    pub bundle: PathBuf,
    /// Mounted one over the other at the bundle's `rootfs`; empty when that is there already.
    pub rootfs: Vec<Mount>,
    /// Whether the process gets a terminal; `stderr` must be `Null` then.
    pub terminal: bool,
    /// Standard input.
    pub stdin: Input,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
}

/// A further process to add to a running container; [`Shim::start`] starts it.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// The container.
    pub container: ContainerId,
    /// The caller's name for the process.
    pub id: ExecId,
    /// The OCI `process`, as JSON.
    pub process: Vec<u8>,
    /// Whether the process gets a terminal; `stderr` must be `Null` then.
    pub terminal: bool,
    /// Standard input.
    pub stdin: Input,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
}

/// Names a container's first process, or one added by [`Shim::exec`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// The added process; `None` is the first one.
    pub exec: Option<&'a ExecId>,
}

impl<'a> From<&'a ContainerId> for Process<'a> {
    fn from(container: &'a ContainerId) -> Self {
        Self { container, exec: None }
    }
}

impl Process<'_> {
    fn ids(self) -> (String, String) {
        (self.container.to_string(), self.exec.map(ToString::to_string).unwrap_or_default())
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exited {
    /// Exit code, or 128 and the signal's number.
    pub code: i32,
    /// When it ended.
    pub at: Timestamp,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskStatus {
    /// It waits to be started.
    Created,
    /// It runs.
    Running,
    /// It ended.
    Stopped(Exited),
    /// It is frozen, or being frozen.
    Paused,
    /// The shim does not say.
    Unknown,
}

/// What a shim says of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TaskState {
    /// Pid on the node; 0 when it has none.
    pub pid: u32,
    /// Where it is in its life.
    pub status: TaskStatus,
}

impl Shim {
    /// Creates a container whose process waits to be started; its pid.
    pub async fn create(&self, request: &CreateRequest) -> Result<u32, Error> {
        let mut message = api::CreateTaskRequest::new();
        message.id = request.id.to_string();
        message.bundle = request.bundle.to_string_lossy().into_owned();
        message.rootfs = request.rootfs.iter().map(mount).collect();
        message.terminal = request.terminal;
        message.stdin = request.stdin.uri();
        message.stdout = request.stdout.uri();
        message.stderr = request.stderr.uri();
        let answer: api::CreateTaskResponse = self.task("Create", &message, Some(CREATE)).await?;
        Ok(answer.pid)
    }

    /// Adds a process to a container; it waits for [`Shim::start`].
    pub async fn exec(&self, request: &ExecRequest) -> Result<(), Error> {
        let mut message = api::ExecProcessRequest::new();
        message.id = request.container.to_string();
        message.exec_id = request.id.to_string();
        message.terminal = request.terminal;
        message.stdin = request.stdin.uri();
        message.stdout = request.stdout.uri();
        message.stderr = request.stderr.uri();
        let mut spec = Any::new();
        spec.type_url = PROCESS.to_owned();
        spec.value.clone_from(&request.process);
        message.spec = Some(spec).into();
        self.task::<_, api::Empty>("Exec", &message, Some(QUICK)).await?;
        Ok(())
    }

    /// Starts a process; answers once its program was executed. Its pid.
    ///
    /// [`Error::exec_failure`] tells a program that cannot be executed from other failures.
    pub async fn start(&self, process: impl Into<Process<'_>>) -> Result<u32, Error> {
        let mut message = api::StartRequest::new();
        (message.id, message.exec_id) = process.into().ids();
        let answer: api::StartResponse = self.task("Start", &message, Some(START)).await?;
        Ok(answer.pid)
    }

    /// Waits until a process has ended: for ever, or until the connection is lost. A process
    /// may run for years, so the deadline is the caller's.
    pub async fn wait(&self, process: impl Into<Process<'_>>) -> Result<Exited, Error> {
        let mut message = api::WaitRequest::new();
        (message.id, message.exec_id) = process.into().ids();
        let answer: api::WaitResponse = self.task("Wait", &message, None).await?;
        Ok(exited(answer.exit_status, answer.exited_at.as_ref()))
    }

    /// Where a process is in its life.
    pub async fn state(&self, process: impl Into<Process<'_>>) -> Result<TaskState, Error> {
        let mut message = api::StateRequest::new();
        (message.id, message.exec_id) = process.into().ids();
        let answer: api::StateResponse = self.task("State", &message, Some(QUICK)).await?;
        let status = match answer.status.enum_value_or_default() {
            api::Status::CREATED => TaskStatus::Created,
            api::Status::RUNNING => TaskStatus::Running,
            api::Status::STOPPED => {
                TaskStatus::Stopped(exited(answer.exit_status, answer.exited_at.as_ref()))
            }
            api::Status::PAUSED | api::Status::PAUSING => TaskStatus::Paused,
            api::Status::UNKNOWN => TaskStatus::Unknown,
        };
        Ok(TaskState { pid: answer.pid, status })
    }

    /// Sends a signal to a process, or with `all` to every process of the container.
    ///
    /// `deadline` is the caller's: a shim that does not answer a kill is bypassed.
    pub async fn kill(
        &self,
        process: impl Into<Process<'_>>,
        signal: i32,
        all: bool,
        deadline: Duration,
    ) -> Result<(), Error> {
        let mut message = api::KillRequest::new();
        (message.id, message.exec_id) = process.into().ids();
        message.signal = u32::try_from(signal).unwrap_or(Signal::SIGKILL as u32);
        message.all = all;
        self.task::<_, api::Empty>("Kill", &message, Some(deadline)).await?;
        Ok(())
    }

    /// Forgets an ended process; for the first one, removes the container's cgroup too.
    pub async fn delete(&self, process: impl Into<Process<'_>>) -> Result<Exited, Error> {
        let mut message = api::DeleteRequest::new();
        (message.id, message.exec_id) = process.into().ids();
        let answer: api::DeleteResponse = self.task("Delete", &message, Some(DELETE)).await?;
        Ok(exited(answer.exit_status, answer.exited_at.as_ref()))
    }

    /// The pids of a container, as the node numbers them.
    pub async fn pids(&self, container: &ContainerId) -> Result<Vec<u32>, Error> {
        let mut message = api::PidsRequest::new();
        message.id = container.to_string();
        let answer: api::PidsResponse = self.task("Pids", &message, Some(QUICK)).await?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// Metrics in the shim's own type: its URL and the encoded message.
    pub async fn stats(&self, container: &ContainerId) -> Result<(String, Vec<u8>), Error> {
        let mut message = api::StatsRequest::new();
        message.id = container.to_string();
        let answer: api::StatsResponse = self.task("Stats", &message, Some(QUICK)).await?;
        let stats = answer.stats.unwrap_or_default();
        Ok((stats.type_url, stats.value))
    }

    /// Changes the limits of a container: `resources` is an OCI `LinuxResources` as JSON, and
    /// what it does not name stays.
    pub async fn update(&self, container: &ContainerId, resources: &[u8]) -> Result<(), Error> {
        let mut message = api::UpdateTaskRequest::new();
        message.id = container.to_string();
        let mut any = Any::new();
        any.type_url = RESOURCES.to_owned();
        any.value = resources.to_vec();
        message.resources = Some(any).into();
        self.task::<_, api::Empty>("Update", &message, Some(QUICK)).await?;
        Ok(())
    }

    /// Freezes every process of a container.
    pub async fn pause(&self, container: &ContainerId) -> Result<(), Error> {
        let mut message = api::PauseRequest::new();
        message.id = container.to_string();
        self.task::<_, api::Empty>("Pause", &message, Some(QUICK)).await?;
        Ok(())
    }

    /// Thaws every process of a container.
    pub async fn resume(&self, container: &ContainerId) -> Result<(), Error> {
        let mut message = api::ResumeRequest::new();
        message.id = container.to_string();
        self.task::<_, api::Empty>("Resume", &message, Some(QUICK)).await?;
        Ok(())
    }

    /// Tells a process the size of its terminal, in characters.
    pub async fn resize(
        &self,
        process: impl Into<Process<'_>>,
        width: u16,
        height: u16,
    ) -> Result<(), Error> {
        let mut message = api::ResizePtyRequest::new();
        (message.id, message.exec_id) = process.into().ids();
        message.width = width.into();
        message.height = height.into();
        self.task::<_, api::Empty>("ResizePty", &message, Some(QUICK)).await?;
        Ok(())
    }

    /// Closes a process's standard input.
    pub async fn close_stdin(&self, process: impl Into<Process<'_>>) -> Result<(), Error> {
        let mut message = api::CloseIORequest::new();
        (message.id, message.exec_id) = process.into().ids();
        message.stdin = true;
        self.task::<_, api::Empty>("CloseIO", &message, Some(QUICK)).await?;
        Ok(())
    }

    /// The shim's own pid, by its word.
    pub async fn shim_pid(&self, container: &str) -> Result<u32, Error> {
        let mut message = api::ConnectRequest::new();
        message.id = container.to_owned();
        let answer: api::ConnectResponse = self.task("Connect", &message, Some(QUICK)).await?;
        Ok(answer.shim_pid)
    }

    /// Asks a shim without a sandbox to exit, which it does once it has no containers.
    pub async fn shutdown(&self, id: &str) -> Result<(), Error> {
        let mut message = api::ShutdownRequest::new();
        message.id = id.to_owned();
        self.task::<_, api::Empty>("Shutdown", &message, Some(QUICK)).await?;
        Ok(())
    }
}

/// A mount as the protocol carries it.
pub(crate) fn mount(from: &Mount) -> api::Mount {
    let mut to = api::Mount::new();
    to.type_.clone_from(&from.fs_type);
    to.source.clone_from(&from.source);
    to.options.clone_from(&from.options);
    to
}

fn exited(code: u32, at: Option<&protobuf::well_known_types::timestamp::Timestamp>) -> Exited {
    Exited { code: i32::try_from(code).unwrap_or(255), at: at.map(timestamp).unwrap_or_default() }
}

/// Nanoseconds since the epoch; what does not fit saturates.
pub(crate) fn timestamp(at: &protobuf::well_known_types::timestamp::Timestamp) -> Timestamp {
    Timestamp(at.seconds.saturating_mul(1_000_000_000).saturating_add(at.nanos.into()))
}
