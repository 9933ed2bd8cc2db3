//! What a client wants of a container.

use std::path::PathBuf;

use berth_api::v1;
use berth_model::ContainerSpec;
use berth_model::container::{ContainerName, Device, EnvVar};
use berth_model::mount::{BindMount, Propagation};

use super::fields::{absolute_path, inner_path, known, name, refuse_windows, shown};
use super::{resources, security, signal};
use crate::Error;

/// Checks a request for a container and translates it.
pub(crate) fn container_spec(request: &v1::CreateContainerRequest) -> Result<ContainerSpec, Error> {
    let config = request.config.as_ref().ok_or(Error::Missing("config"))?;
    refuse_windows("config.windows", config.windows.as_ref())?;
    if !config.cdi_devices.is_empty() {
        return Err(Error::unsupported("config.CDI_devices", "devices by CDI name are"));
    }
    let image = config.image.as_ref().filter(|image| !image.image.is_empty());
    let image = image.ok_or(Error::Missing("config.image.image"))?;
    let linux = config.linux.clone().unwrap_or_default();
    Ok(ContainerSpec {
        name: container_name(config.metadata.as_ref())?,
        image: image.image.clone(),
        user_specified_image: image.user_specified_image.clone(),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: (!config.working_dir.is_empty()).then(|| PathBuf::from(&config.working_dir)),
        env: config.envs.iter().map(env).collect(),
        mounts: config.mounts.iter().enumerate().map(mount).collect::<Result<_, _>>()?,
        devices: config.devices.iter().enumerate().map(device).collect::<Result<_, _>>()?,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: inner_path("config.log_path", &config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources::wanted(linux.resources.as_ref()),
        security: security::security(&linux.security_context.unwrap_or_default())?,
        stop_signal: signal::name("config.stop_signal", config.stop_signal)?,
    })
}

fn container_name(metadata: Option<&v1::ContainerMetadata>) -> Result<ContainerName, Error> {
    let metadata = metadata.ok_or(Error::Missing("config.metadata"))?;
    let name = name("config.metadata.name", &metadata.name)?;
    Ok(ContainerName { name, attempt: metadata.attempt })
}

fn env(variable: &v1::KeyValue) -> EnvVar {
    EnvVar { name: variable.key.clone(), value: variable.value.clone() }
}

fn mount((index, asked): (usize, &v1::Mount)) -> Result<BindMount, Error> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    if asked.image.as_ref().is_some_and(|image| *image != v1::ImageSpec::default())
        || !asked.image_sub_path.is_empty()
    {
        return Err(Error::unsupported(field("image"), "an image as a volume is"));
    }
    if !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty() {
        return Err(Error::unsupported(field("uidMappings"), "an id-mapped mount is"));
    }
    let host_path = match asked.host_path.as_str() {
        "" => return Err(Error::invalid(field("host_path"), "is missing")),
        path => absolute_path(field("host_path"), path)?,
    };
    let container_path = PathBuf::from(&asked.container_path);
    if !container_path.is_absolute() || asked.container_path.contains('\0') {
        let problem = format!("{} must be an absolute path", shown(&asked.container_path));
        return Err(Error::invalid(field("container_path"), problem));
    }
    Ok(BindMount {
        container_path,
        host_path,
        readonly: asked.readonly,
        recursive_readonly: asked.recursive_read_only,
        selinux_relabel: asked.selinux_relabel,
        propagation: match known(field("propagation"), asked.propagation)? {
            v1::MountPropagation::PropagationPrivate => Propagation::Private,
            v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
            v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
        },
    })
}

fn device((index, asked): (usize, &v1::Device)) -> Result<Device, Error> {
    let field = |name: &str| format!("config.devices[{index}].{name}");
    let permissions = match asked.permissions.as_str() {
        "" => "rwm",
        other if other.bytes().all(|c| matches!(c, b'r' | b'w' | b'm')) => other,
        other => {
            let problem = format!("{} must be made of 'r', 'w' and 'm'", shown(other));
            return Err(Error::invalid(field("permissions"), problem));
        }
    };
    let host_path = absolute_path(field("host_path"), &asked.host_path)?;
    let container_path = match asked.container_path.as_str() {
        "" => host_path.clone(),
        path => absolute_path(field("container_path"), path)?,
    };
    Ok(Device { container_path, host_path, permissions: permissions.to_owned() })
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
