//! (none) → Created.

use std::sync::Arc;

use berth_failpoint::Point;
use berth_image::Hold;
use berth_metadata::ContainerRecord;
use berth_model::{ContainerId, ContainerSpec, SandboxId};
use berth_nri::Passage;
use berth_snapshot::{Durability, SnapshotKey};
use oci_spec::image::ImageConfiguration;
use tracing::{Instrument as _, debug_span};

use super::Container;
use super::driver::{self, Adoption};
use super::plan::{Image, Plan};
use super::volumes;
use crate::core::{Core, step, step_blocking};
use crate::names::Claim;
use crate::pending::Object;
use crate::sandbox::{Sandbox, remove_dir};
use crate::undo::Undo;
use crate::{Error, clock, files, hooks};

/// Prepares a container, or joins the work of a request with the same name.
pub(crate) async fn create(
    core: &Arc<Core>,
    sandbox: &SandboxId,
    spec: ContainerSpec,
) -> Result<ContainerId, Error> {
    let sandbox = core.sandbox(sandbox)?;
    let not_ready = || Error::SandboxNotReady { verb: "create container", id: sandbox.id.clone() };
    if !sandbox.is_ready() {
        return Err(not_ready());
    }
    match sandbox.members.claim(&spec.name, || spec.clone()) {
        Claim::Closed => Err(not_ready()),
        Claim::Made(id) => reuse(core, &sandbox, id, &spec),
        Claim::Making(asked, work) if spec.repeats(&asked) => work.outcome().await,
        Claim::Making(..) => {
            Err(Error::ContainerNameClaimed { name: shown(&spec), sandbox: sandbox.id.clone() })
        }
        Claim::New(promise, work) => {
            let (core, sandbox) = (Arc::clone(core), Arc::clone(&sandbox));
            let tasks = core.tasks.clone();
            let make = async move { promise.keep(make(&core, sandbox, spec).await) };
            tasks.spawn(make.in_current_span());
            work.outcome().await
        }
    }
}

/// A client that lost our answer asks again for what it has.
fn reuse(
    core: &Core,
    sandbox: &Sandbox,
    id: ContainerId,
    spec: &ContainerSpec,
) -> Result<ContainerId, Error> {
    let found = core.containers.get(&id).map(|container| container.status.get());
    let same = found.is_some_and(|found| {
        spec.repeats(&found.spec) && found.state == berth_model::ContainerState::Created
    });
    if same {
        return Ok(id);
    }
    Err(Error::ContainerNameTaken { name: shown(spec), sandbox: sandbox.id.clone(), id })
}

fn shown(spec: &ContainerSpec) -> String {
    format!("{} (attempt {})", spec.name.name, spec.name.attempt)
}

async fn make(
    core: &Arc<Core>,
    sandbox: Arc<Sandbox>,
    spec: ContainerSpec,
) -> Result<ContainerId, Error> {
    let id = ContainerId::from_random(clock::random()?);
    let undo = Undo::new(&core.pending, Object::new("container", &id));
    tracing::Span::current().record("container.id", id.as_str());
    let built = async {
        let (plan, passage) = build(core, &sandbox, id.clone(), spec, &undo).await?;
        let made = Container::new(core, Arc::clone(&sandbox), &plan.record)?;
        Ok((plan, made, passage))
    };
    match built.await {
        Ok((plan, (container, commands), passage)) => {
            undo.disarm();
            let new = Adoption { new: true, ..Adoption::default() };
            driver::spawn(core, Arc::clone(&container), plan.record, commands, new);
            hooks::post_create_container(core, &container).await;
            drop(passage);
            berth_failpoint::reached(Point::CREATE_PUBLISHED).await;
            Ok(id)
        }
        Err(error) => {
            undo.run().await;
            Err(error)
        }
    }
}

/// Makes all that a created container is, its record last: without it a restart sweeps
/// the rest.
async fn build(
    core: &Arc<Core>,
    sandbox: &Arc<Sandbox>,
    id: ContainerId,
    spec: ContainerSpec,
    undo: &Undo,
) -> Result<(Plan, Option<Passage>), Error> {
    step(Point::CREATE_CLAIMED).await?;
    // The images stay whole until a record names their layers.
    let hold = hold(core, &spec.image).instrument(debug_span!("image")).await?;
    volumes::check_shim(sandbox, &spec.mounts).await?;
    let volumes = volumes::hold(core, &spec.mounts).await?;
    step(Point::CREATE_IMAGE_HELD).await?;
    let image = Arc::new(Image {
        config: config(core, &hold).await?,
        record: hold.image.clone(),
        volumes: volumes::found(&volumes),
    });
    let plan = plan(core, sandbox, id.clone(), spec, &image, Vec::new()).await?;
    step(Point::CREATE_PLANNED).await?;
    let passage = hooks::pass(core, &id).await?;
    let plan = adjusted(core, sandbox, plan, &image, undo).await?;
    let bundle = core.config.containers().join(&id);
    undo.push("remove bundle", {
        let (core, bundle) = (Arc::clone(core), bundle.clone());
        move || remove_dir(&core, bundle.clone())
    });
    undo.push("remove snapshot", {
        let (core, id) = (Arc::clone(core), id.clone());
        move || remove_snapshot(&core, SnapshotKey::from(&id))
    });
    let plan = {
        let core = Arc::clone(core);
        let paths = core.paths.clone();
        let key = SnapshotKey::from(&id);
        let work = move || {
            write_bundle(&bundle, &plan)?;
            make_log_directory(&plan)?;
            step_blocking(Point::CREATE_LOG_DIRECTORY)?;
            core.snapshots
                .prepare(&key, &plan.record.chain, Durability::Volatile)
                .map_err(snapshot_error("prepare snapshot", &key))?;
            step_blocking(Point::CREATE_SNAPSHOT)?;
            Ok::<_, Error>(plan)
        };
        paths.run(work).instrument(debug_span!("prepare")).await??
    };
    // Newest first: a restart takes a container that has a record for a whole one.
    undo.push("forget container", {
        let core = Arc::clone(core);
        move || {
            let (core, id) = (Arc::clone(&core), id.clone());
            async move { core.forget_container(&id).await }
        }
    });
    core.save_container(&plan.record).instrument(debug_span!("store")).await?;
    step(Point::CREATE_STORED).await?;
    Ok((plan, passage))
}

async fn plan(
    core: &Arc<Core>,
    sandbox: &Arc<Sandbox>,
    id: ContainerId,
    spec: ContainerSpec,
    image: &Arc<Image>,
    more: Vec<String>,
) -> Result<Plan, Error> {
    let (core, sandbox, image) = (Arc::clone(core), Arc::clone(sandbox), Arc::clone(image));
    let paths = core.paths.clone();
    let work = move || Plan::new(&core, &sandbox, id, spec, &image, &more);
    paths.run(work).instrument(debug_span!("spec")).await?
}

/// The plan as plugins want it. With the devices that they name it is made anew, as if the
/// request had named them: what these bring is checked, made and owned in one place.
async fn adjusted(
    core: &Arc<Core>,
    sandbox: &Arc<Sandbox>,
    mut made: Plan,
    image: &Arc<Image>,
    undo: &Undo,
) -> Result<Plan, Error> {
    let refused = |plan: &Plan| match (plan.oci.hooks(), &sandbox.spec.namespaces.user) {
        (Some(_), Some(_)) => {
            Err(Error::Unsupported("OCI hooks in a sandbox with users of its own".to_owned()))
        }
        _ => Ok(()),
    };
    refused(&made)?;
    let asked = hooks::create_container(core, sandbox, &made.record, &made.oci, undo).await?;
    let Some(mut wanted) = asked else { return Ok(made) };
    let devices = std::mem::take(&mut wanted.adjustment.cdi_devices);
    if !devices.is_empty() {
        let ContainerRecord { id, spec, .. } = made.record;
        let names = devices.into_iter().map(|device| device.name).collect();
        made = plan(core, sandbox, id, spec, image, names).await?;
    }
    hooks::adjust(core, sandbox, &mut made.record, &mut made.oci, wanted)?;
    refused(&made)?;
    Ok(made)
}

async fn hold(core: &Core, name: &str) -> Result<Hold, Error> {
    core.images.hold(name).await.map_err(Error::image("find image", name))
}

async fn config(core: &Core, hold: &Hold) -> Result<ImageConfiguration, Error> {
    let config = core.images.config(&hold.image).await;
    config.map_err(Error::image("read configuration of image", &hold.image.id.to_string()))
}

fn write_bundle(bundle: &std::path::Path, plan: &Plan) -> Result<(), Error> {
    // The runtime mounts here, inside the container's own mount namespace.
    files::make_dir(&bundle.join("rootfs"), 0o700)?;
    step_blocking(Point::CREATE_BUNDLE)?;
    let path = bundle.join("config.json");
    let json = serde_json::to_vec(&plan.oci).map_err(|source| Error::Io {
        action: "write",
        path: path.clone(),
        source: source.into(),
    })?;
    files::write_file(&path, &json)?;
    step_blocking(Point::CREATE_SPEC_WRITTEN)
}

fn make_log_directory(plan: &Plan) -> Result<(), Error> {
    match plan.record.log_path.as_deref().and_then(std::path::Path::parent) {
        Some(directory) => files::make_dir(directory, 0o755),
        None => Ok(()),
    }
}

/// Removes what a container would have written to, or has.
pub(crate) fn remove_snapshot(
    core: &Arc<Core>,
    key: SnapshotKey,
) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let (snapshots, disk) = (core.snapshots.clone(), core.disk.clone());
    async move {
        let failed = snapshot_error("remove snapshot", &key);
        disk.run(move || snapshots.remove(&key)).await?.map_err(failed)
    }
}

fn snapshot_error(
    action: &'static str,
    key: &SnapshotKey,
) -> impl FnOnce(berth_snapshot::Error) -> Error + use<> {
    let key = key.to_string();
    move |source| Error::Snapshot { action, key, source }
}
