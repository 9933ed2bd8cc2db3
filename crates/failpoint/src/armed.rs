//! What the test's file says, read anew at each pass.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};

use crate::Point;

/// The test's file, if there is a test.
static FILE: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("BERTH_FAILPOINTS").map(PathBuf::from));
/// How often each line of the file was met; a line that was changed starts anew.
static MET: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Kill,
    Fail(Errno),
    Delay(Duration),
    Hold,
}

/// How often a point that is held looks whether it still is.
const LOOK: Duration = Duration::from_millis(5);

/// One armed point.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Armed {
    action: Action,
    /// Passes that go unharmed first.
    after: u64,
    /// Passes that are then acted on.
    times: u64,
}

/// Does what the test wants at `point`; how long the caller has to wait there.
pub(crate) fn pass(point: Point) -> io::Result<Option<Duration>> {
    let Some(file) = FILE.as_deref() else { return Ok(None) };
    tell(file, point);
    let Some((line, armed)) = lookup(file, point.name) else { return Ok(None) };
    let met = count(line);
    if met < armed.after || met - armed.after >= armed.times {
        return Ok(None);
    }
    match armed.action {
        Action::Delay(delay) => Ok(Some(delay)),
        Action::Hold => Ok(Some(LOOK)),
        Action::Fail(errno) => Err(io::Error::from_raw_os_error(errno as i32)),
        Action::Kill => loop {
            raise(Signal::SIGKILL).ok();
            std::thread::park();
        },
    }
}

/// As [`pass`], at a point where nothing can fail.
pub(crate) fn passed(point: Point) -> Option<Duration> {
    assert!(!point.fails, "{} is passed as a point where nothing can fail", point.name);
    pass(point).unwrap_or_else(|error| panic!("{} cannot fail: {error}", point.name))
}

/// Whether the file says that what waits at `point` waits on.
pub(crate) fn is_held(point: Point) -> bool {
    let Some(file) = FILE.as_deref() else { return false };
    lookup(file, point.name).is_some_and(|(_, armed)| armed.action == Action::Hold)
}

/// The wall clock as the test has set it.
pub(crate) fn shift(now: SystemTime) -> SystemTime {
    let Some(file) = FILE.as_deref() else { return now };
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some(seconds) = text.lines().find_map(|line| line.strip_prefix("clock ")) else {
        return now;
    };
    let seconds: i64 = seconds.trim().parse().unwrap_or_else(|_| senseless(seconds));
    let shift = Duration::from_secs(seconds.unsigned_abs());
    let shifted = if seconds < 0 { now.checked_sub(shift) } else { now.checked_add(shift) };
    shifted.unwrap_or(now)
}

fn tell(file: &Path, point: Point) {
    let mut passed = file.as_os_str().to_owned();
    passed.push(".passed");
    // One write of one short line: passes of two threads do not mix.
    let told = OpenOptions::new().create(true).append(true).open(passed);
    told.and_then(|mut told| told.write_all(format!("{}\n", point.name).as_bytes())).ok();
}

fn lookup(file: &Path, name: &str) -> Option<(String, Armed)> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    Some((line.to_owned(), parse(line).unwrap_or_else(|| senseless(line))))
}

fn count(line: String) -> u64 {
    let mut met = MET.lock().unwrap_or_else(PoisonError::into_inner);
    let met = met.get_or_insert_default().entry(line).or_default();
    *met += 1;
    *met - 1
}

fn parse(line: &str) -> Option<Armed> {
    let mut words = line.split_whitespace().skip(1).peekable();
    let action = match words.next()? {
        "kill" => Action::Kill,
        "hold" => Action::Hold,
        "error" => Action::Fail(errno(words.next()?)?),
        delay => Action::Delay(Duration::from_millis(delay.strip_prefix("delay=")?.parse().ok()?)),
    };
    let mut armed = Armed { action, after: 0, times: u64::MAX };
    for word in words {
        match word.split_once('=')? {
            ("after", count) => armed.after = count.parse().ok()?,
            ("times", count) => armed.times = count.parse().ok()?,
            _ => return None,
        }
    }
    Some(armed)
}

fn errno(name: &str) -> Option<Errno> {
    [Errno::EIO, Errno::ENOSPC, Errno::EMFILE, Errno::ENOMEM, Errno::EROFS]
        .into_iter()
        .find(|errno| format!("{errno:?}") == name)
}

fn senseless(line: &str) -> ! {
    panic!("failpoint line means nothing: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_mean_what_the_crate_says() {
        let all = |action| Armed { action, after: 0, times: u64::MAX };
        assert_eq!(parse("run.stored kill"), Some(all(Action::Kill)));
        let full = Armed { after: 2, ..all(Action::Fail(Errno::ENOSPC)) };
        assert_eq!(parse("pull.row error ENOSPC after=2"), Some(full));
        let slow = Armed { times: 1, ..all(Action::Delay(Duration::from_millis(500))) };
        assert_eq!(parse("stop.entered delay=500 times=1"), Some(slow));
        assert_eq!(parse("start.executed hold"), Some(all(Action::Hold)));
        for wrong in
            ["a.b", "a.b die", "a.b error", "a.b error EWHAT", "a.b kill soon", "a.b kill at=1"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_is_counted_until_it_changes() {
        assert_eq!(count("one".to_owned()), 0);
        assert_eq!(count("one".to_owned()), 1);
        assert_eq!(count("another".to_owned()), 0);
    }

    #[test]
    fn only_the_named_point_is_armed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("points");
        fs::write(&file, "run.stored kill\nrun.stored.not error EIO\n").unwrap();
        assert!(lookup(&file, "run.claimed").is_none());
        assert_eq!(lookup(&file, "run.stored").unwrap().1.action, Action::Kill);
        assert!(lookup(&dir.path().join("none"), "run.stored").is_none());
    }
}
