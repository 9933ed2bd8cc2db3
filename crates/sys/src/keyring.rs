//! Session keyrings: keyctl(2).

use std::ffi::CStr;

use nix::errno::Errno;

/// Gives the calling process a new session keyring of that name.
///
/// # Errors
/// `ENOSYS` on a kernel without keys, `EDQUOT` when the user has too many.
pub fn join_new_session(name: &CStr) -> Result<(), Errno> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING reads one NUL-terminated string, which lives for
    // the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    };
    Errno::result(ret).map(drop)
}
