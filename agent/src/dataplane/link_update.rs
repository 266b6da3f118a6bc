//! Replacing the program of a pinned link in one step, for links that aya cannot update: those of cgroup programs. Another link
//! beside the old one would not do for a moment either: the second program takes what the first has rewritten for what the
//! process asked for.

#![expect(
    unsafe_code,
    reason = "a system call that takes a pointer and a length, and answers with a descriptor"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// The part of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct Open {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for `BPF_LINK_UPDATE` (Linux 5.7).
#[repr(C)]
struct Update {
    link: RawFd,
    new_program: RawFd,
    flags: u32,
    old_program: RawFd,
}

/// Puts a program in the place of the one that a pinned link holds. `false`: there is no such pin.
///
/// # Errors
/// The kernel's: what the link was attached to is gone (`ENOLINK`), or the program is of another type (`EINVAL`).
pub fn replace_program(pin: &Path, program: BorrowedFd<'_>) -> io::Result<bool> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let open = Open { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    let link = match bpf(BPF_OBJ_GET, &open) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(descriptor) => unsafe { OwnedFd::from_raw_fd(descriptor) },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let update =
        Update { link: link.as_raw_fd(), new_program: program.as_raw_fd(), flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &update).map(|_| true)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: of these two commands the kernel only reads the attributes, as many bytes as they have, and the path in them, a
    // C string that outlives the call. What it reads beyond is zero to it.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as RawFd) }
}
