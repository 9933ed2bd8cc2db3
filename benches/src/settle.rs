//! Waits until what pods were made of is really gone, not only answered for.
//!
//! A verb may have answered while the kernel still takes apart: network namespaces with
//! their links are freed by its worker threads, cgroups after a grace period of RCU. What is
//! counted here is counted of the whole machine, so it holds for any runtime:
//!
//! | what | how |
//! |---|---|
//! | links | `/proc/DAEMON/net/dev`: the network namespace in which the runtime lives |
//! | cgroups | `cgroup.stat` of v2, `/proc/cgroups` of v1 (but see [`cgroups::count`]) |
//! | network namespaces | objects of the kernel's cache `net_namespace` |
//!
//! The kernel counts objects that are free, but kept at hand by a processor, as used. So the
//! cache is asked to shrink before it is counted (it takes 0.1 ms); without root or without
//! SLUB's files in `/sys` namespaces are not counted, and links must do. Since 6.13 the kernel
//! also keeps the memory of the namespaces that it took apart last until it takes apart
//! another one, however many these were. So one is made and left for it ([`sweep`]) before
//! namespaces are counted, and while they are all that is left.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use tokio::time::sleep;

use crate::cgroups;
use crate::cpu::Reading;

/// Longest wait.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(4);
/// Counted on after all is gone: what RCU frees in the end, and threads that then rest.
const TAIL: Duration = Duration::from_millis(300);
/// How long the kernel has to take a namespace apart before it is asked again: 30 to 85 ms
/// for one (measured on the development machine).
const SWEEP: Duration = Duration::from_millis(100);
/// One look at whether a runtime still works, and the longest wait until it rests.
const WINDOW: Duration = Duration::from_millis(250);
const REST_DEADLINE: Duration = Duration::from_secs(3);
/// Who works keeps more processors busy than this, beyond what the machine does at rest. A
/// window can be told to 0.04, as the kernel counts in 10 ms.
const WORK: f64 = 0.08;
/// The cache of network namespaces.
const CACHE: &str = "net_namespace";

/// What there is of the kinds of objects that pods are made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Objects(BTreeMap<String, u64>);

/// How pods went.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    /// From the call until all was gone.
    pub(crate) after: Duration,
    /// What was still more than before when patience ended.
    pub(crate) left: Vec<String>,
}

impl Objects {
    /// Counts what there is, links as the process `daemon` sees them. It takes a moment, and is
    /// not to be done while something is measured.
    pub(crate) async fn count(daemon: u32) -> Result<Self> {
        sweep();
        sleep(SWEEP).await;
        Self::now(daemon)
    }

    fn now(daemon: u32) -> Result<Self> {
        let mut objects = Self::without_namespaces(daemon)?;
        objects.0.extend(namespaces().map(|count| ("network namespaces".to_owned(), count)));
        Ok(objects)
    }

    fn without_namespaces(daemon: u32) -> Result<Self> {
        let mut counts = BTreeMap::new();
        let process = if daemon == 0 { "self".to_owned() } else { daemon.to_string() };
        if let Ok(text) = fs::read_to_string(format!("/proc/{process}/net/dev")) {
            let links = text.lines().filter(|line| line.contains(':')).count();
            counts.insert("links".to_owned(), u64::try_from(links)?);
        }
        let cgroups = cgroups::count()?.into_iter();
        counts.extend(cgroups.map(|(name, count)| (format!("cgroups of {name}"), count)));
        Ok(Self(counts))
    }

    /// Of which kinds there is more than `before`.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let more = |(kind, count): (&String, &u64)| {
            let before = before.0.get(kind)?;
            (count > before).then(|| format!("{kind}: {count}, before {before}"))
        };
        self.0.iter().filter_map(more).collect()
    }

    /// Waits until there is no more than `self` of anything, and a little longer.
    pub(crate) async fn settle(&self, daemon: u32) -> Result<Settled> {
        let started = Instant::now();
        let mut swept: Option<Instant> = None;
        loop {
            // The cache is asked last: to shrink it disturbs.
            let mut left = Self::without_namespaces(daemon)?.beyond(self);
            if left.is_empty() {
                left = Self::now(daemon)?.beyond(self);
                if !left.is_empty() && swept.is_none_or(|swept| swept.elapsed() > SWEEP) {
                    sweep();
                    swept = Some(Instant::now());
                }
            }
            let after = started.elapsed();
            if left.is_empty() || after > DEADLINE {
                if left.is_empty() {
                    sleep(TAIL).await;
                }
                return Ok(Settled { after, left });
            }
            sleep(LOOK).await;
        }
    }
}

/// Waits until the machine rests, which keeps `idle` processors busy then: a runtime may put
/// off work, garbage collection for one, until nobody waits for it. Returns what is to be
/// noted if it does not come to rest.
pub(crate) async fn rest(idle: f64) -> Result<Option<String>> {
    let started = Instant::now();
    let mut rested = 0;
    while rested < 2 && started.elapsed() < REST_DEADLINE {
        let before = Reading::take()?;
        sleep(WINDOW).await;
        let busy = Reading::take()?.since(&before).busy();
        rested = if busy <= idle + WORK { rested + 1 } else { 0 };
    }
    Ok((rested < 2).then(|| {
        let seconds = REST_DEADLINE.as_secs();
        format!("the machine still worked {seconds} s after a turn: what came later is not counted")
    }))
}

/// Has everything written down that is still to be written; returns how long it took. Whoever
/// leaves that to the kernel has it do it seconds later, in somebody else's turn.
pub(crate) async fn written() -> Result<Duration> {
    let started = Instant::now();
    // It may take long, and an interruption must be seen meanwhile.
    tokio::task::spawn_blocking(nix::unistd::sync).await?;
    Ok(started.elapsed())
}

/// Makes a network namespace and leaves it, so that the kernel frees what it kept of the ones
/// before. What it then keeps of this one is in every count alike. It takes the machine less
/// than a millisecond; without the right to do so, namespaces are not counted either.
fn sweep() {
    let visit = || unshare(CloneFlags::CLONE_NEWNET).is_ok();
    // The namespace ends with the only thread that is in it.
    std::thread::Builder::new().spawn(visit).map(std::thread::JoinHandle::join).ok();
}

/// How many network namespaces there are; `None` where the kernel does not say.
fn namespaces() -> Option<u64> {
    fs::write(format!("/sys/kernel/slab/{CACHE}/shrink"), "1").ok()?;
    active(&fs::read_to_string("/proc/slabinfo").ok()?)
}

/// The second column of the cache's line (slabinfo(5)).
fn active(slabinfo: &str) -> Option<u64> {
    let line = slabinfo.lines().find_map(|line| line.strip_prefix(CACHE))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(links: u64, cgroups: u64) -> Objects {
        Objects([("links".to_owned(), links), ("cgroups of pids".to_owned(), cgroups)].into())
    }

    #[test]
    fn only_what_is_more_than_before_is_waited_for() {
        let before = objects(3, 9);
        assert!(objects(3, 8).beyond(&before).is_empty());
        assert_eq!(objects(4, 9).beyond(&before), ["links: 4, before 3"]);
    }

    #[test]
    fn namespaces_are_the_objects_in_use() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs>\n\
                    nsproxy 1 2 3 : tunables 0 0 0\n\
                    net_namespace         28     63   4288    7    8 : tunables    0    0\n";
        assert_eq!(active(text), Some(28));
    }
}
