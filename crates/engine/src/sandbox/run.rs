//! (none) → Creating → Ready.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_metadata::{AttachmentRecord, SandboxPhase, ShimRecord};
use berth_model::{SandboxId, SandboxSpec};
use berth_network::Inside;
use berth_shim_client::{ProcessId, Shim, StartRequest, Started};
use tracing::{Instrument as _, debug_span};

use super::plan::Plan;
use super::{Sandbox, driver, teardown};
use crate::container::unless_silent;
use crate::core::{Core, cgroup_error, cgroup_path, step, step_blocking, warn_failure};
use crate::names::Claim;
use crate::pending::Object;
use crate::spawner::{IPC_FD, NET_FD, Namespaces, USER_FD, UTS_FD, Wanted};
use crate::undo::Undo;
use crate::{Error, files, hooks, users};

/// How long a shim may take until it answers.
const SHIM_START: Duration = Duration::from_secs(30);

/// Makes a sandbox, or joins the work of a request with the same name.
pub(crate) async fn run(core: &Arc<Core>, spec: SandboxSpec) -> Result<SandboxId, Error> {
    if core.shutdown.is_cancelled() {
        return Err(Error::ShuttingDown);
    }
    match core.names.claim(&spec.name, || spec.clone()) {
        Claim::Closed => Err(Error::ShuttingDown),
        Claim::Made(id) => reuse(core, id, &spec),
        Claim::Making(asked, work) if *asked == spec => work.outcome().await,
        Claim::Making(..) => Err(Error::SandboxNameClaimed { name: shown(&spec) }),
        Claim::New(promise, work) => {
            let task_core = Arc::clone(core);
            let make = async move { promise.keep(make(&task_core, spec).await) };
            core.tasks.spawn(make.in_current_span());
            work.outcome().await
        }
    }
}

/// A client that lost our answer asks again for what it has.
fn reuse(core: &Core, id: SandboxId, spec: &SandboxSpec) -> Result<SandboxId, Error> {
    let same =
        core.sandboxes.get(&id).is_some_and(|found| found.is_ready() && *found.spec == *spec);
    if same {
        return Ok(id);
    }
    Err(Error::SandboxNameTaken { name: shown(spec), id })
}

fn shown(spec: &SandboxSpec) -> String {
    let name = &spec.name;
    format!("{}/{} (uid {}, attempt {})", name.namespace, name.name, name.uid, name.attempt)
}

async fn make(core: &Arc<Core>, spec: SandboxSpec) -> Result<SandboxId, Error> {
    if spec.namespaces.user.is_some() {
        users::check(core).await?;
    }
    let mut plan = core
        .disk
        .run({
            let core = Arc::clone(core);
            move || Plan::new(&core, spec)
        })
        .await??;
    let id = plan.record.id.clone();
    tracing::Span::current().record("sandbox.id", id.as_str());
    let object = Object::of_pod(&id, &plan.record.spec.name);
    if let Some(pod) = &object.pod {
        core.pending.hasten(pod).await;
    }
    let undo = Undo::new(&core.pending, object);
    undo.push("forget sandbox", {
        let (core, id) = (Arc::clone(core), id.clone());
        move || teardown::forget(&core, id.clone())
    });
    let made = async {
        step(Point::RUN_CLAIMED).await?;
        core.save_sandbox(&plan.record).instrument(debug_span!("store")).await?;
        step(Point::RUN_STORED).await?;
        let shim = build(core, &mut plan, &undo).await?;
        step(Point::RUN_MADE).await?;
        let passage = hooks::pass(core, &id).await?;
        hooks::run_sandbox(core, &plan.record, &undo).await?;
        plan.record.phase = SandboxPhase::Ready;
        core.save_sandbox(&plan.record).instrument(debug_span!("store")).await?;
        step(Point::RUN_READY_STORED).await?;
        Ok((Sandbox::new(core, &plan.record, Some(shim))?, passage))
    };
    match made.await {
        Ok(((sandbox, commands), passage)) => {
            undo.disarm();
            driver::spawn(core, sandbox, plan.record, commands, true);
            drop(passage);
            berth_failpoint::reached(Point::RUN_PUBLISHED).await;
            Ok(id)
        }
        Err(error) => {
            undo.run().await;
            Err(error)
        }
    }
}

/// Makes all that a sandbox is but its record; each thing's undo is pushed before it.
async fn build(core: &Arc<Core>, plan: &mut Plan, undo: &Undo) -> Result<Shim, Error> {
    let id = plan.record.id.clone();
    let wanted = Wanted::new(
        id.clone(),
        &plan.record.spec.namespaces,
        plan.hostname.clone(),
        plan.record.spec.sysctls.clone(),
    );
    let runtime = core.runtime(&plan.runtime);
    let namespaces = async {
        let made =
            core.spawner.make(wanted, &runtime).instrument(debug_span!("namespaces")).await?;
        step(Point::RUN_NAMESPACES).await.map(|()| made)
    };
    // Both are awaited to their end: nothing may still be in the making when undo runs.
    let (namespaces, prepared) = tokio::join!(namespaces, prepare(core, plan, undo));
    let cgroup = prepared?;
    let mut namespaces = namespaces?;
    step(Point::RUN_PREPARED).await?;
    let net = match (&namespaces.net, namespaces.inside.take()) {
        (Some(net), Some(inside)) => {
            let net = net.try_clone();
            Some((net.map_err(Error::io("duplicate namespace of", plan.dir.clone()))?, inside))
        }
        _ => None,
    };
    let request = request(core, plan, namespaces, cgroup);
    let (attached, started) =
        tokio::join!(connect(core, plan, net, undo), start_shim(core, plan, request, undo));
    let (network, started) = (attached?, started?);
    plan.record.network = network;
    plan.record.shim = Some(shim_record(&started));
    Ok(started.shim)
}

/// Directory and cgroup; the files by which the shim joins its own.
async fn prepare(core: &Arc<Core>, plan: &Plan, undo: &Undo) -> Result<Vec<OwnedFd>, Error> {
    let dir = plan.dir.clone();
    undo.push("remove sandbox directory", {
        let (core, dir) = (Arc::clone(core), dir.clone());
        move || teardown::remove_dir(&core, dir.clone())
    });
    let owned = match plan.record.owns_cgroup {
        true => {
            let path = cgroup_path(&plan.record.cgroup)?;
            undo.push("remove cgroup", {
                let (core, path) = (Arc::clone(core), path.clone());
                move || teardown::remove_cgroup(&core, path.clone())
            });
            Some(path)
        }
        false => None,
    };
    let shared = Arc::clone(core);
    let work = move || {
        files::make_dir(&dir, 0o700)?;
        step_blocking(Point::RUN_DIRECTORY)?;
        if let Some(path) = owned {
            shared.hierarchy.create(&path).map_err(cgroup_error("make cgroup", &path))?;
        }
        step_blocking(Point::RUN_CGROUP)?;
        shared.shim_cgroup()
    };
    core.disk.run(work).instrument(debug_span!("prepare")).await?
}

/// Network, and the files that tell of it.
async fn connect(
    core: &Arc<Core>,
    plan: &Plan,
    net: Option<(OwnedFd, Inside)>,
    undo: &Undo,
) -> Result<Option<AttachmentRecord>, Error> {
    let attached = match net {
        Some((net, inside)) => {
            Some(attach(core, plan, net, inside, undo).instrument(debug_span!("network")).await?)
        }
        None => None,
    };
    let address = attached.as_ref().map(|attached| attached.address.into());
    let plan = plan.clone();
    let files = core.disk.run(move || {
        plan.files(address)?.write(&plan.dir)?;
        // The pod's root may write them, as in any pod.
        plan.root().map_or(Ok(()), |root| files::give(&plan.dir, root))
    });
    files.instrument(debug_span!("files")).await??;
    step(Point::RUN_FILES_WRITTEN).await?;
    Ok(attached)
}

async fn attach(
    core: &Arc<Core>,
    plan: &Plan,
    net: OwnedFd,
    inside: Inside,
    undo: &Undo,
) -> Result<AttachmentRecord, Error> {
    if let Some(fault) = core.network_fault.get() {
        return Err(Error::NetworkDown(fault));
    }
    let id = plan.record.id.clone();
    let network = Arc::clone(&core.network);
    let ports: Vec<_> =
        plan.record.spec.port_mappings.iter().filter(|port| port.host_port != 0).cloned().collect();
    let attached = core.links.run({
        let id = id.clone();
        move || network.attach(&id, net.as_fd(), inside, &ports)
    });
    let attached = attached.await?.map_err(|source| Error::Network {
        action: "attach network",
        sandbox: id.clone(),
        source,
    })?;
    let record = AttachmentRecord {
        address: attached.address,
        prefix: attached.prefix,
        gateway: attached.gateway,
        mac: attached.mac.to_string(),
        host_interface: attached.host_interface,
        host_index: attached.host_index,
        ports: attached.ports,
    };
    // A failed attach leaves nothing, so its undo comes after it.
    undo.push("detach network", {
        let (core, record) = (Arc::clone(core), record.clone());
        move || teardown::detach(&core, id.clone(), record.clone())
    });
    step(Point::RUN_NETWORK_ATTACHED).await?;
    Ok(record)
}

/// Starts the shim with the namespaces, and has it make what containers share.
async fn start_shim(
    core: &Arc<Core>,
    plan: &Plan,
    request: StartRequest,
    undo: &Undo,
) -> Result<Started, Error> {
    let id = &plan.record.id;
    let failed = |action| {
        let id = id.to_string();
        move |source| Error::Shim { action, id, source }
    };
    undo.push("end shim", {
        let (core, id) = (Arc::clone(core), id.clone());
        move || teardown::end_shim(&core, id.clone(), None)
    });
    let runtime = core.runtime(&plan.runtime);
    let started = berth_shim_client::start(&runtime, request)
        .instrument(debug_span!("shim_start"))
        .await
        .map_err(failed("start shim of sandbox"))?;
    step(Point::RUN_SHIM_SPAWNED).await?;
    let sandbox = async {
        let created = started.shim.sandbox_create(id, &plan.dir, plan.options).await;
        created.map_err(failed("set up shim of sandbox"))?;
        step(Point::RUN_SHIM_CREATED).await?;
        started.shim.sandbox_start(id).await.map_err(failed("start sandbox of shim"))
    };
    let silent = failed("set up shim of sandbox");
    unless_silent(&started.shim, id, silent, sandbox.instrument(debug_span!("shim_sandbox")))
        .await?;
    step(Point::RUN_SHIM_STARTED).await?;
    Ok(started)
}

fn request(core: &Core, plan: &Plan, namespaces: Namespaces, cgroup: Vec<OwnedFd>) -> StartRequest {
    let mut fds = Vec::new();
    let mut names = Vec::new();
    for (fd, name, number) in [
        (namespaces.net, "net", NET_FD),
        (namespaces.ipc, "ipc", IPC_FD),
        (namespaces.uts, "uts", UTS_FD),
        (namespaces.user, "user", USER_FD),
    ] {
        if let Some(fd) = fd {
            fds.push((fd, number));
            names.push(format!("{name}={number}"));
        }
    }
    StartRequest {
        id: plan.record.id.to_string(),
        bundle: plan.dir.clone(),
        events: core.config.events_address.clone().into(),
        socket: Some(core.config.socket(&plan.record.id)),
        fds,
        cgroup,
        env: vec![("BERTH_NAMESPACES".into(), names.join(",").into())],
        log: Some(plan.dir.join("shim.log")),
        debug: tracing::enabled!(tracing::Level::TRACE),
        deadline: SHIM_START,
    }
}

/// How to find the shim again; a pid that cannot be named is left out.
pub(super) fn shim_record(started: &Started) -> ShimRecord {
    let process = started.shim.peer().unwrap_or(ProcessId { pid: 0, started: 0 });
    if process.pid == 0 {
        warn_failure("name shim process", &Error::TaskDied("the shim"));
    }
    ShimRecord {
        address: started.bootstrap.address.clone(),
        version: match started.bootstrap.version {
            berth_shim_client::ApiVersion::V2 => 2,
            berth_shim_client::ApiVersion::V3 => 3,
        },
        pid: process.pid,
        started_ticks: process.started,
    }
}
