//! Damaged stores: pods that run are found again, what is damaged is kept and named, and
//! nothing is believed that is not whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Node, Pod, bind, container_config, remove_cgroups, script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest that a daemon which refuses to start may take to say so.
const REFUSAL: Duration = Duration::from_secs(20);
const PAGE: usize = 4096;

/// What a test does to a store while no daemon runs.
type Damage = (&'static str, fn(&Path) -> Result<()>);

const DAMAGES: [Damage; 9] = [
    ("not a database", |path| Ok(fs::write(path, "x".repeat(3 * PAGE))?)),
    ("header gone", |path| change(path, |bytes| bytes[..100].fill(0))),
    ("cut in half", |path| change(path, |bytes| bytes.truncate(bytes.len() / 2))),
    ("cut within a page", |path| change(path, |bytes| bytes.truncate(bytes.len() - 1000))),
    ("zero length", |path| Ok(fs::write(path, "")?)),
    ("gone", |path| Ok(fs::remove_file(path)?)),
    ("every page but the first overwritten", |path| change(path, |bytes| bytes[PAGE..].fill(0xa5))),
    ("log cut", |path| change(&beside(path, "-wal"), |bytes| bytes.truncate(bytes.len() / 3))),
    ("log and index garbage", |path| {
        fs::write(beside(path, "-shm"), [0x5a; 32768])?;
        change(&beside(path, "-wal"), |bytes| bytes.fill(0x5a))
    }),
];

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let mut bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    how(&mut bytes);
    Ok(fs::write(path, bytes)?)
}

async fn statuses(
    node: &mut Node,
    pods: &[Pod],
    containers: &[String],
) -> Result<(Vec<v1::PodSandboxStatus>, Vec<v1::ContainerStatus>)> {
    let (mut sandboxes, mut all) = (Vec::new(), Vec::new());
    for pod in pods {
        sandboxes.push(node.cri.sandbox_status(&pod.id).await?);
    }
    for container in containers {
        all.push(node.cri.container_status(container).await?);
    }
    Ok((sandboxes, all))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pods_db_is_made_anew_and_running_pods_are_found() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut pods = Vec::new();
    for name in ["one", "two", "stopped"] {
        pods.push(node.pod(name).await?);
    }
    let sleeping = ["sleep", "1000"];
    let running = node.run(&pods[0], &container_config("main", &image, &sleeping)).await?;
    let ended = node.run(&pods[1], &script(&image, "exit 3")).await?;
    node.wait_exit(&ended).await?;
    let created = container_config("created", &image, &["true"]);
    let created = node.cri.create_container(&pods[1].id, &pods[1].config, &created).await?;
    node.cri.stop_sandbox(&pods[2].id).await?;
    let containers = [running.clone(), ended, created.clone()];
    let before = statuses(&mut node, &pods, &containers).await?;
    let pid = node.container_pid(&running).await?;
    let mut addresses: BTreeSet<_> =
        [node.address(&pods[0]).await?, node.address(&pods[1]).await?].into();

    let path = node.dir().join("root/pods.db");
    for (number, (what, damage)) in DAMAGES.into_iter().enumerate() {
        // Once with everything in the log, as a kill leaves it, once without a log.
        if what.starts_with("log") || number % 2 == 1 {
            node.kill_daemon()?;
        } else {
            node.terminate_daemon()?;
        }
        damage(&path)?;
        node.start_daemon().await.with_context(|| format!("pods.db: {what}"))?;
        let after = statuses(&mut node, &pods, &containers).await;
        ensure!(after.with_context(|| what)? == before, "{what}: another state than before");
        ensure!(node.container_pid(&running).await? == pid, "{what}: another process");
        let answer = node.cri.exec(&running, &["echo", "alive"], 10).await?;
        ensure!(answer.stdout == b"alive\n", "{what}");
        let new = node.pod(&format!("new-{number}")).await?;
        let address = node.address(&new).await?;
        ensure!(addresses.insert(address.clone()), "{what}: {address} was given twice");
        node.cri.remove_sandbox(&new.id).await?;
        addresses.remove(&address);
    }
    let kept = path.with_file_name("pods.db.damaged-1");
    assert!(fs::read(&kept)? == "x".repeat(3 * PAGE).as_bytes(), "the damaged file is kept");
    let log = fs::read_to_string(node.daemon().log())?;
    assert!(log.contains(&*kept.to_string_lossy()), "where it is, is said");
    node.cri.start_container(&created).await?;
    assert_eq!(node.wait_exit(&created).await?.exit_code, 0);
    node.assert_clean().await
}

/// With kubelet, the containers' cgroups are below one that is not the daemon's.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_cannot_be_made_anew_are_ended_and_swept() -> Result<()> {
    let (mut node, image, kept) = Node::with_pod().await?;
    let parent = format!("{}-kube", node.cgroup_base());
    let sleep = ["sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000"];
    let running = node.run(&kept, &container_config("main", &image, &sleep)).await?;
    let mut lost = Vec::new();
    for name in ["torn", "empty", "wedged"] {
        let mut config = node.sandbox_config(name);
        config.linux.get_or_insert_default().cgroup_parent.clone_from(&parent);
        let pod = node.pod_with(config).await?;
        let id = node.run(&pod, &container_config("main", &image, &sleep)).await?;
        lost.push((pod.id, id.clone(), node.container_pid(&id).await?));
    }
    let shims: Vec<_> = lost.iter().map(|(id, ..)| shim_of(&node, id)).collect::<Result<_>>()?;
    node.terminate_daemon()?;
    fs::write(node.dir().join("root/pods.db"), "gone")?;
    for ((sandbox, ..), damage) in lost.iter().zip(["{\"id\":", "", "{}"]) {
        fs::write(node.dir().join("run/sandboxes").join(sandbox).join("record.json"), damage)?;
    }
    kill(Pid::from_raw(shims[2]), Signal::SIGSTOP)?;
    node.start_daemon().await?;

    assert_eq!(node.cri.sandboxes().await?, vec![kept.id]);
    assert_eq!(node.cri.containers().await?, vec![running.clone()]);
    let answer = node.cri.exec(&running, &["echo", "alive"], 10).await?;
    assert_eq!(answer.stdout, b"alive\n");
    let log = fs::read_to_string(node.daemon().log())?;
    for (sandbox, ..) in &lost {
        let told = log.lines().any(|line| line.contains("ERROR") && line.contains(sandbox));
        assert!(told, "{sandbox} went without a word");
    }
    let deadline = std::time::Instant::now() + REFUSAL;
    for pid in shims.into_iter().chain(lost.iter().map(|(.., pid)| pid.cast_signed())) {
        while runs(pid) {
            ensure!(std::time::Instant::now() < deadline, "process {pid} runs on without a name");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    remove_cgroups(&parent)?;
    node.assert_clean().await
}

/// Whether the process is there and no zombie.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The process of a sandbox's shim.
fn shim_of(node: &Node, sandbox: &str) -> Result<i32> {
    for pid in node.processes()? {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains(sandbox) {
            return Ok(i32::try_from(pid)?);
        }
    }
    anyhow::bail!("sandbox {sandbox} has no shim")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_images_db_is_made_anew_and_layers_in_use_stay() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let id = node.cri.container_status(&running).await?.image_id;
    let path = node.dir().join("root/images.db");
    for (number, (what, damage)) in DAMAGES.into_iter().enumerate() {
        if what.starts_with("log") {
            // A pull writes the log that is to be damaged.
            node.cri.remove_image(&image).await?;
            node.cri.pull(&image).await?;
            node.kill_daemon()?;
        } else {
            node.terminate_daemon()?;
        }
        damage(&path)?;
        node.start_daemon().await.with_context(|| format!("images.db: {what}"))?;
        let answer = node.cri.exec(&running, &["cat", "/etc/passwd"], 10).await?;
        ensure!(answer.exit_code == 0 && !answer.stdout.is_empty(), "{what}: a layer is gone");
        if !what.starts_with("log") {
            // Its name is lost; what it is, is not.
            let config = container_config(&format!("by-id-{number}"), &id, &["true"]);
            let status = node.finish(&pod, &config).await.with_context(|| what)?.status;
            ensure!(status.exit_code == 0, "{what}");
        }
        ensure!(node.cri.pull(&image).await? == id, "{what}: another image");
        let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
        let images = images.into_inner().images;
        ensure!(images.len() == 1 && images[0].repo_tags == [image.clone()], "{what}: {images:?}");
        node.shell(&pod, &image, "true").await?;
    }
    assert!(path.with_file_name("images.db.damaged-1").exists());
    node.cri.remove_sandbox(&pod.id).await?;
    node.cri.remove_image(&image).await?;
    let left = fs::read_dir(node.dir().join("root/snapshots/l"))?.count();
    assert_eq!(left, 0, "what was made anew is removed like anything else");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_from_the_future_is_refused_and_left_as_it_is() -> Result<()> {
    // Bytes 60 to 63 of the header (sqlite.org/fileformat2.html, "user version").
    const VERSION: std::ops::Range<usize> = 60..64;
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    for name in ["pods.db", "images.db"] {
        node.terminate_daemon()?;
        let path = node.dir().join("root").join(name);
        let mut known = [0; 4];
        change(&path, |bytes| {
            known.copy_from_slice(&bytes[VERSION]);
            bytes[VERSION].copy_from_slice(&99_u32.to_be_bytes());
        })?;
        let stores = ["pods.db", "images.db"].map(|name| node.dir().join("root").join(name));
        let before = stores.clone().map(|path| fs::read(path).unwrap_or_default());
        node.launch_daemon()?;
        let status = node.daemon_ended(REFUSAL)?.context("berthd runs on a newer schema")?;
        assert!(!status.success());
        let after = stores.clone().map(|path| fs::read(path).unwrap_or_default());
        assert!(before == after, "{name}: a store was changed");
        let told = node.daemon().log_tail();
        assert!(told.contains(name) && told.contains("schema 99"), "{told}");
        change(&path, |bytes| bytes[VERSION].copy_from_slice(&known))?;
        node.start_daemon().await?;
        let answer = node.cri.exec(&running, &["echo", "alive"], 10).await?;
        assert_eq!(answer.stdout, b"alive\n");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_a_store_is_refused_by_name() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let precious = node.dir().join("precious");
    fs::create_dir(&precious)?;
    fs::write(precious.join("file"), "kept")?;
    for name in ["root/pods.db", "root/images.db-wal", "run/s", "run/sandboxes"] {
        node.terminate_daemon()?;
        let path = node.dir().join(name);
        let aside = node.dir().join("aside");
        let moved = path.exists();
        if moved {
            fs::rename(&path, &aside)?;
        }
        std::os::unix::fs::symlink(&precious, &path)?;
        node.launch_daemon()?;
        let status = node.daemon_ended(REFUSAL)?.context("berthd follows a link")?;
        assert!(!status.success());
        let told = node.daemon().log_tail();
        assert!(told.contains(&*path.to_string_lossy()), "{name} is not named: {told}");
        assert_eq!(fs::read_dir(&precious)?.count(), 1, "{name}: the link was followed");
        fs::remove_file(&path)?;
        if moved {
            fs::rename(&aside, &path)?;
        }
        node.start_daemon().await?;
        let answer = node.cri.exec(&running, &["echo", "alive"], 10).await?;
        assert_eq!(answer.stdout, b"alive\n");
    }
    let mut config = script(&image, "cat /data/file");
    config.mounts = vec![bind("/data", &precious)];
    config.metadata.get_or_insert_default().name = "reader".to_owned();
    config.log_path = "reader.log".to_owned();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "kept");
    node.assert_clean().await
}
