//! Loading a seccomp filter: seccomp(2).

use nix::errno::Errno;

/// One classic BPF instruction.
pub type Instruction = libc::sock_filter;

/// Puts the calling thread under a filter, for good.
///
/// `flags` are `SECCOMP_FILTER_FLAG_*` bits. Those that concern other threads (`TSYNC`) mean
/// nothing here and are passed over; the one that returns a descriptor (`NEW_LISTENER`) is
/// refused.
///
/// # Errors
/// `EINVAL` for that flag or a program the kernel does not accept, `E2BIG` for more
/// instructions than a program may have, `EACCES` without `no_new_privs` or `CAP_SYS_ADMIN`.
pub fn load_filter(instructions: &[Instruction], flags: libc::c_ulong) -> Result<(), Errno> {
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
        return Err(Errno::EINVAL);
    }
    let other_threads = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    let flags = flags & !other_threads;
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: `program` holds the address and length of a live slice. The kernel copies and
    // checks the program and writes nothing, so handing out a `*mut` to shared data is sound.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    };
    Errno::result(ret).map(drop)
}
