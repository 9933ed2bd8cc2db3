//! `berth-bench peers`: the runtimes that `compare` measures, for other tools to look at.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use berth_testkit::image::busybox;
use berth_testkit::{Cri, container_config, sandbox_config};
use clap::Args;
use std::future::pending;

use super::{Kind, Peer, Store};
use crate::interrupt::Interrupts;
use crate::session;

/// What `peers` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Only these: `berth`, `runc`, `crun` (the latter two under containerd).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
}

/// Starts what `options` ask for, has each run one pod, says where it answers, and ends all
/// on ctrl-c.
pub(crate) async fn serve(options: &Options) -> Result<()> {
    let mut interrupts = Interrupts::listen()?;
    let store = Store::new()?;
    let mut peers = Vec::new();
    let started = interrupts.unless(start(options, &store, &mut peers)).await;
    if started.is_ok() {
        println!("until ctrl-c");
        // Nothing but a signal ends it.
        interrupts.unless(pending::<Result<()>>()).await.ok();
    }
    let mut ended = Ok(());
    for peer in peers {
        let name = peer.kind.name();
        if let Err(error) = peer.end().await {
            eprintln!("end {name}: {error:#}");
            ended = Err(error);
        }
    }
    started.and(ended)
}

async fn start(options: &Options, store: &Store, peers: &mut Vec<Peer>) -> Result<()> {
    let image = store.push("busybox", &busybox()?)?;
    let logs = session::directory()?;
    for kind in Kind::chosen(&options.only)? {
        let peer = Peer::start(kind, store).await?;
        let tried = try_pod(&peer, &image, logs.path()).await;
        tried.with_context(|| format!("{}'s log ends:\n{}", kind.name(), peer.log_tail()))?;
        let (socket, parent) = (peer.socket().display(), peer.cgroup_parent());
        println!("{}: --socket {socket} --image {image} --cgroup-parent {parent}", kind.name());
        peers.push(peer);
    }
    Ok(())
}

/// Runs one pod, to its end.
async fn try_pod(peer: &Peer, image: &str, logs: &Path) -> Result<()> {
    let mut cri = Cri::connect(peer.socket()).await?;
    cri.pull(image).await.context("pull busybox")?;
    let mut sandbox = sandbox_config("try", &logs.join("try"));
    sandbox.linux.get_or_insert_default().cgroup_parent = peer.cgroup_parent().to_owned();
    std::fs::create_dir_all(logs.join("try"))?;
    let id = cri.run_sandbox(&sandbox).await.context("run a sandbox")?;
    let config = container_config("main", image, &["sleep", "1000"]);
    let container = cri.create_container(&id, &sandbox, &config).await.context("create")?;
    cri.start_container(&container).await.context("start the container")?;
    let said = cri.exec(&container, &["echo", "up"], 10).await.context("exec in it")?;
    ensure!(said.stdout == b"up\n", "exec said {said:?}");
    cri.stop_container(&container, 0).await.context("stop it")?;
    cri.remove_container(&container).await.context("remove it")?;
    cri.remove_sandbox(&id).await.context("remove the sandbox")
}
