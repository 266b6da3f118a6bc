//! Reads a map thousands of entries at a time. aya asks the kernel twice for each entry. It takes a
//! quarter of a second for 100,000 entries; batches take a twentieth of that.

#![expect(unsafe_code, reason = "a system call that takes pointers and a length")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};

use aya::Pod;
use aya::maps::{MapData, MapError};

/// Commands of bpf(2): `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Entries that a call has room for. The kernel returns whole buckets of a few entries each.
const ROOM: usize = 4096;

/// The part of `union bpf_attr` for batches (Linux 5.6).
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    element_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for one entry.
#[repr(C)]
struct Entry {
    map: RawFd,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Bytes of the largest key.
const LARGEST_KEY: usize = 64;

/// The position where the next call continues: a bucket's number for hashes, a key for other maps.
type Position = [u8; LARGEST_KEY];

/// A walk through a map.
struct Walk<'a> {
    map: BorrowedFd<'a>,
    /// `None`: the walk starts at the beginning.
    position: Option<Position>,
    is_over: bool,
}

impl<'a> Walk<'a> {
    fn new(map: BorrowedFd<'a>) -> Self {
        Self { map, position: None, is_over: false }
    }

    /// Reads the next entries and returns their number: at most [`ROOM`], possibly none.
    ///
    /// # Errors
    /// The kernel's error.
    ///
    /// # Safety
    /// The map's keys have at most [`LARGEST_KEY`] bytes. `keys` and `values` have room for
    /// [`ROOM`] keys and values of the map's sizes.
    unsafe fn read(&mut self, keys: *mut u8, values: *mut u8) -> io::Result<usize> {
        let mut next = [0; LARGEST_KEY];
        let mut batch = Batch {
            in_batch: self.position.as_ref().map_or(0, |position| position.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys as u64,
            values: values as u64,
            count: ROOM as u32,
            map: self.map.as_raw_fd(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads the attributes, no more bytes than they have, and the position.
        // It writes the next position (a bucket's number or a key), the count, and at most `count`
        // keys and values. The caller's contract gives the room for them. All of it outlives the
        // call.
        let outcome =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        let count = (batch.count as usize).min(ROOM);
        match (outcome < 0).then(io::Error::last_os_error) {
            None => self.position = Some(next),
            Some(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => self.is_over = true,
                // The bucket is locked. The next call begins with it.
                Some(libc::EBUSY) => self.position = Some(next),
                // Entries of a trie were removed during the call. The kernel writes a position only
                // if it has read entries.
                Some(libc::EINTR) if count == 0 => {}
                Some(libc::EINTR) => self.position = Some(next),
                _ => return Err(error),
            },
        }
        Ok(count)
    }
}

/// Calls `show` for every entry of a hash map with keys and values of these types. The map may be
/// an LRU map, but not a per-CPU one. An entry that is removed or added during the walk may be
/// shown or not. An entry that stays is shown once.
///
/// # Errors
/// The kernel's error.
pub(super) fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut show: impl FnMut(&K, &V)) -> io::Result<()> {
    const { assert!(size_of::<K>() <= LARGEST_KEY) };
    let (mut keys, mut values) = (Vec::<K>::with_capacity(ROOM), Vec::<V>::with_capacity(ROOM));
    let mut walk = Walk::new(map);
    while !walk.is_over {
        // SAFETY: the map has the sizes of `K` and `V`, there is room for `ROOM` of each, and the
        // assertion holds for keys.
        let count = unsafe { walk.read(keys.as_mut_ptr().cast(), values.as_mut_ptr().cast()) }?;
        // SAFETY: the kernel has written `count` of each, there is room for them, and any bytes are
        // a valid `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        keys.iter().zip(&values).for_each(|(key, value)| show(key, value));
    }
    Ok(())
}

/// Counts the entries of a hash map or an LPM trie. An entry that is removed or added during the
/// walk may be counted or not.
///
/// # Errors
/// The kernel's error.
pub(super) fn count(map: &MapData) -> Result<usize, MapError> {
    let mut entries = 0;
    for_each_raw(map, |_, _| entries += 1)?;
    Ok(entries)
}

/// Calls `show` for every entry of any hash map or LPM trie, with keys and values as bytes. See
/// [`for_each`].
///
/// # Errors
/// The kernel's error.
pub(super) fn for_each_raw(map: &MapData, mut show: impl FnMut(&[u8], &[u8])) -> Result<(), MapError> {
    let (key, value) = sizes(map)?;
    assert!(key <= LARGEST_KEY, "no map has keys of {key} bytes");
    let (mut keys, mut values) = (vec![0_u8; ROOM * key], vec![0_u8; ROOM * value]);
    let mut walk = Walk::new(map.fd().as_fd());
    while !walk.is_over {
        // SAFETY: there is room for `ROOM` keys and values of the map's sizes, and the assertion
        // holds for keys.
        let count = unsafe { walk.read(keys.as_mut_ptr(), values.as_mut_ptr()) }?;
        keys.chunks(key).zip(values.chunks(value)).take(count).for_each(|(key, value)| show(key, value));
    }
    Ok(())
}

/// Returns the value of one entry as bytes. `None`: there is no such entry.
///
/// # Errors
/// The kernel's error; [`io::ErrorKind::InvalidInput`] when the map has keys of another size.
pub(super) fn get(map: &MapData, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
    let (key_size, value_size) = sizes(map)?;
    let mut value = vec![0; value_size];
    fits(key.len() == key_size)?;
    let mut entry = Entry {
        map: map.fd().as_fd().as_raw_fd(),
        reserved: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, no more bytes than they have, and a key. It writes a
    // value. Both have the map's sizes and outlive the call.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw mut entry, size_of::<Entry>()) };
    match (outcome < 0).then(io::Error::last_os_error) {
        None => Ok(Some(value)),
        Some(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Some(error) => Err(error.into()),
    }
}

/// Writes one entry, whether or not it exists.
///
/// # Errors
/// The kernel's error; [`io::ErrorKind::InvalidInput`] when the map has keys or values of other
/// sizes.
pub(super) fn set(map: &MapData, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (key_size, value_size) = sizes(map).map_err(io::Error::other)?;
    fits(key.len() == key_size && value.len() == value_size)?;
    let mut entry = Entry {
        map: map.fd().as_fd().as_raw_fd(),
        reserved: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, no more bytes than they have, a key and a value.
    // Both have the map's sizes and outlive the call.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw mut entry, size_of::<Entry>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the sizes of keys and values, in bytes.
fn sizes(map: &MapData) -> Result<(usize, usize), MapError> {
    let info = map.info()?;
    Ok((info.key_size() as usize, info.value_size() as usize))
}

fn fits(fits: bool) -> io::Result<()> {
    let error = || io::Error::new(io::ErrorKind::InvalidInput, "the map's keys or values have another size");
    if fits { Ok(()) } else { Err(error()) }
}
