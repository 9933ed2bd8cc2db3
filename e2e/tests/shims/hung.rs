//! File systems that hang: who names a path on one waits for it, and nobody else does.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_testkit::{Node, bind, container_config};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use tokio::time::timeout;

use super::others_are_served;

/// As many as berthd has threads for its own files, and more.
const THREADS: usize = 4;
const WAITING: usize = 6;
/// Nobody waits as long for what does not hang.
const PATIENCE: Duration = Duration::from_secs(60);
/// A flag of INIT (linux/fuse.h).
const PARALLEL_DIROPS: u32 = 1 << 18;
/// Requests that want no answer (linux/fuse.h): FORGET, INTERRUPT, BATCH_FORGET.
const WITHOUT_ANSWER: [u32; 3] = [2, 36, 42];

/// A file system in the node's mount namespace whose server answers nothing (fuse(4)).
struct Hung {
    at: PathBuf,
    device: File,
}

impl Hung {
    fn mount(node: &Node, at: &Path) -> Result<Self> {
        std::fs::create_dir(at)?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let place = at.to_owned();
        node.machine.run(move || {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            Ok(mount(Some("hung"), &place, Some("fuse"), flags, Some(options.as_str()))?)
        })?;
        let mut hung = Self { at: at.to_owned(), device };
        let (_, unique) = hung.asked()?;
        // INIT is answered: version 7.31, several look-ups in a directory at once, writes of at
        // most 128 KiB.
        let mut body =
            [7_u32, 31, 0, PARALLEL_DIROPS, 0, 128 << 10, 1].map(u32::to_le_bytes).concat();
        body.resize(64, 0);
        let length = u32::try_from(16 + body.len())?;
        let header = [&length.to_le_bytes()[..], &[0; 4], &unique[..]].concat();
        hung.device.write_all(&[header, body].concat())?;
        Ok(hung)
    }

    /// The next request: what it asks, and its number.
    fn asked(&mut self) -> Result<(u32, [u8; 8])> {
        let mut request = vec![0; 256 << 10];
        let length = self.device.read(&mut request)?;
        let header = request[..length].first_chunk::<16>().context("short request")?;
        let (opcode, unique) = (header[4..8].try_into()?, header[8..].try_into()?);
        Ok((u32::from_le_bytes(opcode), unique))
    }

    /// Waits until so many wait for an answer. Blocks.
    fn wait_for(mut self, waiting: usize) -> Result<Self> {
        let mut seen = 0;
        while seen < waiting {
            let (opcode, _) = self.asked()?;
            seen += usize::from(!WITHOUT_ANSWER.contains(&opcode));
        }
        Ok(self)
    }

    /// Everybody who waits gets an error.
    fn end(self, node: &Node) -> Result<()> {
        let Self { at, device } = self;
        drop(device);
        node.machine.run(move || Ok(umount2(&at, MntFlags::MNT_DETACH)?))
    }
}

/// teeth: crates/engine/src/open.rs: `const PATH_THREADS: usize = 64;` → `const PATH_THREADS: usize = 4;`
#[tokio::test(flavor = "multi_thread")]
async fn volumes_on_a_file_system_that_hangs_keep_nobody_else_waiting() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let hung = Hung::mount(&node, &node.dir().join("hung"))?;
    let creating: Vec<_> = (0..WAITING)
        .map(|number| {
            let mut config = container_config(&format!("waits-{number}"), &image, &["true"]);
            config.mounts = vec![bind("/data", &hung.at.join(format!("volume-{number}")))];
            let (mut cri, pod) = (node.cri.clone(), pod.clone());
            tokio::spawn(async move { cri.create_container(&pod.id, &pod.config, &config).await })
        })
        .collect();
    let hung = tokio::task::spawn_blocking(move || hung.wait_for(THREADS)).await??;

    let others = others_are_served(&mut node, &image, "other");
    timeout(PATIENCE, others).await.context("others wait too")??;
    assert_eq!(node.cri.exec(&running, &["echo", "heard"], 10).await?.stdout, b"heard\n");
    node.cri.stop_container(&running, 0).await?;
    assert!(creating.iter().all(|task| !task.is_finished()), "one does not wait");

    hung.end(&node)?;
    for task in creating {
        assert!(task.await?.is_err(), "a volume was found on a file system that is gone");
    }
    node.assert_clean().await
}
