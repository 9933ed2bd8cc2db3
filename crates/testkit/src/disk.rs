//! Small file systems for a node's directories, which a test can fill.
//!
//! Each is an ext4 image behind a loop device, mounted inside the node's [`Machine`] only:
//! the machine's end unmounts it, and the kernel then lets go of the device. From outside
//! they are reached through the machine's root in `/proc`. Images lie in memory: a flush waits
//! for nothing that others write to the machine's disk.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use crate::machine::Machine;

/// How long the kernel may take to let go of a device that is not used any more.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);
/// What takes up the space of a disk that was filled.
const FILLER: &str = "filler";
/// What takes up its inodes.
const FILLERS: &str = "fillers";

/// How small a file system is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmallDisk {
    /// Its size, bytes.
    pub bytes: u64,
    /// How many inodes it has; as many as mkfs.ext4 chooses if it is zero.
    pub inodes: u64,
    /// How much of it can really be written, bytes, if that is less: the rest is taken and
    /// then lost at write-back, as by a broken disk. Zero means all of it.
    pub sound: u64,
}

impl SmallDisk {
    /// A sound one of that many MiB.
    #[must_use]
    pub fn mib(mib: u64) -> Self {
        Self { bytes: mib << 20, ..Self::default() }
    }
}

/// The small file systems of a node; a directory without one lies on the machine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmallDisks {
    /// For the root directory: images, layers, records.
    pub root: Option<SmallDisk>,
    /// For the state directory.
    pub state: Option<SmallDisk>,
    /// For the logs of pods.
    pub logs: Option<SmallDisk>,
}

/// A small file system that is mounted.
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted, as the machine sees it.
    mountpoint: PathBuf,
    /// The same from outside the machine.
    outside: PathBuf,
    image: PathBuf,
    /// What holds the image: a file system of its own.
    holder: PathBuf,
}

impl Disk {
    /// Makes and mounts it at `mountpoint`; its image lies in the directory `images`.
    pub(crate) fn mount(
        machine: &Machine,
        images: &Path,
        mountpoint: &Path,
        size: SmallDisk,
    ) -> Result<Self> {
        fs::create_dir_all(mountpoint)?;
        let name = mountpoint.file_name().context("a mountpoint without a name")?;
        let holder = images.join(name);
        fs::create_dir_all(&holder)?;
        let (image, target) = (holder.join("image"), mountpoint.to_owned());
        let outside = machine.outside(mountpoint);
        let disk = Self {
            mountpoint: target.clone(),
            outside,
            image: image.clone(),
            holder: holder.clone(),
        };
        machine.run(move || {
            // Zero is no limit (tmpfs(5)).
            let (options, flags) = (format!("size={}", size.sound), MsFlags::empty());
            mount(Some("berth-test"), &holder, Some("tmpfs"), flags, Some(options.as_str()))
                .context("mount what holds a disk")?;
            File::create(&image)?.set_len(size.bytes)?;
            let mut mkfs = Command::new("mkfs.ext4");
            // Nothing is set aside for root: it is root that fills it.
            mkfs.args(["-q", "-F", "-m", "0", "-b", "4096"]);
            if size.inodes > 0 {
                mkfs.args(["-N", &size.inodes.to_string()]);
            }
            if size.sound > 0 {
                mkfs.args(["-O", "^has_journal"]);
            }
            run(mkfs.arg(&image))?;
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&target))
        })?;
        Ok(disk)
    }

    /// Whether something of it is mounted at `target`.
    pub(crate) fn has_mount(&self, target: &Path) -> bool {
        self.mountpoint == target || self.holder == target
    }

    /// Bytes that can still be written.
    pub fn available(&self) -> Result<u64> {
        let stat = statvfs(&self.outside).context("measure a disk")?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Inodes that can still be made.
    pub fn inodes(&self) -> Result<u64> {
        Ok(statvfs(&self.outside).context("measure a disk")?.files_available())
    }

    /// Takes up all space but about `leave` bytes, or gives some back for it.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let path = self.outside.join(FILLER);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(0)?;
        let available = self.available()?;
        let Some(mut take) = available.checked_sub(leave) else { return Ok(()) };
        // What the file's own extents take is not known before.
        loop {
            let length = i64::try_from(take)?;
            match fallocate(&file, FallocateFlags::empty(), 0, length) {
                Ok(()) => break,
                Err(nix::errno::Errno::ENOSPC) if take > 64 << 10 => take -= 16 << 10,
                Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ENOSPC) => break,
                Err(errno) => return Err(errno).context("fill a disk"),
            }
        }
        // Allocated is as good as written, and what is left is as small as it was to be.
        while self.available()? > leave + (64 << 10) {
            let more = self.available()? - leave;
            let length = i64::try_from(file.metadata()?.len() + more)?;
            if fallocate(&file, FallocateFlags::empty(), 0, length).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Takes up all inodes but `leave`.
    pub fn fill_inodes(&self, leave: u64) -> Result<()> {
        let dir = self.outside.join(FILLERS);
        fs::create_dir_all(&dir)?;
        let mut number = fs::read_dir(&dir)?.count();
        while self.inodes()? > leave {
            File::create(dir.join(number.to_string())).context("use up inodes")?;
            number += 1;
        }
        Ok(())
    }

    /// Gives back what [`Disk::fill`] and [`Disk::fill_inodes`] have taken.
    pub fn free(&self) -> Result<()> {
        for name in [FILLER, FILLERS] {
            let path = self.outside.join(name);
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else if path.exists() {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Unmounts it and has the kernel let go of its device; fails while anything uses it.
    pub(crate) fn unmount(&self, machine: &Machine) -> Result<()> {
        let target = self.mountpoint.clone();
        machine.run(move || {
            umount2(&target, nix::mount::MntFlags::empty())
                .with_context(|| format!("unmount {}", target.display()))
        })?;
        let deadline = Instant::now() + DEVICE_DEADLINE;
        while let Some(device) = self.device() {
            ensure!(Instant::now() < deadline, "{device} still has {}", self.image.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        let holder = self.holder.clone();
        machine.run(move || {
            umount2(&holder, nix::mount::MntFlags::empty())
                .with_context(|| format!("unmount {}", holder.display()))
        })
    }

    /// The loop device that still has its image, if there is one.
    fn device(&self) -> Option<String> {
        let image = self.image.to_string_lossy();
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut ours = devices.filter(|device| {
            let file = device.path().join("loop/backing_file");
            fs::read_to_string(file).is_ok_and(|backing| backing.trim_end() == image)
        });
        ours.next().map(|device| device.file_name().to_string_lossy().into_owned())
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(())
}
