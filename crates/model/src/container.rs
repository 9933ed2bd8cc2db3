//! Containers: what a client wants of one, and where it is in its life.
//!
//! ```text
//! (none) --create--> Created --start--> Running --exit--> Exited --remove--> (none)
//!                       └────────────── start failed ───────────────┘
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::mount::BindMount;
pub use crate::profile::{Profile, SelinuxOptions};
use crate::sandbox::NamespaceOptions;

/// The name under which a client knows a container within its sandbox.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct ContainerName {
    /// Container name.
    pub name: String,
    /// Which try this is; a client raises it at each restart.
    pub attempt: u32,
}

/// One environment variable; the value is bytes, since execve(2) knows no encoding.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name: no `=` and no NUL.
    pub name: String,
    /// Value: any bytes but NUL.
    pub value: Vec<u8>,
}

/// A device node of the host that a container asks to see.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container.
    pub container_path: PathBuf,
    /// Path on the host.
    pub host_path: PathBuf,
    /// What cgroup device rules allow: a string of `r`, `w`, `m`.
    pub permissions: String,
}

/// Who runs the first process of a container.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum RunAs {
    /// Whoever the image names, or root.
    #[default]
    Image,
    /// A user id, and a group id if one was asked for.
    Id {
        /// User id.
        uid: u32,
        /// Group id; `None` means the user's own in the image's `/etc/passwd`, or 0.
        gid: Option<u32>,
    },
    /// A user name of the image's `/etc/passwd`, and a group id if one was asked for.
    Name {
        /// User name; digits in it are never read as a user id.
        user: String,
        /// Group id; `None` means the user's own.
        gid: Option<u32>,
    },
}

/// How supplementary groups are found (CRI `SupplementalGroupsPolicy`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// Those asked for and those the image's `/etc/group` lists for the user.
    #[default]
    Merge,
    /// Only those asked for.
    Strict,
}

/// The security context of a container (CRI `LinuxContainerSecurityContext`).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Security {
    /// Capabilities added to the default set, without `CAP_`; `ALL` is all.
    pub add_capabilities: Vec<String>,
    /// Capabilities dropped from the default set; `ALL` is all.
    pub drop_capabilities: Vec<String>,
    /// Ambient capabilities.
    pub add_ambient_capabilities: Vec<String>,
    /// All capabilities, all devices, no masks, no seccomp.
    pub privileged: bool,
    /// Whose namespaces the container uses.
    pub namespaces: NamespaceOptions,
    /// Who runs it.
    pub run_as: RunAs,
    /// Groups beside the primary one.
    pub supplemental_groups: Vec<u32>,
    /// How the groups beside the primary one are found.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Whether execve(2) may never raise privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// Paths hidden in the container; `None` means the runtime's default list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths made read-only in the container; `None` means the runtime's default list.
    pub readonly_paths: Option<Vec<String>>,
    /// Which seccomp profile applies.
    pub seccomp: Profile,
    /// Which AppArmor profile applies.
    #[serde(default, skip_serializing_if = "Profile::is_default")]
    pub apparmor: Profile,
    /// Which SELinux context applies; `None` is the sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxOptions>,
}

/// Limits of a container (CRI `LinuxContainerResources`); zero and `None` mean "not set".
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period, microseconds.
    pub cpu_period: i64,
    /// CFS quota per period, microseconds; negative means no limit.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144 (cgroup v1 `cpu.shares`).
    pub cpu_shares: i64,
    /// Memory limit, bytes.
    pub memory_limit: i64,
    /// Memory and swap limit together, bytes.
    pub memory_swap_limit: i64,
    /// `oom_score_adj` of the first process, −1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs it may use (cpuset(7) list format).
    pub cpuset_cpus: String,
    /// Memory nodes it may use (cpuset(7) list format).
    pub cpuset_mems: String,
    /// Huge page limits, bytes by page size (`2MB`).
    pub hugepage_limits: BTreeMap<String, u64>,
    /// cgroup v2 files written as they are.
    pub unified: BTreeMap<String, String>,
    /// Most processes; `None` means the daemon's default.
    pub pids_limit: Option<i64>,
}

impl Resources {
    /// These limits, changed to what `asked` has set: zero and nothing leave a limit as it is.
    #[must_use]
    pub fn changed(&self, asked: &Self) -> Self {
        let number = |old: i64, new: i64| if new == 0 { old } else { new };
        let text = |old: &String, new: &String| if new.is_empty() { old } else { new }.clone();
        let mut all = self.clone();
        all.cpu_period = number(self.cpu_period, asked.cpu_period);
        all.cpu_quota = number(self.cpu_quota, asked.cpu_quota);
        all.cpu_shares = number(self.cpu_shares, asked.cpu_shares);
        all.memory_limit = number(self.memory_limit, asked.memory_limit);
        all.memory_swap_limit = match asked.memory_swap_limit {
            0 if asked.memory_limit != 0 => {
                swap_kept(self.memory_limit, self.memory_swap_limit, asked.memory_limit)
            }
            swap => number(self.memory_swap_limit, swap),
        };
        all.oom_score_adj = number(self.oom_score_adj, asked.oom_score_adj);
        all.cpuset_cpus = text(&self.cpuset_cpus, &asked.cpuset_cpus);
        all.cpuset_mems = text(&self.cpuset_mems, &asked.cpuset_mems);
        all.hugepage_limits.extend(asked.hugepage_limits.clone());
        all.unified.extend(asked.unified.clone());
        all.pids_limit = asked.pids_limit.or(self.pids_limit);
        all
    }
}

/// The limit of memory and swap together once that of memory alone is `new`: there is as much
/// swap as before, as in cgroup v2, whose `memory.swap.max` is a limit of its own.
#[must_use]
pub fn swap_kept(memory: i64, both: i64, new: i64) -> i64 {
    match (memory, both) {
        (_, ..=0) => both,
        _ if new < 0 => -1,
        (1.., _) => new.saturating_add(both.saturating_sub(memory)),
        _ => both.max(new),
    }
}

/// What a client wants of a container (CRI `ContainerConfig`).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The client's name for it.
    pub name: ContainerName,
    /// The image, as the client names it: an id or a reference.
    pub image: String,
    /// What the user wrote, returned untouched.
    pub user_specified_image: String,
    /// Replaces the image's entry point.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Working directory; `None` means the image's, or `/`.
    pub working_dir: Option<PathBuf>,
    /// Variables added to the image's.
    pub env: Vec<EnvVar>,
    /// Bind mounts, in order.
    pub mounts: Vec<BindMount>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Devices by the names that their vendors give them (CDI: `vendor/class=device`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// The client's labels, for its filters.
    pub labels: BTreeMap<String, String>,
    /// The client's annotations, returned untouched and never obeyed; one of them tells
    /// kubelet's retries ([`ContainerSpec::repeats`]).
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the sandbox's log directory; `None` means no log.
    pub log_path: Option<PathBuf>,
    /// Whether standard input is kept open for attach.
    pub stdin: bool,
    /// Whether standard input is closed after the first attach.
    pub stdin_once: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Security context.
    pub security: Security,
    /// Signal that asks it to stop, by name (`SIGQUIT`); `None` means the image's, or `SIGTERM`.
    pub stop_signal: Option<String>,
}

/// The annotation in which kubelet says where a container finds its termination log.
const TERMINATION_LOG: &str = "io.kubernetes.container.terminationMessagePath";

impl ContainerSpec {
    /// Whether this asks again for what `earlier` asked for.
    ///
    /// kubelet's retry is not the same byte for byte: it walks services and devices in no
    /// order, and makes a new file for the termination log each time (`makeMounts` of its
    /// kuberuntime). It reads that file where the container's status says it is, so the
    /// one of the earlier request serves as well.
    #[must_use]
    pub fn repeats(&self, earlier: &Self) -> bool {
        self.comparable() == earlier.comparable()
    }

    /// Without what a retry may change: equal for requests that want the same.
    fn comparable(&self) -> Self {
        let mut spec = self.clone();
        let log = spec.annotations.get(TERMINATION_LOG).map(PathBuf::from);
        for mount in &mut spec.mounts {
            if Some(&mount.container_path) == log.as_ref() {
                mount.host_path.set_file_name("");
            }
        }
        // Stable sorts: of two for one name the last counts, and goes on counting.
        spec.env.sort_by(|a, b| a.name.cmp(&b.name));
        spec.mounts.sort_by(|a, b| a.container_path.cmp(&b.container_path));
        spec.cdi_devices.sort();
        spec.devices.sort_by(|a, b| a.container_path.cmp(&b.container_path));
        spec
    }
}

/// Nanoseconds since the Unix epoch, as the CRI reports times. Zero means "not yet".
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// A time before the epoch is the epoch, and one that does not fit is the last that does.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// How a container ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 and the signal's number for a killed one, 128 for one that
    /// could not be executed, 255 when the code was lost with the shim.
    pub code: i32,
    /// When it ended.
    pub at: Timestamp,
    /// Why, in one word for machines.
    pub reason: ExitReason,
    /// Why, for people; empty when the code says it all.
    pub message: String,
}

/// Why a container ended (CRI `ContainerStatus.reason`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed it for its memory limit.
    OomKilled,
    /// The program could not be executed.
    StartError,
    /// Its shim is gone, and its exit code with it.
    ShimLost,
}

impl ExitReason {
    /// The word kubelet and people know.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ShimLost => "Unknown",
        }
    }
}

/// Where a container is in its life (CRI `ContainerState`).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Recorded, with its snapshot; no process yet.
    Created,
    /// Its first process was executed.
    Running {
        /// Process id of the first process, on the node.
        pid: u32,
        /// When it was executed.
        started_at: Timestamp,
    },
    /// Its first process ended, or was never executed.
    Exited {
        /// When it was executed; zero if never.
        started_at: Timestamp,
        /// How it ended.
        exit: Exit,
    },
}

/// What happens to a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ContainerEvent {
    /// Its program was executed.
    Started {
        /// Process id of the first process, on the node.
        pid: u32,
        /// When.
        at: Timestamp,
    },
    /// Its first process ended, or could not be executed.
    Exited(Exit),
}

/// A transition that no container makes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("container in state {} cannot take event {event:?}", state.name())]
pub struct InvalidTransition {
    /// Where it is.
    pub state: ContainerState,
    /// What was said to have happened.
    pub event: ContainerEvent,
}

impl ContainerState {
    /// Decides only: the driver stores the answer, publishes it, then acts on it.
    pub fn apply(self, event: ContainerEvent) -> Result<Self, InvalidTransition> {
        match (self, event) {
            (Self::Created, ContainerEvent::Started { pid, at }) => {
                Ok(Self::Running { pid, started_at: at })
            }
            (Self::Created, ContainerEvent::Exited(exit)) => {
                Ok(Self::Exited { started_at: Timestamp::default(), exit })
            }
            (Self::Running { started_at, .. }, ContainerEvent::Exited(exit)) => {
                // The clock may have been set back in between.
                let at = exit.at.max(started_at);
                Ok(Self::Exited { started_at, exit: Exit { at, ..exit } })
            }
            (state, event) => Err(InvalidTransition { state, event }),
        }
    }

    /// One word for messages and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
