//! Thousands of requests of each RPC, of the right schema and of any content: the daemon
//! refuses them by their fault, and never as one of its own.
//!
//! `BERTH_GENERATED` is how many of each, `BERTH_SEED` makes the same ones again.

mod client;
mod generate;
mod schema;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, image};
use tonic::{Code, Status};

use client::Client;
use generate::{Generator, Request, World, first_text};
use schema::{Rpc, Schema};

/// Sandboxes and containers that are kept at one time.
const KEPT: usize = 4;
/// Different failures that are shown.
const SHOWN: usize = 40;
/// Nodes that are asked at one time: each waits more than it works.
const NODES: u64 = 4;
/// Requests after which a daemon is as large as it gets, and what it may grow by afterwards.
const WARM: u64 = 300;
const GROWTH: u64 = 16 << 20;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What is wrong with an answer, if anything is.
fn fault(status: &Status) -> Option<String> {
    match status.code() {
        // kubelet looks for this word in errors of this code only.
        Code::Unknown if status.message().starts_with("RegistryUnavailable") => None,
        Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss => {
            Some(format!("{:?}: {}", status.code(), status.message()))
        }
        _ if status.message().is_empty() => Some(format!("{:?} without a word", status.code())),
        _ => None,
    }
}

/// Failures by what they have in common, each with one request.
#[derive(Default)]
struct Faults(BTreeMap<String, (usize, String)>);

impl Faults {
    fn note(&mut self, rpc: &Rpc, what: &str, request: &Request) {
        let common: String = what.chars().filter(|c| !c.is_ascii_hexdigit()).take(160).collect();
        let key = format!("{} {common}", rpc.name);
        let text: String = request.text.chars().take(1500).collect();
        self.0.entry(key).or_insert_with(|| (0, format!("{what}\n    {text}"))).0 += 1;
    }

    fn check(&self) -> Result<()> {
        let shown = self.0.iter().take(SHOWN).map(|(key, (times, example))| {
            let rpc = key.split(' ').next().unwrap_or_default();
            format!("{rpc}, {times} times: {example}")
        });
        let shown: Vec<_> = shown.collect();
        anyhow::ensure!(self.0.is_empty(), "{} faults:\n{}", self.0.len(), shown.join("\n"));
        Ok(())
    }
}

/// What the requests have made is removed again, but for the last.
async fn trim(node: &mut Node, world: &mut World, kept: usize) -> Result<()> {
    let ready = v1::PodSandboxState::SandboxReady;
    let listed = node.cri.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default());
    let (usable, stopped): (Vec<_>, Vec<_>) =
        listed.await?.into_inner().items.into_iter().partition(|item| item.state() == ready);
    let surplus = usable.len().saturating_sub(kept);
    for item in stopped.iter().chain(&usable[..surplus]) {
        node.cri.remove_sandbox(&item.id).await.context("remove what was made")?;
    }
    world.sandboxes = usable.into_iter().skip(surplus).map(|item| item.id).collect();
    let request = v1::ListContainersRequest::default();
    let listed = node.cri.runtime.list_containers(request).await?.into_inner().containers;
    let ended = |item: &v1::Container| item.state() == v1::ContainerState::ContainerExited;
    let surplus = listed.len().saturating_sub(kept * 3);
    for item in listed.iter().take(surplus) {
        node.cri.remove_container(&item.id).await.context("remove what was made")?;
    }
    let left = listed.into_iter().skip(surplus).filter(|item| !ended(item));
    world.containers = left.map(|item| item.id).collect();
    Ok(())
}

async fn world(node: &mut Node) -> Result<World> {
    let image = node.busybox().await?;
    let spare = node.push("spare", "latest", &image::ImageBuilder::new().build()?)?;
    let directory = node.path("shared");
    std::fs::create_dir_all(directory.join("inner"))?;
    let missing = node.registry.reference("no/such", "image");
    Ok(World {
        images: vec![image.clone(), image.clone(), image, missing.clone(), spare.clone()],
        removable: vec![spare, missing, "127.0.0.1:1/no/registry:1".to_owned()],
        directories: vec![node.dir().join("shared").display().to_string()],
        logs: node.log_directory("generated").display().to_string(),
        cgroup: format!("{}/generated", node.cgroup_base()),
        ..World::default()
    })
}

/// A pod with a container that runs, so that verbs have something to be about.
async fn renew(node: &mut Node, world: &mut World, number: u64) -> Result<()> {
    if !world.sandboxes.is_empty() && !world.containers.is_empty() {
        return Ok(());
    }
    let pod = node.pod(&format!("own{number}")).await?;
    let sleeper = container_config("main", &world.images[0], &["sleep", "1000"]);
    node.cri.pull(&world.images[0]).await?;
    world.containers.push(node.run(&pod, &sleeper).await?);
    world.sandboxes.push(pod.id);
    Ok(())
}

/// What came of a node's requests.
#[derive(Default)]
struct Outcome {
    faults: Faults,
    /// How often each RPC did what it was asked.
    answered: BTreeMap<String, u64>,
    /// Why it did not, and how often.
    refused: BTreeMap<String, u64>,
}

impl Outcome {
    async fn send(&mut self, client: &mut Client, generator: &mut Generator<'_>, rpc: &Rpc) {
        let request = generator.request(&rpc.name, &rpc.request);
        let world = &mut generator.world;
        match client.send(rpc, request.bytes.clone()).await {
            Ok(answer) => {
                *self.answered.entry(rpc.name.clone()).or_insert(0) += 1;
                match rpc.name.as_str() {
                    "RunPodSandbox" => world.sandboxes.extend(first_text(&answer)),
                    "CreateContainer" => world.containers.extend(first_text(&answer)),
                    _ => {}
                }
            }
            Err(status) => {
                let told: String = status.message().chars().take(100).collect();
                *self.refused.entry(format!("{} {told}", rpc.name)).or_insert(0) += 1;
                if let Some(what) = fault(&status) {
                    self.faults.note(rpc, &what, &request);
                }
            }
        }
    }

    /// Requests that are all refused show little.
    fn check(&self, count: u64) -> Result<()> {
        for rpc in ["RunPodSandbox", "CreateContainer", "UpdateContainerResources", "ExecSync"] {
            let times = self.answered.get(rpc).copied().unwrap_or(0);
            let why = || self.refused.iter().filter(|(key, _)| key.starts_with(rpc));
            let often = || why().collect::<Vec<_>>();
            anyhow::ensure!(times * 20 >= count, "{rpc}: {times} of {count} times: {:#?}", often());
        }
        Ok(())
    }
}

/// Memory of its own that the daemon has, bytes.
fn memory(node: &Node) -> Result<u64> {
    let pid = node.daemon().pid().context("the daemon does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("no RssAnon")?.parse::<u64>()? << 10)
}

/// Sends `count` requests of each RPC to a node of its own.
async fn requests(count: u64, seed: u64) -> Result<()> {
    let schema = Schema::read()?;
    let mut node = Node::start().await?;
    let mut client = Client::connect(node.daemon().socket()).await?;
    let world = world(&mut node).await?;
    let mut generator = Generator::new(&schema, seed, world);
    let (mut outcome, mut small) = (Outcome::default(), None);
    let daemon = node.daemon().pid();
    for number in 0..count {
        renew(&mut node, &mut generator.world, number).await?;
        for rpc in &schema.rpcs {
            outcome.send(&mut client, &mut generator, rpc).await;
        }
        if outcome.faults.0.len() >= SHOWN {
            outcome.faults.check()?;
        }
        trim(&mut node, &mut generator.world, KEPT).await?;
        if number >= WARM {
            small.get_or_insert(memory(&node)?);
        }
    }
    trim(&mut node, &mut generator.world, 0).await?;
    outcome.faults.check()?;
    assert_eq!(node.daemon().pid(), daemon, "the daemon was restarted");
    let log = std::fs::read_to_string(node.daemon().log())?;
    let panics: Vec<_> = log.lines().filter(|line| line.contains("panicked")).collect();
    anyhow::ensure!(panics.is_empty(), "{panics:#?}");
    outcome.check(count)?;
    if let Some(small) = small {
        let large = memory(&node)?;
        anyhow::ensure!(large <= small + GROWTH, "berthd grew from {small} to {large} bytes");
    }
    berth_testkit::remove_cgroups(&generator.world.cgroup)?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_generated_request_is_a_fault_of_the_daemon() -> Result<()> {
    let (count, seed) = (setting("BERTH_GENERATED", 150), setting("BERTH_SEED", 7));
    let each = count.div_ceil(NODES);
    let nodes = (0..NODES).map(|node| seed.wrapping_add(node));
    let nodes: Vec<_> = nodes.map(|seed| (seed, tokio::spawn(requests(each, seed)))).collect();
    for (seed, node) in nodes {
        node.await?.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}
