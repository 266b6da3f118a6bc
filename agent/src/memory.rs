//! Memory that the agent has freed and the C library keeps.

#![expect(unsafe_code, reason = "a function of the C library")]

/// Gives freed memory back to the kernel. Call it after work that takes much memory and is rare: a
/// load of the programs reads the types of the whole kernel, a whole node list is compared with
/// everything that the kernel holds. The C library would keep that memory for good.
pub fn give_back() {
    // glibc alone has such a function.
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes a number, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}
