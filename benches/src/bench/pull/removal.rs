//! Waits until a removed image has given its files and its space back to the disk.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::v1;
use nix::sys::statvfs::statvfs;
use nix::unistd::sync;
use tokio::time::sleep;

use crate::target::Target;

/// Longest wait.
const DEADLINE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);
/// A daemon that did nothing for so long has removed what it removes.
const IDLE: Duration = Duration::from_secs(2);
/// Of a hundred files, and of a hundred bytes, this many must be back: others write meanwhile.
/// Few blobs hold much and many unpacked files little, so neither speaks for the other.
const BACK: u64 = 98;
/// Between turns: what follows a removal, such as freed blocks that are told to the disk.
const REST: Duration = Duration::from_millis(500);

/// The file system on which a runtime keeps images.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    /// Pid of the runtime's daemon; 0 if unknown.
    daemon: u32,
}

/// How the files of a removed image went.
#[derive(Debug)]
pub(super) struct Gone {
    /// From the call until they were back, or until the daemon had done the last of its work.
    pub(super) after: Duration,
    /// What is not back, in words.
    pub(super) left: Option<String>,
}

/// What is used of a file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Space {
    files: u64,
    bytes: u64,
}

impl Space {
    /// What was taken since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            files: self.files.saturating_sub(earlier.files),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    /// The larger of each.
    pub(super) fn or_more(self, other: &Self) -> Self {
        Self { files: self.files.max(other.files), bytes: self.bytes.max(other.bytes) }
    }

    pub(super) fn mebibytes(&self) -> f64 {
        // Exact up to 2^32 KiB, 4 TiB.
        u32::try_from(self.bytes >> 10).map_or(f64::INFINITY, |kib| f64::from(kib) / 1024.0)
    }

    /// What is left of that which was `taken` since `before`, if too much. Some file systems
    /// count no files; then bytes must do.
    fn left(&self, before: &Self, taken: &Self) -> Option<Self> {
        let left = self.since(before);
        let much = |left: u64, taken: u64| taken > 0 && left * 100 > taken * (100 - BACK);
        (much(left.files, taken.files) || much(left.bytes, taken.bytes)).then_some(left)
    }
}

impl Disk {
    /// Asks `target` where it keeps images; temporary files' place if it does not say.
    pub(super) async fn of(target: &mut Target) -> Result<Self> {
        let request = v1::ImageFsInfoRequest::default();
        let answer = target.cri.image.image_fs_info(request).await;
        let answer = answer.with_context(|| format!("{}: ImageFsInfo", target.name))?.into_inner();
        let told = answer.image_filesystems.into_iter().find_map(|found| found.fs_id);
        let mountpoint = told.map_or_else(std::env::temp_dir, |told| told.mountpoint.into());
        // As the daemon sees it, which may have mounts of its own.
        let below = mountpoint.strip_prefix("/").unwrap_or(&mountpoint);
        let seen = PathBuf::from(format!("/proc/{}/root", target.daemon)).join(below);
        let path = if seen.exists() { seen } else { mountpoint };
        Ok(Self { path, daemon: target.daemon })
    }

    pub(super) fn space(&self) -> Result<Space> {
        let found = statvfs(&self.path);
        let found = found.with_context(|| format!("look at {}", self.path.display()))?;
        Ok(Space {
            files: found.files().saturating_sub(found.files_free()),
            bytes: found.blocks().saturating_sub(found.blocks_free()) * found.fragment_size(),
        })
    }

    /// Waits until what was `taken` since `before` is given back, or the daemon rests, which
    /// then has done what it does: on a shared disk others make files.
    pub(super) async fn wait_for(&self, before: &Space, taken: &Space) -> Result<Gone> {
        let started = Instant::now();
        let mut worked = (started, work(self.daemon));
        let mut synced = false;
        loop {
            let left = self.space()?.left(before, taken);
            let now = Instant::now();
            if left.is_none() {
                return Ok(Gone { after: now - started, left: None });
            }
            let work = work(self.daemon);
            if work.is_none() || work != worked.1 {
                worked = (now, work);
            }
            if now - worked.0 > IDLE && !synced {
                // Some file systems give back only what they have written down.
                sync();
                synced = true;
                continue;
            }
            if now - worked.0 > IDLE || now - started > DEADLINE {
                let left = left.map(|left| {
                    format!(
                        "{} of {} files and {:.1} of {:.1} MiB are not back after RemoveImage",
                        left.files,
                        taken.files,
                        left.mebibytes(),
                        taken.mebibytes()
                    )
                });
                return Ok(Gone { after: worked.0 - started, left });
            }
            sleep(LOOK).await;
        }
    }

    /// Lets the disk rest.
    pub(super) async fn rest(&self) {
        sleep(REST).await;
    }
}

/// Processor time of `pid` in ticks (proc(5), `stat`, fields 14 and 15).
fn work(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()? + ticks()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_has_ended_when_nearly_all_files_and_nearly_all_bytes_are_back() {
        let space = |files, bytes| Space { files, bytes };
        let (before, taken) = (space(1000, 5000), space(200, 1000));
        let left = |files, bytes| space(files, bytes).left(&before, &taken);
        assert_eq!(left(1200, 6000), Some(taken));
        assert_eq!(left(1004, 5020), None);
        assert_eq!(left(900, 4000), None);
        assert_eq!(left(1005, 5000), Some(space(5, 0)));
        // A few blobs stay: hardly any files, but much space.
        assert_eq!(left(1002, 5400), Some(space(2, 400)));
    }

    #[test]
    fn where_files_are_not_counted_bytes_must_do() {
        let space = |bytes| Space { files: 0, bytes };
        let (before, taken) = (space(5000), space(1000));
        assert_eq!(space(5500).left(&before, &taken), Some(space(500)));
        assert_eq!(space(5010).left(&before, &taken), None);
        // An image of which nothing was on disk is gone at once.
        assert_eq!(space(5000).left(&before, &space(0)), None);
    }
}
