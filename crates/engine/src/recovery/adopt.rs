//! One sandbox and its containers, as they are found.

use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_metadata::{ContainerRecord, SandboxPhase, SandboxRecord};
use berth_model::container::{ContainerEvent, Timestamp};
use berth_model::{ContainerState, ErrorKind};
use berth_shim_client::{Shim, TaskState, TaskStatus};
use tokio::time::timeout;

use crate::container::{Adoption, Container};
use crate::core::{Core, step, warn_failure};
use crate::sandbox::{Sandbox, bootstrap, end_shim, process, undo_interrupted};
use crate::{Error, clock, container, sandbox};

/// How long a shim may take to answer; one that hangs does not hold up the others.
const ANSWER: Duration = Duration::from_secs(2);

/// Adopts a sandbox of the store.
pub(super) async fn sandbox(
    core: &Arc<Core>,
    mut record: SandboxRecord,
    members: Vec<ContainerRecord>,
) -> Result<(), Error> {
    if record.phase == SandboxPhase::Creating {
        undo_interrupted(core, &record).await;
        return Ok(());
    }
    let found = record.clone();
    let shim = find_shim(core, &mut record).await;
    if record.phase == SandboxPhase::Ready && shim.is_none() {
        tracing::warn!(sandbox.id = %record.id, "shim is gone");
        record.phase = SandboxPhase::NotReady;
    }
    if record != found {
        core.save_sandbox(&record).await?;
        step(Point::RECOVER_LOSS_STORED).await?;
    }
    if record.shim.is_none() && core.config.socket(&record.id).exists() {
        // The daemon died while a shim was ending.
        if let Err(error) = end_shim(core, record.id.clone(), None).await {
            warn_failure("end the shim of a stopped sandbox", &error);
        }
    }
    let (handle, commands) = Sandbox::new(core, &record, shim.clone())?;
    core.names.restore(record.spec.name.clone(), record.id.clone());
    for member in members {
        let id = member.id.clone();
        if let Err(error) = adopt_container(core, &handle, member, shim.as_ref()).await {
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
    sandbox::spawn(core, handle, record, commands);
    berth_failpoint::reached(Point::RECOVER_SANDBOX_ADOPTED).await;
    Ok(())
}

/// The connection to a shim that runs. After a reboot nothing of the record is there.
async fn find_shim(core: &Core, record: &mut SandboxRecord) -> Option<Shim> {
    if record.boot_id != core.boot_id {
        record.shim = None;
        record.network = None;
        return None;
    }
    let known = record.shim.as_ref()?;
    if process(known).is_some_and(|process| !process.exists()) {
        return None;
    }
    match Shim::connect(&bootstrap(known), ANSWER, false).await {
        Ok(shim) => Some(shim),
        Err(error) => {
            tracing::warn!(
                sandbox.id = %record.id,
                error = &error as &dyn std::error::Error,
                "connect to shim"
            );
            None
        }
    }
}

async fn adopt_container(
    core: &Arc<Core>,
    sandbox: &Arc<Sandbox>,
    mut record: ContainerRecord,
    shim: Option<&Shim>,
) -> Result<(), Error> {
    let found = match shim {
        None => without_shim(&record.state),
        Some(shim) => {
            let found = ask(shim, &record).await;
            if let Some((pid, at)) = found.started {
                // The daemon died between the start and its record.
                let event = ContainerEvent::Started { pid, at };
                record.state = record.state.clone().apply(event).map_err(|refused| {
                    Error::Transition { id: record.id.clone(), source: Box::new(refused) }
                })?;
                core.save_container(&record).await?;
                step(Point::RECOVER_START_STORED).await?;
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

async fn ask(shim: &Shim, record: &ContainerRecord) -> Found {
    let answer = timeout(ANSWER, shim.state(&record.id)).await;
    let known = match answer {
        Ok(Ok(state)) => Known::Task(state),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Known::Nothing,
        Ok(Err(_)) | Err(_) => Known::Silent,
    };
    decide(&record.state, known, shim)
}

/// What a shim says of a container.
#[derive(Clone, Copy, Debug)]
enum Known {
    Task(TaskState),
    Nothing,
    Silent,
}

fn decide(state: &ContainerState, known: Known, shim: &Shim) -> Found {
    let watch = || Adoption { task: true, watch: Some(shim.clone()), ended: None };
    let adopted = |adoption| Found { started: None, adoption };
    match (state, known) {
        (ContainerState::Running { .. }, Known::Task(task)) => match task.status {
            TaskStatus::Stopped(exited) => {
                adopted(Adoption { task: true, watch: None, ended: Some(Some(exited)) })
            }
            _ => adopted(watch()),
        },
        (ContainerState::Running { .. }, Known::Silent) => adopted(watch()),
        (ContainerState::Running { .. }, Known::Nothing) => {
            adopted(Adoption { task: false, watch: None, ended: Some(None) })
        }
        (ContainerState::Created, Known::Task(task)) => match task.status {
            TaskStatus::Running | TaskStatus::Paused => {
                Found { started: Some((task.pid, clock::now())), adoption: watch() }
            }
            TaskStatus::Stopped(exited) => Found {
                // It cannot have started after it ended.
                started: Some((task.pid, exited.at.min(clock::now()))),
                adoption: Adoption { task: true, watch: None, ended: Some(Some(exited)) },
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
