//! What a cgroup uses: which file of which version says it.
//!
//! A reading is some ten files, opened, read at once and closed: each that stays open would
//! keep a page of the kernel's memory, and there are thousands on a full node. Of what is
//! read again and again its directories stay open ([`again`]). What only metrics ask for is read
//! apart ([`details`]).

mod details;
mod text;
mod v1;
mod v2;

use berth_model::stats::{CgroupUsage, CpuUsage, Pressure};

use crate::files::{Directory, Kept, Reader, keyed};
use crate::hierarchy::{Controller, Mounts, Place};
use crate::{CgroupPath, Error};

pub(crate) use self::details::details;

/// How much is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Depth {
    /// What statistics need.
    Brief,
    /// And what costs further files.
    Whole,
}

/// Reads what statistics need.
pub(crate) fn usage(mounts: &Mounts, path: &CgroupPath) -> Result<CgroupUsage, Error> {
    read(&mut Reader::new(), mounts, path, Depth::Brief)
}

/// As [`usage`], of a cgroup that will be read again: finds little anew of what is `kept`.
pub(crate) fn again(
    kept: &mut Kept,
    mounts: &Mounts,
    path: &CgroupPath,
) -> Result<CgroupUsage, Error> {
    let mut reader = Reader::again(std::mem::take(kept));
    let usage = read(&mut reader, mounts, path, Depth::Brief)?;
    *kept = reader.kept;
    Ok(usage)
}

fn read(
    reader: &mut Reader,
    mounts: &Mounts,
    path: &CgroupPath,
    depth: Depth,
) -> Result<CgroupUsage, Error> {
    let mut usage = CgroupUsage { at: berth_failpoint::now().into(), ..CgroupUsage::default() };
    usage.memory = match mounts.place(Controller::Memory, path) {
        Some(Place::V1(directory)) => Some(v1::memory(reader, &directory)?),
        Some(Place::V2(directory)) => v2::memory(reader, &directory)?,
        None => None,
    };
    usage.cpu = cpu(reader, mounts, path, depth)?;
    let pids = mounts.place(Controller::Pids, path);
    if let Some(Place::V1(directory) | Place::V2(directory)) = pids {
        usage.pids = reader.number_if_there(&directory, "pids.current")?;
    }
    // Only v2 tells of pressure, on a hybrid host without a controller too.
    if let Some(unified) = mounts.unified(path) {
        reader.enter(&unified);
        let mut pressure = |file| pressure(reader, &unified, file);
        if let Some(cpu) = &mut usage.cpu {
            cpu.pressure = pressure("cpu.pressure")?;
        }
        if let Some(memory) = &mut usage.memory {
            memory.pressure = pressure("memory.pressure")?;
        }
        usage.io_pressure = pressure("io.pressure")?;
    }
    Ok(usage)
}

fn cpu(
    reader: &mut Reader,
    mounts: &Mounts,
    path: &CgroupPath,
    depth: Depth,
) -> Result<Option<CpuUsage>, Error> {
    let directory = match mounts.place(Controller::Cpuacct, path) {
        Some(Place::V1(directory)) => directory,
        Some(Place::V2(directory)) => return v2::cpu(reader, &directory).map(Some),
        None => return Ok(None),
    };
    let mut cpu = v1::cpu(reader, &directory, depth)?;
    if depth == Depth::Whole {
        cpu.throttling = match mounts.place(Controller::Cpu, path) {
            Some(Place::V1(directory)) => Some(v1::throttling(reader, &directory)?),
            Some(Place::V2(directory)) => v2::cpu(reader, &directory)?.throttling,
            None => None,
        };
    }
    Ok(Some(cpu))
}

/// A file that is not there (the kernel was built without, or started with `psi=0`) or that
/// cannot be read (EOPNOTSUPP: turned off by `cgroup.pressure`) says nothing.
fn pressure(
    reader: &mut Reader,
    directory: &Directory,
    file: &str,
) -> Result<Option<Pressure>, Error> {
    use nix::errno::Errno;
    match reader.text_if_there(directory, file) {
        Ok(text) => Ok(text.and_then(text::pressure)),
        Err(Error::Read { source: Errno::EOPNOTSUPP, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads how many processes the kernel killed for the memory limit.
pub(crate) fn oom_kills(mounts: &Mounts, path: &CgroupPath) -> Result<u64, Error> {
    let text = match mounts.place(Controller::Memory, path) {
        Some(Place::V1(directory)) => directory.read("memory.oom_control")?,
        Some(Place::V2(directory)) => directory.read("memory.events")?,
        None => return Ok(0),
    };
    Ok(keyed(&text, "oom_kill"))
}

#[cfg(test)]
mod tests;
