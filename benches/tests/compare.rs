//! A comparison beside containerd, where it is installed: its page, and that nothing is left
//! after the end and after an interruption.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A directory for all that a comparison makes, unless none can be made here.
fn place(test: &str) -> Result<Option<TempDir>> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let installed = |name: &str| folders.iter().any(|dir| Path::new(dir).join(name).is_file());
    let needed = ["containerd", "containerd-shim-runc-v2", "runc", "iptables", "docker-registry"];
    if !nix::unistd::geteuid().is_root() {
        berth_testkit::skip(test, "not root");
        return Ok(None);
    }
    if let Some(missing) = needed.iter().find(|name| !installed(name)) {
        berth_testkit::skip(test, &format!("{missing} is not installed: cargo xtask bench does"));
        return Ok(None);
    }
    if !Path::new("/usr/lib/cni/bridge").is_file() {
        berth_testkit::skip(test, "no CNI plugins are installed: cargo xtask bench does");
        return Ok(None);
    }
    Ok(Some(tempfile::tempdir()?))
}

/// `berth-bench compare` with containerd and runc alone, which waits for no quiet machine.
fn compare(place: &Path, step: &str) -> Result<Child> {
    fs::create_dir(place.join("tmp"))?;
    Command::new(env!("CARGO_BIN_EXE_berth-bench"))
        .args([
            "compare",
            "--quick",
            "--only",
            "runc",
            "--patience",
            "0",
            "--steps",
            step,
            "--into",
        ])
        .arg(place.join("page"))
        .env("TMPDIR", place.join("tmp"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start berth-bench")
}

/// No file, no process and no cgroup of the comparison that had `pid` is left.
fn nothing_is_left(place: &Path, pid: u32) -> Result<()> {
    let files: Vec<_> =
        fs::read_dir(place.join("tmp"))?.flatten().map(|file| file.path()).collect();
    ensure!(files.is_empty(), "files are left: {files:?}");
    let own = place.as_os_str().as_encoded_bytes();
    for process in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let left = command.windows(own.len()).any(|window| window == own);
        ensure!(
            !left,
            "{} is left: {}",
            process.path().display(),
            String::from_utf8_lossy(&command)
        );
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten().filter(|dir| dir.path().is_dir()) {
        for cgroup in fs::read_dir(hierarchy.path())?.flatten() {
            let name = cgroup.file_name().to_string_lossy().into_owned();
            let left = name.starts_with(&format!("berth-bench-{pid}-"));
            ensure!(!left, "{} is left", cgroup.path().display());
        }
    }
    Ok(())
}

#[test]
fn a_comparison_writes_its_page_and_leaves_nothing() -> Result<()> {
    let Some(place) = place("a_comparison_writes_its_page")? else { return Ok(()) };
    let child = compare(place.path(), "exec")?;
    let pid = child.id();
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{said}");
    let page = fs::read_to_string(place.path().join("page/RESULTS.md"))?;
    for part in ["| containerd + runc | containerd 1.", "## exec", "| ExecSync | ms |"] {
        ensure!(page.contains(part), "{part:?} is not in the page:\n{page}");
    }
    nothing_is_left(place.path(), pid)
}

#[test]
fn an_interrupted_comparison_leaves_nothing() -> Result<()> {
    let Some(place) = place("an_interrupted_comparison")? else { return Ok(()) };
    let mut child = compare(place.path(), "density")?;
    let pid = child.id();
    let mut said = BufReader::new(child.stderr.take().context("its standard error is ours")?);
    let mut line = String::new();
    while !line.contains("density") {
        line.clear();
        ensure!(said.read_line(&mut line)? > 0, "it ended before it measured");
    }
    // In the midst of its pods.
    std::thread::sleep(std::time::Duration::from_secs(2));
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
    // Read to the end, lest it waits for us.
    let rest = std::io::read_to_string(said)?;
    ensure!(!child.wait()?.success(), "interrupted, it was well all the same");
    ensure!(rest.contains("interrupted"), "{rest}");
    nothing_is_left(place.path(), pid)
}
