//! All that is measured, for monitoring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_model::ContainerState;

use super::{details, layers, members, network, read_each};
use crate::container::Container;
use crate::core::Core;
use crate::sandbox::Sandbox;
use crate::{ContainerMetrics, Error, NodeMetrics, SandboxMetrics};

/// What is measured of every ready sandbox and its running containers.
pub(crate) async fn metrics(core: &Arc<Core>) -> Result<NodeMetrics, Error> {
    let read = |core: &Core, sandbox: &Arc<Sandbox>| {
        // As in statistics: before it is asked whether it is ready.
        let own = core.parents.is_own(&sandbox.cgroup, &sandbox.id);
        sandbox.is_ready().then(|| of(core, sandbox, own))
    };
    let sandboxes = read_each(core, |core| &core.sandboxes, read).await?;
    let shared = Arc::clone(core);
    let rest = move || (super::filesystem::now(&shared), devices(&sandboxes), sandboxes);
    let (filesystem, devices, sandboxes) = core.readers.run(rest).await?;
    Ok(NodeMetrics { sandboxes, filesystem, devices })
}

fn of(core: &Core, sandbox: &Arc<Sandbox>, own: bool) -> SandboxMetrics {
    let cgroup = own.then(|| details(core, &sandbox.cgroup, None, &sandbox.removed));
    SandboxMetrics {
        cgroup_path: sandbox.cgroup.to_string(),
        cgroup: cgroup.flatten(),
        network: network::now(core, sandbox),
        containers: members(core, sandbox).filter_map(|it| container(core, &it)).collect(),
        status: sandbox.status.get(),
    }
}

fn container(core: &Core, container: &Arc<Container>) -> Option<ContainerMetrics> {
    let status = container.status.get();
    let ContainerState::Running { pid, .. } = status.state else { return None };
    Some(ContainerMetrics {
        cgroup_path: container.cgroup.to_string(),
        cgroup: details(core, &container.cgroup, Some(pid), &container.removed)?,
        writable_layer: layers::now(core, container),
        status,
    })
}

/// The names of all block devices that were used (sysfs(5)).
fn devices(sandboxes: &[SandboxMetrics]) -> BTreeMap<(u32, u32), String> {
    let containers = sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
    let cgroups = sandboxes.iter().flat_map(|sandbox| &sandbox.cgroup);
    let cgroups = cgroups.chain(containers.map(|container| &container.cgroup));
    let used = cgroups.flat_map(|details| &details.cgroup.io).map(|io| (io.major, io.minor));
    let used: BTreeSet<(u32, u32)> = used.collect();
    let named = used.into_iter().filter_map(|(major, minor)| {
        Some(((major, minor), super::filesystem::block_device(major, minor)?))
    });
    named.collect()
}
