//! What the engine tells, in the CRI's words.

use berth_api::v1;
use berth_engine::{ContainerStatus, SandboxStatus};
use berth_model::IdRange;
use berth_model::container::ContainerState;
use berth_model::image::ImageRecord;
use berth_model::mount::{BindMount, ImageMount, Propagation};
use berth_model::sandbox::{NamespaceMode, NamespaceOptions, SandboxState};
use prost::Message as _;

use super::{resources, signal};

pub(crate) fn sandbox_state(status: &SandboxStatus) -> v1::PodSandboxState {
    match status.state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

/// A sandbox in a list, encoded.
pub(crate) fn encoded_sandbox(status: &SandboxStatus) -> &[u8] {
    status.list_item.or_encode(|| built_sandbox_item(status).encode_to_vec())
}

/// A sandbox in a list, out of one piece of memory.
pub(crate) fn sandbox_item(status: &SandboxStatus) -> v1::PodSandbox {
    v1::PodSandbox::decode(encoded_sandbox(status)).expect("it was encoded by us")
}

fn built_sandbox_item(status: &SandboxStatus) -> v1::PodSandbox {
    let name = status.spec.name.clone();
    let metadata = v1::PodSandboxMetadata {
        name: name.name,
        uid: name.uid,
        namespace: name.namespace,
        attempt: name.attempt,
    };
    v1::PodSandbox {
        id: status.id.to_string(),
        metadata: Some(metadata),
        state: sandbox_state(status).into(),
        created_at: status.created_at.0,
        labels: status.spec.labels.clone(),
        annotations: status.spec.annotations.clone(),
        runtime_handler: status.spec.runtime_handler.clone(),
    }
}

/// All that is known of a sandbox.
pub(crate) fn sandbox_status(status: &SandboxStatus) -> v1::PodSandboxStatus {
    let item = built_sandbox_item(status);
    let options = namespace_options(&status.spec.namespaces);
    let ip = status.ip.map(|ip| ip.to_string()).unwrap_or_default();
    v1::PodSandboxStatus {
        id: item.id,
        metadata: item.metadata,
        state: item.state,
        created_at: item.created_at,
        network: Some(v1::PodSandboxNetworkStatus { ip, additional_ips: Vec::new() }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(options) }),
        }),
        labels: item.labels,
        annotations: item.annotations,
        runtime_handler: item.runtime_handler,
    }
}

fn namespace_options(options: &NamespaceOptions) -> v1::NamespaceOption {
    let mode = |mode: &NamespaceMode| match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target(_) => v1::NamespaceMode::Target,
    };
    v1::NamespaceOption {
        network: mode(&options.network).into(),
        pid: mode(&options.pid).into(),
        ipc: mode(&options.ipc).into(),
        target_id: match &options.pid {
            NamespaceMode::Target(id) => id.clone(),
            _ => String::new(),
        },
        userns_options: options.user.as_ref().map(|ids| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: id_mappings(&ids.uids),
            gids: id_mappings(&ids.gids),
        }),
    }
}

fn id_mappings(ranges: &[IdRange]) -> Vec<v1::IdMapping> {
    let mapping = |range: &IdRange| v1::IdMapping {
        host_id: range.host,
        container_id: range.container,
        length: range.length,
    };
    ranges.iter().map(mapping).collect()
}

pub(crate) fn container_state(status: &ContainerStatus) -> v1::ContainerState {
    match status.state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

/// The name people know the image under. kubelet asks for containers by image id and
/// passes what the user wrote beside it.
fn image_spec(status: &ContainerStatus) -> v1::ImageSpec {
    let user_specified_image = status.spec.user_specified_image.clone();
    let asked = &status.spec.image;
    let by_id = asked.starts_with("sha256:") || status.image_id.hex().starts_with(asked.as_str());
    let image = match (by_id, user_specified_image.as_str()) {
        (false, _) => asked.clone(),
        (true, "") => status.image_ref.to_string(),
        (true, specified) => specified.to_owned(),
    };
    v1::ImageSpec { image, user_specified_image, ..Default::default() }
}

/// A container in a list, encoded.
pub(crate) fn encoded_container(status: &ContainerStatus) -> &[u8] {
    status.list_item.or_encode(|| built_container_item(status).encode_to_vec())
}

/// A container in a list, out of one piece of memory.
pub(crate) fn container_item(status: &ContainerStatus) -> v1::Container {
    v1::Container::decode(encoded_container(status)).expect("it was encoded by us")
}

fn built_container_item(status: &ContainerStatus) -> v1::Container {
    let name = status.spec.name.clone();
    v1::Container {
        id: status.id.to_string(),
        pod_sandbox_id: status.sandbox.to_string(),
        metadata: Some(v1::ContainerMetadata { name: name.name, attempt: name.attempt }),
        image: Some(image_spec(status)),
        image_ref: status.image_ref.to_string(),
        state: container_state(status).into(),
        created_at: status.created_at.0,
        labels: status.spec.labels.clone(),
        annotations: status.spec.annotations.clone(),
        image_id: status.image_id.to_string(),
    }
}

/// All that is known of a container.
pub(crate) fn container_status(status: &ContainerStatus) -> v1::ContainerStatus {
    let item = built_container_item(status);
    let user = v1::LinuxContainerUser {
        uid: status.uid.into(),
        gid: status.gid.into(),
        supplemental_groups: status.groups.iter().map(|group| i64::from(*group)).collect(),
    };
    let log_path = status.log_path.as_ref().map(|path| path.to_string_lossy().into_owned());
    let mut answer = v1::ContainerStatus {
        id: item.id,
        metadata: item.metadata,
        state: item.state,
        created_at: item.created_at,
        image: item.image,
        image_ref: item.image_ref,
        labels: item.labels,
        annotations: item.annotations,
        mounts: status.spec.mounts.iter().map(|asked| mount(asked, status)).collect(),
        log_path: log_path.unwrap_or_default(),
        resources: Some(resources::told(&status.limits)),
        image_id: item.image_id,
        user: Some(v1::ContainerUser { linux: Some(user) }),
        stop_signal: signal::value(&status.stop_signal).into(),
        ..Default::default()
    };
    match &status.state {
        ContainerState::Created => {}
        ContainerState::Running { started_at, .. } => answer.started_at = started_at.0,
        ContainerState::Exited { started_at, exit } => {
            answer.started_at = started_at.0;
            answer.finished_at = exit.at.0;
            answer.exit_code = exit.code;
            answer.reason = exit.reason.as_str().to_owned();
            answer.message = exit.message.clone();
        }
    }
    answer
}

fn mount(mount: &BindMount, status: &ContainerStatus) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    let sub_path = mount.image.as_ref().map(|image| image.sub_path.clone());
    v1::Mount {
        container_path: mount.container_path.to_string_lossy().into_owned(),
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_readonly,
        image: mount.image.as_ref().map(|image| volume_image(image, status)),
        image_sub_path: sub_path.unwrap_or_default(),
        uid_mappings: mount.ids.as_ref().map(|ids| id_mappings(&ids.uids)).unwrap_or_default(),
        gid_mappings: mount.ids.as_ref().map(|ids| id_mappings(&ids.gids)).unwrap_or_default(),
        mount_options: mount.options.iter().map(|option| option.as_str().to_owned()).collect(),
    }
}

/// The image behind a volume, with the digest it had when the container was made (KEP-5365).
fn volume_image(image: &ImageMount, status: &ContainerStatus) -> v1::ImageSpec {
    let id = status.volumes.get(&image.name);
    v1::ImageSpec {
        image: image.name.clone(),
        user_specified_image: image.user_specified.clone(),
        image_ref: id.map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    }
}

/// An image of the store. Its user is told so that kubelet can refuse root
/// (`runAsNonRoot`) before anything is started.
pub(crate) fn image(record: &ImageRecord) -> v1::Image {
    let user = record.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<u32>().ok().filter(|_| user.bytes().all(|c| c.is_ascii_digit()));
    v1::Image {
        id: record.id.to_string(),
        repo_tags: record.tags.clone(),
        repo_digests: record.digests.clone(),
        size: record.size,
        uid: uid.map(|uid| v1::Int64Value { value: uid.into() }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: None,
        pinned: false,
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
pub(crate) mod tests;
