//! Program and profile decide alike, for every number of every architecture.

use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;

use super::interpreter::{Call, check, run};
use super::{naive, profiles};
use crate::arch::{Abi, X32_BIT};
use crate::compile::compile;

const ARCHES: [u32; 6] = [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0x4000_0028, 0, 0x8000_0015];

/// Numbers that matter: all there are and some beyond, in each half, and the ends.
fn numbers() -> impl Iterator<Item = u32> {
    let edges = [X32_BIT - 1, 0x7fff_ffff, 0x8000_0000, 0xf0000 - 1, u32::MAX - 1, u32::MAX];
    (0..700).chain(X32_BIT..X32_BIT + 700).chain(0xf0000..0xf0010).chain(edges)
}

/// Values around every value the profile compares with, and with other upper halves.
fn values(profile: &LinuxSeccomp) -> Vec<u64> {
    let mut values = vec![0, 1, 2, 23, u64::MAX, 0x1_0000_0000];
    for arg in profile.syscalls().iter().flatten().flat_map(|entry| entry.args().iter().flatten()) {
        for value in [arg.value(), arg.value_two().unwrap_or(0)] {
            values.extend([value, value.wrapping_sub(1), value.wrapping_add(1), !value]);
            values.extend([value ^ (1 << 32), value & 0xffff_ffff, value | (1 << 63)]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

/// A fixed sequence of numbers that look random.
struct Sequence(u64);

impl Sequence {
    fn pick(&mut self, from: &[u64]) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (self.0 >> 33) % u64::try_from(from.len()).unwrap();
        from[usize::try_from(at).unwrap()]
    }
}

#[track_caller]
fn equivalent(profile: Value, native: Abi) -> usize {
    let profile = profiles::parse(profile);
    let program = compile(&profile, native).unwrap();
    check(&program);
    let abis = naive::abis(&profile, native);
    let values = values(&profile);
    let mut sequence = Sequence(1);
    for arch in ARCHES {
        for number in numbers() {
            let constant = (0..8).map(|_| [0; 6].map(|_: u64| sequence.pick(&values)));
            let mut samples: Vec<[u64; 6]> = constant.collect();
            // Every value in every place, the others at random.
            if number & !X32_BIT < 500 {
                for place in 0..6 {
                    for value in &values {
                        let mut args = [0; 6].map(|_: u64| sequence.pick(&values));
                        args[place] = *value;
                        samples.push(args);
                    }
                }
            }
            let conditional = samples.iter().any(|args| {
                let call = Call { number, arch, args: *args };
                run(&program, &call) != run(&program, &Call { args: samples[0], ..call })
            });
            // The slow reading of a call without conditions needs few samples.
            let few = if conditional { samples.len() } else { 2 };
            for args in samples.into_iter().take(few) {
                let call = Call { number, arch, args };
                let (ours, meant) = (
                    run(&program, &call),
                    naive::decide(&profile, &abis, crate::arch::rows(), &call),
                );
                assert_eq!(ours, meant, "{ours:#x} for {meant:#x}: {call:x?}");
            }
        }
    }
    program.len()
}

#[test]
fn a_typical_profile_is_compiled_as_it_reads() {
    let length = equivalent(profiles::typical(), Abi::X86_64);
    assert!(length < 400, "{length} instructions");
}

#[test]
fn every_operator_is_compiled_as_it_reads() {
    equivalent(profiles::operators(), Abi::X86_64);
}

#[test]
fn a_deny_list_is_compiled_as_it_reads() {
    equivalent(profiles::deny_list(), Abi::X86_64);
}

#[test]
fn an_architecture_left_out_is_killed_and_the_own_one_is_implied() {
    equivalent(profiles::with_architectures(&[]), Abi::X86_64);
    equivalent(profiles::with_architectures(&["SCMP_ARCH_X86"]), Abi::X86_64);
    equivalent(profiles::with_architectures(&["SCMP_ARCH_NATIVE"]), Abi::Aarch64);
    equivalent(profiles::with_architectures(&["SCMP_ARCH_X32", "SCMP_ARCH_MIPS"]), Abi::X86);
}

#[test]
fn an_arm_machine_has_its_two_architectures() {
    let both = ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
    equivalent(profiles::with_architectures(&both), Abi::Aarch64);
}

#[test]
fn a_tree_too_long_for_short_jumps_is_compiled_as_it_reads() {
    let names: Vec<&str> = crate::arch::rows().iter().map(|row| row.0).collect();
    let length = equivalent(profiles::everything(&names), Abi::X86_64);
    assert!(length > 1000, "{length} instructions");
}
