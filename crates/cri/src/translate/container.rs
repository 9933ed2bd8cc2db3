//! What a client wants of a container.

use std::path::PathBuf;

use berth_api::v1;
use berth_model::ContainerSpec;
use berth_model::container::{ContainerName, Device, EnvVar};

use super::fields::{absolute_path, inner_path, name, refuse_windows, shown};
use super::{mounts, resources, security, signal};
use crate::Error;

/// Checks a request for a container and translates it.
pub(crate) fn container_spec(request: &v1::CreateContainerRequest) -> Result<ContainerSpec, Error> {
    let config = request.config.as_ref().ok_or(Error::Missing("config"))?;
    refuse_windows("config.windows", config.windows.as_ref())?;
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
        mounts: config.mounts.iter().enumerate().map(mounts::mount).collect::<Result<_, _>>()?,
        cdi_devices: config.cdi_devices.iter().map(|device| device.name.clone()).collect(),
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
