//! A client: pods through their whole life, as kubelet leads them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::{Cri, container_config, sandbox_config};
use nix::sys::signal::Signal;
use tokio::time::sleep;
use tonic::Code;

use super::shared::{Expect, Shared, add};
use crate::host::Process;
use crate::random::Random;
use crate::workload::{self, Numbered};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How long what ends by itself, or was killed, may take to be told so.
const END: Duration = Duration::from_secs(60);
/// Exit code of what SIGKILL ended.
const KILLED: i32 = 137;
/// Exit code of what lost its shim.
const LOST: i32 = 255;

/// How a container's program behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Writes so many lines and ends.
    Counter(u64),
    /// Writes until it is asked to end.
    Server,
    /// Writes until it is killed.
    Deaf,
}

/// A container of a pod.
#[derive(Debug)]
struct Member {
    name: String,
    id: String,
    kind: Kind,
    code: i32,
    log: Numbered,
    ended: bool,
}

#[derive(Debug)]
struct Life<'a> {
    shared: &'a Shared,
    random: Random,
    config: v1::PodSandboxConfig,
    sandbox: String,
    members: Vec<Member>,
    /// The shim was killed: codes and last lines went with it.
    lost: bool,
}

/// Leads one pod after the other until the end.
pub(crate) async fn lead(shared: &Shared, seed: u64, client: u64) -> Result<()> {
    let mut number = 0;
    while !shared.ends() {
        number += 1;
        let name = format!("client{client}-{number}");
        let config = sandbox_config(&name, &shared.logs.join(&name));
        let random = Random::new(seed, &name);
        let (sandbox, members) = (String::new(), Vec::new());
        let mut life = Life { shared, random, config, sandbox, members, lost: false };
        life.lead(client).await.with_context(|| format!("pod {name}"))?;
        add(&shared.counts.pods, 1);
        std::fs::remove_dir_all(shared.logs.join(&name)).ok();
    }
    Ok(())
}

impl Life<'_> {
    async fn lead(&mut self, client: u64) -> Result<()> {
        if self.random.chance(30) {
            let host_port = i32::try_from(9000 + client)?;
            let port = v1::PortMapping { container_port: 80, host_port, ..Default::default() };
            self.config.port_mappings.push(port);
        }
        self.run().await?;
        for number in 0..self.random.between(1, 2) {
            self.create(number).await?;
            self.rest(50).await;
            self.start().await?;
        }
        self.rest(400).await;
        if self.random.chance(30) {
            self.exec().await?;
        }
        match self.random.below(100) {
            0..8 => self.lose_shim().await?,
            8..20 => self.kill_init().await?,
            _ => {}
        }
        if self.random.chance(70) {
            for index in 0..self.members.len() {
                self.end(index).await?;
            }
        }
        self.remove().await
    }

    async fn rest(&mut self, limit: u64) {
        sleep(self.random.millis(limit)).await;
    }

    async fn run(&mut self) -> Result<()> {
        let _under_way = self.shared.enter().await;
        let config = &self.config;
        let verb = async |mut cri: Cri| cri.run_sandbox(config).await;
        self.shared.vanish(&mut self.random, verb).await;
        self.sandbox = self.shared.verb("run sandbox", verb).await?;
        let before = self.shared.ledger().sandboxes.insert(self.sandbox.clone(), Some(true));
        ensure!(before.is_none(), "another pod is called {} as well", self.sandbox);
        Ok(())
    }

    async fn create(&mut self, number: u64) -> Result<()> {
        let (name, code) = (format!("main{number}"), self.random.code());
        let (kind, program) = match self.random.below(4) {
            0 => (Kind::Counter(500), workload::counter(500, "", code)),
            1 => (Kind::Counter(30), workload::counter(30, "0.02", code)),
            2 => (Kind::Server, workload::server("0.02", code)),
            _ => (Kind::Deaf, workload::deaf("0.02")),
        };
        let config = container_config(&name, &self.shared.image, &["sh", "-c", &program]);
        let _under_way = self.shared.enter().await;
        let (sandbox, pod) = (&self.sandbox, &self.config);
        let verb = async |mut cri: Cri| cri.create_container(sandbox, pod, &config).await;
        self.shared.vanish(&mut self.random, verb).await;
        let id = self.shared.verb("create container", verb).await?;
        self.shared.ledger().containers.insert(id.clone(), Expect::Created);
        let log = Numbered::new(std::path::Path::new(&pod.log_directory).join(&config.log_path));
        self.members.push(Member { name, id, kind, code, log, ended: false });
        add(&self.shared.counts.containers, 1);
        Ok(())
    }

    /// Starts the container that was created last.
    async fn start(&mut self) -> Result<()> {
        let Some(index) = self.members.len().checked_sub(1) else { return Ok(()) };
        let id = self.members[index].id.clone();
        let _under_way = self.shared.enter().await;
        let verb = async |mut cri: Cri| cri.start_container(&id).await;
        self.shared.vanish(&mut self.random, verb).await;
        match self.shared.answered("start container", verb).await?.0 {
            Ok(()) => {}
            // It was started by a call whose answer was lost, and has ended since.
            Err(status)
                if status.code() == Code::FailedPrecondition
                    && matches!(self.members[index].kind, Kind::Counter(_)) => {}
            Err(status) => bail!("start container {id}: {status:?}"),
        }
        let (status, pid) = self.shared.look(&id).await?;
        ensure!(status.started_at > 0, "started: {status:?}");
        let process = pid.and_then(Process::find);
        match (status.state(), process) {
            (v1::ContainerState::ContainerRunning, Some(process)) => {
                let codes = match self.members[index].kind {
                    Kind::Counter(_) => vec![self.members[index].code],
                    Kind::Server | Kind::Deaf => Vec::new(),
                };
                let alive = Expect::Alive { process, codes };
                self.shared.ledger().containers.insert(id, alive);
                Ok(())
            }
            // Ended between the look and now, or before.
            _ => self.see_end(index, &[self.members[index].code]).await,
        }
    }

    /// Waits until a container has ended, checks how, and enters it. Verbs are under way.
    async fn see_end(&mut self, index: usize, codes: &[i32]) -> Result<()> {
        let (member, begun) = (&mut self.members[index], Instant::now());
        let status = loop {
            let (status, _) = self.shared.look(&member.id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                break status;
            }
            ensure!(begun.elapsed() < END, "{} does not end: {status:?}", member.name);
            sleep(LOOK).await;
        };
        if !codes.contains(&status.exit_code) {
            let log = std::fs::read_to_string(member.log.path()).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(3).collect();
            bail!("{codes:?} expected: {status:?}; its last lines: {last:?}");
        }
        ensure!(
            0 < status.started_at && status.started_at <= status.finished_at,
            "times: {status:?}"
        );
        ensure!(status.finished_at <= crate::stage::nanos(), "ends later: {status:?}");
        member.ended = true;
        let ended = Expect::Ended(Box::new(status.clone()));
        let before = self.shared.ledger().containers.insert(member.id.clone(), ended);
        if let Some(Expect::Alive { process, .. }) = before {
            ensure!(!process.runs(), "told to have ended, and runs: {process:?}");
        }
        if !self.lost {
            let lines = member.log.finish()?;
            if let Kind::Counter(all) = member.kind
                && status.exit_code == member.code
            {
                ensure!(lines == all, "{lines} lines of {all}: {}", member.log.path().display());
            }
            add(&self.shared.counts.lines, lines);
        }
        Ok(())
    }

    /// A command in a container that runs on.
    async fn exec(&mut self) -> Result<()> {
        let running = self.members.iter().find(|member| member.kind == Kind::Deaf);
        let Some(id) = running.map(|member| member.id.clone()) else { return Ok(()) };
        let code = self.random.code();
        let (told, script) = (format!("told {code}\n"), format!("echo told {code}; exit {code}"));
        let _under_way = self.shared.enter().await;
        let verb = async |mut cri: Cri| cri.exec(&id, &["sh", "-c", &script], 30).await;
        self.shared.vanish(&mut self.random, verb).await;
        let answer = self.shared.verb("exec", verb).await?;
        ensure!(
            answer.exit_code == code && answer.stdout == told.as_bytes(),
            "{code} and {told:?}: {answer:?}"
        );
        add(&self.shared.counts.execs, 1);
        Ok(())
    }

    /// Kills the first process of a container.
    async fn kill_init(&mut self) -> Result<()> {
        let Some((index, process)) = self.alive().into_iter().next() else { return Ok(()) };
        let codes = [KILLED, self.members[index].code];
        let _under_way = self.shared.enter().await;
        process.signal(Signal::SIGKILL)?;
        add(&self.shared.counts.inits, 1);
        self.see_end(index, &codes).await
    }

    /// Kills the shim: whatever ran under it is told to have ended with 255, and has.
    async fn lose_shim(&mut self) -> Result<()> {
        let alive = self.alive();
        let Some((_, process)) = alive.first() else { return Ok(()) };
        let shim =
            Process::find(process.parent).filter(|shim| shim.command().contains(&self.sandbox));
        let Some(shim) = shim else { return Ok(()) };
        let _under_way = self.shared.enter().await;
        self.lost = true;
        shim.signal(Signal::SIGKILL)?;
        let begun = Instant::now();
        for (index, _) in alive {
            let codes = [LOST, self.members[index].code];
            self.see_end(index, &codes).await?;
        }
        let told = u64::try_from(begun.elapsed().as_millis())?;
        self.shared.counts.loss_told.fetch_max(told, Ordering::Relaxed);
        let id = &self.sandbox;
        loop {
            let verb = async |mut cri: Cri| cri.sandbox_status(id).await;
            let status = self.shared.verb("sandbox status", verb).await?;
            if status.state() == v1::PodSandboxState::SandboxNotready {
                break;
            }
            ensure!(begun.elapsed() < END, "ready without a shim: {status:?}");
            sleep(LOOK).await;
        }
        self.shared.ledger().sandboxes.insert(id.clone(), Some(false));
        add(&self.shared.counts.shims, 1);
        Ok(())
    }

    /// Containers that ran when they were last looked at, with their first processes.
    fn alive(&self) -> Vec<(usize, Process)> {
        let ledger = self.shared.ledger();
        let members = self.members.iter().enumerate();
        let alive = members.filter_map(|(index, member)| match ledger.containers.get(&member.id) {
            Some(Expect::Alive { process, .. }) => Some((index, process.clone())),
            _ => None,
        });
        alive.collect()
    }

    /// Has a container end in the way of its kind, and sometimes removes it.
    async fn end(&mut self, index: usize) -> Result<()> {
        let (id, kind, code) =
            (self.members[index].id.clone(), self.members[index].kind, self.members[index].code);
        if !self.members[index].ended {
            let begun = Instant::now();
            while kind == Kind::Server && self.members[index].log.advance()? == 0 {
                // Its trap is set once it writes.
                ensure!(begun.elapsed() < END, "{} never wrote", self.members[index].name);
                sleep(LOOK).await;
            }
            let _under_way = self.shared.enter().await;
            let (grace, codes) = match kind {
                Kind::Counter(_) => (None, vec![code]),
                Kind::Server => (Some(30), vec![code]),
                Kind::Deaf => (Some(i64::from(self.random.chance(10))), vec![KILLED]),
            };
            if let Some(grace) = grace {
                let verb = async |mut cri: Cri| cri.stop_container(&id, grace).await;
                self.shared.vanish(&mut self.random, verb).await;
                self.shared.verb("stop container", verb).await?;
            }
            self.see_end(index, &codes).await?;
        }
        if self.random.chance(60) {
            let _under_way = self.shared.enter().await;
            let verb = async |mut cri: Cri| cri.remove_container(&id).await;
            self.shared.vanish(&mut self.random, verb).await;
            self.shared.verb("remove container", verb).await?;
            self.shared.ledger().containers.remove(&id);
        }
        Ok(())
    }

    /// Stops and removes the sandbox, with what is left in it.
    async fn remove(&mut self) -> Result<()> {
        let _under_way = self.shared.enter().await;
        let alive = self.alive();
        let id = &self.sandbox;
        let stop = async |mut cri: Cri| cri.stop_sandbox(id).await;
        self.shared.vanish(&mut self.random, stop).await;
        self.shared.verb("stop sandbox", stop).await?;
        for (_, process) in &alive {
            ensure!(!process.runs(), "its sandbox is stopped, and it runs: {process:?}");
        }
        for (index, _) in alive {
            let codes = [KILLED, self.members[index].code];
            self.see_end(index, &codes).await?;
        }
        let id = &self.sandbox;
        let remove = async |mut cri: Cri| {
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
            cri.runtime.remove_pod_sandbox(request).await.map(drop)
        };
        self.shared.vanish(&mut self.random, remove).await;
        self.shared.verb("remove sandbox", remove).await?;
        let mut ledger = self.shared.ledger();
        ledger.sandboxes.remove(id);
        for member in &self.members {
            ledger.containers.remove(&member.id);
        }
        Ok(())
    }
}
