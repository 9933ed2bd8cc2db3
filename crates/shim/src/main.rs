//! `containerd-shim-berth-v1`: the OCI runtime behind containerd's Task and Sandbox APIs.
//!
//! ```text
//!  start ──fork──▶ shim ──fork──▶ worker ──clone3(CLONE_PARENT)──▶ container's init
//!    │ address      │ ttrpc: service/*                                  ▲
//!    ▼              │ reaper: every child ───────────────────────────┘
//!  berthd           └ io: CRI logs, FIFOs, terminals
//! ```
//!
//! Invariants: one thread, whatever happens; a berthd or containerd that comes or goes
//! changes nothing here; an exit code is kept until its process is deleted, that of a
//! container in its bundle too, so that it outlives the shim; no request waits for a
//! container's mount or program, and none for a log on a file system that others serve
//! (FUSE, NFS): a process of its own writes that. What may stop the thread all the same: a
//! log on a disk of the node that hangs, for as long as it does; undoing a creation whose
//! processes do not die (0.2 s); killing by a cgroup of v1 that does not freeze (0.02 s); an
//! Update to less memory than is in use, while the kernel makes room. Whatever the shim forks
//! dies with it or is in a cgroup that its caller kills. Not here: what a container is made
//! of (`oci-runtime`), networks, images, policy (berthd).

mod args;
mod container;
mod daemon;
mod delete;
mod end;
mod error;
mod events;
mod init;
mod io;
mod log;
mod namespaces;
mod process;
mod reaper;
mod sandbox;
mod service;
mod shim;
mod start;

use std::io::Write;
use std::process::ExitCode;

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

use args::{Action, Args};
use error::Error;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-berth-v1: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    let words = match args.action {
        Action::Start => return start::run(args),
        Action::Delete => return delete::run(args),
        Action::Namespaces => return namespaces::run(),
        Action::Probe => return namespaces::probe(),
        Action::Version => {
            let protocol = berth_api::shim::PROTOCOL;
            format!("containerd-shim-berth-v1:\n  Version:  {version}\n  Protocol: {protocol}\n")
                .into_bytes()
        }
        Action::Info => {
            let mut info = RuntimeInfo::new();
            info.name = "io.containerd.berth.v1".to_owned();
            let mut release = RuntimeVersion::new();
            release.version = version.to_owned();
            info.version = Some(release).into();
            info.write_to_bytes()
                .map_err(|error| Error::Io("encode information", std::io::Error::other(error)))?
        }
    };
    std::io::stdout().write_all(&words).map_err(|source| Error::Io("answer", source))
}
