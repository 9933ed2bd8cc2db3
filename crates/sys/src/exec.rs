//! execve(2) from strings prepared before.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};

use nix::errno::Errno;

/// The strings of one `argv` or `envp`, laid out as execve(2) wants them.
#[derive(Debug)]
pub struct StringVector {
    /// Owns what `pointers` points to.
    strings: Vec<CString>,
    /// One pointer per string, then null.
    pointers: Vec<*const c_char>,
}

impl StringVector {
    /// Lays out `strings`.
    #[must_use]
    pub fn new(strings: Vec<CString>) -> Self {
        // A CString's bytes are on the heap: moving the CString does not move them.
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { strings, pointers }
    }

    /// The strings, in order.
    #[must_use]
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Replaces this process's program; returns only when that failed.
///
/// # Errors
/// Whatever execve(2) gives.
pub fn execve(
    program: &CStr,
    arguments: &StringVector,
    environment: &StringVector,
) -> Result<Infallible, Errno> {
    // SAFETY: the program is NUL-terminated, and both vectors are null-terminated arrays of
    // pointers to NUL-terminated strings that live as long as the borrows. On success the
    // address space is gone, so nothing of Rust is left to be violated.
    unsafe {
        libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr())
    };
    Err(Errno::last())
}
