//! The C library's allocator, kept small (mallopt(3), malloc_trim(3)).

/// Limits the allocator to `arenas` arenas, so that threads share freed memory.
///
/// Call it before the first thread is started. Returns whether the allocator obeyed.
pub fn limit_arenas(arenas: u16) -> bool {
    // SAFETY: mallopt(3) takes two integers and changes the allocator's own settings only.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::from(arenas)) == 1 }
}

/// Gives freed memory back to the kernel. Takes time in proportion to the heap.
pub fn trim() {
    // SAFETY: malloc_trim(3) takes an integer, locks each arena itself, and releases only
    // pages that no allocation uses.
    unsafe { libc::malloc_trim(0) };
}
