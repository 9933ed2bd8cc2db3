//! Seccomp profiles of the OCI runtime specification, compiled to BPF.

mod error;

use std::sync::Arc;

use oci_spec::runtime::LinuxSeccomp;

pub use error::Error;

/// One classic BPF instruction, as seccomp(2) takes it.
pub type Instruction = libc::sock_filter;

/// A compiled filter, ready for `seccomp(SECCOMP_SET_MODE_FILTER, flags, instructions)`.
#[derive(Clone, Debug)]
pub struct Program {
    instructions: Box<[Instruction]>,
    flags: libc::c_ulong,
}

impl Program {
    /// What to load; never empty, never more than `BPF_MAXINSNS`.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// `SECCOMP_FILTER_FLAG_*` bits of the profile.
    pub fn flags(&self) -> libc::c_ulong {
        self.flags
    }
}

/// Compiles `profile`, or returns the program of an equal profile compiled earlier
/// in this process.
///
/// # Errors
/// Every [`Error`].
pub fn compile(_profile: &LinuxSeccomp) -> Result<Arc<Program>, Error> {
    todo!()
}
