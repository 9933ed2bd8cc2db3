//! `strace`, attached to a running process and to whatever that spawns.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(30);
/// How long nothing must be called before what was asked for counts as done.
const SILENCE: Duration = Duration::from_millis(100);

/// A trace that grows.
#[derive(Debug)]
pub(crate) struct Tracer {
    process: Child,
    file: PathBuf,
    /// How much of the file was cut off already.
    cut: u64,
}

impl Tracer {
    /// Attaches to every thread of `pid`; their calls go to `file`.
    pub(crate) fn attach(pid: u32, file: PathBuf) -> Result<Self> {
        let process = Command::new("strace")
            // What a descriptor is, no content, no structure but the flags of clone3.
            .args([
                "-f",
                "--quiet=attach,personality",
                "-y",
                "-s",
                "0",
                "-e",
                "verbose=clone3",
                "-e",
                "signal=none",
            ])
            .arg("-o")
            .arg(&file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start strace (Debian package strace)")?;
        let mut tracer = Self { process, file, cut: 0 };
        let deadline = Instant::now() + DEADLINE;
        while !traced(pid)? {
            if let Some(status) = tracer.process.try_wait()? {
                bail!("strace ended at once: {status}");
            }
            ensure!(Instant::now() < deadline, "strace did not attach to {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(tracer)
    }

    /// Waits until nothing more is called; the calls since the last cut.
    pub(crate) async fn cut(&mut self) -> Result<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut end = self.length()?;
        loop {
            tokio::time::sleep(SILENCE).await;
            let now = self.length()?;
            if now == end {
                break;
            }
            end = now;
            ensure!(Instant::now() < deadline, "what is traced does not come to rest");
        }
        self.take()
    }

    /// The calls since the last cut, at once.
    pub(crate) fn take(&mut self) -> Result<String> {
        let end = self.length()?;
        let mut file = File::open(&self.file).context("open the trace")?;
        file.seek(SeekFrom::Start(self.cut))?;
        let mut text = Vec::new();
        file.take(end - self.cut).read_to_end(&mut text).context("read the trace")?;
        // A line that is being written belongs to the next piece.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        text.truncate(whole);
        self.cut += u64::try_from(whole)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn length(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file).context("look at the trace")?.len())
    }
}

impl Drop for Tracer {
    /// Lets go of what is traced, which runs on.
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).map(Pid::from_raw);
        // Ended by itself: nothing is traced any more.
        pid.map(|pid| kill(pid, Signal::SIGTERM).ok()).ok();
        self.process.wait().ok();
    }
}

/// Whether each thread of `pid` has a tracer.
fn traced(pid: u32) -> Result<bool> {
    let threads = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))
        .with_context(|| format!("list the threads of {pid}"))?;
    for thread in threads {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.is_none_or(|tracer| tracer.trim() == "0") {
            return Ok(false);
        }
    }
    Ok(true)
}
