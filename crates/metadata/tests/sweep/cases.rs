//! Which call fails how, and what the worker may say to it.

use std::collections::BTreeMap;
use std::fmt;

use crate::script::Script;
use crate::trace;

/// What happens to a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// It fails once.
    Once(&'static str),
    /// It fails, and so does each of its kind after it.
    From(&'static str),
    /// The process is killed before it happens.
    Kill,
}

/// One call of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) call: String,
    pub(crate) number: usize,
    pub(crate) fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.call, self.number, self.fault)
    }
}

impl Case {
    /// What strace is told to do.
    pub(crate) fn injection(&self) -> String {
        let Self { call, number, fault } = self;
        match fault {
            Fault::Once(errno) => format!("inject={call}:error={errno}:when={number}"),
            Fault::From(errno) => format!("inject={call}:error={errno}:when={number}+"),
            Fault::Kill => format!("inject={call}:signal=SIGKILL:when={number}"),
        }
    }

    /// Whether an error says what happened: a full disk as one where a write met it, and
    /// never damage, for which a start would set the file aside.
    pub(crate) fn suits(&self, error: &str) -> Result<(), String> {
        let full = "Full ResourceExhausted";
        let allowed: &[&str] = match self.fault {
            // What is opened needs room for its index of the log. There SQLite has one code
            // for all errors, and the disk is asked; which here is not full.
            Fault::Once("ENOSPC") | Fault::From("ENOSPC")
                if self.call == "pwrite64" && !error.ends_with(": disk I/O error") =>
            {
                &[full]
            }
            Fault::Once("ENOSPC") | Fault::From("ENOSPC") => {
                &[full, "File ResourceExhausted", "Query Internal", "File Internal"]
            }
            _ => &["Query Internal", "File Internal"],
        };
        if allowed.iter().any(|start| error.starts_with(start)) {
            return Ok(());
        }
        Err(format!("the error is none of {allowed:?}: {error}"))
    }
}

/// The calls that touch the store in an undisturbed run, and how often each.
pub(crate) fn calls(script: &Script) -> BTreeMap<String, usize> {
    let dir = trace::directory();
    let ran = trace::run(script, &dir.path().join("store.db"), None);
    assert!(ran.success && Said::of(&ran.stdout).done, "undisturbed: {}{}", ran.stdout, ran.stderr);
    assert!(Said::of(&ran.stdout).errors.is_empty(), "undisturbed: {}", ran.stdout);
    let mut calls = BTreeMap::new();
    for line in ran.trace.lines() {
        let call = line.split_whitespace().nth(1).and_then(|call| call.split_once('('));
        if let Some((call, _)) = call {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
    }
    for wanted in ["openat", "pwrite64", "pread64", "fsync", "ftruncate", "mmap"] {
        assert!(calls.contains_key(wanted), "no {wanted} was seen: {calls:?}");
    }
    calls
}

/// Calls that do not ask the disk: a lock is the kernel's own, and close(2) closes
/// whatever it says. A crash comes before these as before all others.
const DISKLESS: [&str; 2] = ["close", "fcntl"];

/// Every call with every fault.
pub(crate) fn all(calls: &BTreeMap<String, usize>) -> Vec<Case> {
    let faults = [
        Fault::Once("EIO"),
        Fault::Once("ENOSPC"),
        Fault::From("EIO"),
        Fault::From("ENOSPC"),
        Fault::Kill,
    ];
    let mut all = Vec::new();
    for (call, count) in calls {
        for number in 1..=*count {
            let case = |fault| Case { call: call.clone(), number, fault };
            let possible = faults
                .into_iter()
                .filter(|fault| *fault == Fault::Kill || !DISKLESS.contains(&call.as_str()));
            all.extend(possible.map(case));
        }
    }
    all
}

/// What a worker said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Commits that it took for stored.
    pub(crate) acknowledged: usize,
    /// Whether it got to the end of its script.
    pub(crate) done: bool,
    /// Its errors: variant, kind, text.
    pub(crate) errors: Vec<String>,
}

impl Said {
    pub(crate) fn of(stdout: &str) -> Self {
        let mut said = Self::default();
        for line in stdout.lines() {
            // libtest writes the test's name before the first line.
            let line = line.split_once(" ... ").map_or(line, |(_, rest)| rest);
            match line.split_once(' ') {
                Some(("ok", step)) if step.parse() == Ok(said.acknowledged) => {
                    said.acknowledged += 1;
                }
                Some(("error", text)) => said.errors.push(text.to_owned()),
                _ if line == "done" => said.done = true,
                _ => {}
            }
        }
        said
    }
}
