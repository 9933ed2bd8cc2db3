//! The default profile.

use oci_spec::runtime::{
    Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::allowed::{
    ALWAYS, BY_CAPABILITY, BY_MACHINE, CLONE_NAMESPACES, FAMILIES, FAMILIES_BELOW, PERSONALITIES,
};
use super::{MACHINE, condition, native};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile of a container that names none: what is not allowed fails with EPERM.
///
/// In the spirit of docker's and containerd's. `capabilities` is the bounding set: what
/// the kernel would refuse anyway is not even reachable.
#[must_use]
pub fn default_profile(capabilities: &Capabilities) -> LinuxSeccomp {
    let mut rules = vec![allow(ALWAYS.iter().flat_map(|names| names.split_whitespace()))];
    let machine = BY_MACHINE.iter().filter(|(machine, _)| *machine == MACHINE);
    rules.extend(machine.map(|(_, names)| allow(names.split_whitespace())));
    let held = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability));
    rules.extend(held.map(|(_, names)| allow(names.split_whitespace())));

    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpLt, ScmpCmpMaskedEq};
    rules.push(allow_if("socket", condition(0, ScmpCmpLt, FAMILIES_BELOW, None)));
    rules.extend(FAMILIES.map(|family| allow_if("socket", condition(0, ScmpCmpEq, family, None))));
    rules.extend(
        PERSONALITIES.map(|domain| allow_if("personality", condition(0, ScmpCmpEq, domain, None))),
    );
    if !capabilities.contains(&Capability::SysAdmin) {
        let no_namespaces = condition(0, ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0));
        rules.push(allow_if("clone", no_namespaces));
        // Its flags are behind a pointer. C libraries fall back to clone on ENOSYS alone.
        let mut clone3 = rule(["clone3"], LinuxSeccompAction::ScmpActErrno);
        clone3.set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(native())
        .syscalls(rules)
        .build()
        .expect("every field has a default")
}

fn rule<'a>(names: impl IntoIterator<Item = &'a str>, action: LinuxSeccompAction) -> LinuxSyscall {
    let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
    LinuxSyscallBuilder::default()
        .names(names)
        .action(action)
        .build()
        .expect("every field has a default")
}

fn allow<'a>(names: impl IntoIterator<Item = &'a str>) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow)
}

fn allow_if(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = allow([name]);
    rule.set_args(Some(vec![condition]));
    rule
}
