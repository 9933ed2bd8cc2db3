//! A disposable node for tests and the demo: images, a real registry, a daemon.
//!
//! Everything a [`Node`] makes is its own: directories, sockets, cgroups, and a
//! [`Machine`] that holds the registry, the daemon and its bridge. It talks to the daemon by
//! the CRI socket only, as kubelet does, and can prove that nothing is left.

pub mod cri;
pub mod disk;
pub mod image;
pub mod kubelet;
pub mod log;
pub mod nri;
pub mod registry;
pub mod tar;
pub mod tls;

mod http;
mod machine;
mod node;

pub use cri::{
    Cri, bind, container_config, resources, sandbox_config, sandbox_security, script, security,
};
pub use disk::{Disk, SmallDisk, SmallDisks};
pub use machine::Machine;
pub use node::{
    Daemon, Disks, Failpoint, Finished, Known, Node, NodeOptions, Pod, binaries, failpoints,
    previous, remove_cgroups,
};

/// Reports, for the summary of `cargo xtask test`, that a test cannot run here.
#[allow(clippy::print_stdout, reason = "the summary reads what tests print")]
pub fn skip(test: &str, reason: &str) {
    println!("skipped: {test}: {reason}");
}
