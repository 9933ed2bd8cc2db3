//! Seccomp profiles of the OCI runtime specification, compiled to BPF.
//!
//! [`compile`] resolves names to numbers for each architecture of the profile, orders the
//! numbers into ranges of equal outcome, and writes a search tree over them (design decision
//! 15). The result does what libseccomp and runc make of the same profile:
//!
//! - a name that no architecture has is skipped; so is an entry with the default action;
//! - entries for one call are alternatives, and the first that holds decides; an entry without
//!   conditions outranks every entry with conditions;
//! - the conditions of an entry must all hold, unless one argument is named twice: then each
//!   stands alone;
//! - numbers above the newest call that the profile names give `ENOSYS` when the default
//!   action refuses, so that programs fall back to older calls;
//! - an architecture that the profile does not name is killed; the machine's own is implied;
//! - arguments are compared over 64 bits on 64-bit architectures, over the lower 32 on others.
//!   A parameter that the kernel takes as `int` needs `SCMP_CMP_MASKED_EQ` to be compared
//!   safely: the bits above it are the caller's to choose.
//!
//! Stricter than libseccomp: on 32-bit x86 an entry that allows a call under conditions does
//! not also allow it through `socketcall` or `ipc`, where no filter sees the arguments.
//!
//! Invariants: pure, no syscalls; a program is never longer than the kernel takes. Not here:
//! the default profile (`spec`), loading (`sys`), `SCMP_ACT_NOTIFY` (a typed error).

mod arch;
mod cache;
mod compile;
mod error;
mod graph;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use arch::Abi;
pub use error::Error;

/// One classic BPF instruction, as seccomp(2) takes it.
pub type Instruction = libc::sock_filter;

static CACHE: cache::Cache = cache::Cache::new();

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

    /// `SECCOMP_FILTER_FLAG_*` bits of the profile. Those that mean nothing to a
    /// single-threaded program without a listener are left out, as in runc.
    pub fn flags(&self) -> libc::c_ulong {
        self.flags
    }
}

/// Compiles `profile`, or returns the program of an equal profile compiled earlier
/// in this process. A process that forks to load should compile before it forks.
///
/// # Errors
/// Every [`Error`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Arc<Program>, Error> {
    let key = cache::key(profile);
    if let Some(program) = CACHE.find(&key) {
        return Ok(program);
    }
    let native = Abi::native().ok_or(Error::NativeArchitecture)?;
    let instructions = compile::compile(profile, native)?;
    let program = Arc::new(Program { instructions, flags: flags(profile) });
    CACHE.keep(key, &program);
    Ok(program)
}

fn flags(profile: &LinuxSeccomp) -> libc::c_ulong {
    profile.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
                }
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync
                | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}
