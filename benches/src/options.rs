//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bench::{churn, density, exec, idle, lists, pull, start};

/// Measures how dense and how fast container runtimes are, by the CRI they answer.
#[derive(Debug, Parser)]
#[command(name = "berth-bench", version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) task: Task,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Says what answers on the sockets.
    Who(Common),
    /// Measures how one pod at a time comes up and goes down, and what it costs the machine.
    Start {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: start::Options,
    },
    /// Measures commands in a running container.
    Exec {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: exec::Options,
    },
    /// Measures what idle pods cost in memory, processes and threads.
    Density {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: density::Options,
    },
    /// Measures what a runtime does while pods do nothing, left alone and polled.
    Idle {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: idle::Options,
    },
    /// Measures the questions that kubelet asks again and again.
    Lists {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: lists::Options,
    },
    /// Measures many pods at once, by several clients.
    Churn {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: churn::Options,
    },
    /// Measures OCI runtimes by themselves, by runc's command line.
    Oci(crate::oci::Options),
    /// Says where each millisecond of a pod's start, command and end goes in Berth itself.
    Phases(crate::phases::Options),
    /// Shows what a run kept as JSON: its tables, and charts if they are asked for.
    Show {
        /// What `--json` wrote.
        file: PathBuf,
        /// Where to draw charts (SVG).
        #[arg(long, value_name = "DIR")]
        charts: Option<PathBuf>,
    },
    /// Measures pulls and removals of a large image.
    Pull {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: pull::Options,
    },
    /// Starts what `compare` measures, says where it answers, and ends it on ctrl-c.
    Peers(crate::peers::Options),
    /// Measures everything, side by side with the peers that are installed, and writes it down.
    Compare(crate::compare::Options),
}

/// What every benchmark over the CRI takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Socket of the runtime that is measured.
    #[arg(long, value_name = "PATH", value_parser = socket)]
    pub(crate) socket: PathBuf,
    /// Socket of the runtime that it is compared with.
    #[arg(long, value_name = "PATH", value_parser = socket)]
    pub(crate) versus: Option<PathBuf>,
    /// Runtime handler to ask for; without it, the runtime's default.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) handler: String,
    /// Runtime handler to ask the other one for.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) versus_handler: String,
    /// Image of the containers, with `sh`, `sleep` and `true`; without it, one is made of
    /// this machine's busybox and served by a registry on loopback.
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) image: Option<String>,
    /// Cgroup below which pods are made; a slice (`x.slice`) for runtimes that use systemd.
    #[arg(long, value_name = "PATH", default_value = "/berth-bench")]
    pub(crate) cgroup_parent: String,
    /// Rounds, in each of which every runtime has its turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Longest wait for a quiet machine before a turn, seconds; 0 does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) patience: u64,
    /// Where to write everything that was measured, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where to draw charts (SVG).
    #[arg(long, value_name = "DIR")]
    pub(crate) charts: Option<PathBuf>,
}

/// A path, which may be written as an endpoint of kubelet's is.
#[allow(clippy::unnecessary_wraps, reason = "what a value parser is")]
fn socket(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text.strip_prefix("unix://").unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_be_named_as_kubelet_names_it() {
        for text in ["unix:///run/x.sock", "/run/x.sock"] {
            assert_eq!(socket(text), Ok(PathBuf::from("/run/x.sock")));
        }
    }
}
