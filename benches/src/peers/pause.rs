//! The image of containerd's sandboxes: one static program that waits.
//!
//! Smaller than any pause in use (no libc, no stack of its own), so what a sandbox of
//! containerd costs here is a little less than it costs elsewhere.

use anyhow::{Result, ensure};
use berth_testkit::image::{Image, ImageBuilder};
use berth_testkit::tar::Tar;
use serde_json::json;

/// Where the program is loaded.
const ADDRESS: u64 = 0x40_0000;
/// Length of an ELF-64 file header, and of a program header (elf(5)).
const HEADERS: [u16; 2] = [64, 56];
/// `1: mov eax, 34 (pause); syscall; jmp 1b`.
const CODE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// An image with nothing but `/pause`.
pub(super) fn image() -> Result<Image> {
    ensure!(cfg!(target_arch = "x86_64"), "the pause program is written for x86-64 only");
    let layer = Tar::new().file("pause", 0o755, &program());
    ImageBuilder::new().layer(layer)?.config("Entrypoint", json!(["/pause"])).build()
}

/// The program: an ELF file of one segment.
fn program() -> Vec<u8> {
    let [header, segment] = HEADERS.map(u64::from);
    let entry = ADDRESS + header + segment;
    let size = header + segment + CODE.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64-bit, little-endian, System V
    file.extend([2, 0, 62, 0]); // ET_EXEC, EM_X86_64
    file.extend(1_u32.to_le_bytes()); // EV_CURRENT
    for word in [entry, header, 0] {
        file.extend(word.to_le_bytes()); // e_entry, e_phoff, e_shoff
    }
    file.extend(0_u32.to_le_bytes()); // e_flags
    for half in [HEADERS[0], HEADERS[1], 1, 0, 0, 0] {
        file.extend(half.to_le_bytes()); // e_ehsize, e_phentsize, e_phnum, no sections
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    file.extend(5_u32.to_le_bytes()); // PF_R | PF_X
    for word in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        file.extend(word.to_le_bytes()); // p_offset, p_vaddr, p_paddr, sizes, p_align
    }
    file.extend(CODE);
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_program_runs_until_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut process = Command::new(&path).spawn().unwrap();
        // It would have ended by a fault, had an instruction been wrong.
        let stat = format!("/proc/{}/stat", process.id());
        let sleeps = || std::fs::read_to_string(&stat).unwrap().contains("(pause) S ");
        while !sleeps() {
            assert_eq!(process.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(9));
    }
}
