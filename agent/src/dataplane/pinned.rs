//! Pinned objects that the agent also holds open. Removing the pin does not remove such an object,
//! and the agent can pin it again.
//!
//! This module also replaces the programs of links and looks links up, because aya cannot: it does
//! not update links of cgroup programs, and it does not tell whether a link is still attached.

#![expect(
    unsafe_code,
    reason = "a system call that takes a pointer and a length, and answers with a descriptor"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Commands of bpf(2): `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
/// The type of a cgroup's link: `enum bpf_link_type`. The info of such a link has the cgroup's
/// 64-bit number where a device's link has a 32-bit ifindex.
const BPF_LINK_TYPE_CGROUP: u32 = 3;

/// The part of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Pin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Ask {
    descriptor: RawFd,
    length: u32,
    info: u64,
}

/// The part of `union bpf_attr` for `BPF_LINK_UPDATE` (Linux 5.7).
#[repr(C)]
struct Update {
    link: RawFd,
    new_program: RawFd,
    flags: u32,
    old_program: RawFd,
}

/// The beginning of `struct bpf_link_info`, and the part of its union that says where the link is
/// attached.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    place: [u32; 2],
}

/// A pinned map or link.
#[derive(Debug)]
pub struct Pinned {
    path: PathBuf,
    descriptor: OwnedFd,
}

impl Pinned {
    /// Opens a pinned object. `None`: there is no such pin.
    ///
    /// # Errors
    /// The kernel's error: the path is not a pin, or the folder is not on a BPF file system.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        match bpf(BPF_OBJ_GET, Pin { path: name.as_ptr() as u64, descriptor: 0, flags: 0 }) {
            Ok(descriptor) => {
                // SAFETY: the kernel has just made this descriptor for this process.
                let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                Ok(Some(Self { path: path.into(), descriptor }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the path of the pin, even if the pin was removed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pins the object again at the same path.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn pin(&self) -> io::Result<()> {
        let name = CString::new(self.path.as_os_str().as_bytes())?;
        let descriptor = u32::try_from(self.descriptor.as_raw_fd()).unwrap_or_default();
        bpf(BPF_OBJ_PIN, Pin { path: name.as_ptr() as u64, descriptor, flags: 0 }).map(drop)
    }

    /// Replaces the program of a link, in one step.
    ///
    /// # Errors
    /// The kernel's error:
    ///
    /// - `ENOLINK`: the link's target is gone, or another tool detached the link;
    /// - `EINVAL`: the program is of another type.
    pub fn replace_program(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let link = self.descriptor.as_raw_fd();
        bpf(BPF_LINK_UPDATE, Update { link, new_program: program.as_raw_fd(), flags: 0, old_program: 0 })
            .map(drop)
    }

    /// Returns the number of the program that a link runs. `None`: the link is not attached, or no
    /// longer.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn attached_program(&self) -> io::Result<Option<u32>> {
        let info = self.info()?;
        let [low, high] = info.place;
        let attached = low != 0 || info.kind == BPF_LINK_TYPE_CGROUP && high != 0;
        Ok(attached.then_some(info.program))
    }

    /// Returns the device (ifindex) of a link of a device. `None`: the device is gone, or another
    /// tool detached the link.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn device(&self) -> io::Result<Option<u32>> {
        let info = self.info()?;
        Ok(Some(info.place[0]).filter(|index| *index != 0 && info.kind != BPF_LINK_TYPE_CGROUP))
    }

    /// Moves the pin to another path on the same file system.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn rename(&mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        self.path = path.into();
        Ok(())
    }

    fn info(&self) -> io::Result<LinkInfo> {
        let mut info = LinkInfo::default();
        let ask = Ask {
            descriptor: self.descriptor.as_raw_fd(),
            length: size_of::<LinkInfo>() as u32,
            info: &raw mut info as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, ask)?;
        Ok(info)
    }
}

fn bpf<T>(command: libc::c_int, mut attributes: T) -> io::Result<RawFd> {
    // SAFETY: for these commands the kernel reads the attributes, no more bytes than they have, and
    // takes the rest as zero. It also reads the path in them, a C string that outlives the call.
    // For BPF_OBJ_GET_INFO_BY_FD it writes to the `LinkInfo` that the attributes name, no more than
    // the length beside it, and it writes that length.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<T>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as RawFd) }
}
