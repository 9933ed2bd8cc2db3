//! What a request or an exit means for a container: pure functions.

use std::time::Duration;

use berth_model::ContainerState;
use berth_model::container::{Exit, ExitReason, Timestamp};

/// Exit code of a program that could not be executed.
pub(super) const START_ERROR: i32 = 128;
/// Exit code that was lost with the shim.
const LOST: i32 = 255;
/// Exit code of a process that SIGKILL ended.
const KILLED: i32 = 137;

/// What to do about a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The work has to be done.
    Act,
    /// It was done before.
    Done,
    /// The state forbids it for ever.
    Refuse,
}

/// A start is repeated by a client that lost our answer; an ended container stays ended.
pub(super) fn start(state: &ContainerState) -> Verdict {
    match state {
        ContainerState::Created => Verdict::Act,
        ContainerState::Running { .. } => Verdict::Done,
        ContainerState::Exited { .. } => Verdict::Refuse,
    }
}

/// Nothing runs but in one state.
pub(super) fn stop(state: &ContainerState) -> Verdict {
    match state {
        ContainerState::Running { .. } => Verdict::Act,
        ContainerState::Created | ContainerState::Exited { .. } => Verdict::Done,
    }
}

/// How a container ended, by the shim's word and the kernel's count of processes killed
/// for the memory limit.
///
/// A killed child that the first process survived does not make it an OOM.
pub(super) fn exit(code: i32, at: Timestamp, oom_kills: u64) -> Exit {
    let reason = match code {
        0 => ExitReason::Completed,
        _ if oom_kills > 0 => ExitReason::OomKilled,
        _ => ExitReason::Error,
    };
    Exit { code, at, reason, message: String::new() }
}

/// The program could not be executed.
pub(super) fn start_error(at: Timestamp, message: String) -> Exit {
    Exit { code: START_ERROR, at, reason: ExitReason::StartError, message }
}

/// The shim took the exit code with it.
pub(super) fn lost(at: Timestamp) -> Exit {
    let message = "the shim is gone, and the exit code with it".to_owned();
    Exit { code: LOST, at, reason: ExitReason::ShimLost, message }
}

/// All processes were killed, and nobody can say how the first one ended.
pub(super) fn killed_unreported(at: Timestamp, oom_kills: u64) -> Exit {
    let message = "killed by its cgroup; the shim did not report the exit".to_owned();
    Exit { message, ..exit(KILLED, at, oom_kills) }
}

/// How hard a stop tries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Effort {
    /// The stop signal was sent; SIGKILL follows.
    Asked,
    /// SIGKILL was sent through the shim; the cgroup follows.
    Killed,
    /// The cgroup was killed this many times.
    Bypassed(u32),
}

/// How long a shim has to act on a kill.
pub(super) const SHIM_ANSWER: Duration = Duration::from_secs(1);
/// Kills of the cgroup, one per [`SHIM_ANSWER`], before nobody waits any more.
const MAX_BYPASSES: u32 = 10;
/// Time between two kills that nobody waits for.
const LATER: Duration = Duration::from_secs(10);

impl Effort {
    /// The next one.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Asked => Self::Killed,
            Self::Killed => Self::Bypassed(1),
            Self::Bypassed(times) => Self::Bypassed(times.saturating_add(1)),
        }
    }

    /// Whether those who wait were told that it takes too long.
    pub(super) fn is_hopeless(self) -> bool {
        self > Self::Bypassed(MAX_BYPASSES)
    }

    /// Time until the next one.
    pub(super) fn pause(self) -> Duration {
        if self.is_hopeless() { LATER } else { SHIM_ANSWER }
    }

    /// Time from the first kill until nobody waits any more.
    pub(super) fn limit() -> Duration {
        SHIM_ANSWER * (MAX_BYPASSES + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> [ContainerState; 3] {
        let ended = exit(0, Timestamp(2), 0);
        [
            ContainerState::Created,
            ContainerState::Running { pid: 7, started_at: Timestamp(1) },
            ContainerState::Exited { started_at: Timestamp(1), exit: ended },
        ]
    }

    #[test]
    fn a_container_starts_once_and_a_repeated_start_is_success() {
        let verdicts = states().map(|state| start(&state));
        assert_eq!(verdicts, [Verdict::Act, Verdict::Done, Verdict::Refuse]);
    }

    #[test]
    fn stopping_what_does_not_run_is_success() {
        let verdicts = states().map(|state| stop(&state));
        assert_eq!(verdicts, [Verdict::Done, Verdict::Act, Verdict::Done]);
    }

    #[test]
    fn the_reason_follows_the_code_and_the_kernels_count() {
        let reason = |code, kills| exit(code, Timestamp(1), kills).reason;
        assert_eq!(reason(0, 0), ExitReason::Completed);
        assert_eq!(reason(0, 1), ExitReason::Completed);
        assert_eq!(reason(1, 0), ExitReason::Error);
        assert_eq!(reason(137, 0), ExitReason::Error);
        assert_eq!(reason(137, 1), ExitReason::OomKilled);
        assert_eq!(killed_unreported(Timestamp(1), 1).reason, ExitReason::OomKilled);
    }

    #[test]
    fn what_never_ran_and_what_was_lost_have_codes_of_their_own() {
        assert_eq!(start_error(Timestamp(1), "exec x".into()).code, 128);
        assert_eq!(lost(Timestamp(1)).code, 255);
    }

    #[test]
    fn a_stop_tries_harder_and_never_stops_trying() {
        let efforts: Vec<_> =
            std::iter::successors(Some(Effort::Asked), |last| Some(last.next())).take(20).collect();
        assert!(efforts.is_sorted());
        assert_eq!(efforts[..3], [Effort::Asked, Effort::Killed, Effort::Bypassed(1)]);
        let hopeless = efforts.iter().position(|effort| effort.is_hopeless()).unwrap();
        let waited: Duration = efforts[1..hopeless].iter().map(|effort| effort.pause()).sum();
        assert_eq!(waited, Effort::limit());
        assert_eq!(efforts[19].pause(), LATER);
    }
}
