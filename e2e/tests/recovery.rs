//! What a daemon finds at its start: pods that ran on, pods that ended, what a reboot or a
//! crash left, shims that do not answer. Damaged stores are in `stores.rs`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_metadata::{PodStore, ShimRecord};
use berth_testkit::{
    Node, NodeOptions, Pod, binaries, bind, container_config, log, remove_cgroups, resources,
    script,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The bound for a start with a tenth of the shims wedged.
const WEDGED_START: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(20);

/// Lines that a container's shell runs until `/data/go` is there.
const WAIT: &str = "while [ ! -e /data/go ]; do sleep 0.02; done";

fn shim_of(node: &Node, sandbox: &str) -> Result<Pid> {
    let named = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains(sandbox)
    };
    let pid = node.processes()?.into_iter().find(named);
    Ok(Pid::from_raw(i32::try_from(pid.with_context(|| format!("no shim of {sandbox}"))?)?))
}

/// When the process started: field 22 of `/proc/PID/stat`.
fn started(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("no name in stat")?.1;
    Ok(rest.split_ascii_whitespace().nth(19).context("stat is short")?.parse()?)
}

/// A foreign program with the number, and then some, of a shim of the boot before.
struct Foreign {
    process: std::process::Child,
    socket: UnixListener,
}

impl Foreign {
    fn start(socket: &Path) -> Result<Self> {
        let process = std::process::Command::new("/bin/sleep").arg("1000").spawn()?;
        let socket = UnixListener::bind(socket)?;
        socket.set_nonblocking(true)?;
        Ok(Self { process, socket })
    }

    fn assert_untouched(mut self) -> Result<()> {
        assert!(self.process.try_wait()?.is_none(), "a foreign process was ended");
        self.process.kill()?;
        self.process.wait()?;
        assert!(self.socket.accept().is_err(), "a foreign socket was called");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_leaves_pods_not_ready_and_images_kept() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let ended = node.run(&pod, &container_config("ended", &image, &["sh", "-c", "exit 3"])).await?;
    node.wait_exit(&ended).await?;
    let created = container_config("created", &image, &["true"]);
    let created = node.cri.create_container(&pod.id, &pod.config, &created).await?;
    let other = node.pod("other").await?;

    // The power goes: every process ends, and the state directory is on a disk.
    node.kill_daemon()?;
    for pod in [&pod, &other] {
        kill(shim_of(&node, &pod.id)?, Signal::SIGKILL)?;
    }
    remove_cgroups(node.cgroup_base())?;
    let foreign = Foreign::start(&node.dir().join("foreign.sock"))?;
    forge(&node, &other, &foreign)?;
    let boot = node.dir().join("boot-id");
    fs::write(&boot, "11111111-2222-3333-4444-555555555555\n")?;
    node.machine.run(move || {
        mount(Some(&boot), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("cover the boot id")
    })?;
    node.start_daemon().await?;

    for pod in [&pod, &other] {
        let status = node.cri.sandbox_status(&pod.id).await?;
        assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
        assert_eq!(status.network.map(|network| network.ip).unwrap_or_default(), "");
    }
    let lost = node.wait_exit(&running).await?;
    assert_eq!((lost.exit_code, lost.reason.as_str()), (255, "Unknown"));
    assert!(lost.finished_at >= lost.started_at);
    assert_eq!(node.wait_exit(&ended).await?.exit_code, 3);
    let status = node.cri.container_status(&created).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerCreated);
    let refused = node.cri.start_container(&created).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
    assert_eq!(images.into_inner().images.len(), 1);
    let again = node.pod("again").await?;
    assert_eq!(node.shell(&again, &image, "echo runs").await?, "runs\n");
    for id in [&pod.id, &other.id, &again.id] {
        node.cri.stop_sandbox(id).await?;
        node.cri.remove_sandbox(id).await?;
    }
    foreign.assert_untouched()?;
    node.terminate_daemon()?;
    node.machine.run(|| umount2(BOOT_ID, MntFlags::empty()).context("uncover the boot id"))?;
    node.start_daemon().await?;
    node.assert_clean().await
}

/// Has the record of `pod` name a process and a socket that are somebody else's.
fn forge(node: &Node, pod: &Pod, foreign: &Foreign) -> Result<()> {
    let store = PodStore::open(&node.dir().join("root/pods.db"))?;
    for mut record in store.sandboxes()? {
        if record.id.as_str() == pod.id {
            let pid = foreign.process.id();
            record.shim = Some(ShimRecord {
                address: format!("unix://{}", node.dir().join("foreign.sock").display()),
                version: 3,
                pid,
                started_ticks: started(pid)?,
            });
            store.put_sandbox(&record)?;
        }
    }
    Ok(())
}

/// Within one boot as well, a record does not make a process or socket ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_pid_and_a_foreign_socket_are_left_alone() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let stray = node.pod("stray").await?;
    node.kill_daemon()?;
    kill(shim_of(&node, &pod.id)?, Signal::SIGKILL)?;
    let foreign = Foreign::start(&node.dir().join("foreign.sock"))?;
    forge(&node, &pod, &foreign)?;
    let store = PodStore::open(&node.dir().join("root/pods.db"))?;
    for mut record in store.sandboxes()? {
        if record.id.as_str() == pod.id {
            // The same number, started at another time.
            let shim = record.shim.as_mut().context("the record has a shim")?;
            shim.started_ticks += 1;
            shim.address = format!("unix://{}/run/s/{}", node.dir().display(), &pod.id[..20]);
            store.put_sandbox(&record)?;
        }
    }
    drop(store);
    // This very process listens in the daemon's own directory.
    let own = node.dir().join("run/s").join("0123456789abcdef0123");
    let listener = UnixListener::bind(&own)?;
    symlink(node.dir().join("foreign.sock"), node.dir().join("run/s/link"))?;
    node.start_daemon().await?;
    let status = node.cri.sandbox_status(&pod.id).await?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(node.shell(&stray, &image, "echo runs").await?, "runs\n");
    assert!(!own.exists(), "the name is swept");
    drop(listener);
    node.cri.remove_sandbox(&pod.id).await?;
    foreign.assert_untouched()?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_written_files_are_swept_and_running_pods_found() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&running).await?;
    let mut created = Vec::new();
    for name in ["truncated", "empty", "no-bundle", "no-snapshot", "bad-copy", "odd-copy"] {
        let config = container_config(name, &image, &["true"]);
        created.push(node.cri.create_container(&pod.id, &pod.config, &config).await?);
    }
    node.kill_daemon()?;
    let (run, root) = (node.dir().join("run"), node.dir().join("root"));
    let bundle = |number: usize| run.join("containers").join(&created[number]);
    let config = fs::read(bundle(0).join("config.json"))?;
    fs::write(bundle(0).join("config.json"), &config[..config.len() / 2])?;
    fs::write(bundle(1).join("config.json"), "")?;
    fs::remove_dir_all(bundle(2))?;
    fs::remove_dir_all(root.join("snapshots/active").join(&created[3]))?;
    fs::write(bundle(4).join("record.json"), "")?;
    fs::remove_file(bundle(5).join("record.json"))?;
    fs::create_dir(bundle(5).join("record.json"))?;
    let precious = node.dir().join("precious");
    fs::create_dir(&precious)?;
    fs::write(precious.join("file"), "kept")?;
    let planted = plant(&run, &root, &precious)?;
    node.start_daemon().await?;

    assert_eq!(node.container_pid(&running).await?, pid);
    let answer = node.cri.exec(&running, &["echo", "alive"], 10).await?;
    assert_eq!(answer.stdout, b"alive\n");
    for path in planted {
        assert!(fs::symlink_metadata(&path).is_err(), "{} is left", path.display());
    }
    assert_eq!(fs::read_to_string(precious.join("file"))?, "kept");
    // A writable layer that nothing was written to is made again; a bundle is not.
    for id in &created[..3] {
        let refused = node.cri.start_container(id).await;
        ensure!(refused.is_err(), "a container without its files was started");
    }
    for id in &created[3..] {
        node.cri.start_container(id).await?;
        assert_eq!(node.wait_exit(id).await?.exit_code, 0);
    }
    node.assert_clean().await
}

/// Puts what no version writes, or half of what one does, everywhere; returns the paths.
fn plant(run: &Path, root: &Path, precious: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut planted = Vec::new();
    let odd = OsStr::from_bytes(b"not \xff utf-8");
    let id = "5".repeat(64);
    for place in ["run/sandboxes", "run/containers", "run/exec", "run/s"] {
        let dir = run.with_file_name(place);
        fs::create_dir(dir.join(&id))?;
        fs::write(dir.join(&id).join("config.json"), "{\"half\":")?;
        fs::write(dir.join(&id).join("record.json"), "{\"id\":\"5")?;
        fs::write(dir.join("file"), "")?;
        fs::write(dir.join(odd), "")?;
        symlink(precious, dir.join("link"))?;
        symlink("nowhere", dir.join("dangling"))?;
        nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRUSR)?;
        let names = [OsStr::new(&id), OsStr::new("file"), odd, OsStr::new("link")];
        planted.extend(names.into_iter().map(|name| dir.join(name)));
        planted.extend(["dangling", "fifo"].map(|name| dir.join(name)));
    }
    drop(UnixListener::bind(run.join("s/stray"))?);
    planted.push(run.join("s/stray"));
    fs::write(run.join("berthd.lock"), "999999999 and more")?;
    for place in ["snapshots/l", "snapshots/ingest", "snapshots/trash", "snapshots/active"] {
        for name in ["18446744073709551615", "garbage", "77"] {
            let dir = root.join(place).join(name);
            fs::create_dir_all(dir.join("half/written"))?;
            fs::write(dir.join("half/file"), "x")?;
            planted.push(dir);
        }
    }
    for (name, target) in [("garbage", "nowhere"), (&id, "../l/123456"), (&id[1..], "/etc")] {
        symlink(target, root.join("snapshots/c").join(name)).ok();
    }
    fs::write(root.join("content/ingest/3"), "half a blob")?;
    planted.push(root.join("content/ingest/3"));
    let stray = root.join("content/blobs/sha256").join(&id);
    fs::write(&stray, "not what its name says")?;
    planted.push(stray);
    Ok(planted)
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_ended_meanwhile_have_their_true_code_and_time() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let lost = node.pod("lost").await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    let mut codes = BTreeMap::new();
    for code in 0..20 {
        let command = format!("{WAIT}; echo bye {code}; exit {code}");
        let name = format!("ends-{code}");
        let mut config = container_config(&name, &image, &["sh", "-c", &command]);
        config.mounts = vec![bind("/data", &dir)];
        codes.insert(node.run(&pod, &config).await?, (name, code));
    }
    let eat = format!("{WAIT}; a=x; while true; do a=$a$a; done");
    let mut config = container_config("eats", &image, &["sh", "-c", &eat]);
    config.mounts = vec![bind("/data", &dir)];
    resources(&mut config).memory_limit_in_bytes = 15 << 20;
    let eats = node.run(&pod, &config).await?;
    let orphan = node.run(&lost, &container_config("main", &image, &["sleep", "1000"])).await?;
    let orphan_pid = node.container_pid(&orphan).await?;

    node.kill_daemon()?;
    let before = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos();
    fs::write(dir.join("go"), "")?;
    kill(shim_of(&node, &lost.id)?, Signal::SIGKILL)?;
    for (name, code) in codes.values() {
        node.wait_for_line("pod", name, &format!("bye {code}")).await?;
    }
    // Longer than all of them need after their last line; what they did is in the shim.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos();
    node.start_daemon().await?;
    for (id, (name, code)) in &codes {
        let status = node.cri.container_status(id).await?;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited, "{name}");
        assert_eq!(status.exit_code, *code, "{name}");
        let at = u128::try_from(status.finished_at)?;
        assert!((before..=after).contains(&at), "{name} ended at {at}, not {before}..{after}");
    }
    let status = node.wait_exit(&eats).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let status = node.wait_exit(&orphan).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    let stat = fs::read_to_string(format!("/proc/{orphan_pid}/stat")).unwrap_or_default();
    // Whoever is its parent now may take his time to reap it.
    assert!(stat.is_empty() || stat.contains(") Z "), "an orphan runs on: {stat}");
    let status = node.cri.sandbox_status(&lost.id).await?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    node.assert_clean().await
}

/// No timing: every number is there, the process is the same, no signal came.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_costs_a_workload_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let count = "for s in HUP INT QUIT USR1 USR2 PIPE ALRM TERM CHLD CONT TSTP; do \
                 [ $s = CHLD ] || trap \"echo signal $s\" $s; done; \
                 i=0; while [ ! -e /data/go ]; do echo $i; i=$((i+1)); usleep 10000; done; \
                 echo end $i";
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    let mut config = script(&image, count);
    config.mounts = vec![bind("/data", &dir)];
    let id = node.run(&pod, &config).await?;
    let pid = node.container_pid(&id).await?;
    let (began, status) = (started(pid)?, node.cri.container_status(&id).await?);
    for round in 0..6 {
        if round % 2 == 0 {
            node.kill_and_restart().await?
        } else {
            node.restart().await?
        }
        let now = node.cri.container_status(&id).await?;
        assert_eq!(now, status);
        assert_eq!((node.container_pid(&id).await?, started(pid)?), (pid, began));
        // It goes on after each of them.
        node.wait_for_line("pod", "main", &((round + 1) * 5).to_string()).await?;
    }
    fs::write(dir.join("go"), "")?;
    assert_eq!(node.wait_exit(&id).await?.exit_code, 0);
    let lines = node.read_log("pod", "main")?;
    let text = log::text(&lines, "stdout");
    let end = text.lines().last().context("nothing was written")?;
    let end: usize = end.strip_prefix("end ").with_context(|| end.to_owned())?.parse()?;
    let numbers: Vec<_> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(end > 20, "only {end} lines");
    for (expected, number) in numbers[..end].iter().enumerate() {
        assert_eq!(**number, expected.to_string(), "a line is lost, doubled, or a signal came");
    }
    assert_eq!(numbers.len(), end + 1);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_wedged_shims_of_a_hundred_hold_up_nobody() -> Result<()> {
    let mut node = Node::start_with(NodeOptions { quiet: true, ..NodeOptions::default() }).await?;
    let image = node.busybox().await?;
    let mut pods = Vec::new();
    for number in 0..100 {
        let pod = node.pod(&format!("pod-{number}")).await?;
        let config = container_config("main", &image, &["sh", "-c", "sleep 1000 & wait"]);
        let id = node.run(&pod, &config).await?;
        pods.push((pod, id));
    }
    node.kill_daemon()?;
    let wedged: Vec<_> =
        pods.iter().step_by(10).map(|(pod, _)| shim_of(&node, &pod.id)).collect::<Result<_>>()?;
    wedged.iter().try_for_each(|shim| kill(*shim, Signal::SIGSTOP))?;
    let began = Instant::now();
    node.start_daemon().await?;
    node.cri.sandboxes().await?;
    let took = began.elapsed();
    assert!(took < WEDGED_START, "{took:?} until the first answer");

    for (number, (pod, id)) in pods.iter().enumerate() {
        let status = node.cri.sandbox_status(&pod.id).await?;
        assert_eq!(status.state(), v1::PodSandboxState::SandboxReady, "pod {number}");
        let status = node.cri.container_status(id).await?;
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning, "pod {number}");
        if number % 10 == 1 {
            let answer = node.cri.exec(id, &["echo", "alive"], 10).await?;
            assert_eq!(answer.stdout, b"alive\n", "pod {number}");
        }
    }
    // One ends while its shim cannot say so.
    let pid = node.container_pid(&pods[10].1).await?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    wedged.iter().try_for_each(|shim| kill(*shim, Signal::SIGCONT))?;
    assert_eq!(node.wait_exit(&pods[10].1).await?.exit_code, 137);
    for (pod, id) in pods.iter().step_by(10) {
        if *id != pods[10].1 {
            let answer = node.cri.exec(id, &["echo", "back"], 10).await?;
            assert_eq!(answer.stdout, b"back\n", "{}", pod.id);
        }
    }
    node.assert_clean().await
}

/// The shim is slow to start; berthd is killed meanwhile, and the next one has swept
/// before the shim would bind its socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_was_being_started_does_not_outlive_berthd() -> Result<()> {
    let slow = tempfile::tempdir()?;
    let shim = slow.path().join("containerd-shim-berth-v1");
    let real = binaries()?.join("containerd-shim-berth-v1");
    let (begun, go) = (slow.path().join("begun"), slow.path().join("go"));
    let wait = format!(
        "#!/bin/sh\ntouch {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nexec {} \"$@\"\n",
        begun.display(),
        go.display(),
        real.display()
    );
    fs::write(&shim, wait)?;
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o700))?;
    let config = format!("[runtime.handlers.slow]\nshim = '{}'\n", shim.display());
    let mut node = Node::start_with(NodeOptions { config, ..NodeOptions::default() }).await?;
    let request = v1::RunPodSandboxRequest {
        config: Some(node.sandbox_config("pod")),
        runtime_handler: "slow".to_owned(),
    };
    let mut client = node.cri.runtime.clone();
    let asked = tokio::spawn(async move { client.run_pod_sandbox(request).await });
    let deadline = Instant::now() + DEADLINE;
    while !begun.exists() {
        ensure!(Instant::now() < deadline, "the shim was never started");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.kill_and_restart().await?;
    assert!(asked.await?.is_err());
    assert!(node.cri.sandboxes().await?.is_empty());
    fs::write(&go, "")?;
    node.assert_clean().await
}
