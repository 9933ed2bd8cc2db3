//! Profiles an operator wrote: the runtime specification's JSON, and docker's superset
//! of it, whose rules depend on capabilities and machines.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompBuilder, LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;

use super::{MACHINE, native};
use crate::{Error, capabilities};

/// Largest profile accepted, bytes; docker's default one has 17 KB.
pub const MAX_PROFILE_BYTES: usize = 4 << 20;
/// Largest error number (`MAX_ERRNO` of the kernel).
const MAX_ERRNO: u32 = 4095;
/// Arguments of a system call.
const ARGUMENTS: usize = 6;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads the profile called `name`, for a container with this bounding set.
pub fn parse(name: &str, bytes: &[u8], bounding: &Capabilities) -> Result<LinuxSeccomp, Error> {
    let wrong = |problem: String| Error::SeccompProfile { name: name.to_owned(), problem };
    if bytes.len() > MAX_PROFILE_BYTES {
        return Err(wrong(format!("it is larger than {MAX_PROFILE_BYTES} bytes")));
    }
    let file: File = serde_json::from_slice(bytes)
        .map_err(|source| Error::SeccompSyntax { name: name.to_owned(), source })?;
    if file.listener_path.is_some() {
        return Err(wrong("listenerPath is not supported".to_owned()));
    }
    check_action(file.default_action, file.default_errno_ret).map_err(wrong)?;
    let architectures = architectures(&file).map_err(wrong)?;
    let mut rules = Vec::new();
    for rule in file.syscalls.unwrap_or_default() {
        rules.extend(rule.applicable(bounding).map_err(wrong)?);
    }
    let mut profile = LinuxSeccompBuilder::default()
        .default_action(file.default_action)
        .architectures(architectures)
        .syscalls(rules)
        .build()
        .expect("every field has a default");
    profile.set_default_errno_ret(file.default_errno_ret);
    profile.set_flags(file.flags.filter(|flags| !flags.is_empty()));
    Ok(profile)
}

fn architectures(file: &File) -> Result<Vec<Arch>, String> {
    match (&file.architectures, &file.arch_map) {
        (Some(plain), Some(map)) if !plain.is_empty() && !map.is_empty() => {
            Err("architectures and archMap exclude each other".to_owned())
        }
        (Some(plain), _) if !plain.is_empty() => Ok(plain.clone()),
        (_, Some(map)) => {
            let own = map.iter().find(|entry| native().first() == Some(&entry.architecture));
            let sub = own.and_then(|own| own.sub_architectures.clone()).unwrap_or_default();
            Ok(native().into_iter().take(1).chain(sub).collect())
        }
        _ => Ok(native().into_iter().take(1).collect()),
    }
}

fn check_action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<(), String> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err("action SCMP_ACT_NOTIFY is not supported".to_owned());
    }
    match errno {
        Some(errno) if errno > MAX_ERRNO => Err(format!("errno {errno} is out of range")),
        _ => Ok(()),
    }
}

impl Rule {
    /// The rule without its conditions, if they hold here.
    fn applicable(self, bounding: &Capabilities) -> Result<Option<LinuxSyscall>, String> {
        check_action(self.action, self.errno_ret)?;
        let names = match (self.name, self.names.unwrap_or_default()) {
            (Some(name), names) if names.is_empty() => vec![name],
            (None, names) if !names.is_empty() => names,
            _ => return Err("a rule must have either name or names".to_owned()),
        };
        if self.args.iter().flatten().any(|arg| arg.index() >= ARGUMENTS) {
            return Err(format!("a rule for {} looks at an argument beyond five", names[0]));
        }
        let includes = self.includes.unwrap_or_default();
        let excludes = self.excludes.unwrap_or_default();
        let (included, excluded) = (includes.includes(bounding)?, excludes.excludes(bounding)?);
        if !included || excluded {
            return Ok(None);
        }
        let mut rule = LinuxSyscallBuilder::default()
            .names(names)
            .action(self.action)
            .build()
            .expect("every field has a default");
        rule.set_errno_ret(self.errno_ret);
        rule.set_args(self.args.filter(|args| !args.is_empty()));
        Ok(Some(rule))
    }
}

impl Condition {
    /// Each part that is given: whether capabilities, machine and kernel are as it says.
    fn parts(
        &self,
        caps: impl FnOnce(&[Capability]) -> bool,
    ) -> Result<impl Iterator<Item = bool>, String> {
        let known = |name: &String| capabilities::parse(name).map_err(|error| error.to_string());
        let named = self.caps.iter().flatten().map(known).collect::<Result<Vec<_>, _>>()?;
        let caps = (!named.is_empty()).then(|| caps(&named));
        let arches = self.arches.as_ref().filter(|names| !names.is_empty());
        let arches = arches.map(|names| names.iter().any(|name| name == MACHINE));
        // No kernel older than 5.15 is supported, and profiles ask for 4.x.
        let kernel = self.min_kernel.as_deref().map(is_supported_kernel).transpose()?;
        Ok([caps, arches, kernel].into_iter().flatten())
    }

    fn includes(&self, bounding: &Capabilities) -> Result<bool, String> {
        let all = |named: &[Capability]| named.iter().all(|one| bounding.contains(one));
        Ok(self.parts(all)?.all(|holds| holds))
    }

    fn excludes(&self, bounding: &Capabilities) -> Result<bool, String> {
        let any = |named: &[Capability]| named.iter().any(|one| bounding.contains(one));
        Ok(self.parts(any)?.any(|holds| holds))
    }
}

fn is_supported_kernel(text: &str) -> Result<bool, String> {
    let mut numbers = text.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) <= (5, 15)),
        _ => Err(format!("minKernel {text:?} is not a version")),
    }
}
