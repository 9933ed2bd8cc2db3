//! Clients that vanish cost nothing: whatever they were doing, in whatever state.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_testkit::{Cri, Node, container_config, image};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// The argument by which commands of vanished clients are found.
const COMMAND: &str = "98765";
const CLIENTS: u64 = 1000;
/// Clients at one time.
const AT_ONCE: u64 = 50;
/// How long what they began may take to be taken back.
const SETTLE: Duration = Duration::from_secs(30);
/// What the daemon may have kept for other reasons: connections of the test, threads that
/// wait for the next file to read, memory that its allocator keeps.
const MORE: Usage = Usage { descriptors: 8, threads: 16, resident: 16 << 20 };

#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: u64,
    threads: u64,
    resident: u64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|number| number.parse::<u64>().ok()).context("no such field")
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count().try_into()?;
        // RssAnon: pages of files come and go as the kernel likes.
        Ok(Self { descriptors, threads: field("Threads:")?, resident: field("RssAnon:")? << 10 })
    }

    fn within(&self, baseline: &Self) -> bool {
        self.descriptors <= baseline.descriptors + MORE.descriptors
            && self.threads <= baseline.threads + MORE.threads
            && self.resident <= baseline.resident + MORE.resident
    }
}

/// What a client sends for a command in `container`, from the first byte on.
async fn recorded(dir: &Path, container: &str) -> Result<Vec<u8>> {
    let socket = dir.join("recorder.sock");
    let listener = UnixListener::bind(&socket)?;
    let id = container.to_owned();
    let client = tokio::spawn(async move {
        let mut cri = Cri::connect(&socket).await?;
        anyhow::Ok(cri.exec(&id, &["sleep", COMMAND], 0).await?)
    });
    let (mut connection, _) = listener.accept().await?;
    let mut bytes = Vec::new();
    let needle = COMMAND.as_bytes();
    while !bytes.windows(needle.len()).any(|window| window == needle) {
        let read = connection.read_buf(&mut bytes);
        let read = tokio::time::timeout(SETTLE, read).await.context("it sent no request")??;
        ensure!(read > 0, "the client left");
    }
    client.abort();
    Ok(bytes)
}

/// How many processes run the command.
fn commands() -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command == format!("sleep\0{COMMAND}\0").into_bytes() {
            found += 1;
        }
    }
    Ok(found)
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What vanishing clients have in common.
#[derive(Clone)]
struct Asked {
    socket: std::path::PathBuf,
    container: String,
    image: String,
    bytes: Vec<u8>,
}

/// One client, from its connection to its end.
async fn vanish(asked: Asked, number: u64, chance: u64) -> Result<()> {
    let wait = Duration::from_micros(chance % 40_000);
    match number % 4 {
        // In the handshake, in the middle of the request, or just after it.
        0 | 1 => {
            let mut connection = UnixStream::connect(&asked.socket).await?;
            let bytes = match number % 4 {
                0 => &asked.bytes[..usize::try_from(chance)? % asked.bytes.len()],
                _ => &asked.bytes[..],
            };
            connection.write_all(bytes).await?;
            if number % 8 < 4 {
                tokio::time::sleep(wait).await;
            }
        }
        kind => {
            let mut cri = Cri::connect(&asked.socket).await?;
            let work = async {
                match kind {
                    2 => drop(cri.exec(&asked.container, &["sleep", COMMAND], 0).await),
                    _ => drop(cri.pull(&asked.image).await),
                }
            };
            let ended = tokio::time::timeout(wait, work).await;
            ensure!(ended.is_err(), "a client was answered: nothing was held");
        }
    }
    Ok(())
}

async fn crowd(asked: &Asked, clients: u64, random: &mut u64) -> Result<()> {
    for first in (0..clients).step_by(usize::try_from(AT_ONCE)?) {
        let crowd: Vec<_> = (first..first + AT_ONCE)
            .map(|number| tokio::spawn(vanish(asked.clone(), number, splitmix(random) >> 8)))
            .collect();
        for client in crowd {
            client.await??;
        }
    }
    Ok(())
}

/// Waits until no command runs and the daemon is at its baseline.
async fn settled(pid: u32, baseline: Option<&Usage>) -> Result<Usage> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let (usage, commands) = (Usage::of(pid)?, commands()?);
        if commands == 0 && baseline.is_none_or(|baseline| usage.within(baseline)) {
            return Ok(usage);
        }
        ensure!(
            Instant::now() < deadline,
            "{commands} commands run, and the daemon has {usage:?} instead of {baseline:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// teeth: crates/engine/src/exec/session.rs: `(true, false) => leftover.end().await` → `(true, false) => drop(leftover)`
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_that_vanish_cost_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let container = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.daemon().pid().context("the daemon does not run")?;
    let asked = Asked {
        socket: node.daemon().socket().to_owned(),
        bytes: recorded(node.dir(), &container).await?,
        image: node.push("held", "latest", &image::busybox()?)?,
        container,
    };
    node.daemon().hold(&["pull.resolved"])?;
    let mut random = u64::from(std::process::id());
    println!("seed {random}");
    crowd(&asked, 2 * AT_ONCE, &mut random).await?;
    let baseline = settled(pid, None).await?;
    crowd(&asked, CLIENTS, &mut random).await?;
    let after = settled(pid, Some(&baseline)).await?;
    println!("{baseline:?} before, {after:?} after {CLIENTS} clients");

    // All those pulls were one, and it is there for who waits.
    let passed = node.daemon().passed()?;
    assert_eq!(passed.iter().filter(|point| *point == "pull.resolved").count(), 1);
    node.daemon().release()?;
    node.cri.pull(&asked.image).await?;
    assert_eq!(node.cri.exec(&asked.container, &["true"], 10).await?.exit_code, 0);
    node.assert_clean().await
}
