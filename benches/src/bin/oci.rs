//! `berth-bench-oci run --bundle DIR ID`: crate `oci-runtime` behind as much of runc's command
//! line as a benchmark needs.
//!
//! It makes the container that the bundle's `config.json` asks for, waits for its end, removes
//! its cgroup, and exits as it did. It is for measuring only: there is no `create`, because
//! between two commands somebody would have to hold what was created, and nothing is kept.
//! Built as the shim is: static, not position independent.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use berth_cgroup::Hierarchy;
use berth_oci_runtime::{CreateRequest, SharedMounts, Stdio, create, start};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Spec;

const USAGE: &str = "usage: berth-bench-oci run --bundle DIR ID";
/// How long a container may take until its program is executed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest `config.json`, bytes.
const MAX_SPEC: u64 = 16 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("berth-bench-oci: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (bundle, id) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", "--bundle" | "-b", bundle, id] => (PathBuf::from(bundle), id),
        _ => bail!(USAGE),
    };
    let bundle =
        bundle.canonicalize().with_context(|| format!("find bundle {}", bundle.display()))?;
    let spec = spec(&bundle)?;
    let cgroups = Hierarchy::detect().context("find the cgroups of this machine")?;
    let request = CreateRequest {
        id,
        bundle: &bundle,
        spec: &spec,
        rootfs: &[],
        stdio: stdio()?,
        shared: &SharedMounts::none(),
        cgroups: &cgroups,
    };
    let creating = create(request).with_context(|| format!("create {id}"))?;
    let created = creating.wait(PATIENCE).with_context(|| format!("create {id}"))?;
    let started = start(created.start, PATIENCE).with_context(|| format!("start {id}"));
    // Its end is waited for in any case: a program that cannot be executed ends too.
    let code = exit_code(&created.pidfd).with_context(|| format!("wait for {id}"))?;
    if let Some(cgroup) = created.cgroup {
        cgroup.remove().with_context(|| format!("remove cgroup of {id}"))?;
    }
    started.map(|()| code)
}

fn spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(MAX_SPEC).read_to_end(&mut text))
        .with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

/// The container writes where this program writes.
fn stdio() -> Result<Stdio> {
    let own = |stream: std::io::Result<OwnedFd>| stream.context("duplicate a standard stream");
    Ok(Stdio::Fds {
        stdin: own(std::io::stdin().as_fd().try_clone_to_owned())?,
        stdout: own(std::io::stdout().as_fd().try_clone_to_owned())?,
        stderr: own(std::io::stderr().as_fd().try_clone_to_owned())?,
    })
}

fn exit_code(pidfd: &OwnedFd) -> Result<ExitCode> {
    loop {
        if let Some(status) = berth_sys::process::reap(pidfd.as_fd())? {
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => bail!("it ended neither by itself nor by a signal"),
            };
            return Ok(ExitCode::from(u8::try_from(code)?));
        }
        // EINTR: look again.
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).ok();
    }
}
