//! The benchmarks over the CRI, one file each.

pub(crate) mod exec;
pub(crate) mod start;
