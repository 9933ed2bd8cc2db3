//! What a profile decides for each system call number.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

use crate::Error;
use crate::arch::{ARM_PRIVATE, Abi, multiplexed, numbers};

/// `SECCOMP_RET_KILL_THREAD`: what libseccomp and runc do on an architecture that the profile
/// does not name.
pub(crate) const BAD_ARCHITECTURE: u32 = 0;
/// `SECCOMP_RET_ERRNO | ENOSYS`.
pub(crate) const ENOSYS: u32 = 0x0005_0000 | 38;

/// One comparison of an argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Condition {
    /// Which argument, 0 to 5.
    pub(crate) index: u32,
    /// How.
    pub(crate) operator: Operator,
    /// With what; the mask for `SCMP_CMP_MASKED_EQ`.
    pub(crate) value: u64,
    /// The masked value.
    pub(crate) value_two: u64,
}

/// An action and what must all hold for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    /// `SECCOMP_RET_*` with its data.
    pub(crate) action: u32,
    /// All must hold.
    pub(crate) conditions: Vec<Condition>,
}

/// What happens to one system call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Always this action.
    Always(u32),
    /// The first rule that holds; the default action when none does.
    When(Vec<Rule>),
}

/// The rules of one [`Abi`].
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// By number.
    pub(crate) verdicts: BTreeMap<u32, Verdict>,
    /// Greatest number that the profile names at all.
    pub(crate) newest: Option<u32>,
}

impl Rules {
    fn add(&mut self, number: u32, action: u32, alternatives: &[Vec<Condition>]) {
        let verdict = self.verdicts.entry(number).or_insert_with(|| Verdict::When(Vec::new()));
        match verdict {
            Verdict::Always(_) => {}
            Verdict::When(_) if alternatives.is_empty() => *verdict = Verdict::Always(action),
            Verdict::When(rules) => rules
                .extend(alternatives.iter().map(|all| Rule { action, conditions: all.clone() })),
        }
    }
}

/// A profile, resolved for some tables.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Default action.
    pub(crate) default: u32,
    /// Action for numbers above the newest that is named: `ENOSYS` when the default refuses.
    pub(crate) newer: u32,
    /// Rules of each table asked for.
    pub(crate) rules: Vec<(Abi, Rules)>,
}

/// Resolves `profile` for `abis`.
pub(crate) fn resolve(profile: &LinuxSeccomp, abis: &[Abi]) -> Result<Resolved, Error> {
    let default = action(profile.default_action(), profile.default_errno_ret(), None)?;
    let permissive = matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    let newer = if permissive { default } else { ENOSYS };
    let mut rules: Vec<(Abi, Rules)> = abis.iter().map(|abi| (*abi, Rules::default())).collect();
    for entry in profile.syscalls().iter().flatten() {
        let name = entry.names().first().map(String::as_str);
        let action = action(entry.action(), entry.errno_ret(), name)?;
        let alternatives = alternatives(entry)?;
        let effect = Effect { action, default, entry, alternatives: &alternatives };
        for name in entry.names() {
            let numbers = numbers(name);
            for (abi, rules) in &mut rules {
                let direct = numbers.and_then(|numbers| numbers[abi.column()]);
                add(rules, *abi, name, direct, &effect);
            }
        }
    }
    Ok(Resolved { default, newer, rules })
}

struct Effect<'a> {
    action: u32,
    default: u32,
    entry: &'a LinuxSyscall,
    alternatives: &'a [Vec<Condition>],
}

/// Adds the effect on the call `name`, whose number there is `direct`.
fn add(rules: &mut Rules, abi: Abi, name: &str, direct: Option<u32>, effect: &Effect<'_>) {
    if let Some(number) = direct.filter(|number| abi != Abi::Arm || *number < ARM_PRIVATE) {
        rules.newest = rules.newest.max(Some(number));
    }
    if effect.action == effect.default {
        return;
    }
    if let Some(number) = direct {
        rules.add(number, effect.action, effect.alternatives);
    }
    if abi != Abi::X86 {
        return;
    }
    // A multiplexer passes the arguments in memory, where no filter can look. An action that
    // lets the call pass under conditions is therefore not extended to it; one that refuses is.
    let passes = matches!(
        effect.entry.action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    if passes && !effect.alternatives.is_empty() {
        return;
    }
    if let Some((multiplexer, call)) = multiplexed(name)
        && let Some(number) = numbers(multiplexer).and_then(|numbers| numbers[abi.column()])
    {
        rules.add(
            number,
            effect.action,
            &[vec![Condition {
                index: 0,
                operator: Operator::ScmpCmpMaskedEq,
                // ipc(2) has a version in the upper half.
                value: if multiplexer == "ipc" { 0xffff } else { 0xffff_ffff },
                value_two: call,
            }]],
        );
    }
}

/// The condition sets of `entry`: one of them must hold entirely. Empty: unconditional.
///
/// When an argument is named twice, every condition stands alone, as in runc.
fn alternatives(entry: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, Error> {
    let mut conditions = Vec::new();
    let mut seen = [false; 6];
    let mut twice = false;
    for arg in entry.args().iter().flatten() {
        let seen = seen.get_mut(arg.index()).ok_or_else(|| Error::ArgumentIndex {
            syscall: entry.names().first().cloned().unwrap_or_default(),
            index: arg.index(),
        })?;
        twice |= std::mem::replace(seen, true);
        conditions.push(condition(arg));
    }
    Ok(match (conditions.is_empty(), twice) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|condition| vec![condition]).collect(),
        (false, false) => vec![conditions],
    })
}

fn condition(arg: &LinuxSeccompArg) -> Condition {
    Condition {
        index: u32::try_from(arg.index()).expect("an index is below 6"),
        operator: arg.op(),
        value: arg.value(),
        value_two: arg.value_two().unwrap_or(0),
    }
}

/// `SECCOMP_RET_*` of an action; `EPERM` where the profile gives no number, as in runc.
fn action(action: Action, value: Option<u32>, syscall: Option<&str>) -> Result<u32, Error> {
    const EPERM: u32 = 1;
    let data = value.unwrap_or(EPERM);
    let carried = matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    if carried && data > 0xffff {
        return Err(Error::ReturnValue(data));
    }
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => 0,
        Action::ScmpActKillProcess => 0x8000_0000,
        Action::ScmpActTrap => 0x0003_0000,
        Action::ScmpActErrno => 0x0005_0000 | data,
        Action::ScmpActTrace => 0x7ff0_0000 | data,
        Action::ScmpActLog => 0x7ffc_0000,
        Action::ScmpActAllow => 0x7fff_0000,
        Action::ScmpActNotify => {
            return Err(Error::Notify { syscall: syscall.map(str::to_owned) });
        }
    })
}
