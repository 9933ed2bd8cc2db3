//! Programs by the content of their profile.

use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};

use crate::Program;

/// Programs kept; a node has few profiles.
const CAPACITY: usize = 16;

/// SHA-256 of everything in a profile that a program depends on.
pub(crate) type Key = [u8; 32];

/// The most recently used programs, the last one last.
#[derive(Debug)]
pub(crate) struct Cache(Mutex<Vec<(Key, Arc<Program>)>>);

impl Cache {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The program of `key`, which thereby becomes the youngest.
    pub(crate) fn find(&self, key: &Key) -> Option<Arc<Program>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == key)?;
        let entry = kept.remove(at);
        let program = Arc::clone(&entry.1);
        kept.push(entry);
        Some(program)
    }

    /// Keeps `program`; the oldest makes room.
    pub(crate) fn keep(&self, key: Key, program: &Arc<Program>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|(known, _)| *known == key) {
            return;
        }
        if kept.len() == CAPACITY {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(program)));
    }
}

/// The key of `profile`. Every part is preceded by its length or is of fixed length, so that no
/// two profiles are written alike.
pub(crate) fn key(profile: &LinuxSeccomp) -> Key {
    let mut hash = Sha256::new();
    let number = |hash: &mut Sha256, value: u64| hash.update(value.to_le_bytes());
    let length = |hash: &mut Sha256, value: usize| hash.update(value.to_le_bytes());
    let optional = |hash: &mut Sha256, value: Option<u64>| {
        hash.update([u8::from(value.is_some())]);
        hash.update(value.unwrap_or(0).to_le_bytes());
    };
    number(&mut hash, u64::from(u32::from(profile.default_action())));
    optional(&mut hash, profile.default_errno_ret().map(u64::from));
    let arches = profile.architectures().as_deref().unwrap_or_default();
    length(&mut hash, arches.len());
    arches.iter().for_each(|arch| number(&mut hash, u64::from(*arch as u32)));
    let flags = profile.flags().as_deref().unwrap_or_default();
    length(&mut hash, flags.len());
    flags.iter().for_each(|flag| hash.update([*flag as u8]));
    for entry in profile.syscalls().iter().flatten() {
        length(&mut hash, entry.names().len());
        for name in entry.names() {
            length(&mut hash, name.len());
            hash.update(name.as_bytes());
        }
        hash.update([entry.action() as u8]);
        optional(&mut hash, entry.errno_ret().map(u64::from));
        let args = entry.args().as_deref().unwrap_or_default();
        length(&mut hash, args.len());
        for arg in args {
            length(&mut hash, arg.index());
            number(&mut hash, arg.value());
            optional(&mut hash, arg.value_two());
            hash.update([arg.op() as u8]);
        }
    }
    hash.finalize().into()
}
