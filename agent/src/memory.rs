//! Memory that the agent has freed and the C library keeps.

#![expect(unsafe_code, reason = "a function of the C library")]

/// Gives freed memory back to the kernel. The C library would keep that memory for good. Call this
/// after rare work that takes much memory: a load of the programs, because it reads the types of
/// the whole kernel, or a comparison of the node list with everything that the kernel holds.
pub fn give_back() {
    // glibc alone has such a function.
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes a number, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}
