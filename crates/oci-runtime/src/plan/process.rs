//! The process: program, arguments, environment, user, limits.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_model::IdMappings;
use oci_spec::runtime::{Linux, PosixRlimitType, Process, Spec};

use super::{CapabilitySets, ids};
use crate::error::Error;
use crate::user::unmapped;

pub(crate) use rustix::process::Resource;

/// Annotation that carries every environment entry as JSON list of base64 strings, when one of
/// them is not UTF-8 and `process.env` cannot hold it.
const ENVIRONMENT_ANNOTATION: &str = "dev.berth.process.env";

/// A process to run.
#[derive(Clone, Debug)]
pub(crate) struct ProcessPlan {
    /// `args[0]`, for messages.
    pub(crate) program: String,
    /// What to try to execute, in order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// Clean, in the container.
    pub(crate) cwd: PathBuf,
    pub(crate) user: UserPlan,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) no_new_privs: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) seccomp: Option<Arc<berth_seccomp::Program>>,
    pub(crate) labels: Labels,
    /// Whether it gets a terminal.
    pub(crate) terminal: bool,
    pub(crate) window: Option<WindowSize>,
    /// Where its ids lie on the host, in a user namespace.
    pub(crate) ids: Option<IdMappings>,
    /// Name of its session keyring.
    pub(crate) keyring: CString,
}

/// What the security modules of the kernel make of it; `None` is whatever its caller is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Labels {
    /// AppArmor profile.
    pub(crate) apparmor: Option<String>,
    /// SELinux context.
    pub(crate) selinux: Option<String>,
}

/// Who it runs as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UserPlan {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ResourceLimit {
    pub(crate) resource: Resource,
    /// `None` is no limit.
    pub(crate) soft: Option<u64>,
    /// `None` is no limit.
    pub(crate) hard: Option<u64>,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WindowSize {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

impl ProcessPlan {
    /// Checks `process`, of the container `id` with this `spec`.
    pub(super) fn new(
        id: &str,
        spec: &Spec,
        process: &Process,
        linux: Option<&Linux>,
    ) -> Result<Self, Error> {
        refuse_unsupported(process)?;
        let args = process.args().as_deref().unwrap_or_default();
        let program = args
            .first()
            .filter(|program| !program.is_empty())
            .ok_or_else(|| Error::invalid("process.args", "names no program"))?;
        let environment = if spec.process().as_ref() == Some(process) {
            environment(spec, process)?
        } else {
            exec_environment(spec, process)?
        };
        let cwd = super::clean_absolute(process.cwd()).ok_or_else(|| {
            Error::invalid("process.cwd", format!("{} is not absolute", process.cwd().display()))
        })?;
        let ids = linux.map(ids::of_namespace).transpose()?.flatten();
        Ok(Self {
            candidates: candidates(program, &environment)?,
            program: program.clone(),
            arguments: args
                .iter()
                .map(|arg| c_string("process.args", arg.as_bytes()))
                .collect::<Result<_, _>>()?,
            environment,
            cwd,
            user: user(process, ids.as_ref())?,
            ids,
            capabilities: CapabilitySets::new(process.capabilities().as_ref()),
            limits: limits(process)?,
            no_new_privs: process.no_new_privileges() == Some(true),
            oom_score_adj: oom_score_adj(process)?,
            seccomp: super::seccomp(linux.and_then(|linux| linux.seccomp().as_ref()))?,
            labels: Labels {
                apparmor: label("process.apparmorProfile", process.apparmor_profile())?,
                selinux: label("process.selinuxLabel", process.selinux_label())?,
            },
            terminal: process.terminal() == Some(true),
            window: window(process),
            keyring: c_string("id", format!("_ses.{id}").as_bytes())?,
        })
    }
}

fn refuse_unsupported(process: &Process) -> Result<(), Error> {
    if process.io_priority().is_some() {
        return Err(Error::unsupported("process.ioPriority", "I/O priorities"));
    }
    if process.scheduler().is_some() {
        return Err(Error::unsupported("process.scheduler", "scheduling policies"));
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(Error::unsupported("process.execCPUAffinity", "CPU affinity"));
    }
    Ok(())
}

/// A label is one line, written to the kernel as it is.
pub(super) fn label(field: &'static str, text: &Option<String>) -> Result<Option<String>, Error> {
    // A quote would end an option of mount(2).
    let sound = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    match text.as_ref().filter(|text| !text.is_empty()) {
        Some(text) if !text.chars().all(sound) => {
            Err(Error::invalid(field, format!("{text:?} is no label")))
        }
        text => Ok(text.cloned()),
    }
}

pub(super) fn c_string(field: &'static str, bytes: &[u8]) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::invalid(field, "contains a NUL byte"))
}

/// The container's environment: the annotation's when it is there, else `process.env`.
fn environment(spec: &Spec, process: &Process) -> Result<Vec<CString>, Error> {
    annotated_environment(spec)?.map_or_else(|| plain_environment(process), Ok)
}

/// The environment of a further process. An entry that is the container's own, as JSON
/// shows what is not UTF-8, has the container's bytes.
fn exec_environment(spec: &Spec, process: &Process) -> Result<Vec<CString>, Error> {
    let mut entries = plain_environment(process)?;
    for original in annotated_environment(spec)?.into_iter().flatten() {
        let shown = original.to_string_lossy();
        entries
            .iter_mut()
            .filter(|entry| entry.to_bytes() == shown.as_bytes())
            .for_each(|entry| entry.clone_from(&original));
    }
    Ok(entries)
}

fn annotated_environment(spec: &Spec) -> Result<Option<Vec<CString>>, Error> {
    const FIELD: &str = "annotation dev.berth.process.env";
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(ENVIRONMENT_ANNOTATION));
    let Some(annotation) = annotation else { return Ok(None) };
    let encoded: Vec<String> = serde_json::from_str(annotation)
        .map_err(|error| Error::invalid(FIELD, error.to_string()))?;
    let decode = |entry: &String| {
        let bytes =
            STANDARD.decode(entry).map_err(|error| Error::invalid(FIELD, error.to_string()))?;
        entry_of(FIELD, &bytes)
    };
    encoded.iter().map(decode).collect::<Result<_, _>>().map(Some)
}

fn plain_environment(process: &Process) -> Result<Vec<CString>, Error> {
    let entries = process.env().as_deref().unwrap_or_default();
    entries.iter().map(|entry| entry_of("process.env", entry.as_bytes())).collect()
}

fn entry_of(field: &'static str, entry: &[u8]) -> Result<CString, Error> {
    match entry.iter().position(|byte| *byte == b'=') {
        None | Some(0) => Err(Error::invalid(
            field,
            format!("{:?} is not of the form NAME=value", String::from_utf8_lossy(entry)),
        )),
        Some(_) => c_string(field, entry),
    }
}

/// Where to look for a program: itself when it has a slash, else in every absolute directory of
/// the process's own `PATH`. Relative ones are passed over, as they depend on the directory.
fn candidates(program: &str, environment: &[CString]) -> Result<Vec<CString>, Error> {
    const FIELD: &str = "process.args";
    const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    if program.contains('/') {
        return Ok(vec![c_string(FIELD, program.as_bytes())?]);
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|byte| *byte == b':')
        .filter(|directory| directory.starts_with(b"/"))
        .map(|directory| c_string(FIELD, &[directory, b"/", program.as_bytes()].concat()))
        .collect()
}

fn user(process: &Process, ids: Option<&IdMappings>) -> Result<UserPlan, Error> {
    const FIELD: &str = "process.user";
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    // The kernel reads the highest number as "leave it as it is": the process would stay root.
    if [user.uid(), user.gid()].contains(&u32::MAX) || groups.contains(&u32::MAX) {
        return Err(Error::invalid(FIELD, "4294967295 is not an id"));
    }
    if let Some(ids) = ids {
        let mut all = groups.iter().copied().chain([user.gid()]);
        if ids.host_uid(user.uid()).is_none() {
            return Err(unmapped("user", user.uid()));
        }
        if let Some(group) = all.find(|group| ids.host_gid(*group).is_none()) {
            return Err(unmapped("group", group));
        }
    }
    if user.username().as_ref().is_some_and(|name| !name.is_empty()) {
        return Err(Error::unsupported("process.user.username", "users by name"));
    }
    Ok(UserPlan {
        uid: user.uid(),
        gid: user.gid(),
        groups,
        umask: user.umask().unwrap_or(0o022) & 0o777,
    })
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, Error> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => Err(Error::invalid(
            "process.oomScoreAdj",
            format!("{score} is not between -1000 and 1000"),
        )),
        score => Ok(score),
    }
}

fn window(process: &Process) -> Option<WindowSize> {
    let size = process.console_size()?;
    let clamp = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    Some(WindowSize { rows: clamp(size.height()), columns: clamp(size.width()) })
}

fn limits(process: &Process) -> Result<Vec<ResourceLimit>, Error> {
    const FIELD: &str = "process.rlimits";
    let mut all: Vec<ResourceLimit> = Vec::new();
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        let resource = resource(limit.typ());
        if all.iter().any(|known| known.resource == resource) {
            return Err(Error::invalid(FIELD, format!("{} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(FIELD, format!("{}: soft above hard", limit.typ())));
        }
        let number = |value: u64| (value != u64::MAX).then_some(value);
        all.push(ResourceLimit {
            resource,
            soft: number(limit.soft()),
            hard: number(limit.hard()),
        });
    }
    Ok(all)
}

fn resource(typ: PosixRlimitType) -> Resource {
    match typ {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ProcessPlan, Error> {
        let process: serde_json::Value = serde_json::from_str(json).unwrap();
        let mut spec = serde_json::json!({"ociVersion":"1.0.2","process":process.clone()});
        if let Some(annotation) = process.get("annotation") {
            spec["annotations"] = serde_json::json!({ENVIRONMENT_ANNOTATION: annotation});
        }
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let process = spec.process().clone().unwrap();
        ProcessPlan::new("c1", &spec, &process, None)
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|string| string.to_str().unwrap()).collect()
    }

    #[test]
    fn a_program_is_looked_up_in_its_own_path() {
        let plan = read(
            r#"{"cwd":"/","user":{"uid":0,"gid":0},"args":["ls"],
                "env":["PATH=/x","PATH=/a::b:/c"]}"#,
        )
        .unwrap();
        assert_eq!(texts(&plan.candidates), ["/a/ls", "/c/ls"]);
        let plan = read(r#"{"cwd":"/","user":{"uid":0,"gid":0},"args":["bin/ls"]}"#).unwrap();
        assert_eq!(texts(&plan.candidates), ["bin/ls"]);
    }

    #[test]
    fn the_annotation_replaces_the_environment() {
        let plan = read(
            r#"{"cwd":"/","user":{"uid":0,"gid":0},"args":["ls"],"env":["A=1"],
                "annotation":"[\"Qj3/\"]"}"#,
        )
        .unwrap();
        assert_eq!(plan.environment[0].to_bytes(), b"B=\xff");
        assert_eq!(plan.environment.len(), 1);
    }

    #[test]
    fn a_further_process_has_the_containers_bytes() {
        // "B=\xff" and "C=1".
        let json = r#"{"ociVersion":"1.0.2","annotations":{
            "dev.berth.process.env":"[\"Qj3/\",\"Qz0x\"]"},
            "process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["ls"],
                "env":["B=\ufffd","C=1"]}}"#;
        let spec: Spec = serde_json::from_str(json).unwrap();
        let mut process = spec.process().clone().unwrap();
        let mut env = process.env().clone().unwrap();
        env.push("TERM=xterm".to_owned());
        env[1] = "C=2".to_owned();
        process.set_env(Some(env)).set_args(Some(vec!["ps".to_owned()]));
        let plan = ProcessPlan::new("c1", &spec, &process, None).unwrap();
        let found: Vec<_> = plan.environment.iter().map(|entry| entry.to_bytes()).collect();
        assert_eq!(found, [&b"B=\xff"[..], b"C=2", b"TERM=xterm"]);
    }

    #[test]
    fn what_would_leave_the_process_root_is_refused() {
        for user in [
            r#"{"uid":4294967295,"gid":0}"#,
            r#"{"uid":0,"gid":4294967295}"#,
            r#"{"uid":0,"gid":0,"additionalGids":[4294967295]}"#,
        ] {
            let json = format!(r#"{{"cwd":"/","user":{user},"args":["ls"]}}"#);
            assert!(matches!(read(&json), Err(Error::InvalidSpec { .. })), "{user}");
        }
    }

    #[test]
    fn a_process_that_makes_no_sense_is_refused() {
        let user = r#""user":{"uid":0,"gid":0}"#;
        for fields in [
            r#""cwd":"/","args":[]"#,
            r#""cwd":"/","args":[""]"#,
            r#""cwd":"a","args":["ls"]"#,
            r#""cwd":"/","args":["a\u0000b"]"#,
            r#""cwd":"/","args":["ls"],"env":["NOVALUE"]"#,
            r#""cwd":"/","args":["ls"],"env":["=x"]"#,
            r#""cwd":"/","args":["ls"],"oomScoreAdj":1001"#,
            r#""cwd":"/","args":["ls"],"rlimits":[{"type":"RLIMIT_CORE","soft":2,"hard":1}]"#,
        ] {
            let outcome = read(&format!("{{{user},{fields}}}"));
            assert!(matches!(outcome, Err(Error::InvalidSpec { .. })), "{fields}");
        }
    }
}
