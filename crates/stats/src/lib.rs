//! One cached sampler of cgroups and what runs in them.
//!
//! Lists, statistics and metrics of many containers are asked for again and again, by kubelet,
//! by monitoring and by people. [`Sampler`] reads a cgroup's files at most once per `max_age`,
//! whoever asks, and derives the CPU rate from the two last readings; a reading of all details
//! serves who needs less. [`Readings`] is the same for other things that cost something to
//! read: what is dear is read more rarely. What stays open between two readings, to make the
//! next one cheap, is within a [`Budget`].
//!
//! Invariants: callers for one object wait for one reading, callers for others never wait for
//! it; nothing is kept of an object after it is forgotten; no process is asked for anything,
//! only the kernel.

mod budget;
mod processes;
mod readings;
mod sampler;

pub use budget::{Budget, Permit};
pub use processes::Processes;
pub use readings::Readings;
pub use sampler::{Details, Sample, Sampler};
