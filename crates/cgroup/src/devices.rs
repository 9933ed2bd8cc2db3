//! Device access.
//!
//! The OCI specification gives a list of rules, applied in order to "nothing is allowed". It is
//! folded into a default and exceptions from it, which is what cgroup v1 keeps. There the
//! exceptions are written to files; v2 has no files, but runs an eBPF program for each access.

use std::fs::File;
use std::os::fd::AsFd;

use berth_sys::bpf::{self, Instruction};

use crate::files::{Directory, errno};
use crate::limits::{DeviceAccess, DeviceKind, DeviceRule};
use crate::{CgroupPath, Error};

/// A default, and what differs from it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Devices {
    allowed: bool,
    exceptions: Vec<DeviceRule>,
}

impl Devices {
    /// Applies `rules` in order.
    pub(crate) fn fold(rules: &[DeviceRule]) -> Result<Self, Error> {
        let mut devices = Self::default();
        for rule in rules {
            let everything =
                rule.access == DeviceAccess::ALL && rule.major.is_none() && rule.minor.is_none();
            match rule.kind {
                DeviceKind::All if everything => {
                    devices = Self { allowed: rule.allow, exceptions: Vec::new() };
                }
                DeviceKind::All => {
                    devices.add(DeviceRule { kind: DeviceKind::Char, ..*rule })?;
                    devices.add(DeviceRule { kind: DeviceKind::Block, ..*rule })?;
                }
                DeviceKind::Char | DeviceKind::Block => devices.add(*rule)?,
            }
        }
        Ok(devices)
    }

    fn add(&mut self, rule: DeviceRule) -> Result<(), Error> {
        if rule.allow == self.allowed {
            return self.take_back(rule);
        }
        let same = |known: &&mut DeviceRule| {
            (known.kind, known.major, known.minor) == (rule.kind, rule.major, rule.minor)
        };
        match self.exceptions.iter_mut().find(same) {
            Some(known) => known.access = known.access.with(rule.access),
            None => self.exceptions.push(rule),
        }
        Ok(())
    }

    /// Takes `rule` out of the exceptions. Part of an exception cannot be: neither a file nor
    /// runc could say "every device but this one".
    fn take_back(&mut self, rule: DeviceRule) -> Result<(), Error> {
        let covers = |wide: Option<u32>, narrow| wide.is_none() || wide == narrow;
        for known in &mut self.exceptions {
            let meets = known.kind == rule.kind
                && (covers(rule.major, known.major) || covers(known.major, rule.major))
                && (covers(rule.minor, known.minor) || covers(known.minor, rule.minor))
                && known.access.meets(rule.access);
            if !meets {
                continue;
            }
            if !covers(rule.major, known.major) || !covers(rule.minor, known.minor) {
                return Err(Error::DeviceRule(rule.to_string()));
            }
            known.access = known.access.without(rule.access);
        }
        self.exceptions.retain(|known| known.access != DeviceAccess::NONE);
        Ok(())
    }

    /// The program that v2 runs: context in `r1` (`struct bpf_cgroup_dev_ctx`: access in the
    /// upper half of its first word and kind in the lower, then major and minor); 1 allows.
    fn program(&self) -> Vec<Instruction> {
        use bpf::Instruction as I;
        const KIND: u8 = 2;
        const ACCESS: u8 = 3;
        const MAJOR: u8 = 4;
        const MINOR: u8 = 5;
        const SCRATCH: u8 = 0;
        let mut code = vec![
            I::load_word(KIND, 1, 0),
            I::move_register(ACCESS, KIND),
            I::and(KIND, 0xffff),
            I::shift_right(ACCESS, 16),
            I::load_word(MAJOR, 1, 4),
            I::load_word(MINOR, 1, 8),
        ];
        for rule in &self.exceptions {
            let answer = [I::set(0, u32::from(rule.allow)), I::exit()];
            let mut tests = vec![(KIND, if rule.kind == DeviceKind::Block { 1 } else { 2 })];
            tests.extend(rule.major.map(|major| (MAJOR, major)));
            tests.extend(rule.minor.map(|minor| (MINOR, minor)));
            let bits = rule.access.bits();
            // An allowance must have every bit that is asked for; a denial needs only one.
            let outside = if rule.allow { !bits & 0b111 } else { bits };
            let checked = rule.access != DeviceAccess::ALL || !rule.allow;
            let tail = answer.len() + if checked { 3 } else { 0 };
            for (at, (register, value)) in tests.iter().enumerate() {
                let skip = i16::try_from(tests.len() - 1 - at + tail).expect("a rule is short");
                code.push(I::jump_if_not(*register, *value, skip));
            }
            if checked {
                code.push(I::move_register(SCRATCH, ACCESS));
                code.push(I::and(SCRATCH, outside));
                let skip = i16::try_from(answer.len()).expect("it has two instructions");
                code.push(if rule.allow {
                    I::jump_if_not(SCRATCH, 0, skip)
                } else {
                    I::jump_if(SCRATCH, 0, skip)
                });
            }
            code.extend(answer);
        }
        code.extend([I::set(0, u32::from(self.allowed)), I::exit()]);
        code
    }
}

/// Writes `devices` to the files of v1: the default first, which forgets what was there.
pub(crate) fn apply_v1(directory: &Directory, devices: &Devices) -> Result<(), Error> {
    let (whole, exceptions) = if devices.allowed {
        ("devices.allow", "devices.deny")
    } else {
        ("devices.deny", "devices.allow")
    };
    directory.write(whole, "a")?;
    devices.exceptions.iter().try_for_each(|rule| directory.write(exceptions, &rule.to_string()))
}

/// Attaches the program of `devices` to a v2 cgroup, in the place of one attached before.
pub(crate) fn apply_v2(
    directory: &Directory,
    path: &CgroupPath,
    devices: &Devices,
) -> Result<(), Error> {
    let failed = |operation| {
        move |source| Error::DeviceProgram { operation, cgroup: path.to_string(), source }
    };
    let cgroup = File::open(directory.path()).map_err(|error| Error::Open {
        path: directory.path().to_owned(),
        source: errno(&error),
    })?;
    let attached = bpf::device_programs(cgroup.as_fd()).map_err(failed("query"))?;
    if attached.is_empty() && devices.allowed && devices.exceptions.is_empty() {
        return Ok(());
    }
    let program = bpf::load_device_program(&devices.program()).map_err(failed("load"))?;
    let before = match attached.first() {
        Some(id) => Some(bpf::program_by_id(*id).map_err(failed("query"))?),
        None => None,
    };
    let before = before.as_ref().map(AsFd::as_fd);
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd(), before).map_err(failed("attach"))
}

impl DeviceAccess {
    const NONE: Self = Self { read: false, write: false, mknod: false };

    fn bits(self) -> u32 {
        // BPF_DEVCG_ACC_MKNOD, _READ, _WRITE
        u32::from(self.mknod) | u32::from(self.read) << 1 | u32::from(self.write) << 2
    }

    fn from_bits(bits: u32) -> Self {
        Self { mknod: bits & 1 != 0, read: bits & 2 != 0, write: bits & 4 != 0 }
    }

    fn with(self, other: Self) -> Self {
        Self::from_bits(self.bits() | other.bits())
    }

    fn without(self, other: Self) -> Self {
        Self::from_bits(self.bits() & !other.bits())
    }

    fn meets(self, other: Self) -> bool {
        self.bits() & other.bits() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+c 1:3 rwm`.
    pub(crate) fn rule(text: &str) -> DeviceRule {
        let mut fields = text[1..].split(' ');
        let kind = match fields.next() {
            Some("a") => DeviceKind::All,
            Some("b") => DeviceKind::Block,
            _ => DeviceKind::Char,
        };
        let (major, minor) = fields.next().unwrap().split_once(':').unwrap();
        let access = DeviceAccess::parse(fields.next().unwrap()).unwrap();
        let allow = text.starts_with('+');
        DeviceRule { allow, kind, major: major.parse().ok(), minor: minor.parse().ok(), access }
    }

    fn fold(rules: &[&str]) -> Result<(bool, Vec<String>), Error> {
        let rules: Vec<DeviceRule> = rules.iter().map(|text| rule(text)).collect();
        let devices = Devices::fold(&rules)?;
        Ok((devices.allowed, devices.exceptions.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn nothing_is_allowed_until_a_rule_says_so() {
        assert_eq!(fold(&[]).unwrap(), (false, vec![]));
        let (allowed, exceptions) =
            fold(&["-a *:* rwm", "+c 1:3 r", "+c 1:3 wm", "+b *:* m", "-b 8:0 r"]).unwrap();
        assert!(!allowed);
        assert_eq!(exceptions, ["c 1:3 rwm", "b *:* m"]);
    }

    #[test]
    fn a_later_rule_for_all_forgets_the_others() {
        assert_eq!(fold(&["+c 1:3 r", "+a *:* rwm"]).unwrap(), (true, vec![]));
        assert_eq!(fold(&["+a *:* rwm", "-c 1:3 w"]).unwrap(), (true, vec!["c 1:3 w".into()]));
        assert_eq!(fold(&["+a *:* m"]).unwrap().1, ["c *:* m", "b *:* m"]);
    }

    #[test]
    fn an_exception_is_taken_back_entirely_or_not_at_all() {
        assert_eq!(fold(&["+c 1:3 rwm", "-c 1:3 m"]).unwrap().1, ["c 1:3 rw"]);
        assert_eq!(fold(&["+c 1:3 rw", "+c 1:5 r", "-c 1:* rwm"]).unwrap().1, [""; 0]);
        let hole = fold(&["+c 1:* rwm", "-c 1:3 m"]);
        assert!(matches!(hole, Err(Error::DeviceRule(rule)) if rule == "c 1:3 m"));
    }

    #[test]
    fn v1_files_get_the_default_and_its_exceptions() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned());
        for file in ["devices.allow", "devices.deny"] {
            std::fs::write(directory.file(file), "").unwrap();
        }
        let devices = Devices::fold(&[rule("+c 1:3 rwm")]).unwrap();
        apply_v1(&directory, &devices).unwrap();
        assert_eq!(directory.read("devices.deny").unwrap(), "a");
        assert_eq!(directory.read("devices.allow").unwrap(), "c 1:3 rwm");
    }

    /// Runs the program as the kernel would.
    fn allows(devices: &Devices, kind: DeviceKind, major: u32, minor: u32, access: &str) -> bool {
        let access = DeviceAccess::parse(access).unwrap().bits();
        let kind = if kind == DeviceKind::Block { 1 } else { 2 };
        interpret(&devices.program(), &[access << 16 | kind, major, minor]) == 1
    }

    fn interpret(program: &[Instruction], context: &[u32]) -> u32 {
        let mut registers = [0_u32; 11];
        let mut at = 0_usize;
        loop {
            let Instruction { code, registers: named, offset, immediate } = program[at];
            at += 1;
            let (to, from) = (usize::from(named & 0xf), usize::from(named >> 4));
            let value = immediate.cast_unsigned();
            let skip = usize::try_from(offset).unwrap();
            match code {
                0x61 => registers[to] = context[skip / 4],
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = value,
                0x54 => registers[to] &= value,
                0x74 => registers[to] >>= value,
                0x16 => at += if registers[to] == value { skip } else { 0 },
                0x56 => at += if registers[to] == value { 0 } else { skip },
                0x95 => return registers[0],
                _ => panic!("no such instruction: {code:#x}"),
            }
        }
    }

    #[test]
    fn the_v2_program_decides_as_the_rules_say() {
        use DeviceKind::{Block, Char};
        let fold = |rules: &[&str]| {
            Devices::fold(&rules.iter().map(|text| rule(text)).collect::<Vec<_>>()).unwrap()
        };
        let list = fold(&["+c 1:3 rw", "+c *:* m", "+b 8:* r", "+c 4294967295:7 rwm"]);
        for (kind, major, minor, access, expected) in [
            (Char, 1, 3, "r", true),
            (Char, 1, 3, "rw", true),
            (Char, 1, 3, "m", true),
            (Char, 1, 3, "rm", false),
            (Char, 1, 5, "r", false),
            (Char, 9, 9, "m", true),
            (Block, 1, 3, "r", false),
            (Block, 8, 77, "r", true),
            (Block, 8, 77, "rw", false),
            (Block, 9, 9, "m", false),
            (Char, u32::MAX, 7, "rwm", true),
        ] {
            let answer = allows(&list, kind, major, minor, access);
            assert_eq!(answer, expected, "{kind:?} {major}:{minor} {access}");
        }
        let open = fold(&["+a *:* rwm", "-c 1:3 w", "-b 8:* rwm"]);
        assert!(allows(&open, Char, 1, 3, "r") && !allows(&open, Char, 1, 3, "rw"));
        assert!(!allows(&open, Block, 8, 1, "m") && allows(&open, Block, 9, 1, "rwm"));
        assert!(!allows(&fold(&[]), Char, 1, 3, "r"));
        assert!(allows(&fold(&["+a *:* rwm"]), Char, 1, 3, "rwm"));
    }

    #[test]
    fn the_kernel_runs_the_v2_program_and_replaces_it() {
        let mounts = crate::mountinfo::read().unwrap();
        let path = format!("/berth-test-devices-{}", std::process::id());
        let path = CgroupPath::new(&path).unwrap();
        let Some(directory) = mounts.unified(&path) else {
            eprintln!("skipped: needs cgroup v2");
            return;
        };
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        std::fs::create_dir(directory.path()).unwrap();
        let reads = |device: &str| {
            let script = format!("echo $$ > $0; exec head -c 1 {device}");
            let processes = directory.file("cgroup.procs");
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &script]).arg(processes).output().unwrap().status.success()
        };
        let apply = |rules: &[&str]| {
            let rules: Vec<DeviceRule> = rules.iter().map(|text| rule(text)).collect();
            apply_v2(&directory, &path, &Devices::fold(&rules)?)
        };
        let all_allowed = apply(&["+a *:* rwm"]).map(|()| reads("/dev/zero"));
        let one_allowed =
            apply(&["+c 1:5 r"]).map(|()| (reads("/dev/zero"), reads("/dev/urandom")));
        let one_denied = apply(&["+a *:* rwm", "-c 1:5 r"])
            .map(|()| (reads("/dev/zero"), reads("/dev/urandom")));
        let cgroup = File::open(directory.path()).unwrap();
        let attached = bpf::device_programs(cgroup.as_fd()).map(|ids| ids.len());
        std::fs::remove_dir(directory.path()).unwrap();
        assert!(all_allowed.unwrap());
        assert_eq!(one_allowed.unwrap(), (true, false));
        assert_eq!(one_denied.unwrap(), (false, true));
        assert_eq!(attached.unwrap(), 1);
    }
}
