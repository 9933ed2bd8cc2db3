//! The security context of a container.

use berth_api::v1::{self, NamespaceMode as Mode};
use berth_model::container::{Profile, RunAs, Security, SupplementalGroupsPolicy};
use berth_model::sandbox::NamespaceOptions;

use super::fields::{absolute_path, known, namespace_mode, number, shown, user_namespace};
use super::labels::{apparmor, selinux};
use crate::Error;

fn field(name: &str) -> String {
    format!("config.linux.security_context.{name}")
}

#[expect(deprecated, reason = "older clients name AppArmor profiles there")]
pub(super) fn security(asked: &v1::LinuxContainerSecurityContext) -> Result<Security, Error> {
    let capabilities = asked.capabilities.clone().unwrap_or_default();
    let groups = asked.supplemental_groups.iter();
    Ok(Security {
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        add_ambient_capabilities: capabilities.add_ambient_capabilities,
        privileged: asked.privileged,
        namespaces: namespaces(asked.namespace_options.as_ref())?,
        run_as: run_as(asked)?,
        supplemental_groups: groups
            .map(|group| number(field("supplemental_groups"), *group))
            .collect::<Result<_, _>>()?,
        supplemental_groups_policy: match known(
            field("supplemental_groups_policy"),
            asked.supplemental_groups_policy,
        )? {
            v1::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
            v1::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
        },
        readonly_rootfs: asked.readonly_rootfs,
        no_new_privs: asked.no_new_privs,
        masked_paths: paths("masked_paths", &asked.masked_paths)?,
        readonly_paths: paths("readonly_paths", &asked.readonly_paths)?,
        seccomp: seccomp(asked)?,
        apparmor: apparmor(&field("apparmor"), asked.apparmor.as_ref(), &asked.apparmor_profile)?,
        selinux: selinux(&field("selinux_options"), asked.selinux_options.as_ref())?,
    })
}

/// An empty list and an absent one are the same on the wire.
fn paths(name: &str, asked: &[String]) -> Result<Option<Vec<String>>, Error> {
    for path in asked {
        absolute_path(field(name), path)?;
    }
    Ok((!asked.is_empty()).then(|| asked.to_vec()))
}

fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<NamespaceOptions, Error> {
    let options = options.cloned().unwrap_or_default();
    let within = |kind: &str| field(&format!("namespace_options.{kind}"));
    let mode = |kind, value, allowed: &[Mode]| {
        namespace_mode(within(kind), value, Some(&options.target_id), allowed)
    };
    let any = [Mode::Pod, Mode::Container, Mode::Node, Mode::Target];
    Ok(NamespaceOptions {
        network: mode("network", options.network, &[Mode::Pod, Mode::Node])?,
        pid: mode("pid", options.pid, &any)?,
        ipc: mode("ipc", options.ipc, &[Mode::Pod, Mode::Node])?,
        user: user_namespace(&within("userns_options"), options.userns_options.as_ref())?,
    })
}

fn run_as(asked: &v1::LinuxContainerSecurityContext) -> Result<RunAs, Error> {
    let gid = asked.run_as_group.as_ref().map(|group| number(field("run_as_group"), group.value));
    let gid = gid.transpose()?;
    match (&asked.run_as_user, asked.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            Err(Error::invalid(field("run_as_username"), "excludes run_as_user"))
        }
        (Some(user), _) => Ok(RunAs::Id { uid: number(field("run_as_user"), user.value)?, gid }),
        (None, "") if gid.is_some() => {
            Err(Error::invalid(field("run_as_group"), "needs run_as_user or run_as_username"))
        }
        (None, "") => Ok(RunAs::Image),
        (None, name) => Ok(RunAs::Name { user: name.to_owned(), gid }),
    }
}

/// The profile wins over the deprecated path. No profile at all means none in force:
/// kubelet always says which, and critest holds runtimes to it ("should support nil
/// profile, which is unconfined").
#[expect(deprecated, reason = "older clients name profiles there")]
fn seccomp(asked: &v1::LinuxContainerSecurityContext) -> Result<Profile, Error> {
    use v1::security_profile::ProfileType;
    let name = field("seccomp");
    let Some(profile) = &asked.seccomp else {
        return deprecated_seccomp(&asked.seccomp_profile_path);
    };
    match known(name.clone(), profile.profile_type)? {
        ProfileType::RuntimeDefault => Ok(Profile::RuntimeDefault),
        ProfileType::Unconfined => Ok(Profile::Unconfined),
        ProfileType::Localhost => {
            localhost(&format!("{name}.localhost_ref"), &profile.localhost_ref)
        }
    }
}

fn deprecated_seccomp(path: &str) -> Result<Profile, Error> {
    let name = field("seccomp_profile_path");
    match path {
        "" | "unconfined" => Ok(Profile::Unconfined),
        "runtime/default" | "docker/default" => Ok(Profile::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(profile) => localhost(&name, profile),
            None => Err(Error::invalid(name, format!("{} is no kind of profile", shown(other)))),
        },
    }
}

/// An empty name once meant "unconfined" (CVE-2023-2431).
fn localhost(field: &str, path: &str) -> Result<Profile, Error> {
    let up = path.split('/').any(|part| part == "..");
    if path.is_empty() || path.ends_with('/') || path.contains(char::is_control) || up {
        let problem = format!("{} must be the path of a profile, without \"..\"", shown(path));
        return Err(Error::invalid(field, problem));
    }
    Ok(Profile::Localhost(path.to_owned()))
}
