//! One sandbox and its containers, as they are found.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_metadata::{ContainerRecord, SandboxPhase, SandboxRecord};
use berth_model::container::{ContainerEvent, Timestamp};
use berth_model::{ContainerState, ErrorKind};
use berth_shim_client::{Shim, TaskState, TaskStatus};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::stranger;
use crate::container::{Adoption, Container};
use crate::core::{Core, step, warn_failure};
use crate::sandbox::{Sandbox, bootstrap, process, undo_interrupted};
use crate::{Error, clock, container, sandbox};

/// How long a shim may take to answer; one that hangs does not hold up the others.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the undo of a sandbox that was being made may hold up the start.
const UNDO: Duration = Duration::from_secs(1);

/// Adopts a sandbox of the store; says whether it has a network still.
pub(super) async fn sandbox(
    core: &Arc<Core>,
    mut record: SandboxRecord,
    members: Vec<ContainerRecord>,
) -> Result<bool, Error> {
    if record.phase == SandboxPhase::Creating {
        undo(core, record).await;
        return Ok(false);
    }
    let found = record.clone();
    let shim = find_shim(core, &mut record).await;
    if record.phase == SandboxPhase::Ready && shim.is_none() {
        tracing::warn!(sandbox.id = %record.id, "shim is gone");
        record.phase = SandboxPhase::NotReady;
    }
    if record != found
        && let Err(error) = store_loss(core, &record).await
    {
        // It is true all the same; the next change, or the next start, stores it.
        warn_failure("store what is lost of a sandbox", &error);
    }
    if record.shim.is_none() && core.config.socket(&record.id).exists() {
        // The daemon died while a shim was ending.
        let name = record.id.as_str().chars().take(20).collect();
        stranger::end(core, name).await;
    }
    let (handle, commands) = Sandbox::new(core, &record, shim.clone())?;
    core.names.restore(record.spec.name.clone(), record.id.clone());
    let mut silent = false;
    for member in members {
        let id = member.id.clone();
        let adopted = adopt_container(core, &handle, member, shim.as_ref(), &mut silent).await;
        if let Err(error) = adopted {
            tracing::error!(
                container.id = %id,
                error = &error as &dyn std::error::Error,
                "adopt container"
            );
        }
    }
    if record.phase == SandboxPhase::NotReady {
        handle.members.close().await;
    }
    let attached = record.network.is_some();
    sandbox::spawn(core, handle, record, commands, false);
    berth_failpoint::reached(Point::RECOVER_SANDBOX_ADOPTED).await;
    Ok(attached)
}

/// Takes back what was being made. What a shim that hangs holds up goes on while others
/// are served.
async fn undo(core: &Arc<Core>, record: SandboxRecord) {
    let id = record.id.clone();
    let shared = Arc::clone(core);
    let undone = async move { undo_interrupted(&shared, &record).await };
    let undone = core.tasks.spawn(undone.in_current_span());
    if timeout(UNDO, undone).await.is_err() {
        tracing::warn!(sandbox.id = %id, "an interrupted sandbox is taken back later");
    }
}

async fn store_loss(core: &Core, record: &SandboxRecord) -> Result<(), Error> {
    core.save_sandbox(record).await?;
    step(Point::RECOVER_LOSS_STORED).await
}

/// The connection to a shim that runs. After a reboot nothing of the record is there.
async fn find_shim(core: &Core, record: &mut SandboxRecord) -> Option<Shim> {
    if record.boot_id != core.boot_id {
        record.shim = None;
        record.network = None;
        return None;
    }
    let known = record.shim.as_ref()?;
    let bootstrap = bootstrap(known);
    if Path::new(bootstrap.address.trim_start_matches("unix://")) != core.config.socket(&record.id)
    {
        tracing::warn!(sandbox.id = %record.id, address = known.address, "not the shim's address");
        return None;
    }
    let process = process(known);
    if process.is_some_and(|process| !process.exists()) {
        return None;
    }
    let error = match Shim::connect(&bootstrap, ANSWER, false).await {
        Ok(shim) => return Some(shim),
        Err(error) => error,
    };
    tracing::warn!(
        sandbox.id = %record.id,
        error = &error as &dyn std::error::Error,
        "connect to shim"
    );
    // One that hangs has a full queue in the end, and is there all the same.
    (process.is_some() && !error.is_gone()).then(|| Shim::at(&bootstrap))
}

async fn adopt_container(
    core: &Arc<Core>,
    sandbox: &Arc<Sandbox>,
    mut record: ContainerRecord,
    shim: Option<&Shim>,
    silent: &mut bool,
) -> Result<(), Error> {
    let found = match shim {
        None => without_shim(&record.state),
        Some(shim) => {
            let found = ask(core, shim, &record, silent).await;
            if let Some((pid, at)) = found.started {
                // The daemon died between the start and its record.
                let event = ContainerEvent::Started { pid, at };
                record.state = record.state.clone().apply(event).map_err(|refused| {
                    Error::Transition { id: record.id.clone(), source: Box::new(refused) }
                })?;
                if let Err(error) = store_start(core, &record).await {
                    // As above; what it ends with is stored again.
                    warn_failure("store the start of a container", &error);
                }
            }
            found.adoption
        }
    };
    sandbox.members.restore(record.spec.name.clone(), record.id.clone());
    let (handle, commands) = Container::new(core, Arc::clone(sandbox), &record)?;
    container::spawn(core, handle, record, commands, found);
    berth_failpoint::reached(Point::RECOVER_CONTAINER_ADOPTED).await;
    Ok(())
}

async fn store_start(core: &Core, record: &ContainerRecord) -> Result<(), Error> {
    core.save_container(record).await?;
    step(Point::RECOVER_START_STORED).await
}

/// What ran under a shim that is gone is lost; the rest needs no shim.
fn without_shim(state: &ContainerState) -> Adoption {
    let ran = matches!(state, ContainerState::Running { .. });
    Adoption { ended: ran.then_some(None), ..Adoption::default() }
}

#[derive(Debug, Default)]
struct Found {
    /// The pid of a task that was started and not recorded, and a time at which it ran.
    started: Option<(u32, Timestamp)>,
    adoption: Adoption,
}

/// Asks the shim once; who was silent about one container is not asked about the next.
async fn ask(core: &Core, shim: &Shim, record: &ContainerRecord, silent: &mut bool) -> Found {
    let answer = if *silent { None } else { timeout(ANSWER, shim.state(&record.id)).await.ok() };
    *silent |= answer.is_none();
    let known = match answer {
        // The daemon died before it told that a start had failed; a start makes it anew.
        Some(Ok(TaskState { status: TaskStatus::Stopped(_), pid }))
            if never_ran(core, record).await =>
        {
            Known::Task(TaskState { status: TaskStatus::Created, pid })
        }
        Some(Ok(state)) => Known::Task(state),
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => Known::Nothing,
        Some(Err(_)) | None => Known::Silent,
    };
    decide(&record.state, known, shim)
}

/// Whether no record says that it ran, and the shim that it never did.
async fn never_ran(core: &Core, record: &ContainerRecord) -> bool {
    matches!(record.state, ContainerState::Created)
        && container::task_end(core, &core.config.containers().join(&record.id))
            .await
            .is_some_and(|end| !end.executed)
}

/// What a shim says of a container.
#[derive(Clone, Copy, Debug)]
enum Known {
    Task(TaskState),
    Nothing,
    Silent,
}

fn decide(state: &ContainerState, known: Known, shim: &Shim) -> Found {
    let watch = || Adoption { task: true, watch: Some(shim.clone()), ..Adoption::default() };
    let adopted = |adoption| Found { started: None, adoption };
    match (state, known) {
        (ContainerState::Running { .. }, Known::Task(task)) => match task.status {
            TaskStatus::Stopped(exited) => {
                adopted(Adoption { task: true, ended: Some(Some(exited)), ..Adoption::default() })
            }
            _ => adopted(watch()),
        },
        (ContainerState::Running { .. }, Known::Silent) => adopted(watch()),
        (ContainerState::Running { .. }, Known::Nothing) => {
            adopted(Adoption { ended: Some(None), ..Adoption::default() })
        }
        (ContainerState::Created, Known::Task(task)) => match task.status {
            TaskStatus::Running | TaskStatus::Paused => {
                Found { started: Some((task.pid, clock::now())), adoption: watch() }
            }
            TaskStatus::Stopped(exited) => Found {
                // It cannot have started after it ended.
                started: Some((task.pid, exited.at.min(clock::now()))),
                adoption: Adoption { task: true, ended: Some(Some(exited)), ..Adoption::default() },
            },
            // Made and never started: a start makes it anew.
            TaskStatus::Created | TaskStatus::Unknown => {
                adopted(Adoption { task: true, ..Adoption::default() })
            }
        },
        (ContainerState::Created | ContainerState::Exited { .. }, known) => {
            let task = !matches!(known, Known::Nothing);
            adopted(Adoption { task, ..Adoption::default() })
        }
    }
}
