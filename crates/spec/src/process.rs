//! The process: what is executed, with which environment, where and as whom.

use std::path::{Path, PathBuf};

use berth_model::container::EnvVar;
use oci_spec::runtime::{
    LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, Process, ProcessBuilder, UserBuilder,
};

use crate::{Error, Wanted};

/// What programs are looked for in when nobody says (execvp(3) has no good default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An environment; each name once, in the order of first mention.
#[derive(Debug, Default)]
struct Environment(Vec<(Vec<u8>, Vec<u8>)>);

impl Environment {
    fn set(&mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    fn entries(self) -> Vec<Vec<u8>> {
        self.0.into_iter().map(|(name, value)| [name, b"=".to_vec(), value].concat()).collect()
    }
}

/// The environment: defaults, then the image's, then the request's; the last one wins.
pub(crate) fn environment(wanted: &Wanted<'_>) -> Result<Vec<Vec<u8>>, Error> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    if wanted.spec.tty {
        env.set("TERM", "xterm");
    }
    if !wanted.hostname.is_empty() {
        env.set("HOSTNAME", wanted.hostname);
    }
    for entry in
        wanted.image_config().and_then(|config| config.env().as_ref()).into_iter().flatten()
    {
        no_nul("environment of the image", entry.as_bytes())?;
        // What has no name or no '=' sets nothing; docker and containerd agree.
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            env.set(name, value);
        }
    }
    for EnvVar { name, value } in &wanted.spec.env {
        if name.is_empty() || name.contains('=') {
            return Err(Error::EnvName(name.chars().take(64).collect()));
        }
        no_nul("environment", name.as_bytes())?;
        no_nul("environment", value)?;
        env.set(name.as_str(), value.as_slice());
    }
    if !env.has(b"HOME") {
        env.set("HOME", wanted.user.home.as_deref().unwrap_or(b"/"));
    }
    Ok(env.entries())
}

/// A request's command replaces the image's entry point and its command; a request's
/// arguments alone replace only the latter (Kubernetes: "Define a Command and Arguments").
fn arguments(wanted: &Wanted<'_>) -> Result<Vec<String>, Error> {
    let image = wanted.image_config();
    let entrypoint = image.and_then(|config| config.entrypoint().as_deref()).unwrap_or_default();
    let cmd = image.and_then(|config| config.cmd().as_deref()).unwrap_or_default();
    let (command, args) = match (wanted.spec.command.as_slice(), wanted.spec.args.as_slice()) {
        ([], []) => (entrypoint, cmd),
        ([], args) => (entrypoint, args),
        (command, args) => (command, args),
    };
    checked_arguments([command, args].concat())
}

fn checked_arguments(args: Vec<String>) -> Result<Vec<String>, Error> {
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::NoCommand);
    }
    for arg in &args {
        no_nul("command", arg.as_bytes())?;
    }
    Ok(args)
}

fn working_directory(wanted: &Wanted<'_>) -> Result<PathBuf, Error> {
    let of_image = wanted.image_config().and_then(|config| config.working_dir().as_deref());
    let cwd = match (&wanted.spec.working_dir, of_image) {
        (Some(cwd), _) if !cwd.as_os_str().is_empty() => cwd.as_path(),
        (_, Some(cwd)) if !cwd.is_empty() => Path::new(cwd),
        _ => Path::new("/"),
    };
    if !cwd.is_absolute() {
        return Err(Error::RelativeCwd(cwd.to_owned()));
    }
    no_nul("working directory", cwd.as_os_str().as_encoded_bytes())?;
    Ok(cwd.to_owned())
}

fn no_nul(what: &'static str, bytes: &[u8]) -> Result<(), Error> {
    if bytes.contains(&0) { Err(Error::NulByte(what)) } else { Ok(()) }
}

pub(crate) fn process(
    wanted: &Wanted<'_>,
    env: &[Vec<u8>],
    capabilities: LinuxCapabilities,
) -> Result<Process, Error> {
    let user = UserBuilder::default()
        .uid(wanted.user.uid)
        .gid(wanted.user.gid)
        .additional_gids(wanted.user.groups.clone())
        .build()
        .expect("every field has a default");
    // An entry that is not UTF-8 is whole in the annotation only.
    let texts: Vec<_> = env.iter().map(|entry| String::from_utf8_lossy(entry).into()).collect();
    let mut process = ProcessBuilder::default()
        .terminal(wanted.spec.tty)
        .user(user)
        .args(arguments(wanted)?)
        .env(texts)
        .cwd(working_directory(wanted)?)
        .capabilities(capabilities)
        .no_new_privileges(wanted.spec.security.no_new_privs)
        .oom_score_adj(oom_score_adj(wanted.spec.resources.oom_score_adj)?)
        .build()
        .expect("every field has a default");
    process.set_rlimits(rlimits(wanted));
    Ok(process)
}

fn rlimits(wanted: &Wanted<'_>) -> Option<Vec<PosixRlimit>> {
    let limit = |limit: &crate::Rlimit| {
        PosixRlimitBuilder::default()
            .typ(limit.kind)
            .soft(limit.soft.min(limit.hard))
            .hard(limit.hard)
            .build()
            .expect("every field has a default")
    };
    let limits: Vec<_> = wanted.defaults.rlimits.iter().map(limit).collect();
    (!limits.is_empty()).then_some(limits)
}

/// proc_pid_oom_score_adj(5): −1000 to 1000.
pub(crate) fn oom_score_adj(asked: i64) -> Result<i32, Error> {
    i32::try_from(asked)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or(Error::Limit { field: "oom_score_adj", value: asked.into() })
}

/// The process of an exec: that of the container, with other arguments and terminal.
///
/// Environment, user, capabilities, limits and directory are the container's own, so an
/// exec can never do more than the container (CVE-2016-9962, CVE-2022-29162).
pub fn exec_process(
    container: &Process,
    command: Vec<String>,
    terminal: bool,
) -> Result<Process, Error> {
    let mut process = container.clone();
    process.set_args(Some(checked_arguments(command)?));
    process.set_terminal(Some(terminal));
    process.set_console_size(None);
    let env = process.env_mut().get_or_insert_default();
    if terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    Ok(process)
}

#[cfg(test)]
mod tests;
