//! The worker under strace.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::WORKER;
use crate::cases::Case;
use crate::script::Script;

/// What came of a worker.
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) killed: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The calls that touched the store, in an undisturbed run.
    pub(crate) trace: String,
}

/// Why processes cannot be traced here, if they cannot.
pub(crate) fn possible() -> Result<(), String> {
    let traced = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output();
    match traced {
        Err(error) => Err(format!("strace: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Runs the script in a process of its own, undisturbed or with one `case`.
pub(crate) fn run(script: &Script, path: &Path, case: Option<&Case>) -> Ran {
    let log = path.with_file_name("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-qq", "-o"]).arg(&log);
    // Only calls that touch the store are counted, and fail.
    for touched in touched(path).into_iter().chain(script.copied(path)) {
        command.arg("-P").arg(touched);
    }
    match case {
        Some(case) => {
            command.args(["-e", &format!("trace={}", case.call), "-e", &case.injection()])
        }
        None => command.args(["-e", "trace=%file,%desc"]),
    };
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "worker", "--nocapture", "--test-threads=1"]);
    command.env(WORKER, format!("{} {}", script.name, path.display()));
    let output = command.output().unwrap();
    let trace = std::fs::read_to_string(&log).unwrap_or_default();
    std::fs::remove_file(&log).unwrap();
    Ran {
        success: output.status.success(),
        // strace ends as its tracee did, by a signal or with 128 and its number.
        killed: std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9)
            || output.status.code() == Some(137),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        trace,
    }
}

/// A directory for a store; thousands of commits that wait for a disk would measure that.
pub(crate) fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.unwrap()
}

fn touched(path: &Path) -> Vec<PathBuf> {
    let beside = |suffix: &str| {
        let mut name = OsString::from(path);
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut all = vec![path.parent().unwrap().to_owned()];
    all.extend(["", "-wal", "-shm", "-journal"].map(beside));
    all
}
