//! Classic BPF as the kernel runs it for seccomp, with the kernel's own checks.

use crate::Instruction;

/// `struct seccomp_data`, without the instruction pointer, which no program of ours reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[usize::try_from((offset - 16) / 8).unwrap()];
                let word = if offset.is_multiple_of(8) { arg & 0xffff_ffff } else { arg >> 32 };
                u32::try_from(word).unwrap()
            }
            _ => panic!("a program of ours never reads offset {offset}"),
        }
    }
}

/// Runs `program`; panics on what the kernel would have refused to load.
pub(super) fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |condition| at += usize::from(if condition { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x05 => at += usize::try_from(k).unwrap(),
            0x06 => return k,
            _ => panic!("a program of ours has no opcode {code:#x}"),
        }
    }
}

/// What `bpf_check_classic` of the kernel looks at: jumps inside, a return at the end.
pub(super) fn check(program: &[Instruction]) {
    assert!(!program.is_empty() && program.len() <= 4096);
    for (at, instruction) in program.iter().enumerate() {
        let farthest = match instruction.code {
            0x15 | 0x25 | 0x35 => usize::from(instruction.jt.max(instruction.jf)),
            0x05 => usize::try_from(instruction.k).unwrap(),
            _ => 0,
        };
        assert!(at + 1 + farthest < program.len() || instruction.code == 0x06, "{at}");
    }
    assert_eq!(program.last().unwrap().code, 0x06);
}
