//! The hooks: each asks the plugins that want to hear of it, one after the other.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use berth_api::nri::{
    Container, ContainerEvent, CreateContainerResponse, Event, LinuxResources, PluginInstance,
    PodEvent, PodSandbox, StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse,
    UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest,
    ValidateContainerAdjustmentResponse,
};

use crate::error::{CallError, bounded};
use crate::merge::{Merge, Wanted};
use crate::names::method;
use crate::plugin::Plugin;
use crate::{Error, Nri};

/// What a plugin is told of a pod or container when only that matters.
type Told<'a> = (&'a PodSandbox, Option<&'a Container>);

impl Nri {
    /// A sandbox has been made and is not visible yet; a refusal undoes it.
    pub async fn run_pod_sandbox(&self, pod: &PodSandbox) -> Result<(), Error> {
        self.tell_pod(Event::RunPodSandbox, pod).await
    }

    /// Limits of a sandbox are about to change.
    pub async fn update_pod_sandbox(
        &self,
        pod: &PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<(), Error> {
        let request = UpdatePodSandboxRequest {
            pod: Some(pod.clone()),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        self.tell(Event::UpdatePodSandbox, &request, (pod, None)).await
    }

    /// Limits of a sandbox have changed.
    pub async fn post_update_pod_sandbox(&self, pod: &PodSandbox) -> Result<(), Error> {
        self.tell_pod(Event::PostUpdatePodSandbox, pod).await
    }

    /// The containers of a sandbox have ended; it is let go next.
    pub async fn stop_pod_sandbox(&self, pod: &PodSandbox) -> Result<(), Error> {
        self.tell_pod(Event::StopPodSandbox, pod).await
    }

    /// A stopped sandbox is about to be forgotten.
    pub async fn remove_pod_sandbox(&self, pod: &PodSandbox) -> Result<(), Error> {
        self.tell_pod(Event::RemovePodSandbox, pod).await
    }

    /// A container is about to be made: what it is to get beside what was asked for. All
    /// plugins that validate have agreed to it.
    pub async fn create_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Wanted, Error> {
        let _turn = self.shared.turn().await?;
        let plugins = self.shared.plugins();
        let mut merge = Merge::creation(container.clone());
        for plugin in &plugins {
            if !plugin.wants(Event::CreateContainer) {
                continue;
            }
            let request = ContainerEvent {
                pod: Some(pod.clone()),
                container: Some(merge.container().clone()),
            };
            let asked = ask(plugin, Event::CreateContainer, &request, self.limit());
            let Some(answer) = asked.await? else { continue };
            let answer: CreateContainerResponse = answer;
            merge.adjust(answer.adjust, &plugin.id())?;
            merge.update(answer.update, &plugin.id())?;
            merge.evict(answer.evict);
        }
        self.validate(&plugins, pod, container, &merge).await?;
        Ok(merge.wanted())
    }

    /// Asks those who may object; one that dies meanwhile objects.
    async fn validate(
        &self,
        plugins: &[Arc<Plugin>],
        pod: &PodSandbox,
        container: &Container,
        merge: &Merge,
    ) -> Result<(), Error> {
        const EVENT: Event = Event::ValidateContainerAdjustment;
        if !plugins.iter().any(|plugin| plugin.wants(EVENT)) {
            return Ok(());
        }
        let instance = |plugin: &Arc<Plugin>| PluginInstance {
            name: plugin.name.clone(),
            index: plugin.index.clone(),
        };
        let wanted = merge.clone().wanted();
        let request = ValidateContainerAdjustmentRequest {
            pod: Some(pod.clone()),
            container: Some(container.clone()),
            adjust: Some(wanted.adjustment),
            update: wanted.updates,
            owners: Some(merge.owners()),
            plugins: plugins.iter().map(instance).collect(),
        };
        for plugin in plugins {
            if !plugin.wants(EVENT) {
                continue;
            }
            let verdict = plugin.ask(method(EVENT), &request, self.limit()).await;
            let reason = match verdict {
                Ok(ValidateContainerAdjustmentResponse { reject: false, .. }) => continue,
                Ok(verdict) => bounded(&verdict.reason),
                Err(error) => error.told(),
            };
            let (plugin, container) = (plugin.id(), container.id.clone());
            return Err(Error::Rejected { plugin, container, reason });
        }
        Ok(())
    }

    /// A container was made.
    pub async fn post_create_container(
        &self,
        pod: &PodSandbox,
        c: &Container,
    ) -> Result<(), Error> {
        self.tell_container(Event::PostCreateContainer, pod, c).await
    }

    /// A container is about to be started; a refusal keeps it from that.
    pub async fn start_container(&self, pod: &PodSandbox, c: &Container) -> Result<(), Error> {
        self.tell_container(Event::StartContainer, pod, c).await
    }

    /// A container was started.
    pub async fn post_start_container(&self, pod: &PodSandbox, c: &Container) -> Result<(), Error> {
        self.tell_container(Event::PostStartContainer, pod, c).await
    }

    /// Limits of a container are about to change to `resources`; the answer has those that
    /// it is to get instead, and what others get.
    pub async fn update_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
        resources: LinuxResources,
    ) -> Result<(LinuxResources, Wanted), Error> {
        let _turn = self.shared.turn().await?;
        let mut merge = Merge::update_of(container.id.clone(), resources);
        for plugin in self.shared.plugins() {
            if !plugin.wants(Event::UpdateContainer) {
                continue;
            }
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: Some(merge.resources().clone()),
            };
            let asked = ask(&plugin, Event::UpdateContainer, &request, self.limit());
            let Some(answer) = asked.await? else { continue };
            let answer: UpdateContainerResponse = answer;
            merge.update(answer.update, &plugin.id())?;
            merge.evict(answer.evict);
        }
        Ok((merge.resources().clone(), merge.wanted()))
    }

    /// Limits of a container have changed.
    pub async fn post_update_container(
        &self,
        pod: &PodSandbox,
        c: &Container,
    ) -> Result<(), Error> {
        self.tell_container(Event::PostUpdateContainer, pod, c).await
    }

    /// A container has ended, whoever wanted that: what others are to get now.
    pub async fn stop_container(&self, pod: &PodSandbox, c: &Container) -> Result<Wanted, Error> {
        let _turn = self.shared.turn().await?;
        let mut merge = Merge::updates();
        let request = ContainerEvent { pod: Some(pod.clone()), container: Some(c.clone()) };
        for plugin in self.shared.plugins() {
            if !plugin.wants(Event::StopContainer) || !plugin.may_hear_end(&c.id) {
                continue;
            }
            let asked = ask(&plugin, Event::StopContainer, &request, self.limit());
            let Some(answer) = asked.await? else { continue };
            let answer: StopContainerResponse = answer;
            merge.update(answer.update, &plugin.id())?;
        }
        Ok(merge.wanted())
    }

    /// A container is about to be forgotten.
    pub async fn remove_container(&self, pod: &PodSandbox, c: &Container) -> Result<(), Error> {
        for plugin in self.shared.plugins() {
            plugin.forget(&c.id);
        }
        self.tell_container(Event::RemoveContainer, pod, c).await
    }

    async fn tell_pod(&self, event: Event, pod: &PodSandbox) -> Result<(), Error> {
        self.tell(event, &PodEvent { pod: Some(pod.clone()) }, (pod, None)).await
    }

    async fn tell_container(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<(), Error> {
        let request = ContainerEvent { pod: Some(pod.clone()), container: Some(container.clone()) };
        self.tell(event, &request, (pod, Some(container))).await
    }

    /// The first refusal ends it.
    async fn tell(
        &self,
        event: Event,
        request: &impl prost::Message,
        (pod, container): Told<'_>,
    ) -> Result<(), Error> {
        let _turn = self.shared.turn().await?;
        for plugin in self.shared.plugins() {
            if plugin.wants(event) {
                let told = plugin.tell(event, request, pod, container, self.limit());
                heard(&plugin, event, told).await?;
            }
        }
        Ok(())
    }

    fn limit(&self) -> Duration {
        self.shared.config.request_timeout
    }
}

/// Asks one plugin; `None` if it was dropped, or has no such method.
async fn ask<A: prost::Message + Default>(
    plugin: &Plugin,
    event: Event,
    request: &impl prost::Message,
    limit: Duration,
) -> Result<Option<A>, Error> {
    heard(plugin, event, plugin.ask(method(event), request, limit)).await
}

/// A plugin that was dropped has no say; one without the method has nothing to say.
async fn heard<A>(
    plugin: &Plugin,
    event: Event,
    asked: impl Future<Output = Result<A, CallError>>,
) -> Result<Option<A>, Error> {
    match asked.await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_fatal() || error.is_unimplemented() => Ok(None),
        Err(error) => {
            Err(Error::Refused { plugin: plugin.id(), verb: method(event), message: error.told() })
        }
    }
}
