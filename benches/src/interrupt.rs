//! Ends work in an orderly way when somebody wants this program to end.

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM. From the first listener on they end nothing by themselves, so one is
/// kept from the first moment of a run to the last.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    came: bool,
}

impl Interrupts {
    pub(crate) fn listen() -> Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        Ok(Self { interrupt, terminate, came: false })
    }

    /// Does `work` unless a signal comes first, which is an error. One that came since the
    /// last call counts.
    pub(crate) async fn unless<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            done = work => return done,
        }
        self.came = true;
        bail!("interrupted")
    }

    /// Whether a signal has ended something.
    pub(crate) fn came(&self) -> bool {
        self.came
    }
}
