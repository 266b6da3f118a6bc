//! Taking over pinned maps of an earlier layout, with the flows that are in them.
//!
//! Maps whose layout has not changed are used as they are. The changed ones are made anew under `next/` and filled with what the old ones
//! hold; then every program is replaced; then what the old programs have written meanwhile is carried over too, and the new maps get
//! the old ones' names ([`pins::finish_migration`]). Until that last step an earlier release finds its own maps as it left them.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use aya::programs::{ProgramInfo, loaded_programs};
use podwire_common::abi::{Endpoint, Flow, Translation};
use podwire_common::addr::{Addr, Be16, Mac};
use podwire_common::names::maps as names;
use tracing::{info, warn};

use super::maps::{Maps, map_error};
use super::{Dataplane, batch, pins};
use crate::error::Error;
use crate::housekeeping;

/// Maps whose layout is another one than in version 2. `FLOWS` and `BEGINNINGS` begin empty: all in them can be found out again.
pub(super) const CHANGED_SINCE_2: [&str; 4] =
    [names::ENDPOINTS, names::TRANSLATIONS, names::FLOWS, names::BEGINNINGS];

/// Bytes of a value of version 2.
const ENDPOINT: usize = 40;
const TRANSLATION: usize = 56;

/// The old maps that are not used any more when all programs are the new ones.
#[derive(Debug)]
pub(super) struct Migration {
    endpoints: HashMap<MapData, Addr, [u8; ENDPOINT]>,
    translations: HashMap<MapData, Flow, [u8; TRANSLATION]>,
    /// Entries that were last used before have been carried over (`CLOCK_MONOTONIC`, nanoseconds).
    since: u64,
    carried: usize,
    /// Entries that the new map had no room for.
    left_behind: usize,
}

impl Migration {
    /// Opens the maps of version 2.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        Ok(Self {
            endpoints: open(folder, names::ENDPOINTS)?,
            translations: open(folder, names::TRANSLATIONS)?,
            since: 0,
            carried: 0,
            left_behind: 0,
        })
    }

    /// Carries endpoints over: once, because from then on the agent writes the new map alone.
    pub(super) fn carry_endpoints_over(&self, maps: &mut Maps) -> Result<(), Error> {
        let endpoints: Result<Vec<_>, MapError> = self.endpoints.iter().collect();
        for (address, bytes) in endpoints.map_err(map_error("read", names::ENDPOINTS))? {
            if maps.endpoints.get(&address, 0).is_err() {
                let written = maps.endpoints.insert(address, endpoint(&bytes), 0);
                written.map_err(map_error("write", names::ENDPOINTS))?;
            }
        }
        Ok(())
    }

    /// Carries translations over, from the second time on those that have been used since the last.
    pub(super) fn carry_over(&mut self, maps: &mut Maps) -> Result<(), Error> {
        let (since, now) = (self.since, housekeeping::now());
        let mut found = Vec::new();
        batch::for_each(self.translations.map().fd().as_fd(), |flow: &Flow, bytes: &[u8; TRANSLATION]| {
            let half = translation(bytes);
            if half.last_seen >= since {
                found.push((*flow, half));
            }
        })
        .map_err(|error| map_error("read", names::TRANSLATIONS)(error.into()))?;
        for (flow, half) in found {
            if maps.translations.get(&flow, 0).is_ok_and(|there| there.last_seen >= half.last_seen) {
                continue;
            }
            match maps.translations.insert(flow, half, 0) {
                Ok(()) => self.carried += 1,
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                    self.left_behind += 1;
                }
                Err(error) => return Err(map_error("write", names::TRANSLATIONS)(error)),
            }
        }
        self.since = now;
        Ok(())
    }
}

/// Removes the new maps of an attempt that none of the programs at work has: it was cut short before any was replaced, or the release before
/// has served since and they hold what has been over for long, pods that were deleted and their flows.
pub(super) fn remove_abandoned(folder: &Path) -> Result<(), Error> {
    let pins: Vec<_> =
        CHANGED_SINCE_2.iter().map(|name| (*name, pins::map(&pins::next(folder), name))).collect();
    let mut left = Vec::new();
    for (name, pin) in pins.into_iter().filter(|(_, pin)| pin.exists()) {
        let id = MapData::from_pin(&pin).and_then(|map| Ok(map.info()?.id()));
        left.push((id.map_err(map_error("open the new", name))?, pin));
    }
    let is_used = |program: ProgramInfo| {
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        left.iter().any(|(id, _)| maps.contains(id))
    };
    // One that ends while it is asked for uses nothing.
    if loaded_programs().filter_map(Result::ok).any(is_used) {
        return Ok(());
    }
    left.into_iter().try_for_each(|(_, pin)| fs::remove_file(&pin).map_err(Error::file("remove", pin)))
}

impl Dataplane {
    /// Ends a migration, if one is under way: to be called when every device has the new programs.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::File`].
    pub fn finish_migration(&mut self) -> Result<(), Error> {
        let (Some(mut migration), Some(folder)) = (self.migration.take(), &self.bpf_dir) else {
            return Ok(());
        };
        let carried = migration.carry_over(&mut self.maps);
        if let Err(error) = carried.and_then(|()| pins::finish_migration(folder)) {
            self.migration = Some(migration);
            return Err(error);
        }
        self.pinned_maps = pins::hold_maps(folder)?;
        self.maps.forget_flows()?;
        info!(
            translations = migration.carried,
            "the maps of layout 2 are taken over, with the flows in them"
        );
        if migration.left_behind > 0 {
            warn!(
                translations = migration.left_behind,
                "not taken over: the new table has no room for them; these flows end, raise --max-translations"
            );
        }
        Ok(())
    }
}

fn open<K: aya::Pod, V: aya::Pod>(
    folder: &Path,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, Error> {
    let data = MapData::from_pin(pins::map(folder, name)).map_err(map_error("open the old", name))?;
    HashMap::try_from(Map::HashMap(data)).map_err(map_error("open the old", name))
}

/// Reads a value's fields in their order.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *first
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn address(&mut self) -> Addr {
        Addr { bytes: self.take() }
    }

    fn port(&mut self) -> Be16 {
        Be16::new(u16::from_be_bytes(self.take()))
    }
}

/// Version 2 had no MTU: until the agent writes the entry from what it knows of the pod, nothing is too large for it.
fn endpoint(bytes: &[u8; ENDPOINT]) -> Endpoint {
    let mut bytes = Reader(bytes);
    Endpoint {
        ifindex: bytes.u32(),
        id: bytes.u32(),
        flags: bytes.u32(),
        mtu: u16::MAX.into(),
        pod_mac: Mac { bytes: bytes.take() },
        host_mac: Mac { bytes: bytes.take() },
        gateway: bytes.address(),
    }
}

/// Version 2 did not tell when the host's rules were asked.
fn translation(bytes: &[u8; TRANSLATION]) -> Translation {
    let mut bytes = Reader(bytes);
    Translation {
        last_seen: u64::from_ne_bytes(bytes.take()),
        source: bytes.address(),
        destination: bytes.address(),
        source_port: bytes.port(),
        destination_port: bytes.port(),
        ifindex: bytes.u32(),
        asked: 0,
        kind: bytes.u8(),
        reply: bytes.u8(),
        state: bytes.u8(),
        hairpin: bytes.u8(),
        past_stack: bytes.u8(),
        is_long: bytes.u8(),
        reserved: [0; 6],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_common::abi::{ENDPOINT_STACK_ONLY, STATE_REPLIED, TRANSLATION_SNAT};

    #[test]
    fn a_translation_keeps_all_that_version_2_told() {
        let bytes: Vec<u8> = [
            &7_000_000_000_u64.to_ne_bytes()[..],
            &Addr::from_v4([192, 0, 2, 1]).bytes,
            &Addr::from_v4([203, 0, 113, 5]).bytes,
            &[0xee, 0x48, 0x01, 0xbb],
            &9_u32.to_ne_bytes(),
            &[TRANSLATION_SNAT, 1, STATE_REPLIED, 0, 1, 1, 0, 0],
        ]
        .concat();
        let half = translation(bytes.as_slice().try_into().unwrap());
        let expected = Translation {
            last_seen: 7_000_000_000,
            source: Addr::from_v4([192, 0, 2, 1]),
            destination: Addr::from_v4([203, 0, 113, 5]),
            source_port: Be16::new(61000),
            destination_port: Be16::new(443),
            ifindex: 9,
            asked: 0,
            kind: TRANSLATION_SNAT,
            reply: 1,
            state: STATE_REPLIED,
            hairpin: 0,
            past_stack: 1,
            is_long: 1,
            reserved: [0; 6],
        };
        assert_eq!(half, expected);
    }

    #[test]
    fn an_endpoint_keeps_what_the_programs_have_found_out() {
        let bytes: Vec<u8> = [
            &7_u32.to_ne_bytes()[..],
            &3_u32.to_ne_bytes(),
            &ENDPOINT_STACK_ONLY.to_ne_bytes(),
            &[2, 0, 0, 0, 0, 1],
            &[2, 0, 0, 0, 0, 2],
            &Addr::from_v4([10, 244, 1, 1]).bytes,
        ]
        .concat();
        let entry = endpoint(bytes.as_slice().try_into().unwrap());
        assert_eq!((entry.ifindex, entry.id, entry.flags), (7, 3, ENDPOINT_STACK_ONLY));
        assert_eq!((entry.pod_mac.bytes[5], entry.host_mac.bytes[5]), (1, 2));
        assert_eq!(entry.gateway, Addr::from_v4([10, 244, 1, 1]));
    }
}
