//! Architectures, and the numbers that system calls have on them.

use oci_spec::runtime::Arch;

/// Set in the number of every x32 system call (`__X32_SYSCALL_BIT`).
pub(crate) const X32_BIT: u32 = 0x4000_0000;
/// First of ARM's private system calls (`__ARM_NR_BASE`); not a "newer" one.
pub(crate) const ARM_PRIVATE: u32 = 0x000f_0000;

/// One table of system calls. x86_64 and x32 share an audit architecture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Abi {
    /// Every table, in the column order of `syscalls.txt`.
    pub(crate) const ALL: [Self; 5] =
        [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm];

    /// The machine's own; `None` where there is no table of it.
    pub(crate) fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "x86" => Some(Self::X86),
            "aarch64" => Some(Self::Aarch64),
            "arm" => Some(Self::Arm),
            _ => None,
        }
    }

    /// The table of an architecture that a profile names; `None` where there is none, which
    /// leaves its calls to the bad-architecture action.
    pub(crate) fn named(arch: Arch, native: Self) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// `AUDIT_ARCH_*`: what the kernel puts into `seccomp_data.arch`.
    pub(crate) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared over 64 bits; otherwise over the lower 32, as libseccomp does.
    pub(crate) fn wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }

    /// Column in the table of numbers.
    pub(crate) const fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
        }
    }
}

/// One row of the table: a name, and its number on each [`Abi`].
pub(crate) type Row = (&'static str, [Option<u32>; Abi::ALL.len()]);

/// System calls by name, sorted. Parsed by the compiler: each shim compiles a profile once,
/// on the way of its first container's start, and an idle one should hold nothing of it.
static ROWS: [Row; count(TEXT)] = parse(TEXT);
const TEXT: &[u8] = include_bytes!("syscalls.txt");

/// The numbers of `name`; `None` for a name that no architecture has.
pub(crate) fn numbers(name: &str) -> Option<&'static [Option<u32>; Abi::ALL.len()]> {
    let at = ROWS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    Some(&ROWS[at].1)
}

/// Every row.
#[cfg(test)]
pub(crate) fn rows() -> &'static [Row] {
    &ROWS
}

/// How many lines are no comments.
const fn count(mut text: &[u8]) -> usize {
    let mut lines = 0;
    while !text.is_empty() {
        if text[0] != b'#' {
            lines += 1;
        }
        text = until(text, b'\n').1;
    }
    lines
}

const fn parse<const LINES: usize>(mut text: &'static [u8]) -> [Row; LINES] {
    let mut rows = [("", [None; Abi::ALL.len()]); LINES];
    let mut line = 0;
    while !text.is_empty() {
        let (found, rest) = until(text, b'\n');
        text = rest;
        if found[0] != b'#' {
            rows[line] = row(found);
            line += 1;
        }
    }
    rows
}

const fn row(line: &'static [u8]) -> Row {
    let (name, mut rest) = until(line, b' ');
    let mut numbers = [None; Abi::ALL.len()];
    let mut column = 0;
    while column < numbers.len() {
        let (field, others) = until(rest, b' ');
        rest = others;
        if field[0] != b'-' {
            let bit = if column == Abi::X32.column() { X32_BIT } else { 0 };
            numbers[column] = Some(number(field) | bit);
        }
        column += 1;
    }
    match std::str::from_utf8(name) {
        Ok(name) => (name, numbers),
        Err(_) => panic!("a name is ASCII"),
    }
}

const fn number(digits: &[u8]) -> u32 {
    match std::str::from_utf8(digits) {
        Ok(digits) => match u32::from_str_radix(digits, 10) {
            Ok(number) => number,
            Err(_) => panic!("a number is decimal"),
        },
        Err(_) => panic!("a number is ASCII"),
    }
}

/// What comes before the first `end`, and what after it.
const fn until(text: &[u8], end: u8) -> (&[u8], &[u8]) {
    let mut at = 0;
    while at < text.len() {
        if text[at] == end {
            let (before, after) = text.split_at(at);
            return (before, after.split_at(1).1);
        }
        at += 1;
    }
    (text, &[])
}

/// The call that carries `name` as its first argument on 32-bit x86, and that argument.
///
/// `socketcall(2)` and `ipc(2)`; the numbers are those of `linux/net.h` and `linux/ipc.h`.
pub(crate) fn multiplexed(name: &str) -> Option<(&'static str, u64)> {
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some((_, call)) = IPC.iter().find(|(known, _)| *known == name) {
        return Some(("ipc", *call));
    }
    let at = SOCKET.iter().position(|known| *known == name)?;
    Some(("socketcall", u64::try_from(at).ok()? + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read_and_sorted() {
        let lines = include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#'));
        assert_eq!(rows().len(), lines.count());
        assert!(rows().windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(rows().iter().all(|(_, numbers)| numbers.iter().any(Option::is_some)));
    }

    #[test]
    fn no_two_names_have_one_number() {
        for abi in Abi::ALL {
            let mut numbers: Vec<u32> =
                rows().iter().filter_map(|(_, numbers)| numbers[abi.column()]).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), all, "{abi:?}");
            assert!(all > 300, "{abi:?} has only {all}");
        }
    }

    #[test]
    fn known_numbers_are_right() {
        let numbers = |name| *super::numbers(name).unwrap();
        assert_eq!(numbers("read"), [Some(0), Some(3), Some(X32_BIT), Some(63), Some(3)]);
        let execve = [Some(59), Some(11), Some(X32_BIT | 520), Some(221), Some(11)];
        assert_eq!(numbers("execve"), execve);
        assert_eq!(numbers("socketcall"), [None, Some(102), None, None, None]);
        assert_eq!(numbers("set_tls"), [None, None, None, None, Some(0xf0005)]);
        assert_eq!(super::numbers("no_such_call"), None);
        // What this machine's libc says, where it has the name.
        if Abi::native() == Some(Abi::X86_64) {
            for (name, number) in [
                ("openat2", libc::SYS_openat2),
                ("clone3", libc::SYS_clone3),
                ("futex_waitv", libc::SYS_futex_waitv),
                ("mseal", libc::SYS_mseal),
            ] {
                assert_eq!(numbers(name)[0].map(i64::from), Some(number), "{name}");
            }
        }
    }

    #[test]
    fn calls_behind_a_multiplexer_are_known() {
        assert_eq!(multiplexed("socket"), Some(("socketcall", 1)));
        assert_eq!(multiplexed("sendmmsg"), Some(("socketcall", 20)));
        assert_eq!(multiplexed("shmctl"), Some(("ipc", 24)));
        assert_eq!(multiplexed("read"), None);
    }
}
