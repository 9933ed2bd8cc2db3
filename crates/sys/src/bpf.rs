//! Device programs of cgroup v2: bpf(2).
//!
//! Just enough of eBPF for `BPF_PROG_TYPE_CGROUP_DEVICE`: the instructions such a program
//! needs, loading it, and attaching it to a cgroup.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const ATTACH_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: cgroups below may add programs of their own, all of which must agree.
const ALLOW_MULTI: u32 = 2;
/// `BPF_F_REPLACE`.
const REPLACE: u32 = 4;
/// Programs that may be attached to one cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_ATTACHED: usize = 64;

/// One eBPF instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// Destination in the lower half, source in the upper.
    pub registers: u8,
    /// Bytes from the source register, or instructions to skip.
    pub offset: i16,
    /// Constant operand.
    pub immediate: i32,
}

impl Instruction {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xbc;
    const SET: u8 = 0xb4;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const JUMP_EQUAL: u8 = 0x16;
    const JUMP_NOT_EQUAL: u8 = 0x56;
    const EXIT: u8 = 0x95;

    fn new(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Self {
        let registers = (to & 0xf) | (from & 0xf) << 4;
        Self { code, registers, offset, immediate: immediate.cast_signed() }
    }

    /// `to = *(u32 *)(from + offset)`.
    pub fn load_word(to: u8, from: u8, offset: i16) -> Self {
        Self::new(Self::LOAD_WORD, to, from, offset, 0)
    }

    /// `to = from`, 32 bits.
    pub fn move_register(to: u8, from: u8) -> Self {
        Self::new(Self::MOVE, to, from, 0, 0)
    }

    /// `to = value`, 32 bits.
    pub fn set(to: u8, value: u32) -> Self {
        Self::new(Self::SET, to, 0, 0, value)
    }

    /// `to &= value`, 32 bits.
    pub fn and(to: u8, value: u32) -> Self {
        Self::new(Self::AND, to, 0, 0, value)
    }

    /// `to >>= value`, 32 bits.
    pub fn shift_right(to: u8, value: u32) -> Self {
        Self::new(Self::SHIFT_RIGHT, to, 0, 0, value)
    }

    /// Skips `skip` instructions if the lower 32 bits of `register` are `value`.
    pub fn jump_if(register: u8, value: u32, skip: i16) -> Self {
        Self::new(Self::JUMP_EQUAL, register, 0, skip, value)
    }

    /// Skips `skip` instructions unless the lower 32 bits of `register` are `value`.
    pub fn jump_if_not(register: u8, value: u32, skip: i16) -> Self {
        Self::new(Self::JUMP_NOT_EQUAL, register, 0, skip, value)
    }

    /// Ends the program; `r0` is its answer.
    pub fn exit() -> Self {
        Self::new(Self::EXIT, 0, 0, 0, 0)
    }
}

/// Loads a device program. Needs `CAP_BPF` and `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN`.
///
/// # Errors
/// `EPERM`, `EINVAL` (the verifier refused it), `E2BIG`.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: TYPE_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: address(program.as_ptr()),
        license: address(c"Apache-2.0".as_ptr()),
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` is the start of union bpf_attr as BPF_PROG_LOAD has it; it points to
    // `count` instructions and a C string, both alive during the call, which the kernel copies.
    let ret = unsafe { bpf(PROG_LOAD, std::ptr::from_ref(&load).cast(), size_of::<Load>()) }?;
    // SAFETY: BPF_PROG_LOAD returns a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}

/// Attaches `program` to `cgroup`, in the place of `before` if that is given (Linux 5.6).
///
/// # Errors
/// `EPERM`, `EBADF` (not a v2 cgroup), `ENOENT` (`before` is not attached).
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    before: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    #[repr(C)]
    struct Attach {
        cgroup: RawFd,
        program: RawFd,
        kind: u32,
        flags: u32,
        replaced: RawFd,
    }
    let attach = Attach {
        cgroup: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: ATTACH_DEVICE,
        flags: if before.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
        replaced: before.map_or(0, |before| before.as_raw_fd()),
    };
    // SAFETY: `attach` is the start of union bpf_attr as BPF_PROG_ATTACH has it; its
    // descriptors are borrowed for the call, and it has no pointers.
    unsafe { bpf(PROG_ATTACH, std::ptr::from_ref(&attach).cast(), size_of::<Attach>()) }?;
    Ok(())
}

/// Ids of the device programs attached to `cgroup` itself.
///
/// # Errors
/// `EPERM`, `EBADF`, `ENOSPC` (more than the kernel lets attach).
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    #[repr(C)]
    struct Query {
        cgroup: RawFd,
        kind: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
    }
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut query = Query {
        cgroup: cgroup.as_raw_fd(),
        kind: ATTACH_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: address(ids.as_mut_ptr()),
        count: u32::try_from(ids.len()).expect("64 fits"),
        padding: 0,
    };
    let attr = std::ptr::from_mut(&mut query).cast();
    // SAFETY: `query` is the start of union bpf_attr as BPF_PROG_QUERY has it; the kernel
    // writes at most `count` ids to `ids`, and the other results into `query`.
    unsafe { bpf(PROG_QUERY, attr, size_of::<Query>()) }?;
    let count = usize::try_from(query.count).map_or(ids.len(), |count| count.min(ids.len()));
    Ok(ids[..count].to_vec())
}

/// A descriptor of the program `id`.
///
/// # Errors
/// `EPERM`, `ENOENT`.
pub fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let attr = [id, 0, 0];
    // SAFETY: an id, a next id and flags are the start of union bpf_attr as
    // BPF_PROG_GET_FD_BY_ID has it; it has no pointers.
    let ret = unsafe { bpf(PROG_GET_FD_BY_ID, attr.as_ptr().cast(), size_of_val(&attr)) }?;
    // SAFETY: BPF_PROG_GET_FD_BY_ID returns a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}

fn address<T>(pointer: *const T) -> u64 {
    u64::try_from(pointer.addr()).expect("an address has at most 64 bits")
}

/// bpf(2). Descriptors it returns are close-on-exec.
///
/// # Safety
/// `attr` is valid for `size` bytes, for writing too where `command` writes, and holds what
/// `command` wants; pointers in it are valid for what the command does with them.
unsafe fn bpf(
    command: libc::c_long,
    attr: *const libc::c_void,
    size: usize,
) -> Result<RawFd, Errno> {
    // SAFETY: upheld by the caller.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size) };
    Ok(RawFd::try_from(Errno::result(ret)?).expect("bpf(2) returns an int"))
}
