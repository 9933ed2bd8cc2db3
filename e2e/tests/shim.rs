//! The shim's binary: small, because it is static and at a fixed address.

use anyhow::{Context as _, Result};
use berth_testkit::binaries;

#[test]
fn the_shim_is_static_and_not_position_independent() -> Result<()> {
    const ET_EXEC: u16 = 2;
    const PT_INTERP: u32 = 3;
    let path = binaries()?.join("containerd-shim-berth-v1");
    let elf = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    assert_eq!(&elf[..4], b"\x7fELF");
    let half = |at: usize| u16::from_le_bytes([elf[at], elf[at + 1]]);
    assert_eq!(half(16), ET_EXEC);
    let (size, count) = (usize::from(half(54)), usize::from(half(56)));
    let headers = elf[64..].chunks(size).take(count);
    for header in headers {
        let kind = u32::from_le_bytes(header[..4].try_into()?);
        assert_ne!(kind, PT_INTERP);
    }
    Ok(())
}
