//! Wanted state and image configuration → OCI runtime specification.
//!
//! ```text
//! ContainerSpec (request) ─┐
//! ImageConfiguration ──────┼─▶ Wanted ─▶ build() ─▶ oci_spec::runtime::Spec
//! sandbox, node, defaults ─┘
//! ```
//!
//! Pure functions: nothing here does I/O, reads a clock or asks the kernel; what must be
//! read (the image's `/etc/passwd`, a seccomp profile, device nodes) is handed in.
//!
//! Invariants: policy comes from the request alone: no label of an image and no
//! annotation of a request reaches the specification. Inheritable capabilities are empty
//! unless ambient ones were asked for. The specification states the lowest `ociVersion`
//! that knows its fields. Not here: performing any of it (`oci-runtime`), BPF (`seccomp`).

mod annotations;
mod build;
pub mod capabilities;
mod error;
mod ids;
mod mounts;
mod process;
mod resources;
pub mod seccomp;
mod security;
pub mod signal;
pub mod sysctl;
pub mod user;
mod version;
mod wanted;

pub use annotations::{ENV_ANNOTATION, EXACT_ANNOTATION, PREFIX};
pub use build::build;
pub use error::Error;
pub use mounts::{IMAGE_MOUNT, SHARED_MOUNT, SUB_PATH};
pub use process::exec_process;
pub use resources::{ChangedLimits, changed_limits};
pub use security::{default_masked_paths, default_readonly_paths};
pub use wanted::{Defaults, DeviceMount, HostDevice, Labels, Rlimit, SandboxFiles, Shm, Wanted};
