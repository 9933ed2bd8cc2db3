//! What a profile means, read entry by entry: slow, and sharing nothing with the compiler but
//! the table of numbers.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::interpreter::Call;
use crate::arch::{Abi, Row, X32_BIT};

const ENOSYS: u32 = 0x0005_0026;

fn value(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::ScmpActErrno => 0x0005_0000 + errno.unwrap_or(1),
        Action::ScmpActTrace => 0x7ff0_0000 + errno.unwrap_or(1),
        other => u32::from(other),
    }
}

fn lets_pass(action: Action) -> bool {
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

fn holds(arg: &LinuxSeccompArg, call: &Call, wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let (actual, wanted) = (cut(call.args[arg.index()]), cut(arg.value()));
    match arg.op() {
        Operator::ScmpCmpNe => actual != wanted,
        Operator::ScmpCmpLt => actual < wanted,
        Operator::ScmpCmpLe => actual <= wanted,
        Operator::ScmpCmpEq => actual == wanted,
        Operator::ScmpCmpGe => actual >= wanted,
        Operator::ScmpCmpGt => actual > wanted,
        Operator::ScmpCmpMaskedEq => actual & wanted == cut(arg.value_two().unwrap_or(0)),
    }
}

fn entry_holds(entry: &LinuxSyscall, call: &Call, wide: bool) -> bool {
    let args = entry.args().as_deref().unwrap_or_default();
    let mut indexes: Vec<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    if indexes.len() < args.len() {
        args.iter().any(|arg| holds(arg, call, wide))
    } else {
        args.iter().all(|arg| holds(arg, call, wide))
    }
}

/// Which table `call` belongs to, if the profile has it.
fn abi(call: &Call, abis: &[Abi]) -> Option<Abi> {
    let abi = match (call.arch, call.number) {
        (0xc000_003e, u32::MAX) if !abis.contains(&Abi::X32) => Abi::X86_64,
        (0xc000_003e, number) if number & X32_BIT != 0 || number >= X32_BIT => Abi::X32,
        (0xc000_003e, _) => Abi::X86_64,
        (0x4000_0003, _) => Abi::X86,
        (0xc000_00b7, _) => Abi::Aarch64,
        (0x4000_0028, _) => Abi::Arm,
        _ => return None,
    };
    abis.contains(&abi).then_some(abi)
}

/// The tables that `profile` is about on a machine of `native`.
pub(super) fn abis(profile: &LinuxSeccomp, native: Abi) -> Vec<Abi> {
    let mut abis = vec![native];
    for arch in profile.architectures().iter().flatten() {
        abis.extend(match arch {
            Arch::ScmpArchX86_64 => Some(Abi::X86_64),
            Arch::ScmpArchX86 => Some(Abi::X86),
            Arch::ScmpArchX32 => Some(Abi::X32),
            Arch::ScmpArchAarch64 => Some(Abi::Aarch64),
            Arch::ScmpArchArm => Some(Abi::Arm),
            _ => None,
        });
    }
    abis
}

/// The action of `profile` for `call`.
pub(super) fn decide(profile: &LinuxSeccomp, abis: &[Abi], rows: &[Row], call: &Call) -> u32 {
    let Some(abi) = abi(call, abis) else { return 0 };
    let column = abi.column();
    let number = |name: &str| rows.iter().find(|row| row.0 == name).and_then(|row| row.1[column]);
    let default = value(profile.default_action(), profile.default_errno_ret());
    let entries: Vec<&LinuxSyscall> = profile.syscalls().iter().flatten().collect();
    let name = rows.iter().find(|row| row.1[column] == Some(call.number)).map(|row| row.0);
    let multiplexed = behind(name, call);
    let mut conditional = None;
    for entry in &entries {
        let action = value(entry.action(), entry.errno_ret());
        if action == default {
            continue;
        }
        let plain = entry.args().as_deref().unwrap_or_default().is_empty();
        let named = |wanted: &str| entry.names().iter().any(|name| name == wanted);
        if name.is_some_and(named) {
            if plain {
                return action;
            }
            if conditional.is_none() && entry_holds(entry, call, abi.wide()) {
                conditional = Some(action);
            }
        }
        let extends = plain || !lets_pass(entry.action());
        if abi == Abi::X86 && extends && conditional.is_none() && multiplexed.is_some_and(named) {
            conditional = Some(action);
        }
    }
    if let Some(action) = conditional {
        return action;
    }
    let all = entries.iter().flat_map(|entry| entry.names());
    let named = all.filter_map(|name| number(name));
    let newest = named.filter(|number| abi != Abi::Arm || *number < 0xf0000).max();
    let is_named = name.is_some_and(|name| {
        entries.iter().any(|entry| {
            entry.names().iter().any(|named| named == name)
                && value(entry.action(), entry.errno_ret()) != default
        })
    });
    match newest {
        Some(newest) if call.number > newest && !is_named => {
            if lets_pass(profile.default_action()) { default } else { ENOSYS }
        }
        _ => default,
    }
}

/// The call that 32-bit x86's multiplexers were asked for.
fn behind(name: Option<&str>, call: &Call) -> Option<&'static str> {
    let low = call.args[0] & 0xffff_ffff;
    match name {
        Some("socketcall") => match low {
            1 => Some("socket"),
            2 => Some("bind"),
            9 => Some("send"),
            20 => Some("sendmmsg"),
            _ => None,
        },
        Some("ipc") => match low & 0xffff {
            1 => Some("semop"),
            23 => Some("shmget"),
            _ => None,
        },
        _ => None,
    }
}
