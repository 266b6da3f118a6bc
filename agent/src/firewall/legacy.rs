//! The FORWARD chain of legacy iptables, read by the socket options of `ip_tables`
//! (include/uapi/linux/netfilter_ipv4/ip_tables.h).

use std::fs;
use std::io;
use std::os::fd::AsFd as _;

use podwire_common::names::VETH_PREFIX;
use rustix::net::{AddressFamily, SocketType, socket};

use super::{Side, accept_both_ways};
use crate::sockopt;

/// The tables of this network namespace. Unlike the socket options below, reading this file creates
/// no table and loads no module.
const TABLES: &str = "/proc/net/ip_tables_names";
const TABLE: &[u8] = b"filter";

/// `IPPROTO_IP`.
const LEVEL: i32 = 0;
/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// `struct ipt_getinfo`: name 32, valid hooks 4, five hook entries, five underflows, number and
/// size of entries.
const INFO: usize = 84;
const INFO_HOOK_ENTRIES: usize = 36;
const INFO_UNDERFLOWS: usize = 56;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries`: name 32, size 4, and 4 bytes of padding, so that entries begin at a
/// multiple of eight.
const ENTRIES: usize = 40;
const NAME: usize = 32;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;

/// `struct ipt_entry`, which begins with a `struct ipt_ip`.
const ENTRY: usize = 112;
const ENTRY_MASKS: usize = 8;
const ENTRY_IN: usize = 16;
const ENTRY_OUT: usize = 32;
const ENTRY_IN_MASK: usize = 48;
const ENTRY_OUT_MASK: usize = 64;
/// Protocol, flags, inverted matches.
const ENTRY_OTHERS: usize = 80;
const ENTRY_TARGET: usize = 88;
const ENTRY_NEXT: usize = 90;
/// `IFNAMSIZ`.
const INTERFACE: usize = 16;
/// `struct xt_standard_target`: size 2, name 29 (empty for the standard target), revision 1,
/// verdict 4.
const TARGET_NAME: usize = 2;
const TARGET_VERDICT: usize = 32;
/// A verdict is kept as `-verdict - 1`; `NF_DROP` is 0, `NF_ACCEPT` 1.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// Returns whether the chain's policy drops packets, and its rules do not accept pods' packets in
/// both directions by the names of pods' links.
pub(super) fn drops_pods() -> io::Result<bool> {
    match fs::read_to_string(TABLES) {
        Ok(tables) if tables.lines().any(|table| table.as_bytes() == TABLE) => {}
        Ok(_) => return Ok(false),
        // A kernel without legacy iptables has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut info = question(INFO);
    sockopt::get(socket.as_fd(), LEVEL, GET_INFO, &mut info)?;
    let size = u32_at(&info, INFO_SIZE).ok_or_else(malformed)?;
    let mut entries = question(ENTRIES + size as usize);
    entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    match sockopt::get(socket.as_fd(), LEVEL, GET_ENTRIES, &mut entries) {
        // EAGAIN: a table of another size has replaced this one in the meantime.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::Interrupted.into()),
        Err(error) => Err(error),
        Ok(_) => judge(&info, &entries[ENTRIES..]).ok_or_else(malformed),
    }
}

/// Returns a buffer that begins with the table's name.
fn question(length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    buffer[..TABLE.len()].copy_from_slice(TABLE);
    buffer
}

/// Returns whether the chain is in pods' way. `None`: the table does not have the kernel's layout.
fn judge(info: &[u8], entries: &[u8]) -> Option<bool> {
    let mut position = u32_at(info, INFO_HOOK_ENTRIES + 4 * FORWARD)? as usize;
    // The policy is the chain's last entry.
    let policy = u32_at(info, INFO_UNDERFLOWS + 4 * FORWARD)? as usize;
    let mut accepted = Vec::new();
    while position < policy {
        let entry = entries.get(position..)?;
        accepted.extend(accepts(entry));
        let next = usize::from(u16_at(entry, ENTRY_NEXT)?);
        position += if next >= ENTRY { next } else { return None };
    }
    let (_, verdict) = standard_target(entries.get(policy..)?)?;
    Some(verdict == DROP && !accept_both_ways(&accepted))
}

/// Returns the side on which an entry accepts all packets of pods. `None` for any other entry, such
/// as one that checks more than the name of the link.
fn accepts(entry: &[u8]) -> Option<Side> {
    let (target, verdict) = standard_target(entry)?;
    let is_any = |from: usize, length: usize| {
        entry.get(from..from + length).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    };
    let is_pods = |name: usize, mask: usize| {
        let prefix = VETH_PREFIX.as_bytes();
        entry.get(name..).is_some_and(|name| name.starts_with(prefix))
            && entry.get(mask..mask + prefix.len()).is_some_and(|mask| mask.iter().all(|byte| *byte == 0xff))
            && is_any(mask + prefix.len(), INTERFACE - prefix.len())
    };
    // Matches are between the entry and its target, so an entry with matches has its target
    // elsewhere.
    if target != ENTRY || verdict != ACCEPT || !is_any(ENTRY_MASKS, 8) || !is_any(ENTRY_OTHERS, 4) {
        return None;
    }
    match (is_any(ENTRY_IN_MASK, INTERFACE), is_any(ENTRY_OUT_MASK, INTERFACE)) {
        (false, true) if is_pods(ENTRY_IN, ENTRY_IN_MASK) => Some(Side::FromPods),
        (true, false) if is_pods(ENTRY_OUT, ENTRY_OUT_MASK) => Some(Side::ToPods),
        _ => None,
    }
}

/// Returns the position and the verdict of an entry's target. `None` for the target of an
/// extension.
fn standard_target(entry: &[u8]) -> Option<(usize, i32)> {
    let target = usize::from(u16_at(entry, ENTRY_TARGET)?);
    let is_standard = *entry.get(target + TARGET_NAME)? == 0;
    let verdict = u32_at(entry, target + TARGET_VERDICT)?.cast_signed();
    is_standard.then_some((target, verdict))
}

fn u32_at(bytes: &[u8], position: usize) -> Option<u32> {
    bytes.get(position..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], position: usize) -> Option<u16> {
    bytes.get(position..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "legacy iptables' table is not laid out as expected")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an entry with a standard target.
    fn entry(verdict: i32) -> Vec<u8> {
        let mut entry = vec![0; ENTRY + 40];
        entry[ENTRY_TARGET..][..2].copy_from_slice(&(ENTRY as u16).to_ne_bytes());
        entry[ENTRY_NEXT..][..2].copy_from_slice(&(ENTRY as u16 + 40).to_ne_bytes());
        entry[ENTRY + TARGET_VERDICT..][..4].copy_from_slice(&verdict.to_ne_bytes());
        entry
    }

    /// Returns the entry of `-i pw+ -j ACCEPT`, or of the same with `-o`.
    fn accepting(name: usize, mask: usize) -> Vec<u8> {
        let mut entry = entry(ACCEPT);
        entry[name..][..2].copy_from_slice(b"pw");
        entry[mask..][..2].copy_from_slice(&[0xff; 2]);
        entry
    }

    fn inward() -> Vec<u8> {
        accepting(ENTRY_IN, ENTRY_IN_MASK)
    }

    fn outward() -> Vec<u8> {
        accepting(ENTRY_OUT, ENTRY_OUT_MASK)
    }

    /// Returns the verdict on a FORWARD chain with these rules and that policy, after an INPUT
    /// chain.
    fn judged(rules: &[Vec<u8>], policy: i32) -> Option<bool> {
        let mut entries = entry(ACCEPT);
        let mut info = vec![0; INFO];
        info[INFO_HOOK_ENTRIES + 8..][..4].copy_from_slice(&(entries.len() as u32).to_ne_bytes());
        entries.extend(rules.concat());
        info[INFO_UNDERFLOWS + 8..][..4].copy_from_slice(&(entries.len() as u32).to_ne_bytes());
        entries.extend(entry(policy));
        judge(&info, &entries)
    }

    #[test]
    fn only_a_policy_of_drop_is_in_the_way() {
        assert_eq!(judged(&[], DROP), Some(true));
        assert_eq!(judged(&[], ACCEPT), Some(false));
    }

    #[test]
    fn rules_for_both_ways_lift_it() {
        assert_eq!(judged(&[inward()], DROP), Some(true));
        assert_eq!(judged(&[outward()], DROP), Some(true));
        assert_eq!(judged(&[outward(), inward()], DROP), Some(false));
    }

    #[test]
    fn rules_for_some_packets_or_other_links_do_not() {
        let changed = |position: usize, value: u8| {
            let mut entry = inward();
            entry[position] = value;
            entry
        };
        for (narrow, what) in [
            (changed(ENTRY_IN, b'q'), "another link"),
            (changed(ENTRY_IN_MASK + 2, 0xff), "one link"),
            (changed(ENTRY_OUT_MASK, 0xff), "another link as well"),
            (changed(ENTRY_MASKS, 0xff), "one source"),
            (changed(ENTRY_OTHERS, 6), "TCP"),
            (changed(ENTRY_OTHERS + 3, 1), "the opposite"),
        ] {
            assert_eq!(judged(&[narrow, outward()], DROP), Some(true), "{what}");
        }
    }

    #[test]
    fn a_table_that_ends_early_or_goes_round_in_circles_is_refused() {
        let mut circle = inward();
        circle[ENTRY_NEXT..][..2].fill(0);
        assert_eq!(judged(&[circle], DROP), None);
        let mut info = vec![0; INFO];
        info[INFO_UNDERFLOWS + 8..][..4].copy_from_slice(&1000_u32.to_ne_bytes());
        for length in [0, 1, ENTRY_NEXT + 1, ENTRY, ENTRY + 40] {
            assert_eq!(judge(&info, &entry(DROP)[..length]), None);
        }
    }
}
