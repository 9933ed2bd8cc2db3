//! What a client wants of a sandbox.

use std::net::IpAddr;

use berth_api::v1::{self, NamespaceMode as Mode};
use berth_model::SandboxSpec;
use berth_model::sandbox::{
    DnsConfig, NamespaceMode, NamespaceOptions, PodLimits, PortMapping, Protocol, SandboxName,
};

use super::fields::{
    absolute_path, known, name, namespace_mode, number, refuse_windows, shown, user_namespace,
};
use super::labels::{apparmor, selinux};
use super::resources::noted;
use crate::Error;

/// Longest host name (`HOST_NAME_MAX`).
const MAX_HOSTNAME_BYTES: usize = 64;
/// Most entries of a list in resolv.conf; kubelet's own limit for searches is 32.
const MAX_DNS_ENTRIES: usize = 64;
const SELINUX: &str = "config.linux.security_context.selinux_options";

/// Checks a request for a sandbox and translates it.
pub(crate) fn sandbox_spec(request: &v1::RunPodSandboxRequest) -> Result<SandboxSpec, Error> {
    let config = request.config.as_ref().ok_or(Error::Missing("config"))?;
    refuse_windows("config.windows", config.windows.as_ref())?;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    check_security(&security)?;
    let namespaces = namespaces(security.namespace_options.as_ref())?;
    berth_spec::sysctl::check(&linux.sysctls, &namespaces).map_err(Error::Sysctls)?;
    let port_mappings = match namespaces.network {
        NamespaceMode::Node => Vec::new(),
        _ => port_mappings(&config.port_mappings)?,
    };
    let log_directory = &config.log_directory;
    Ok(SandboxSpec {
        name: sandbox_name(config.metadata.as_ref())?,
        hostname: hostname(&config.hostname)?,
        log_directory: (!log_directory.is_empty())
            .then(|| absolute_path("config.log_directory", log_directory))
            .transpose()?,
        dns: config.dns_config.as_ref().map(dns).transpose()?,
        port_mappings,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        cgroup_parent: cgroup_parent(&linux.cgroup_parent)?,
        sysctls: linux.sysctls,
        namespaces,
        privileged: security.privileged,
        runtime_handler: request.runtime_handler.clone(),
        limits: PodLimits {
            overhead: noted("config.linux.overhead", linux.overhead.as_ref())?,
            resources: noted("config.linux.resources", linux.resources.as_ref())?,
        },
        selinux: selinux(SELINUX, security.selinux_options.as_ref())?,
    })
}

fn sandbox_name(metadata: Option<&v1::PodSandboxMetadata>) -> Result<SandboxName, Error> {
    let metadata = metadata.ok_or(Error::Missing("config.metadata"))?;
    Ok(SandboxName {
        name: name("config.metadata.name", &metadata.name)?,
        namespace: name("config.metadata.namespace", &metadata.namespace)?,
        uid: name("config.metadata.uid", &metadata.uid)?,
        attempt: metadata.attempt,
    })
}

/// A sandbox has no process of its own: who it would run as, its seccomp profile and its
/// root file system concern nobody. What a container would inherit is checked.
fn check_security(security: &v1::LinuxSandboxSecurityContext) -> Result<(), Error> {
    let field = |name| format!("config.linux.security_context.{name}");
    apparmor(&field("apparmor"), security.apparmor.as_ref(), "")?;
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::invalid(field("run_as_group"), "needs run_as_user"));
    }
    Ok(())
}

fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<NamespaceOptions, Error> {
    let options = options.cloned().unwrap_or_default();
    let mode = |kind, value, allowed: &[Mode]| {
        let field = format!("config.linux.security_context.namespace_options.{kind}");
        namespace_mode(field, value, None, allowed)
    };
    let within = "config.linux.security_context.namespace_options";
    let field = format!("{within}.userns_options");
    let user = user_namespace(&field, options.userns_options.as_ref())?;
    if user.is_some() {
        // Only who owns a namespace of processes or IPC can mount what shows it.
        for (kind, value) in [("pid", options.pid), ("ipc", options.ipc)] {
            if value == i32::from(Mode::Node) {
                let problem = "cannot be NODE with users of the pod's own";
                return Err(Error::invalid(format!("{within}.{kind}"), problem));
            }
        }
    }
    Ok(NamespaceOptions {
        network: mode("network", options.network, &[Mode::Pod, Mode::Node])?,
        pid: mode("pid", options.pid, &[Mode::Pod, Mode::Container, Mode::Node])?,
        ipc: mode("ipc", options.ipc, &[Mode::Pod, Mode::Node])?,
        user,
    })
}

/// sethostname(2) takes anything; /etc/hosts and the environment do not.
fn hostname(text: &str) -> Result<String, Error> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.len() > MAX_HOSTNAME_BYTES || !text.chars().all(word) || text.starts_with('-') {
        let problem =
            format!("{} must be at most 64 letters, digits, '.', '-' and '_'", shown(text));
        return Err(Error::invalid("config.hostname", problem));
    }
    Ok(text.to_owned())
}

fn cgroup_parent(text: &str) -> Result<Option<String>, Error> {
    let field = "config.linux.cgroup_parent";
    if text.is_empty() {
        return Ok(None);
    }
    if !text.starts_with('/') {
        let problem =
            format!("{} must be an absolute path: the cgroup driver is cgroupfs", shown(text));
        return Err(Error::invalid(field, problem));
    }
    absolute_path(field, text)?;
    if text.contains(char::is_control) {
        return Err(Error::invalid(field, "must not hold control characters"));
    }
    Ok(Some(text.to_owned()))
}

/// Whatever ends up in resolv.conf is words: a line break would add lines of its own.
fn dns(config: &v1::DnsConfig) -> Result<DnsConfig, Error> {
    let words = |field: &str, list: &[String]| {
        let word = |text: &String| {
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if list.len() > MAX_DNS_ENTRIES || !list.iter().all(word) {
            let problem = format!("must be at most {MAX_DNS_ENTRIES} words");
            return Err(Error::invalid(format!("config.dns_config.{field}"), problem));
        }
        Ok(list.to_vec())
    };
    Ok(DnsConfig {
        servers: words("servers", &config.servers)?,
        searches: words("searches", &config.searches)?,
        options: words("options", &config.options)?,
    })
}

/// Mappings without a port of the node lead nowhere and are left out.
fn port_mappings(asked: &[v1::PortMapping]) -> Result<Vec<PortMapping>, Error> {
    let mut mappings = Vec::new();
    for (index, asked) in asked.iter().enumerate() {
        let field = |name: &str| format!("config.port_mappings[{index}].{name}");
        let host_port: u16 = number(field("host_port"), asked.host_port.into())?;
        let container_port: u16 = number(field("container_port"), asked.container_port.into())?;
        let protocol = match known(field("protocol"), asked.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        };
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(Error::invalid(field("container_port"), "is zero"));
        }
        let host_ip = match asked.host_ip.as_str() {
            "" => None,
            text => Some(
                text.parse::<IpAddr>()
                    .map_err(|_| Error::invalid(field("host_ip"), "must be an IP address"))?,
            ),
        };
        let any = host_ip.is_some_and(|address| address.is_unspecified());
        let host_ip = host_ip.filter(|_| !any);
        mappings.push(PortMapping { protocol, container_port, host_port, host_ip });
    }
    Ok(mappings)
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
