//! The FORWARD chains of legacy iptables and ip6tables, read by the socket options of `ip_tables`
//! and `ip6_tables` (include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h).

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;

use podwire_common::names::VETH_PREFIX;
use rustix::net::{AddressFamily, SocketType, socket};

use super::{Side, accept_both_ways};
use crate::sockopt;

const TABLE: &[u8] = b"filter";

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, the same for both families.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// `struct ipt_getinfo`, the same for both families: name 32, valid hooks 4, five hook entries, five
/// underflows, number and size of entries.
const INFO: usize = 84;
const INFO_HOOK_ENTRIES: usize = 36;
const INFO_UNDERFLOWS: usize = 56;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries`, the same for both families: name 32, size 4, and 4 bytes of padding, so
/// that entries begin at a multiple of eight.
const ENTRIES: usize = 40;
const NAME: usize = 32;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// `IFNAMSIZ`.
const INTERFACE: usize = 16;

/// The legacy tables of one family.
pub(super) struct Tables {
    family: AddressFamily,
    /// Level of the socket options: `IPPROTO_IP` or `IPPROTO_IPV6`.
    level: i32,
    /// The tables of this thread's network namespace. Unlike the socket options, reading this file
    /// creates no table and loads no module.
    names: &'static str,
    entry: Entry,
}

/// Where `struct ipt_entry` or `struct ip6t_entry` has its parts, in bytes from its start. It begins
/// with a `struct ipt_ip` or `struct ip6t_ip6`.
struct Entry {
    /// Bytes before the matches and the target.
    size: usize,
    /// Masks of source and destination.
    masks: Range<usize>,
    input: usize,
    output: usize,
    input_mask: usize,
    output_mask: usize,
    /// Protocol, flags, inverted matches; for IPv6 the traffic class too.
    others: Range<usize>,
    target: usize,
    next: usize,
}

pub(super) const IPV4: Tables = Tables {
    family: AddressFamily::INET,
    level: 0,
    names: "/proc/thread-self/net/ip_tables_names",
    entry: Entry {
        size: 112,
        masks: 8..16,
        input: 16,
        output: 32,
        input_mask: 48,
        output_mask: 64,
        others: 80..84,
        target: 88,
        next: 90,
    },
};

pub(super) const IPV6: Tables = Tables {
    family: AddressFamily::INET6,
    level: 41,
    names: "/proc/thread-self/net/ip6_tables_names",
    entry: Entry {
        size: 168,
        masks: 32..64,
        input: 64,
        output: 80,
        input_mask: 96,
        output_mask: 112,
        others: 128..133,
        target: 140,
        next: 142,
    },
};

/// `struct xt_standard_target`: size 2, name 29 (empty for the standard target), revision 1,
/// verdict 4.
const TARGET_NAME: usize = 2;
const TARGET_VERDICT: usize = 32;
/// A verdict is kept as `-verdict - 1`; `NF_DROP` is 0, `NF_ACCEPT` 1.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

impl Tables {
    /// Returns whether the chain's policy drops packets, and its rules do not accept pods' packets
    /// in both directions by the names of pods' links.
    pub(super) fn drop_pods(&self) -> io::Result<bool> {
        match fs::read_to_string(self.names) {
            Ok(tables) if tables.lines().any(|table| table.as_bytes() == TABLE) => {}
            Ok(_) => return Ok(false),
            // A kernel without these tables has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        let socket = socket(self.family, SocketType::DGRAM, None)?;
        let mut info = question(INFO);
        sockopt::get(socket.as_fd(), self.level, GET_INFO, &mut info)?;
        let size = u32_at(&info, INFO_SIZE).ok_or_else(malformed)?;
        let mut entries = question(ENTRIES + size as usize);
        entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match sockopt::get(socket.as_fd(), self.level, GET_ENTRIES, &mut entries) {
            // EAGAIN: a table of another size has replaced this one in the meantime.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error),
            Ok(_) => self.entry.judge(&info, &entries[ENTRIES..]).ok_or_else(malformed),
        }
    }
}

/// Returns a buffer that begins with the table's name.
fn question(length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    buffer[..TABLE.len()].copy_from_slice(TABLE);
    buffer
}

impl Entry {
    /// Returns whether the chain is in pods' way. `None`: the table does not have the kernel's
    /// layout.
    fn judge(&self, info: &[u8], entries: &[u8]) -> Option<bool> {
        let mut position = u32_at(info, INFO_HOOK_ENTRIES + 4 * FORWARD)? as usize;
        // The policy is the chain's last entry.
        let policy = u32_at(info, INFO_UNDERFLOWS + 4 * FORWARD)? as usize;
        let mut accepted = Vec::new();
        while position < policy {
            let entry = entries.get(position..)?;
            accepted.extend(self.accepts(entry));
            let next = usize::from(u16_at(entry, self.next)?);
            position += if next >= self.size { next } else { return None };
        }
        let (_, verdict) = self.standard_target(entries.get(policy..)?)?;
        Some(verdict == DROP && !accept_both_ways(&accepted))
    }

    /// Returns the side on which an entry accepts all packets of pods. `None` for any other entry,
    /// such as one that checks more than the name of the link.
    fn accepts(&self, entry: &[u8]) -> Option<Side> {
        let (target, verdict) = self.standard_target(entry)?;
        let is_any =
            |range: Range<usize>| entry.get(range).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        let is_any_name = |mask: usize| is_any(mask..mask + INTERFACE);
        let is_pods = |name: usize, mask: usize| {
            let prefix = VETH_PREFIX.as_bytes();
            let end = mask + prefix.len();
            entry.get(name..).is_some_and(|name| name.starts_with(prefix))
                && entry.get(mask..end).is_some_and(|mask| mask.iter().all(|byte| *byte == 0xff))
                && is_any(end..mask + INTERFACE)
        };
        // Matches are between the entry and its target, so an entry with matches has its target
        // elsewhere.
        if target != self.size
            || verdict != ACCEPT
            || !is_any(self.masks.clone())
            || !is_any(self.others.clone())
        {
            return None;
        }
        match (is_any_name(self.input_mask), is_any_name(self.output_mask)) {
            (false, true) if is_pods(self.input, self.input_mask) => Some(Side::FromPods),
            (true, false) if is_pods(self.output, self.output_mask) => Some(Side::ToPods),
            _ => None,
        }
    }

    /// Returns the position and the verdict of an entry's target. `None` for the target of an
    /// extension.
    fn standard_target(&self, entry: &[u8]) -> Option<(usize, i32)> {
        let target = usize::from(u16_at(entry, self.target)?);
        let is_standard = *entry.get(target + TARGET_NAME)? == 0;
        let verdict = u32_at(entry, target + TARGET_VERDICT)?.cast_signed();
        is_standard.then_some((target, verdict))
    }
}

fn u32_at(bytes: &[u8], position: usize) -> Option<u32> {
    bytes.get(position..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], position: usize) -> Option<u16> {
    bytes.get(position..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "a table of legacy iptables or ip6tables is not laid out as expected",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUTS: [&Entry; 2] = [&IPV4.entry, &IPV6.entry];

    impl Entry {
        /// Returns an entry with a standard target.
        fn with(&self, verdict: i32) -> Vec<u8> {
            let mut entry = vec![0; self.size + 40];
            entry[self.target..][..2].copy_from_slice(&(self.size as u16).to_ne_bytes());
            entry[self.next..][..2].copy_from_slice(&(self.size as u16 + 40).to_ne_bytes());
            entry[self.size + TARGET_VERDICT..][..4].copy_from_slice(&verdict.to_ne_bytes());
            entry
        }

        /// Returns the entry of `-i pw+ -j ACCEPT`, or of the same with `-o`.
        fn accepting(&self, name: usize, mask: usize) -> Vec<u8> {
            let mut entry = self.with(ACCEPT);
            entry[name..][..2].copy_from_slice(b"pw");
            entry[mask..][..2].copy_from_slice(&[0xff; 2]);
            entry
        }

        fn inward(&self) -> Vec<u8> {
            self.accepting(self.input, self.input_mask)
        }

        fn outward(&self) -> Vec<u8> {
            self.accepting(self.output, self.output_mask)
        }

        /// Returns the verdict on a FORWARD chain with these rules and that policy, after an INPUT
        /// chain.
        fn judged(&self, rules: &[Vec<u8>], policy: i32) -> Option<bool> {
            let mut entries = self.with(ACCEPT);
            let mut info = vec![0; INFO];
            info[INFO_HOOK_ENTRIES + 8..][..4].copy_from_slice(&(entries.len() as u32).to_ne_bytes());
            entries.extend(rules.concat());
            info[INFO_UNDERFLOWS + 8..][..4].copy_from_slice(&(entries.len() as u32).to_ne_bytes());
            entries.extend(self.with(policy));
            self.judge(&info, &entries)
        }
    }

    #[test]
    fn only_a_policy_of_drop_is_in_the_way() {
        for layout in LAYOUTS {
            assert_eq!(layout.judged(&[], DROP), Some(true));
            assert_eq!(layout.judged(&[], ACCEPT), Some(false));
        }
    }

    #[test]
    fn rules_for_both_ways_lift_it() {
        for layout in LAYOUTS {
            assert_eq!(layout.judged(&[layout.inward()], DROP), Some(true));
            assert_eq!(layout.judged(&[layout.outward()], DROP), Some(true));
            assert_eq!(layout.judged(&[layout.outward(), layout.inward()], DROP), Some(false));
        }
    }

    #[test]
    fn rules_for_some_packets_or_other_links_do_not() {
        for layout in LAYOUTS {
            let changed = |position: usize, value: u8| {
                let mut entry = layout.inward();
                entry[position] = value;
                entry
            };
            for (narrow, what) in [
                (changed(layout.input, b'q'), "another link"),
                (changed(layout.input_mask + 2, 0xff), "one link"),
                (changed(layout.output_mask, 0xff), "another link as well"),
                (changed(layout.masks.start, 0xff), "one source"),
                (changed(layout.masks.end - 1, 0xff), "one destination"),
                (changed(layout.others.start, 6), "TCP"),
                (changed(layout.others.end - 1, 1), "the opposite"),
            ] {
                assert_eq!(layout.judged(&[narrow, layout.outward()], DROP), Some(true), "{what}");
            }
        }
    }

    #[test]
    fn a_table_that_ends_early_or_goes_round_in_circles_is_refused() {
        for layout in LAYOUTS {
            let mut circle = layout.inward();
            circle[layout.next..][..2].fill(0);
            assert_eq!(layout.judged(&[circle], DROP), None);
            let mut info = vec![0; INFO];
            info[INFO_UNDERFLOWS + 8..][..4].copy_from_slice(&1000_u32.to_ne_bytes());
            for length in [0, 1, layout.next + 1, layout.size, layout.size + 40] {
                assert_eq!(layout.judge(&info, &layout.with(DROP)[..length]), None);
            }
        }
    }
}
