//! A decision graph, and its translation to classic BPF.
//!
//! Equal nodes are one node. A node is made after those it points to, so ascending order is
//! children first: the program is written from its last instruction to its first, without
//! recursion, and every jump goes forward, as BPF demands.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::{Error, Instruction};

/// Longest program the kernel takes (`BPF_MAXINSNS`).
pub(crate) const LIMIT: usize = 4096;

/// `A = seccomp_data[k]`, one word.
const LOAD: u16 = 0x20;
/// `A &= k`.
const AND: u16 = 0x54;
/// Jump always.
const JUMP: u16 = 0x05;
/// Return `k`.
const RETURN: u16 = 0x06;
/// Farthest target of a conditional jump; one less than the field holds, since the other
/// target's trampoline may come in between.
const NEAR: usize = 254;

/// Index of a node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Id(usize);

/// A comparison of the accumulator, unsigned; the value is the BPF opcode.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u16)]
pub(crate) enum Test {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Node {
    /// Ends the program with an action.
    Return(u32),
    /// Loads a word of `seccomp_data`, masks it, goes on.
    Load { offset: u32, mask: u32, next: Id },
    /// Compares what was loaded last.
    Branch { test: Test, value: u32, yes: Id, no: Id },
}

/// The graph under construction.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    known: HashMap<Node, Id, BuildHasherDefault<Mix>>,
}

/// Mixes words by multiplication: a graph has few thousand nodes, and whoever could make
/// their hashes collide wins milliseconds of his own container's start.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        // A map takes the low bits, which a multiplication mixes least.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(u64::try_from(word).unwrap_or(u64::MAX));
    }

    fn write_isize(&mut self, word: isize) {
        self.write_usize(word.unsigned_abs());
    }
}

impl Graph {
    fn add(&mut self, node: Node) -> Id {
        let next = Id(self.nodes.len());
        let id = *self.known.entry(node).or_insert(next);
        if id == next {
            self.nodes.push(node);
        }
        id
    }

    /// How many nodes there are: at least one instruction each, if all are reachable.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Ends with `action`.
    pub(crate) fn end(&mut self, action: u32) -> Id {
        self.add(Node::Return(action))
    }

    /// Loads the word at `offset` of `seccomp_data`, keeps the bits of `mask`, goes to `next`.
    pub(crate) fn load(&mut self, offset: u32, mask: u32, next: Id) -> Id {
        self.add(Node::Load { offset, mask, next })
    }

    /// Goes to `yes` or `no` by what was loaded last.
    pub(crate) fn branch(&mut self, test: Test, value: u32, yes: Id, no: Id) -> Id {
        if yes == no { yes } else { self.add(Node::Branch { test, value, yes, no }) }
    }

    /// The program that starts at `root`.
    pub(crate) fn assemble(&self, root: Id) -> Result<Box<[Instruction]>, Error> {
        let at = vec![0; self.nodes.len()];
        let mut writer = Writer { graph: self, code: Vec::new(), at, ends: HashMap::new() };
        for id in self.reachable(root) {
            writer.write(id);
            if writer.code.len() > 2 * LIMIT {
                break;
            }
        }
        if matches!(self.nodes[root.0], Node::Return(_)) {
            writer.target(root);
        }
        let instructions = writer.code.len();
        if instructions > LIMIT {
            return Err(Error::TooLong { instructions, limit: LIMIT });
        }
        Ok(writer.code.into_iter().rev().collect())
    }

    /// Nodes that `root` leads to, children first.
    fn reachable(&self, root: Id) -> Vec<Id> {
        let mut wanted = vec![false; self.nodes.len()];
        wanted[root.0] = true;
        for index in (0..self.nodes.len()).rev().filter(|index| *index <= root.0) {
            if !wanted[index] {
                continue;
            }
            match self.nodes[index] {
                Node::Return(_) => {}
                Node::Load { next, .. } => wanted[next.0] = true,
                Node::Branch { yes, no, .. } => {
                    wanted[yes.0] = true;
                    wanted[no.0] = true;
                }
            }
        }
        (0..self.nodes.len()).filter(|index| wanted[*index]).map(Id).collect()
    }
}

/// Writes instructions from the last to the first. A position counts from the program's end.
struct Writer<'a> {
    graph: &'a Graph,
    code: Vec<Instruction>,
    /// Where each node that was written begins.
    at: Vec<usize>,
    /// Where an action was returned last. A copy costs no more than a jump to a far one.
    ends: HashMap<Id, usize>,
}

impl Writer<'_> {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> usize {
        self.code.push(Instruction { code, jt, jf, k });
        self.code.len() - 1
    }

    fn write(&mut self, id: Id) {
        let begin = match self.graph.nodes[id.0] {
            Node::Return(_) => return,
            Node::Load { offset, mask, next } => {
                let target = self.target(next);
                if target + 1 != self.code.len() {
                    self.jump(target);
                }
                if mask != u32::MAX {
                    self.push(AND, 0, 0, mask);
                }
                self.push(LOAD, 0, 0, offset)
            }
            Node::Branch { test, value, yes, no } => {
                let no = self.target(no);
                let yes = self.target(yes);
                let (jt, jf) = (self.distance(yes), self.distance(no));
                self.push(test as u16, jt, jf, value)
            }
        };
        self.at[id.0] = begin;
    }

    /// A position near enough for a conditional jump from the next instruction, where `id`
    /// begins or a jump to it stands.
    fn target(&mut self, id: Id) -> usize {
        if let Node::Return(action) = self.graph.nodes[id.0] {
            if let Some(at) = self.ends.get(&id).copied().filter(|at| self.near(*at)) {
                return at;
            }
            let at = self.push(RETURN, 0, 0, action);
            self.ends.insert(id, at);
            return at;
        }
        let at = self.at[id.0];
        if self.near(at) { at } else { self.jump(at) }
    }

    fn near(&self, at: usize) -> bool {
        self.code.len() - 1 - at < NEAR
    }

    fn jump(&mut self, at: usize) -> usize {
        let distance = u32::try_from(self.code.len() - 1 - at)
            .expect("assembly stops soon after 4096 instructions");
        self.push(JUMP, 0, 0, distance)
    }

    fn distance(&self, at: usize) -> u8 {
        u8::try_from(self.code.len() - 1 - at).expect("a target is near, trampolines see to it")
    }
}
