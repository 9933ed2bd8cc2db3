//! The `delete` command: cleans up what a shim that died has left.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use berth_cgroup::Hierarchy;
use berth_oci_runtime::cgroup_path;
use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;

use crate::args::Args;
use crate::container::read_spec;
use crate::end;
use crate::error::Error;
use crate::events::timestamp;
use crate::reaper::Exit;
use crate::start::containerd_socket;

/// Killed, with its shim: 128 and SIGKILL. One that had ended before has its own code.
const KILLED: u32 = 137;
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Kills and removes the container's cgroup, and says how it ended.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|source| Error::Io("find bundle", source))?,
    };
    let exit = end::of(&bundle);
    remove_cgroup(&args.id, &bundle)?;
    let socket = std::env::var_os("BERTH_SOCKET").map(PathBuf::from);
    match std::fs::remove_file(socket.unwrap_or_else(|| containerd_socket(args, None))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Io("remove socket", error));
        }
        _ => {}
    }
    let mut response = DeleteResponse::new();
    let killed = || Exit { code: KILLED, at: berth_failpoint::now() };
    let exit = exit.unwrap_or_else(killed);
    response.exit_status = exit.code;
    response.exited_at = Some(timestamp(exit.at)).into();
    let failed = |source| Error::Io("answer", source);
    let answer = response.write_to_bytes().map_err(|error| failed(io::Error::other(error)))?;
    let mut stdout = io::stdout();
    stdout.write_all(&answer).and_then(|()| stdout.flush()).map_err(failed)
}

fn remove_cgroup(id: &str, bundle: &Path) -> Result<(), Error> {
    let spec = match read_spec(bundle) {
        // No bundle, no container: the shim died before there was one.
        Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        other => other?,
    };
    // The shim has refused such a spec as well, so there never was a container.
    let Ok(path) = cgroup_path(id, &spec) else { return Ok(()) };
    let cgroup = match Hierarchy::detect()?.open(&path) {
        Err(berth_cgroup::Error::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    let until = Instant::now() + GONE;
    loop {
        cgroup.kill_all()?;
        match cgroup.remove() {
            Err(berth_cgroup::Error::Busy { .. }) if Instant::now() < until => {
                sleep(Duration::from_millis(5));
            }
            result => return Ok(result?),
        }
    }
}
