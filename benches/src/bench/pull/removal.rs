//! Waits until a removed image has given its files back to the disk.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::v1;
use nix::sys::statvfs::statvfs;
use tokio::time::sleep;

use crate::target::Target;

/// Longest wait.
const DEADLINE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);
/// A daemon that did nothing for so long has removed what it removes.
const IDLE: Duration = Duration::from_secs(2);
/// Of a hundred files this many must be back: others make files meanwhile.
const BACK: u64 = 95;
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

    pub(super) fn mebibytes(&self) -> f64 {
        // Exact up to 2^32 MiB.
        u32::try_from(self.bytes >> 20).map_or(f64::INFINITY, f64::from)
    }

    /// How many files are left of those that were `taken` since `before`, if too many.
    fn left(&self, before: &Self, taken: &Self) -> Option<u64> {
        let left = self.since(before).files;
        (left * 100 > taken.files * (100 - BACK)).then_some(left)
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
            if now - worked.0 > IDLE || now - started > DEADLINE {
                let left = left.map(|left| {
                    format!("{left} of {} files are not back after RemoveImage", taken.files)
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
    fn a_removal_has_ended_when_nearly_all_files_are_back() {
        let space = |files| Space { files, bytes: 0 };
        let (before, taken) = (space(1000), space(200));
        assert_eq!(space(1200).left(&before, &taken), Some(200));
        assert_eq!(space(1011).left(&before, &taken), Some(11));
        assert_eq!(space(1010).left(&before, &taken), None);
        assert_eq!(space(900).left(&before, &taken), None);
        // An image of which nothing was on disk is gone at once.
        assert_eq!(space(1000).left(&before, &space(0)), None);
    }
}
