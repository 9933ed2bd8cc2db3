//! Waits for a quiet machine before each turn, and says how noisy it was.

use std::fs;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::cpu::{Reading, Used};
use crate::stats::Summary;

/// One look at the machine.
const WINDOW: Duration = Duration::from_millis(500);
/// So many quiet looks in a row make a quiet machine.
const WINDOWS: usize = 2;
/// A wait that is longer than this is told.
const TELL: Duration = Duration::from_secs(3);
/// A machine is quiet when others use no more processors than this, however many it has.
const QUIET: f64 = 0.2;
/// How long is looked at a machine on which nothing was done yet, and how often if it is not
/// quiet.
const REST: Duration = Duration::from_millis(1500);
const RESTS: usize = 3;
/// As exactly are busy processors known from [`WINDOWS`]: the kernel counts in 10 ms.
const GRAIN: f64 = 0.02;

/// Looks at the machine before each turn, and remembers what it saw.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Longest wait before a turn.
    pub(crate) patience: Duration,
    /// Processors that are busy when nothing was done yet, see [`at_rest`].
    rest: OnceLock<f64>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    turns: Vec<Turn>,
    load_before: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    before: Before,
    start: Reading,
    stalled: Option<Duration>,
    /// Known when the turn has ended.
    during: Option<During>,
}

/// What a turn found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// How many processors are busy with other things.
    pub(crate) busy: f64,
    /// How many of these would be without any pod: what may be taken off a runtime's bill.
    pub(crate) idle: f64,
    /// Whether that is little.
    pub(crate) quiet: bool,
    waited: Duration,
}

#[derive(Clone, Copy, Debug)]
struct During {
    stolen: f64,
    stalled: Option<f64>,
}

/// How noisy the machine was.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Noise {
    /// Turns that were waited for.
    pub(crate) turns: usize,
    /// Turns that began on a machine that was still not quiet when patience ended.
    pub(crate) noisy: usize,
    /// Waited in all, seconds.
    pub(crate) waited: f64,
    /// What others used just before each turn, % of one processor.
    pub(crate) busy_before: Option<Summary>,
    /// What the host of a virtual machine took during each turn, % of all processors.
    pub(crate) stolen: Option<Summary>,
    /// Part of each turn in which something had to wait for a processor (`/proc/pressure`), %.
    pub(crate) pressure: Option<Summary>,
    /// Load average of one minute, before the first turn and after the last.
    pub(crate) load: (Option<f64>, Option<f64>),
}

impl Watch {
    /// Waits no longer than `patience` before a turn.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Learns how many processors are busy when nothing was done yet; the first to say so
    /// is believed.
    pub(crate) fn rests_at(&self, busy: f64) {
        self.rest.get_or_init(|| busy);
    }

    /// Begins a turn as soon as the machine is quiet, or patience has ended.
    pub(crate) async fn begin(&self) -> Result<Before> {
        self.end()?;
        let started = Instant::now();
        let mut readings = vec![Reading::take()?];
        let mut told = false;
        let before = loop {
            sleep(WINDOW).await;
            readings.push(Reading::take()?);
            let last = &readings[readings.len().saturating_sub(WINDOWS + 1)..];
            let waited = started.elapsed();
            let before = look(last, self.rest.get().copied(), waited);
            let enough = last.len() > WINDOWS;
            if enough && (before.quiet || waited >= self.patience) {
                break before;
            }
            if !told && waited > TELL {
                let busy = before.busy * 100.0;
                eprintln!(
                    "berth-bench: waiting for a quiet machine, others use {busy:.0} % of a processor"
                );
                told = true;
            }
        };
        let turn = Turn { before, start: Reading::take()?, stalled: stalled(), during: None };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.load_before = seen.load_before.or_else(load);
        seen.turns.push(turn);
        Ok(before)
    }

    /// Ends the turn that runs, if one does.
    pub(crate) fn end(&self) -> Result<()> {
        let now = Reading::take()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let running = seen.turns.last_mut().filter(|turn| turn.during.is_none());
        let Some(turn) = running else { return Ok(()) };
        let used = now.since(&turn.start);
        let stalls = stalled().zip(turn.stalled).map(|(now, then)| now.saturating_sub(then));
        let stalled = stalls.map(|stalled| stalled.as_secs_f64() / used.wall.as_secs_f64());
        turn.during = Some(During { stolen: used.stolen(), stalled });
        Ok(())
    }

    /// What was seen since the last call.
    pub(crate) fn noise(&self) -> Result<Noise> {
        self.end()?;
        let seen = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *seen)
        };
        let turns = &seen.turns;
        let percent = |shares: Vec<f64>| Summary::of(shares.into_iter().map(|share| share * 100.0));
        let during = || turns.iter().filter_map(|turn| turn.during);
        Ok(Noise {
            turns: turns.len(),
            noisy: turns.iter().filter(|turn| !turn.before.quiet).count(),
            waited: turns.iter().map(|turn| turn.before.waited.as_secs_f64()).sum(),
            busy_before: percent(turns.iter().map(|turn| turn.before.busy).collect()),
            stolen: percent(during().map(|during| during.stolen).collect()),
            pressure: percent(during().filter_map(|during| during.stalled).collect()),
            load: (seen.load_before, load()),
        })
    }
}

impl Before {
    /// What was `used` since, in seconds of processor time: the runtime's bill, then what was
    /// taken off it and what was not.
    pub(crate) fn bill(&self, used: &Used) -> [(&'static str, f64); 4] {
        let busier = (self.busy - self.idle).max(0.0);
        [
            ("settled", used.beyond(self.idle)),
            ("idle rate, taken off", used.at(self.idle)),
            ("busier just before, not taken off", used.at(busier)),
            ("own time, taken off", used.own.as_secs_f64()),
        ]
    }
}

/// How many processors others use on a machine on which nothing was done yet: in the first
/// stretch that is quiet, or the quietest of some.
///
/// To be asked once, before the first pod. What a runtime puts off until after its turn must
/// not pass for the idle rate of the next turn, to be taken off whoever has that one.
pub(crate) async fn at_rest() -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..RESTS {
        let before = Reading::take()?;
        sleep(REST).await;
        least = least.min(Reading::take()?.since(&before).busy());
        if least <= QUIET {
            break;
        }
    }
    Ok(least)
}

/// What `readings`, a window apart, say of the machine: how busy it was from the first to the
/// last, whether it was quiet in every window, and how much of it is the machine's own, which
/// is no more than it uses at `rest`.
fn look(readings: &[Reading], rest: Option<f64>, waited: Duration) -> Before {
    let used = readings.first().zip(readings.last()).map(|(first, last)| last.since(first));
    let quiet = |pair: &[Reading]| pair[1].since(&pair[0]).busy() <= QUIET;
    let busy = used.map_or(0.0, |used| used.busy());
    Before {
        busy,
        // Less than at rest by no more than can be told: the longer look at rest is truer.
        idle: rest.filter(|rest| *rest <= busy + GRAIN).unwrap_or(busy),
        quiet: readings.windows(2).all(quiet),
        waited,
    }
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// For how long, since boot, something had to wait for a processor; `None` where the kernel
/// does not say.
fn stalled() -> Option<Duration> {
    let text = fs::read_to_string("/proc/pressure/cpu").ok()?;
    let total = text.lines().next()?.rsplit_once("total=")?.1;
    Some(Duration::from_micros(total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_noisy_window_makes_a_machine_noisy_but_the_rate_is_of_all() {
        let boot = Instant::now();
        let reading = |seconds, idle| {
            Reading::fake(boot, Duration::from_secs(seconds), Duration::from_millis(idle))
        };
        let (first, quiet) = (reading(1, 2000), reading(2, 3960));
        let look = |readings: &[Reading]| look(readings, None, Duration::ZERO);
        let before = look(&[first, quiet]);
        assert!(before.quiet && (before.busy - 0.04).abs() < 1e-9, "{before:?}");
        let before = look(&[first, quiet, reading(3, 5680)]);
        assert!(!before.quiet && (before.busy - 0.16).abs() < 1e-9, "{before:?}");
    }

    #[test]
    fn what_is_put_off_until_the_next_turn_is_not_the_machines_idle_rate() {
        let boot = Instant::now();
        let idle = |rest, used: u64| {
            let reading = |seconds, idle| {
                Reading::fake(boot, Duration::from_secs(seconds), Duration::from_millis(idle))
            };
            look(&[reading(1, 2000), reading(2, 4000 - used)], rest, Duration::ZERO).idle
        };
        let is = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found}");
        // The runtime of the turn before still works.
        is(idle(Some(0.05), 150), 0.05);
        // Somebody else worked when the run began.
        is(idle(Some(0.15), 50), 0.05);
        is(idle(Some(0.06), 50), 0.06);
        is(idle(None, 150), 0.15);
    }

    #[tokio::test]
    async fn every_turn_is_in_the_noise_once_and_ends_when_the_next_begins() {
        let watch = Watch::new(Duration::ZERO);
        watch.begin().await.unwrap();
        watch.begin().await.unwrap();
        let noise = watch.noise().unwrap();
        let ended = noise.stolen.unwrap().count;
        assert_eq!((noise.turns, ended, noise.busy_before.unwrap().count), (2, 2, 2));
        assert_eq!(watch.noise().unwrap().turns, 0);
    }
}
