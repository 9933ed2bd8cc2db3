//! What several plugins want of one container, as one.
//!
//! Each entry (a variable, a mount by its destination, one limit, ...) has one owner: the
//! plugin that set it first. A second plugin that sets it too is an error, unless it removes
//! what the first one set and sets it anew; then the entry is its own. What one plugin
//! adjusted, the next one sees as part of the container.

mod entries;
mod owners;
mod resources;

use std::collections::BTreeMap;

use berth_api::nri::{
    CdiDevice, Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Field, Hook,
    Hooks, KeyValue, LinuxContainer, LinuxContainerAdjustment, LinuxContainerUpdate, LinuxDevice,
    LinuxNamespace, LinuxRdt, LinuxResources, Mount, OwningPlugins,
};

use self::entries::{Lists, merge_list, merge_map};
use self::owners::{Claim, Owners};
use crate::Error;

/// What all plugins together want.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Of the container that is being made. A key with a leading `-` removes.
    pub adjustment: ContainerAdjustment,
    /// Of other containers.
    pub updates: Vec<ContainerUpdate>,
    /// Containers to stop.
    pub evictions: Vec<ContainerEviction>,
}

/// What the plugins asked so far want.
#[derive(Clone, Debug, Default)]
pub(crate) struct Merge {
    /// The container as the next plugin sees it; `None` unless one is being made.
    container: Option<Container>,
    adjustment: ContainerAdjustment,
    /// The container that is being updated, and the limits it is to get.
    updated: Option<(String, LinuxResources)>,
    updates: BTreeMap<String, ContainerUpdate>,
    evictions: Vec<ContainerEviction>,
    owners: Owners,
}

impl Merge {
    /// For a container that is being made.
    pub(crate) fn creation(container: Container) -> Self {
        Self { container: Some(container), ..Self::default() }
    }

    /// For a container whose limits change.
    pub(crate) fn update_of(id: String, resources: LinuxResources) -> Self {
        Self { updated: Some((id, resources)), ..Self::default() }
    }

    /// For what has no other answer than updates.
    pub(crate) fn updates() -> Self {
        Self::default()
    }

    /// The container as the next plugin sees it.
    pub(crate) fn container(&mut self) -> &Container {
        self.container.get_or_insert_default()
    }

    /// The limits that the updated container is to get.
    pub(crate) fn resources(&mut self) -> &LinuxResources {
        &self.updated.get_or_insert_default().1
    }

    pub(crate) fn owners(&self) -> OwningPlugins {
        self.owners.told()
    }

    pub(crate) fn wanted(self) -> Wanted {
        Wanted {
            adjustment: self.adjustment,
            updates: self.updates.into_values().collect(),
            evictions: self.evictions,
        }
    }

    pub(crate) fn evict(&mut self, evictions: Vec<ContainerEviction>) {
        self.evictions.extend(evictions);
    }

    /// Takes in what a plugin wants of the container that is being made.
    pub(crate) fn adjust(
        &mut self,
        wanted: Option<ContainerAdjustment>,
        plugin: &str,
    ) -> Result<(), Error> {
        let (Some(mut wanted), Some(container)) = (wanted, self.container.as_mut()) else {
            return Ok(());
        };
        let id = container.id.clone();
        let mut claim = Claim::new(&mut self.owners, &id, plugin);
        let all = &mut self.adjustment;
        let linux = wanted.linux.take();
        merge_map(
            &mut claim,
            Field::Annotations,
            std::mem::take(&mut wanted.annotations),
            &mut all.annotations,
            &mut container.annotations,
        )?;
        mounts(&mut claim, wanted.mounts, &mut all.mounts, &mut container.mounts)?;
        env(&mut claim, wanted.env, &mut all.env, &mut container.env)?;
        args(&mut claim, wanted.args, &mut all.args, &mut container.args)?;
        if let Some(hooks) = wanted.hooks {
            merge_hooks(&mut claim, &hooks, all.hooks.get_or_insert_default());
            merge_hooks(&mut claim, &hooks, container.hooks.get_or_insert_default());
        }
        if let Some(linux) = linux {
            let collected = all.linux.get_or_insert_default();
            adjust_linux(&mut claim, linux, collected, container.linux.get_or_insert_default())?;
        }
        for limit in wanted.rlimits {
            claim.take_entry(Field::Rlimits, &limit.r#type)?;
            container.rlimits.push(limit.clone());
            all.rlimits.push(limit);
        }
        for CdiDevice { name } in wanted.cdi_devices {
            claim.take_entry(Field::CdiDevices, &name)?;
            all.cdi_devices.push(CdiDevice { name });
        }
        Ok(())
    }

    /// Takes in what a plugin wants of other containers, and of the one being updated.
    pub(crate) fn update(
        &mut self,
        updates: Vec<ContainerUpdate>,
        plugin: &str,
    ) -> Result<(), Error> {
        for update in updates {
            let id = update.container_id.clone();
            if self.container.as_ref().is_some_and(|container| container.id == id) {
                return Err(Error::UpdateInCreation { plugin: plugin.to_owned(), container: id });
            }
            let ignored = update.ignore_failure;
            match self.update_one(&id, update, plugin) {
                Err(_) if ignored => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn update_one(&mut self, id: &str, update: ContainerUpdate, plugin: &str) -> Result<(), Error> {
        let ignored = update.ignore_failure;
        let Some(wanted) = update.linux.and_then(|linux| linux.resources) else { return Ok(()) };
        // A failure leaves what others claimed.
        let mut owners = self.owners.clone();
        let mut claim = Claim::new(&mut owners, id, plugin);
        if let Some((updated, resources)) = &mut self.updated
            && updated == id
        {
            let mut merged = resources.clone();
            resources::merge(&mut claim, &wanted, &mut [&mut merged])?;
            *resources = merged;
        } else {
            let known = self.updates.get(id);
            let ignore_failure = known.map_or(ignored, |known| known.ignore_failure && ignored);
            let linux = known.and_then(|known| known.linux.clone());
            let mut merged = linux.and_then(|linux| linux.resources).unwrap_or_default();
            resources::merge(&mut claim, &wanted, &mut [&mut merged])?;
            let linux = Some(LinuxContainerUpdate { resources: Some(merged) });
            let update = ContainerUpdate { container_id: id.to_owned(), linux, ignore_failure };
            self.updates.insert(id.to_owned(), update);
        }
        self.owners = owners;
        Ok(())
    }
}

fn mounts(
    claim: &mut Claim<'_>,
    wanted: Vec<Mount>,
    collected: &mut Vec<Mount>,
    seen: &mut Vec<Mount>,
) -> Result<(), Error> {
    let lists = Lists {
        key: |mount: &Mount| mount.destination.clone(),
        removal: |destination| Mount { destination, ..Mount::default() },
        seen_key: |mount: &Mount| mount.destination.clone(),
        see: Mount::clone,
    };
    merge_list(claim, Field::Mounts, &lists, wanted, collected, seen)
}

fn env(
    claim: &mut Claim<'_>,
    wanted: Vec<KeyValue>,
    collected: &mut Vec<KeyValue>,
    seen: &mut Vec<String>,
) -> Result<(), Error> {
    let lists = Lists {
        key: |variable: &KeyValue| variable.key.clone(),
        removal: |key| KeyValue { key, value: String::new() },
        seen_key: |entry: &String| entry.split('=').next().unwrap_or_default().to_owned(),
        see: |variable: &KeyValue| format!("{}={}", variable.key, variable.value),
    };
    merge_list(claim, Field::Env, &lists, wanted, collected, seen)
}

/// A first argument that is empty takes the arguments from who set them.
fn args(
    claim: &mut Claim<'_>,
    mut wanted: Vec<String>,
    collected: &mut Vec<String>,
    seen: &mut Vec<String>,
) -> Result<(), Error> {
    if wanted.first().is_some_and(String::is_empty) {
        wanted.remove(0);
        claim.clear(Field::Args);
    }
    if !wanted.is_empty() {
        claim.take(Field::Args)?;
        seen.clone_from(&wanted);
        *collected = wanted;
    }
    Ok(())
}

/// Hooks of several plugins run one after the other: nobody owns them alone.
fn merge_hooks(claim: &mut Claim<'_>, wanted: &Hooks, all: &mut Hooks) {
    let extend = |all: &mut Vec<Hook>, more: &[Hook]| all.extend_from_slice(more);
    extend(&mut all.prestart, &wanted.prestart);
    extend(&mut all.create_runtime, &wanted.create_runtime);
    extend(&mut all.create_container, &wanted.create_container);
    extend(&mut all.start_container, &wanted.start_container);
    extend(&mut all.poststart, &wanted.poststart);
    extend(&mut all.poststop, &wanted.poststop);
    if *wanted != Hooks::default() {
        claim.share(Field::OciHooks);
    }
}

fn adjust_linux(
    claim: &mut Claim<'_>,
    mut wanted: LinuxContainerAdjustment,
    all: &mut LinuxContainerAdjustment,
    seen: &mut LinuxContainer,
) -> Result<(), Error> {
    let devices = Lists {
        key: |device: &LinuxDevice| device.path.clone(),
        removal: |path| LinuxDevice { path, ..LinuxDevice::default() },
        seen_key: |device: &LinuxDevice| device.path.clone(),
        see: LinuxDevice::clone,
    };
    merge_list(
        claim,
        Field::Devices,
        &devices,
        std::mem::take(&mut wanted.devices),
        &mut all.devices,
        &mut seen.devices,
    )?;
    let namespaces = Lists {
        key: |namespace: &LinuxNamespace| namespace.r#type.clone(),
        removal: |r#type| LinuxNamespace { r#type, ..LinuxNamespace::default() },
        seen_key: |namespace: &LinuxNamespace| namespace.r#type.clone(),
        see: LinuxNamespace::clone,
    };
    merge_list(
        claim,
        Field::Namespace,
        &namespaces,
        std::mem::take(&mut wanted.namespaces),
        &mut all.namespaces,
        &mut seen.namespaces,
    )?;
    merge_map(
        claim,
        Field::Sysctl,
        std::mem::take(&mut wanted.sysctl),
        &mut all.sysctl,
        &mut seen.sysctl,
    )?;
    merge_map(
        claim,
        Field::NetDevices,
        std::mem::take(&mut wanted.net_devices),
        &mut all.net_devices,
        &mut seen.net_devices,
    )?;
    adjust_fields(claim, wanted, all, seen)
}

/// What is no list and no map.
fn adjust_fields(
    claim: &mut Claim<'_>,
    wanted: LinuxContainerAdjustment,
    all: &mut LinuxContainerAdjustment,
    seen: &mut LinuxContainer,
) -> Result<(), Error> {
    if let Some(resources) = wanted.resources {
        let both =
            &mut [all.resources.get_or_insert_default(), seen.resources.get_or_insert_default()];
        resources::merge(claim, &resources, both)?;
    }
    if !wanted.cgroups_path.is_empty() {
        claim.take(Field::CgroupsPath)?;
        seen.cgroups_path.clone_from(&wanted.cgroups_path);
        all.cgroups_path = wanted.cgroups_path;
    }
    single(
        claim,
        Field::OomScoreAdj,
        wanted.oom_score_adj,
        [&mut all.oom_score_adj, &mut seen.oom_score_adj],
    )?;
    single(
        claim,
        Field::IoPriority,
        wanted.io_priority,
        [&mut all.io_priority, &mut seen.io_priority],
    )?;
    single(
        claim,
        Field::SeccompPolicy,
        wanted.seccomp_policy,
        [&mut all.seccomp_policy, &mut seen.seccomp_policy],
    )?;
    single(claim, Field::Scheduler, wanted.scheduler, [&mut all.scheduler, &mut seen.scheduler])?;
    single(claim, Field::MemoryPolicy, wanted.memory_policy, [&mut all.memory_policy])?;
    rdt(claim, wanted.rdt, &mut all.rdt)
}

/// A field that has one value.
fn single<T: Clone, const N: usize>(
    claim: &mut Claim<'_>,
    field: Field,
    wanted: Option<T>,
    places: [&mut Option<T>; N],
) -> Result<(), Error> {
    let Some(wanted) = wanted else { return Ok(()) };
    claim.take(field)?;
    for place in places {
        *place = Some(wanted.clone());
    }
    Ok(())
}

fn rdt(
    claim: &mut Claim<'_>,
    wanted: Option<LinuxRdt>,
    all: &mut Option<LinuxRdt>,
) -> Result<(), Error> {
    let Some(wanted) = wanted else { return Ok(()) };
    if wanted.remove {
        for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
            claim.clear(field);
        }
        *all = Some(LinuxRdt { remove: true, ..LinuxRdt::default() });
    }
    let all = all.get_or_insert_default();
    single(claim, Field::RdtClosId, wanted.clos_id, [&mut all.clos_id])?;
    single(claim, Field::RdtSchemata, wanted.schemata, [&mut all.schemata])?;
    single(
        claim,
        Field::RdtEnableMonitoring,
        wanted.enable_monitoring,
        [&mut all.enable_monitoring],
    )
}

#[cfg(test)]
mod tests;
