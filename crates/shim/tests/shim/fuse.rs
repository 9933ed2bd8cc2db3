//! A file system that a thread of the test serves, and can cease to (fuse(4)).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A directory that can hold one file, `0.log`.
pub(crate) struct Served {
    at: PathBuf,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    hangs: Mutex<bool>,
    refuses: AtomicBool,
    changed: Condvar,
    /// Whether somebody waits for an answer, who cannot be killed before.
    awaited: AtomicBool,
    /// The file, once it was made.
    file: Mutex<Option<Vec<u8>>>,
}

impl Served {
    pub(crate) fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut device = OpenOptions::new();
        device.read(true).write(true).custom_flags(nix::libc::O_CLOEXEC);
        let device = device.open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("served"), at, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let shared = Arc::<Shared>::default();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || serve(&device, &shared))
        };
        Self { at: at.to_owned(), shared, thread: Some(thread) }
    }

    /// From here on nobody who asks is answered, or everybody is again.
    pub(crate) fn hang(&self, hangs: bool) {
        *self.shared.hangs.lock().unwrap() = hangs;
        self.shared.changed.notify_all();
    }

    /// Whether somebody waits for an answer, who cannot be killed before.
    pub(crate) fn is_awaited(&self) -> bool {
        self.shared.awaited.load(Ordering::Relaxed)
    }

    /// From here on nothing can be opened, or all again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
    }

    /// What the file holds.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.shared.file.lock().unwrap().clone().unwrap_or_default()).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.hang(false);
        umount2(&self.at, MntFlags::MNT_DETACH).unwrap();
        if std::thread::panicking() {
            // Who still uses the file system ends after this, if at all.
            return;
        }
        // Ends when the last use of the file system has.
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers until the file system is unmounted.
fn serve(mut device: &File, shared: &Shared) {
    let mut request = vec![0; 256 << 10];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // The asker was killed before this was read.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => continue,
            Err(_) => return,
        };
        let mut hangs = shared.hangs.lock().unwrap();
        while *hangs {
            shared.awaited.store(true, Ordering::Relaxed);
            hangs = shared.changed.wait(hangs).unwrap();
        }
        drop(hangs);
        shared.awaited.store(false, Ordering::Relaxed);
        let request = &request[..length];
        let Some(outcome) = answer(word(request, 4), &request[40..], long(request, 16), shared)
        else {
            continue;
        };
        let (error, body) = match outcome {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let mut reply = u32::try_from(16 + body.len()).unwrap().to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(&request[8..16]);
        reply.extend(body);
        // An asker that was killed wants no answer.
        device.write_all(&reply).ok();
    }
}

const FILE: u64 = 2;

/// What a request leads to (`struct fuse_*_out` of linux/fuse.h); `None` wants no answer.
fn answer(opcode: u32, body: &[u8], node: u64, shared: &Shared) -> Option<Result<Vec<u8>, i32>> {
    let mut file = shared.file.lock().unwrap();
    let size = file.as_ref().map_or(0, Vec::len) as u64;
    let opened = || [7_u64.to_le_bytes(), [0; 8]].concat();
    Some(match opcode {
        // INIT: version 7.31, no flags, writes of at most 128 KiB.
        26 => {
            let mut out = [7_u32, 31, 0, 0, 0, 128 << 10, 1].map(u32::to_le_bytes).concat();
            out.resize(64, 0);
            Ok(out)
        }
        // LOOKUP, OPEN, CREATE
        1 | 14 | 35 if shared.refuses.load(Ordering::Relaxed) => Err(nix::libc::EIO),
        // LOOKUP
        1 if file.is_some() && body == b"0.log\0" => Ok(entry(size)),
        1 => Err(nix::libc::ENOENT),
        // CREATE
        35 => {
            let size = file.get_or_insert_default().len() as u64;
            Ok([entry(size), opened()].concat())
        }
        // OPEN
        14 => Ok(opened()),
        // GETATTR, SETATTR
        3 => Ok(attributes_out(node, size)),
        4 => {
            if word(body, 0) & 8 != 0 {
                let wanted = usize::try_from(long(body, 16)).unwrap();
                file.get_or_insert_default().resize(wanted, 0);
            }
            Ok(attributes_out(node, file.as_ref().map_or(0, Vec::len) as u64))
        }
        // WRITE
        16 => {
            let (at, data) = (usize::try_from(long(body, 8)).unwrap(), &body[40..]);
            let content = file.get_or_insert_default();
            content.resize(content.len().max(at + data.len()), 0);
            content[at..at + data.len()].copy_from_slice(data);
            Ok(u64::from(word(body, 16)).to_le_bytes().to_vec())
        }
        // FLUSH, RELEASE
        25 | 18 => Ok(Vec::new()),
        // FORGET, BATCH_FORGET, INTERRUPT
        2 | 42 | 36 => return None,
        _ => Err(nix::libc::ENOSYS),
    })
}

fn entry(size: u64) -> Vec<u8> {
    let mut out = [FILE, 0, 0, 0, 0].map(u64::to_le_bytes).concat();
    out.extend(attributes(FILE, size));
    out
}

fn attributes_out(node: u64, size: u64) -> Vec<u8> {
    [vec![0; 16], attributes(node, if node == FILE { size } else { 0 })].concat()
}

/// `struct fuse_attr`.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mode = if node == FILE { 0o100_640 } else { 0o40_755 };
    let mut out = [node, size, 0, 0, 0, 0].map(u64::to_le_bytes).concat();
    out.extend([0_u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
    out
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
