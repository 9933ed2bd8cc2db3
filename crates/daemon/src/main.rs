//! `berthd`: the daemon.
//!
//! ```text
//! berthd [--config FILE]        serve until SIGTERM or SIGINT; pods keep running; SIGHUP
//!                               reads FILE again
//! berthd check                  what this host supports, and what is missing
//! berthd config default         the default configuration with comments
//! berthd config check FILE      whether a configuration is valid
//! berthd failpoints             where a test may kill it; test builds only
//! ```
//!
//! Only wiring is here: configuration to engine, engine to front, signals to shutdown.

mod check;
mod config;
mod directories;
mod listen;
mod lock;
mod metrics;
mod notify;
mod reload;
mod serve;
mod settings;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use config::Config;

/// Where the configuration lies when `--config` does not say.
const DEFAULT_PATH: &str = "/etc/berth/berthd.toml";

/// A node container runtime: answers the Kubernetes CRI.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file; without it, /etc/berth/berthd.toml if that exists.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this host supports and what is missing.
    Check,
    /// Show or check a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// List the points at which a test may kill, delay or fail this build.
    #[cfg(feature = "failpoints")]
    Failpoints,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the default configuration with comments.
    Default,
    /// Say whether FILE is valid.
    Check {
        /// The file.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    match arguments.command {
        None => serve::serve(arguments.config)?,
        Some(Command::Check) => {
            let config = configuration(arguments.config)?;
            let able = check::check(&mut out, &config)?;
            return Ok(if able { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        #[cfg(feature = "failpoints")]
        Some(Command::Failpoints) => {
            for point in berth_failpoint::POINTS {
                let fails = if point.fails { "fails" } else { "sure" };
                writeln!(out, "{:<28} {fails:<5} {}", point.name, point.after)?;
            }
        }
        Some(Command::Config(ConfigCommand::Default)) => {
            out.write_all(config::DEFAULT.as_bytes())?
        }
        Some(Command::Config(ConfigCommand::Check { file })) => {
            let config = Config::read(&file)?;
            // The daemon reads these anew for each pull; one that is wrong does not stop it.
            berth_registry::check_hosts(&config.registry.config_path)?;
            writeln!(out, "{} is valid", file.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn configuration(path: Option<PathBuf>) -> Result<Config> {
    match path {
        Some(path) => Ok(Config::read(&path)?),
        // A link that leads nowhere, or a file that cannot be read, is not "no file".
        None => match std::fs::symlink_metadata(DEFAULT_PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
            _ => Ok(Config::read(DEFAULT_PATH.as_ref())?),
        },
    }
}
