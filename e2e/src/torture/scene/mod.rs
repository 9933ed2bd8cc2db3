//! What a round does: a verb, what must be there for it, and what must be true after it.

mod act;
mod verify;

use anyhow::Result;
use berth_api::v1;
use berth_testkit::tar::Tar;
use berth_testkit::{bind, container_config, image, sandbox_security, script, security};
use nix::sys::signal::Signal;

use crate::host::Process;
use crate::random::Random;
use crate::stage::Stage;
use crate::workload;

/// A verb in one of the situations that it may find.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Scene {
    Pull,
    PullMovedTag,
    RemoveImage,
    Run,
    RunWithPorts,
    RunOnHost,
    Create,
    Start,
    StartMissing,
    Limit,
    LimitSandbox,
    StopPolite,
    StopAtOnce,
    StopDeaf,
    Exit,
    RemoveRunning,
    RemoveExited,
    StopSandbox,
    RemoveSandbox,
    RemoveStopped,
    LoseShim,
    LoseShimUnseen,
    StopWedged,
    EndShared,
    Exec,
    ExecLate,
}

/// What a scene set up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Props {
    /// What is asked for, or was.
    pub(crate) sandbox: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    /// Ids of what exists before the verb.
    pub(crate) sandbox_id: String,
    pub(crate) container_id: String,
    /// A second container of the sandbox.
    pub(crate) other_id: String,
    image: String,
    image_id: String,
    old_image_id: String,
    code: i32,
    process: Option<Process>,
    shim: Option<Process>,
}

/// What a daemon that died amid a verb may or may not have, by its name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsure {
    pub(crate) sandbox: bool,
    pub(crate) container: bool,
}

impl Props {
    /// Whether a listed container is one of the scene's, by its name and sandbox.
    pub(crate) fn is_member(&self, listed: &v1::Container) -> bool {
        let made = listed.metadata == self.container.metadata || listed.id == self.other_id;
        made && listed.pod_sandbox_id == self.sandbox_id
    }
}

use Scene::*;

/// A program that no image has.
const MISSING: &str = "/no/such/program";
/// An argument by which a command is found that must not run for long.
const LATE: &str = "99999";
/// The CPU shares that a verb changes to; none has them before.
const SHARES: i64 = 333;
/// Lines of the container that is created.
const CREATED_LINES: u64 = 5;
/// Lines of the container that ends by itself.
const EXIT_LINES: u64 = 20;

impl Scene {
    /// Every scene, the quick ones first.
    pub(crate) const ALL: [Self; 26] = [
        Pull,
        PullMovedTag,
        RemoveImage,
        Run,
        RunWithPorts,
        RunOnHost,
        Create,
        Start,
        StartMissing,
        Limit,
        LimitSandbox,
        StopPolite,
        StopAtOnce,
        Exit,
        RemoveRunning,
        RemoveExited,
        StopSandbox,
        RemoveSandbox,
        RemoveStopped,
        LoseShim,
        LoseShimUnseen,
        EndShared,
        Exec,
        StopWedged,
        StopDeaf,
        ExecLate,
    ];

    /// Whether it takes a second by its nature.
    pub(crate) fn slow(self) -> bool {
        matches!(self, StopDeaf | StopWedged | ExecLate)
    }

    pub(crate) fn unsure(self) -> Unsure {
        match self {
            Run | RunWithPorts | RunOnHost => Unsure { sandbox: true, container: false },
            Create | RemoveRunning | RemoveExited => Unsure { sandbox: false, container: true },
            RemoveSandbox | RemoveStopped => Unsure { sandbox: true, container: true },
            _ => Unsure::default(),
        }
    }

    /// Makes what the verb needs.
    pub(crate) async fn set(self, stage: &mut Stage, random: &mut Random) -> Result<Props> {
        let mut props = Props { code: random.code(), ..Props::default() };
        match self {
            Pull | PullMovedTag | RemoveImage => self.set_image(stage, &mut props).await?,
            Run | RunWithPorts | RunOnHost => self.set_run(stage, &mut props),
            Exec | ExecLate => self.set_member(stage, &mut props, "exec sleep 1000000").await?,
            Create => {
                let script = workload::counter(CREATED_LINES, "", props.code);
                let name = stage.name("create");
                props.container = container_config(&name, &stage.image, &["sh", "-c", &script]);
                props.sandbox_id.clone_from(&stage.pod.id);
                props.sandbox = stage.pod.config.clone();
            }
            Start => self.set_member(stage, &mut props, &workload::server("0.02", 0)).await?,
            StartMissing => self.set_member(stage, &mut props, "").await?,
            StopPolite => {
                let script = workload::server("0.01", props.code);
                self.set_member(stage, &mut props, &script).await?;
            }
            Limit => self.set_member(stage, &mut props, "exec sleep 1000000").await?,
            StopAtOnce | StopDeaf | RemoveRunning => {
                self.set_member(stage, &mut props, &workload::deaf("0.02")).await?;
            }
            Exit => {
                let script = workload::waiting("/data/go", EXIT_LINES, props.code);
                self.set_member(stage, &mut props, &script).await?;
            }
            RemoveExited => {
                let script = workload::counter(3, "", props.code);
                self.set_member(stage, &mut props, &script).await?;
                stage.node.wait_exit(&props.container_id).await?;
            }
            StopSandbox | RemoveSandbox | RemoveStopped | LoseShim | LoseShimUnseen
            | StopWedged | EndShared | LimitSandbox => {
                self.set_sandbox(stage, &mut props).await?;
            }
        }
        Ok(props)
    }

    async fn set_image(self, stage: &mut Stage, props: &mut Props) -> Result<()> {
        let name = stage.name("image");
        let push = |stage: &mut Stage, mark: &str| -> Result<(String, String)> {
            let image = image::busybox_builder()?
                .layer(Tar::new().file("one", 0o644, format!("{name} {mark}").as_bytes()))?
                .plain_layer(Tar::new().file("two", 0o644, &[b'x'; 200_000]).file(
                    "three",
                    0o600,
                    mark.as_bytes(),
                ))
                .build()?;
            Ok((stage.node.push(&name, "latest", &image)?, image.id.to_string()))
        };
        if !matches!(self, Pull) {
            (props.image, props.old_image_id) = push(stage, "old")?;
            props.image_id.clone_from(&props.old_image_id);
            stage.node.cri.pull(&props.image).await?;
        }
        if !matches!(self, RemoveImage) {
            (props.image, props.image_id) = push(stage, "new")?;
        }
        Ok(())
    }

    fn set_run(self, stage: &mut Stage, props: &mut Props) {
        let name = stage.name("run");
        props.sandbox = stage.node.sandbox_config(&name);
        match self {
            RunWithPorts => props.sandbox.port_mappings.push(v1::PortMapping {
                container_port: 80,
                host_port: 8080,
                ..Default::default()
            }),
            RunOnHost => {
                let security = sandbox_security(&mut props.sandbox);
                let options = security.namespace_options.get_or_insert_default();
                options.network = v1::NamespaceMode::Node.into();
                props.sandbox.hostname.clear();
            }
            _ => {}
        }
    }

    /// A container of the stage's own sandbox.
    async fn set_member(self, stage: &mut Stage, props: &mut Props, script: &str) -> Result<()> {
        let name = stage.name("member");
        props.container = match self {
            StartMissing => container_config(&name, &stage.image, &[MISSING]),
            _ => container_config(&name, &stage.image, &["sh", "-c", script]),
        };
        if matches!(self, Exit) {
            give_volume(stage, &mut props.container, &name)?;
        }
        props.sandbox_id.clone_from(&stage.pod.id);
        props.sandbox = stage.pod.config.clone();
        let cri = &mut stage.node.cri;
        props.container_id =
            cri.create_container(&props.sandbox_id, &props.sandbox, &props.container).await?;
        if matches!(self, Start | StartMissing) {
            return Ok(());
        }
        cri.start_container(&props.container_id).await?;
        if matches!(self, StopPolite | StopAtOnce | StopDeaf | RemoveRunning) {
            // Its trap is set once it writes.
            stage.node.wait_for_line("rounds", &name, "line 0").await?;
        }
        if !matches!(self, RemoveExited) {
            props.process = Some(stage.process(&props.container_id).await?);
        }
        Ok(())
    }

    /// A sandbox of the scene's own, with a container that runs and one that never did.
    async fn set_sandbox(self, stage: &mut Stage, props: &mut Props) -> Result<()> {
        let name = stage.name("sandbox");
        let mut config = stage.node.sandbox_config(&name);
        props.container = script(&stage.image, &workload::deaf("0.02"));
        if matches!(self, EndShared) {
            // Its child would outlive it in the sandbox's process namespace.
            let end = workload::waiting("/data/go", EXIT_LINES, props.code);
            props.container = script(&stage.image, &format!("sleep {LATE} & {end}"));
            give_volume(stage, &mut props.container, &name)?;
            let pod: i32 = v1::NamespaceMode::Pod.into();
            sandbox_security(&mut config).namespace_options.get_or_insert_default().pid = pod;
            security(&mut props.container).namespace_options.get_or_insert_default().pid = pod;
        }
        let pod = stage.node.pod_with(config).await?;
        (props.sandbox_id, props.sandbox) = (pod.id.clone(), pod.config.clone());
        props.container_id = stage.node.run(&pod, &props.container).await?;
        let process = stage.process(&props.container_id).await?;
        props.shim = Process::find(process.parent);
        props.process = Some(process);
        let other = container_config("other", &stage.image, &["true"]);
        props.other_id = stage.node.cri.create_container(&pod.id, &pod.config, &other).await?;
        match (self, &props.shim) {
            (RemoveStopped, _) => stage.node.cri.stop_sandbox(&pod.id).await?,
            (StopWedged, Some(shim)) => shim.signal(Signal::SIGSTOP)?,
            _ => {}
        }
        Ok(())
    }

    /// What happens while no daemon runs.
    pub(crate) fn meanwhile(self, props: &Props) -> Result<()> {
        match (self, &props.shim) {
            (LoseShimUnseen, Some(shim)) => shim.signal(Signal::SIGKILL),
            _ => Ok(()),
        }
    }
}

/// Gives a container a directory of its own at `/data`.
fn give_volume(stage: &Stage, config: &mut v1::ContainerConfig, name: &str) -> Result<()> {
    let volume = stage.node.dir().join("volume").join(name);
    std::fs::create_dir(&volume)?;
    config.mounts = vec![bind("/data", &volume)];
    Ok(())
}

/// The name of a container.
fn name_of(config: &v1::ContainerConfig) -> String {
    config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default()
}
