//! What clients and killer share: the daemon, and what the clients were told.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use berth_api::v1;
use berth_testkit::Cri;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::host::Process;
use crate::random::Random;

/// How long a verb may take, with all the daemons that die under it.
const VERB: Duration = Duration::from_secs(90);
/// Pause before a verb that was cut off is tried again.
const AGAIN: Duration = Duration::from_millis(5);

/// What a client was told of a container.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    Created,
    /// It runs, or has ended with one of these codes.
    Alive {
        process: Process,
        codes: Vec<i32>,
    },
    /// As it was told; it stays so.
    Ended(Box<v1::ContainerStatus>),
}

/// What clients were told exists.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Sandboxes, and whether they are ready, if that is certain.
    pub(crate) sandboxes: BTreeMap<String, Option<bool>>,
    pub(crate) containers: BTreeMap<String, Expect>,
    /// Ids of images.
    pub(crate) images: BTreeMap<String, String>,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pods: AtomicU64,
    pub(crate) containers: AtomicU64,
    pub(crate) lines: AtomicU64,
    pub(crate) execs: AtomicU64,
    pub(crate) pulls: AtomicU64,
    pub(crate) cut_off: AtomicU64,
    pub(crate) vanished: AtomicU64,
    pub(crate) shims: AtomicU64,
    pub(crate) inits: AtomicU64,
    /// Longest until the end of a killed shim's containers was told, milliseconds.
    pub(crate) loss_told: AtomicU64,
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, number: u64) {
    count.fetch_add(number, Ordering::Relaxed);
}

#[derive(Debug)]
pub(crate) struct Shared {
    cri: Cri,
    /// The busybox image.
    pub(crate) image: String,
    /// References and ids of images that come and go.
    pub(crate) images: Vec<(String, String)>,
    pub(crate) logs: PathBuf,
    /// Held by every verb; who holds it alone finds nothing under way.
    pub(crate) gate: RwLock<()>,
    ledger: Mutex<Ledger>,
    ending: AtomicBool,
    pub(crate) counts: Counts,
}

impl Shared {
    pub(crate) fn new(
        cri: Cri,
        image: String,
        images: Vec<(String, String)>,
        logs: PathBuf,
    ) -> Self {
        Self {
            cri,
            image,
            images,
            logs,
            gate: RwLock::new(()),
            ledger: Mutex::default(),
            ending: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    /// Clients bring what they began to its end, and begin nothing more.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn ends(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is dropped, verbs are under way.
    pub(crate) async fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Does a verb until it is answered, however many daemons die under it; what the daemon
    /// itself answers is final. Says whether it was cut off before.
    pub(crate) async fn answered<T>(
        &self,
        what: &str,
        verb: impl AsyncFn(Cri) -> Result<T, Status>,
    ) -> Result<(Result<T, Status>, bool)> {
        let (begun, mut cut_off) = (Instant::now(), false);
        loop {
            match verb(self.cri.clone()).await {
                // What the client's own side makes of a broken connection has a cause.
                Err(status) if status.source().is_some() => {
                    if begun.elapsed() > VERB {
                        bail!("{what}: no answer in {VERB:?}: {status:?}");
                    }
                    if !cut_off {
                        add(&self.counts.cut_off, 1);
                    }
                    cut_off = true;
                    sleep(AGAIN).await;
                }
                answer => return Ok((answer, cut_off)),
            }
        }
    }

    /// As [`Shared::answered`]; any answer but success is a failure.
    pub(crate) async fn verb<T>(
        &self,
        what: &str,
        verb: impl AsyncFn(Cri) -> Result<T, Status>,
    ) -> Result<T> {
        let (answer, cut_off) = self.answered(what, verb).await?;
        answer.map_err(|status| {
            let before = if cut_off { ", cut off before" } else { "" };
            anyhow!("{what}{before}: {:?}: {}", status.code(), status.message())
        })
    }

    /// Sometimes begins a verb and goes away in the middle of it.
    pub(crate) async fn vanish<T>(
        &self,
        random: &mut Random,
        verb: impl AsyncFn(Cri) -> Result<T, Status>,
    ) {
        if random.chance(8) {
            // Its answer, if there is one, is lost.
            let _lost = timeout(random.millis(20), verb(self.cri.clone())).await;
            add(&self.counts.vanished, 1);
        }
    }

    /// A container's status, and the pid of its first process if it runs.
    pub(crate) async fn look(&self, id: &str) -> Result<(v1::ContainerStatus, Option<u32>)> {
        let answer = self
            .verb("container status", async |mut cri: Cri| {
                let request =
                    v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
                Ok(cri.runtime.container_status(request).await?.into_inner())
            })
            .await?;
        let text: String = answer.info.into_values().collect();
        let verbose: serde_json::Value = serde_json::from_str(&text).context("verbose status")?;
        let pid = verbose["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Ok((answer.status.context("no status")?, pid.filter(|pid| *pid > 0)))
    }
}
