//! seccomp profiles as data: the default one, and those a node's operator wrote.
//!
//! A profile is a list of rules over system calls (OCI runtime specification,
//! config-linux, "Seccomp"); crate `seccomp` turns it into a BPF program.

mod allowed;
mod default;
mod parse;

pub use default::default_profile;
pub use parse::{MAX_PROFILE_BYTES, parse};

use oci_spec::runtime::{Arch, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator};

/// Name of the machine as docker's profile format has it (Go's `GOARCH`).
const MACHINE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "riscv64") {
    "riscv64"
} else {
    "other"
};

/// The native architecture and those whose system calls the kernel takes beside it.
fn native() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else if cfg!(target_arch = "riscv64") {
        vec![Arch::ScmpArchRiscv64]
    } else {
        vec![Arch::ScmpArchNative]
    }
}

fn condition(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    second: Option<u64>,
) -> LinuxSeccompArg {
    let arg = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    let arg = match second {
        Some(second) => arg.value_two(second),
        None => arg,
    };
    arg.build().expect("every field has a default")
}

#[cfg(test)]
mod tests;
