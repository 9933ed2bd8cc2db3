//! From rules to a program: a search tree over ranges of numbers for each architecture.

use oci_spec::runtime::LinuxSeccomp;
use oci_spec::runtime::LinuxSeccompOperator as Operator;

use crate::arch::{Abi, X32_BIT};
use crate::graph::{Graph, Id, LIMIT, Test};
use crate::rules::{BAD_ARCHITECTURE, Condition, Resolved, Rule, Rules, Verdict, resolve};
use crate::{Error, Instruction};

/// Offset of `nr` in `seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of `arch` in `seccomp_data`.
const ARCH: u32 = 4;
/// Offset of the first argument in `seccomp_data`; each has 8 bytes, little-endian on every
/// architecture that has a table.
const ARGUMENTS: u32 = 16;

/// Compiles `profile` for a machine whose own calls are `native`.
pub(crate) fn compile(profile: &LinuxSeccomp, native: Abi) -> Result<Box<[Instruction]>, Error> {
    let mut abis = vec![native];
    for arch in profile.architectures().iter().flatten() {
        if let Some(abi) = Abi::named(*arch, native).filter(|abi| !abis.contains(abi)) {
            abis.push(abi);
        }
    }
    let resolved = resolve(profile, &abis)?;
    let mut graph = Graph::default();
    let mut root = graph.end(BAD_ARCHITECTURE);
    // The first that is tested is the last that is added: the native one.
    let mut done: Vec<u32> = Vec::new();
    for abi in abis.iter().rev().map(|abi| abi.audit()) {
        if done.contains(&abi) {
            continue;
        }
        done.push(abi);
        let ranges = ranges(&mut graph, &resolved, abi)?;
        let tree = tree(&mut graph, &ranges);
        let numbered = graph.load(NUMBER, u32::MAX, tree);
        root = graph.branch(Test::Equal, abi, numbered, root);
    }
    let root = graph.load(ARCH, u32::MAX, root);
    graph.assemble(root)
}

/// Where each range of numbers begins, and what it leads to; the first begins at 0.
#[derive(Debug, Default)]
struct Ranges(Vec<(u32, Id)>);

impl Ranges {
    fn push(&mut self, start: u32, to: Id) {
        match self.0.last_mut() {
            Some((last, id)) if *last == start => *id = to,
            Some((_, id)) if *id == to => {}
            _ => self.0.push((start, to)),
        }
    }
}

/// The ranges of one audit architecture. x86_64 and x32 are the two halves of one: the number
/// −1, which a tracer sets to skip a call, lies in x32's.
fn ranges(graph: &mut Graph, resolved: &Resolved, audit: u32) -> Result<Ranges, Error> {
    let rules =
        |abi| resolved.rules.iter().find(|(known, _)| *known == abi).map(|(_, rules)| rules);
    let bad = graph.end(BAD_ARCHITECTURE);
    let mut ranges = Ranges::default();
    if audit != Abi::X86_64.audit() {
        for (abi, rules) in resolved.rules.iter().filter(|(abi, _)| abi.audit() == audit) {
            section(graph, resolved, (*abi, rules), 0, &mut ranges)?;
        }
        return Ok(ranges);
    }
    match rules(Abi::X86_64) {
        Some(rules) => section(graph, resolved, (Abi::X86_64, rules), 0, &mut ranges)?,
        None => ranges.push(0, bad),
    }
    match rules(Abi::X32) {
        Some(rules) => section(graph, resolved, (Abi::X32, rules), X32_BIT, &mut ranges)?,
        None => {
            ranges.push(X32_BIT, bad);
            let skipped = graph.end(resolved.newer);
            ranges.push(u32::MAX, skipped);
        }
    }
    Ok(ranges)
}

/// Adds the numbers of one table, from `low` on.
fn section(
    graph: &mut Graph,
    resolved: &Resolved,
    (abi, rules): (Abi, &Rules),
    low: u32,
    ranges: &mut Ranges,
) -> Result<(), Error> {
    let default = graph.end(resolved.default);
    let newer = graph.end(resolved.newer);
    let first_newer = rules.newest.map(|newest| newest + 1);
    let unnamed = |number: u32| match first_newer {
        Some(first) if number >= first => newer,
        _ => default,
    };
    ranges.push(low, unnamed(low));
    let mut marked = false;
    for (number, verdict) in &rules.verdicts {
        if let Some(first) = first_newer.filter(|first| !marked && first <= number) {
            ranges.push(first, newer);
            marked = true;
        }
        let to = match verdict {
            Verdict::Always(action) => graph.end(*action),
            Verdict::When(rules) => chain(graph, rules, abi.wide(), default),
        };
        if graph.len() > 2 * LIMIT {
            return Err(Error::TooLong { instructions: graph.len(), limit: LIMIT });
        }
        ranges.push(*number, to);
        ranges.push(number + 1, unnamed(number + 1));
    }
    if let Some(first) = first_newer.filter(|_| !marked) {
        ranges.push(first, newer);
    }
    Ok(())
}

/// Finds the range of the loaded number by bisection.
fn tree(graph: &mut Graph, ranges: &Ranges) -> Id {
    fn split(graph: &mut Graph, ranges: &[(u32, Id)]) -> Id {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        match (left, right) {
            ([], [(_, only)]) => *only,
            (_, [(start, _), ..]) => {
                let yes = split(graph, right);
                let no = split(graph, left);
                graph.branch(Test::GreaterOrEqual, *start, yes, no)
            }
            (_, []) => unreachable!("the right half is the longer one, and there is a range"),
        }
    }
    split(graph, &ranges.0)
}

/// Tries `rules` one after the other.
fn chain(graph: &mut Graph, rules: &[Rule], wide: bool, default: Id) -> Id {
    rules.iter().rev().fold(default, |otherwise, rule| {
        let matched = graph.end(rule.action);
        rule.conditions
            .iter()
            .rev()
            .fold(matched, |yes, condition| compare(graph, condition, wide, yes, otherwise))
    })
}

/// One comparison, over 64 bits or over the lower 32.
fn compare(graph: &mut Graph, condition: &Condition, wide: bool, yes: Id, no: Id) -> Id {
    let Condition { index, operator, value, value_two } = *condition;
    let place = Place { low: ARGUMENTS + 8 * index, wide };
    match operator {
        Operator::ScmpCmpEq => place.equal(graph, u64::MAX, value, yes, no),
        Operator::ScmpCmpNe => place.equal(graph, u64::MAX, value, no, yes),
        Operator::ScmpCmpMaskedEq => place.equal(graph, value, value_two, yes, no),
        Operator::ScmpCmpGt => place.order(graph, Test::Greater, value, yes, no),
        Operator::ScmpCmpLe => place.order(graph, Test::Greater, value, no, yes),
        Operator::ScmpCmpGe => place.order(graph, Test::GreaterOrEqual, value, yes, no),
        Operator::ScmpCmpLt => place.order(graph, Test::GreaterOrEqual, value, no, yes),
    }
}

/// Where an argument lies.
#[derive(Clone, Copy)]
struct Place {
    low: u32,
    wide: bool,
}

impl Place {
    /// `argument & mask == value`.
    fn equal(self, graph: &mut Graph, mask: u64, value: u64, yes: Id, no: Id) -> Id {
        let low = word(graph, self.low, lower(mask), lower(value), yes, no);
        if !self.wide {
            return low;
        }
        word(graph, self.low + 4, upper(mask), upper(value), low, no)
    }

    /// `argument > value` or `argument >= value`.
    fn order(self, graph: &mut Graph, test: Test, value: u64, yes: Id, no: Id) -> Id {
        let low = graph.branch(test, lower(value), yes, no);
        let low = graph.load(self.low, u32::MAX, low);
        if !self.wide {
            return low;
        }
        let equal = graph.branch(Test::Equal, upper(value), low, no);
        let high = graph.branch(Test::Greater, upper(value), yes, equal);
        graph.load(self.low + 4, u32::MAX, high)
    }
}

fn word(graph: &mut Graph, offset: u32, mask: u32, value: u32, yes: Id, no: Id) -> Id {
    if mask == 0 {
        return if value == 0 { yes } else { no };
    }
    let branch = graph.branch(Test::Equal, value, yes, no);
    graph.load(offset, mask, branch)
}

fn lower(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("32 bits are left")
}

fn upper(value: u64) -> u32 {
    u32::try_from(value >> 32).expect("32 bits are left")
}
