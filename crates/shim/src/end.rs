//! How a container ended, kept in its bundle.
//!
//! containerd and berthd ask a shim that lives. One that was told to end, or is killed, after
//! its container ended has the answer here: for its own `delete` command, which is what
//! containerd runs then, and for berthd, which reads the file.

use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use berth_model::container::Timestamp;
use berth_model::task::TaskEnd;

use crate::log;
use crate::reaper::Exit;

/// Keeps the end of a container. A bundle that is gone already needs no such file.
pub(crate) fn keep(bundle: &Path, exit: Exit, executed: bool, oom_kills: u64) {
    let since = exit.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let end = TaskEnd {
        code: i32::try_from(exit.code).unwrap_or(255),
        at: Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
        oom_kills,
        executed,
    };
    // Renamed when it is whole: a reader never sees half of it.
    let (new, path) = (bundle.join(".exit.json"), bundle.join(TaskEnd::FILE));
    let kept = serde_json::to_vec(&end)
        .map_err(io::Error::other)
        .and_then(|json| std::fs::write(&new, json))
        .and_then(|()| std::fs::rename(&new, &path));
    match kept {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn(format_args!("keep {}: {error}", path.display()));
        }
        _ => {}
    }
}

/// Forgets the end of a container that was made in the bundle before.
pub(crate) fn forget(bundle: &Path) -> io::Result<()> {
    match std::fs::remove_file(bundle.join(TaskEnd::FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The end of the bundle's container, if it had ended.
pub(crate) fn of(bundle: &Path) -> Option<Exit> {
    let file = std::fs::File::open(bundle.join(TaskEnd::FILE)).ok()?;
    let mut json = Vec::new();
    file.take(TaskEnd::MAX_BYTES).read_to_end(&mut json).ok()?;
    let end: TaskEnd = serde_json::from_slice(&json).ok()?;
    let since = Duration::from_nanos(u64::try_from(end.at.0).ok()?);
    Some(Exit {
        code: u32::try_from(end.code).ok()?,
        at: SystemTime::UNIX_EPOCH.checked_add(since)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_kept_as_it_was_until_it_is_forgotten() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(of(bundle.path()), None);
        let exit = Exit { code: 137, at: SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 7) };
        keep(bundle.path(), exit, true, 2);
        assert_eq!(of(bundle.path()), Some(exit));
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 1);
        forget(bundle.path()).unwrap();
        forget(bundle.path()).unwrap();
        assert_eq!(of(bundle.path()), None);
        std::fs::write(bundle.path().join(TaskEnd::FILE), b"{\"code\":").unwrap();
        assert_eq!(of(bundle.path()), None);
        keep(&bundle.path().join("gone"), exit, false, 0);
    }
}
