//! The benchmarks over the CRI, one file each; and what several of them need: `clients` are
//! many at once, a `fleet` is many pods, `failures` and `samples` are what comes of them.

pub(crate) mod churn;
pub(crate) mod density;
pub(crate) mod exec;
pub(crate) mod idle;
pub(crate) mod lists;
pub(crate) mod pull;
pub(crate) mod start;

mod clients;
mod failures;
mod fleet;
mod samples;
