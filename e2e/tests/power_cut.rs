//! The node loses its power, at any moment of pulls, removals and pod starts.
//!
//! The daemon's root lies on a small ext4 of its own. A cut shuts that file system down
//! with nothing flushed, not even its journal, and kills every process of the node; what
//! a power cut takes besides (state directory, cgroups, boot id) is taken as well. What
//! was answered before must be there when the power is back: that is the whole test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_model::Digest;
use berth_testkit::image::{Image, busybox_builder};
use berth_testkit::tar::Tar;
use berth_testkit::{Cri, Machine, Node, container_config, remove_cgroups, sandbox_config, script};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Images that are pulled and removed.
const IMAGES: usize = 4;
/// Layers of each, beside busybox; files in a layer; bytes in a file.
const LAYERS: usize = 3;
const FILES: usize = 40;
const FILE_SIZE: usize = 24 << 10;
const DISK: u64 = 192 << 20;
/// Latest moment of a cut after work began.
const LATEST: u64 = 600;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_outlives_a_power_cut() -> Result<()> {
    let rounds = from_environment("BERTH_POWER_CUTS")?.unwrap_or(10);
    let drawn = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let seed = from_environment("BERTH_SEED")?.unwrap_or(drawn);
    println!("{rounds} power cuts, BERTH_SEED={seed}");
    let mut random = Random(seed | 1);
    let mut node = Node::start().await?;
    node.terminate_daemon()?;
    let disk = Disk::make(&node)?;
    disk.mount(&node.machine)?;
    disk.boot(&node.machine, 0)?;
    node.restart().await?;
    let base = node.busybox().await?;
    let mut images = Vec::new();
    for number in 0..IMAGES {
        images.push(node.push("cut", &format!("v{number}"), &image(number)?)?);
    }
    let known = Known::default();
    for round in 1..=rounds {
        let work = work(&node, &base, &images, &known, &mut random);
        tokio::time::sleep(Duration::from_millis(random.below(LATEST))).await;
        cut(&mut node, &disk)?;
        for task in work {
            task.await.context("a client panicked")?;
        }
        disk.boot(&node.machine, round)?;
        disk.mount(&node.machine)?;
        let back = node.restart().await;
        back.with_context(|| format!("power back after cut {round}, BERTH_SEED={seed}"))?;
        let checked = check(&mut node, &base, &images, &known).await;
        checked.with_context(|| format!("after cut {round}, BERTH_SEED={seed}"))?;
    }
    node.terminate_daemon()?;
    disk.unmount(&node.machine)?;
    node.machine.run(|| umount2(BOOT_ID, MntFlags::empty()).context("uncover the boot id"))?;
    node.restart().await?;
    node.assert_clean().await
}

fn from_environment(name: &str) -> Result<Option<u64>> {
    let Ok(value) = std::env::var(name) else { return Ok(None) };
    value.parse().map(Some).with_context(|| format!("{name}={value} is no number"))
}

/// Enough of a generator to choose moments (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Busybox, and files of which the last layer has the sums.
fn image(number: usize) -> Result<Image> {
    let mut image = busybox_builder()?;
    let mut sums = String::new();
    for layer in 0..LAYERS {
        let mut tar = Tar::new().directory("data/", 0o755);
        for file in 0..FILES {
            let name = format!("data/{layer}-{file}");
            let mut random = Random((number * LAYERS * FILES + layer * FILES + file + 1) as u64);
            let data: Vec<u8> =
                (0..FILE_SIZE / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
            let digest = Digest::of(&data).hex();
            sums.push_str(&format!("{digest}  /{name}\n"));
            tar = tar.file(&name, 0o644, &data);
        }
        if layer + 1 == LAYERS {
            tar = tar.file("sums", 0o644, sums.as_bytes());
        }
        image = image.layer(tar)?;
    }
    image.build()
}

/// What the daemon has said of each image: true once it was pulled, false once it was
/// removed, absent while a request is under way.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<BTreeMap<String, bool>>>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients that pull, remove and run until the power goes.
fn work(
    node: &Node,
    base: &str,
    images: &[String],
    known: &Known,
    random: &mut Random,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for image in images {
        let (mut cri, image, known) = (node.cri.clone(), image.clone(), known.clone());
        let wait = Duration::from_millis(random.below(LATEST / 2));
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            while turn(&mut cri, &image, &known).await.is_ok() {}
        }));
    }
    let (mut cri, logs, base) = (node.cri.clone(), node.dir().join("logs"), base.to_owned());
    tasks.push(tokio::spawn(async move {
        for number in 0.. {
            if pod(&mut cri, &logs, &base, number).await.is_err() {
                return;
            }
        }
    }));
    tasks
}

async fn turn(cri: &mut Cri, image: &str, known: &Known) -> Result<()> {
    let present = known.lock().remove(image) == Some(true);
    if present {
        remove(cri, image).await?;
    } else {
        cri.pull(image).await?;
    }
    known.lock().insert(image.to_owned(), !present);
    Ok(())
}

async fn remove(cri: &mut Cri, image: &str) -> Result<()> {
    let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    cri.image.remove_image(v1::RemoveImageRequest { image }).await?;
    Ok(())
}

async fn pod(cri: &mut Cri, logs: &Path, image: &str, number: usize) -> Result<()> {
    let name = format!("pod-{number}");
    let pod = sandbox_config(&name, &logs.join(&name));
    let sandbox = cri.run_sandbox(&pod).await?;
    let config = container_config("main", image, &["sh", "-c", "echo up > /file; sleep 1000"]);
    let container = cri.create_container(&sandbox, &pod, &config).await?;
    cri.start_container(&container).await?;
    if number.is_multiple_of(3) {
        cri.remove_sandbox(&sandbox).await?;
    }
    Ok(())
}

/// Everything of the node stops at once; what was not on the disk is lost.
fn cut(node: &mut Node, disk: &Disk) -> Result<()> {
    disk.shut_down(&node.machine)?;
    node.kill_daemon()?;
    let spared = [node.registry.pid(), std::process::id()];
    for pid in node.processes()?.into_iter().filter(|pid| !spared.contains(pid)) {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).ok();
    }
    remove_cgroups(node.cgroup_base())?;
    disk.unmount(&node.machine)?;
    // A tmpfs on a real node.
    fs::remove_dir_all(node.dir().join("run")).context("clear the state directory")
}

/// What was said is true, what is there is whole, and all goes on without a hand's help.
async fn check(node: &mut Node, base: &str, images: &[String], known: &Known) -> Result<()> {
    for id in node.cri.sandboxes().await? {
        let state = node.cri.sandbox_status(&id).await?.state();
        ensure!(state == v1::PodSandboxState::SandboxNotready, "sandbox {id} is {state:?}");
    }
    for id in node.cri.containers().await? {
        let state = node.cri.container_status(&id).await?.state();
        ensure!(state != v1::ContainerState::ContainerRunning, "container {id} is {state:?}");
    }
    for id in node.cri.sandboxes().await? {
        node.cri.remove_sandbox(&id).await?;
    }
    let listed = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
    let listed: Vec<_> =
        listed.into_inner().images.into_iter().flat_map(|image| image.repo_tags).collect();
    ensure!(listed.iter().any(|tag| tag == base), "{base} is lost");
    for (image, present) in known.lock().iter() {
        ensure!(listed.contains(image) == *present, "{image}: said to be there: {present}");
    }
    let pod = node.pod("check").await?;
    for image in images {
        // What was pulled to its end is used as it is; the others are pulled again.
        if !listed.contains(image) {
            node.cri.pull(image).await?;
        }
        let verify = script(image, "busybox sha256sum -c /sums | grep -vc OK$; true");
        let told = node.finish(&pod, &verify).await?;
        ensure!(told.stdout == "0\n", "{image} is not whole: {}{}", told.stdout, told.stderr);
        known.lock().insert(image.clone(), true);
    }
    node.cri.remove_sandbox(&pod.id).await?;
    Ok(())
}

/// An ext4 in a file, mounted on the daemon's root.
struct Disk {
    file: PathBuf,
    root: PathBuf,
    boot_id: PathBuf,
}

impl Disk {
    fn make(node: &Node) -> Result<Self> {
        let file = node.dir().join("disk.img");
        fs::File::create(&file)?.set_len(DISK)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file))?;
        let disk =
            Self { file, root: node.dir().join("root"), boot_id: node.dir().join("boot_id") };
        fs::write(&disk.boot_id, "none\n")?;
        let boot_id = disk.boot_id.clone();
        node.machine.run(move || {
            mount(Some(&boot_id), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context("cover the boot id")
        })?;
        Ok(disk)
    }

    /// Each boot has an id of its own (random(4)).
    fn boot(&self, machine: &Machine, number: u64) -> Result<()> {
        fs::write(&self.boot_id, format!("00000000-0000-4000-8000-{number:012}\n"))?;
        let seen = machine.run(|| Ok(fs::read_to_string(BOOT_ID)?))?;
        ensure!(seen.trim_end().ends_with(&format!("{number:012}")), "the boot id is {seen}");
        Ok(())
    }

    fn mount(&self, machine: &Machine) -> Result<()> {
        let (file, root) = (self.file.clone(), self.root.clone());
        machine.run(move || run(Command::new("mount").args(["-o", "loop"]).arg(file).arg(root)))
    }

    /// As a power cut does it: no data, no metadata, no journal is written any more.
    fn shut_down(&self, machine: &Machine) -> Result<()> {
        let root = self.root.clone();
        machine.run(move || run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(root)))
    }

    fn unmount(&self, machine: &Machine) -> Result<()> {
        let root = self.root.clone();
        let deadline = Instant::now() + Duration::from_secs(10);
        machine.run(move || {
            // Busy until the last killed process has let go of its mounts.
            while let Err(error) = umount2(&root, MntFlags::empty()) {
                if Instant::now() > deadline {
                    bail!("unmount {}: {error}", root.display());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        })
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    Ok(())
}
