//! Programs of the node's administrator that run while a container is made (config.md,
//! "POSIX-platform Hooks").

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};

use super::ProcessPlan;
use super::process::c_string;
use crate::error::Error;

/// How long a hook may take that names no time.
const USUAL: Duration = Duration::from_secs(30);
/// How long any hook may take: a client does not wait for ever.
const LONGEST: Duration = Duration::from_secs(50);

/// A program to run.
#[derive(Clone, Debug)]
pub(crate) struct HookPlan {
    /// As the specification calls the list that it is in.
    pub(crate) point: &'static str,
    pub(crate) path: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) timeout: Duration,
}

/// A container's hooks, in the order in which they run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hooks {
    /// `prestart` and `createRuntime`: in the caller's namespaces.
    pub(crate) runtime: Vec<HookPlan>,
    /// `createContainer`: in the container's namespaces, with the host's files.
    pub(crate) container: Vec<HookPlan>,
    /// `startContainer`: programs of the container's, executed as its own is.
    pub(crate) start: Vec<(HookPlan, ProcessPlan)>,
    /// What all of them are told.
    pub(crate) about: About,
}

/// What hooks are told of the container that does not change.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    pub(crate) version: String,
    pub(crate) id: String,
    pub(crate) annotations: HashMap<String, String>,
}

impl Hooks {
    pub(super) fn new(id: &str, spec: &Spec, process: &ProcessPlan) -> Result<Self, Error> {
        let Some(hooks) = spec.hooks() else { return Ok(Self::default()) };
        for (list, field) in
            [(hooks.poststart(), "hooks.poststart"), (hooks.poststop(), "hooks.poststop")]
        {
            if list.as_ref().is_some_and(|list| !list.is_empty()) {
                return Err(Error::unsupported(field, "hooks after the start of a container"));
            }
        }
        let prestart = hooks.prestart();
        let mut runtime = plans("prestart", prestart.as_deref())?;
        runtime.extend(plans("createRuntime", hooks.create_runtime().as_deref())?);
        let container = plans("createContainer", hooks.create_container().as_deref())?;
        let start = plans("startContainer", hooks.start_container().as_deref())?;
        if runtime.is_empty() && container.is_empty() && start.is_empty() {
            return Ok(Self::default());
        }
        if process.ids.is_some() {
            // They would find the container's root nowhere: it is mounted by a descriptor.
            return Err(Error::unsupported("hooks", "hooks in a user namespace"));
        }
        let start = start.into_iter().map(|hook| {
            let plan = ProcessPlan {
                program: hook.path.to_string_lossy().into_owned(),
                candidates: vec![hook.path.clone()],
                arguments: hook.arguments.clone(),
                environment: hook.environment.clone(),
                ..process.clone()
            };
            (hook, plan)
        });
        let about = About {
            version: spec.version().clone(),
            id: id.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        };
        Ok(Self { runtime, container, start: start.collect(), about })
    }
}

fn plans(point: &'static str, hooks: Option<&[Hook]>) -> Result<Vec<HookPlan>, Error> {
    hooks.unwrap_or_default().iter().map(|hook| plan(point, hook)).collect()
}

fn plan(point: &'static str, hook: &Hook) -> Result<HookPlan, Error> {
    const FIELD: &str = "hooks";
    let invalid = |reason: &str| {
        let reason = format!("{point} {} {reason}", hook.path().display());
        Err(Error::invalid(FIELD, reason))
    };
    if !hook.path().is_absolute() {
        return invalid("is not an absolute path");
    }
    let timeout = match hook.timeout().map(u64::try_from) {
        None => USUAL,
        Some(Ok(seconds @ 1..)) => Duration::from_secs(seconds).min(LONGEST),
        Some(_) => return invalid("has a timeout that is not greater than zero"),
    };
    let strings = |list: &Option<Vec<String>>| -> Result<Vec<CString>, Error> {
        list.iter().flatten().map(|text| c_string(FIELD, text.as_bytes())).collect()
    };
    let path = c_string(FIELD, hook.path().as_os_str().as_encoded_bytes())?;
    let mut arguments = strings(hook.args())?;
    if arguments.is_empty() {
        arguments.push(path.clone());
    }
    let mut environment = strings(hook.env())?;
    if environment.is_empty() {
        let path = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        environment.push(path.to_owned());
    }
    Ok(HookPlan { point, path, arguments, environment, timeout })
}

/// What hooks find on their standard input (runtime.md, "State").
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'static str,
    pid: i32,
    bundle: &'a Path,
    annotations: &'a HashMap<String, String>,
}

impl About {
    /// A container with that `status` and process in `bundle`.
    pub(crate) fn state<'a>(
        &'a self,
        status: &'static str,
        pid: rustix::process::Pid,
        bundle: &'a Path,
    ) -> State<'a> {
        State {
            oci_version: &self.version,
            id: &self.id,
            status,
            pid: pid.as_raw_nonzero().get(),
            bundle,
            annotations: &self.annotations,
        }
    }
}

/// What is left for the caller to run.
#[derive(Debug)]
pub(crate) struct RuntimeHooks {
    pub(crate) hooks: Vec<HookPlan>,
    pub(crate) about: About,
    pub(crate) bundle: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(json: &str) -> Result<Vec<HookPlan>, Error> {
        plans("createRuntime", Some(&serde_json::from_str::<Vec<Hook>>(json).unwrap()))
    }

    #[test]
    fn a_hook_has_a_path_arguments_an_environment_and_an_end() {
        let all = hooks(
            r#"[{"path": "/bin/a"},
                {"path": "/bin/b", "args": ["x", "y"], "env": ["A=1"], "timeout": 3},
                {"path": "/bin/c", "timeout": 4000000000}]"#,
        );
        let all = all.unwrap();
        assert_eq!((all[0].arguments[0].as_c_str(), all[0].timeout), (c"/bin/a", USUAL));
        assert!(all[0].environment[0].to_bytes().starts_with(b"PATH=/"));
        assert_eq!((all[1].arguments.len(), all[1].timeout.as_secs()), (2, 3));
        assert_eq!(all[1].environment, [c"A=1".to_owned()]);
        assert_eq!(all[2].timeout, LONGEST);
        for bad in [
            r#"[{"path": "bin/a"}]"#,
            r#"[{"path": "/a", "timeout": 0}]"#,
            r#"[{"path": "/a", "timeout": -1}]"#,
            r#"[{"path": "/a", "args": ["\u0000"]}]"#,
        ] {
            assert!(matches!(hooks(bad), Err(Error::InvalidSpec { .. })), "{bad}");
        }
    }
}
