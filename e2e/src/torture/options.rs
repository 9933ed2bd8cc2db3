//! What to do, and how often.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How to call the program.
pub(crate) const USAGE: &str = "usage: berth-torture [OPTION VALUE]...

  --seed NUMBER        choices to repeat; without it, new ones
  --failpoints NUMBER  kills at each failpoint, each on one of the ways there (1)
  --ways NUMBER        kills on each way to each failpoint, in place of the above
  --kills NUMBER       random kills under load (50)
  --only NAME          failpoints, kills, or the start of a failpoint's name
  --minutes NUMBER     begin no round of a kind after this time
  --logs DIRECTORY     where logs of failed rounds are kept
  --summary FILE       where the results are written, as Markdown";

/// What to do, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) failpoints: u64,
    pub(crate) ways: Option<u64>,
    pub(crate) kills: u64,
    only: Option<String>,
    limit: Option<Duration>,
    pub(crate) logs: Option<PathBuf>,
    pub(crate) summary: Option<PathBuf>,
    begun: Instant,
}

impl Options {
    /// Reads the command line.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            seed: u64::from(std::process::id()) ^ crate::stage::nanos().unsigned_abs(),
            failpoints: 1,
            ways: None,
            kills: 50,
            only: None,
            limit: None,
            logs: None,
            summary: None,
            begun: Instant::now(),
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { bail!("{USAGE}") };
            let number = || value.parse::<u64>().with_context(|| format!("{name} {value}"));
            match name.as_str() {
                "--seed" => options.seed = number()?,
                "--failpoints" => options.failpoints = number()?,
                "--ways" => options.ways = Some(number()?),
                "--kills" => options.kills = number()?,
                "--only" => options.only = Some(value.clone()),
                "--minutes" => options.limit = Some(Duration::from_secs(number()? * 60)),
                "--logs" => options.logs = Some(value.into()),
                "--summary" => options.summary = Some(value.into()),
                _ => bail!("{USAGE}"),
            }
        }
        Ok(options)
    }

    /// Whether a kind of torture, or a failpoint, is to be done.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let Some(only) = self.only.as_deref() else { return true };
        match only {
            "failpoints" | "kills" => name == only || (only == "failpoints" && name.contains('.')),
            point => name.starts_with(point) || name == "failpoints",
        }
    }

    /// Whether no new round may begin.
    pub(crate) fn expired(&self) -> bool {
        self.limit.is_some_and(|limit| self.begun.elapsed() > limit)
    }

    /// The time limit begins with each kind.
    pub(crate) fn begin(&mut self) {
        self.begun = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options> {
        Options::parse(&arguments.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn one_point_or_one_kind_can_be_chosen() {
        let wants = |only, name| options(&["--only", only]).unwrap().wants(name);
        assert!(wants("run.", "run.stored") && wants("run.", "failpoints"));
        assert!(!wants("run.", "stop.entered") && !wants("run.", "kills"));
        assert!(wants("failpoints", "run.stored") && !wants("failpoints", "kills"));
        assert!(wants("kills", "kills") && !wants("kills", "failpoints"));
        assert!(options(&[]).unwrap().wants("kills"));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        assert!(options(&["--seed"]).is_err());
        assert!(options(&["--seed", "x"]).is_err());
        assert!(options(&["--speed", "1"]).is_err());
        assert_eq!(options(&["--seed", "7"]).unwrap().seed, 7);
    }
}
