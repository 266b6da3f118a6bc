//! Finds which part of the desired state the kernel holds.

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::host::{Device, Host};
use podwire_core::slice::{Link, Programs, Slice};

use super::executor::Executor;
use crate::dataplane::attach::programs_of;
use crate::error::Error;
use crate::links::Filter;

/// The state that the kernel was found to hold.
pub(super) struct Found {
    /// All entries of tables that are not as wanted, all routes, and the wanted part of everything
    /// else. [`Executor::find_only`] looks only for the wanted entries and routes. The agent does not
    /// look for addresses, files and flows, but assumes that they are there.
    pub(super) have: Slice,
    /// Programs that are not attached where they belong.
    pub(super) displaced: Vec<Displaced>,
    /// Why the agent could not look at programs or queues. It assumes that these programs and
    /// queues are there.
    pub(super) unknown: Vec<Error>,
}

/// A program that is not attached where it belongs.
pub(super) struct Displaced {
    /// ifindex.
    pub(super) index: u32,
    /// Name of the link.
    pub(super) device: String,
    /// The program.
    pub(super) program: &'static str,
    /// `ingress` or `egress`.
    pub(super) direction: &'static str,
    /// The filter that is in its place, if any.
    pub(super) found: Option<Filter>,
}

impl Displaced {
    /// Returns a description of the filter in its place, for the log.
    pub(super) fn in_its_place(&self) -> String {
        match &self.found {
            None => "no filter".into(),
            Some(filter) if filter.program == 0 => "a filter without a program".into(),
            Some(filter) => format!("program {}, {}", filter.program, filter.name),
        }
    }
}

impl Executor {
    /// Looks for everything that is wanted, and for entries and routes that are not. Entries that are
    /// as wanted are neither in the result nor, afterwards, in `want`: nothing is to be done with them.
    ///
    /// # Errors
    /// [`Error::Dataplane`].
    pub(super) async fn find(&self, want: &mut Slice, host: &Host) -> Result<Found, Error> {
        let tables = self.dataplane.maps.differences(&mut want.tables)?;
        let have = Slice { tables, routes: host.own_routes.clone(), ..assumed(want) };
        let mut found = self.find_on_links(want, have, host).await;
        // Ignore a link address that another tool has changed. The start of the agent and CHECK
        // report it.
        for (index, link) in &mut found.have.links {
            link.mac = want.links[index].mac;
        }
        Ok(found)
    }

    /// Looks for the wanted resources only.
    ///
    /// # Errors
    /// [`Error::Dataplane`], [`Error::Link`].
    pub(super) async fn find_only(&self, want: &Slice, host: &Host) -> Result<Found, Error> {
        let tables = self.dataplane.maps.entries_of(&want.tables)?;
        let routes = want.routes.keys().filter_map(|to| Some((*to, *host.own_routes.get(to)?))).collect();
        let have = Slice { tables, routes, ..assumed(want) };
        let mut found = self.find_on_links(want, have, host).await;
        found.unknown.pop().map_or(Ok(found), Err)
    }

    /// Adds the wanted links, queues and programs, as far as they exist.
    async fn find_on_links(&self, want: &Slice, mut have: Slice, host: &Host) -> Found {
        for (index, link) in &want.links {
            let found = host.devices.get(index).map(|device| found_link(device, link, host));
            have.links.extend(found.map(|link| (*index, link)));
        }
        let (mut displaced, mut unknown) = (Vec::new(), Vec::new());
        if let Err(error) = self.find_queues(want, &mut have).await {
            have.queues.clone_from(&want.queues);
            unknown.push(error);
        }
        for (index, wanted) in &want.programs {
            match self.displaced(*index, wanted).await {
                Ok(found) if found.is_empty() => drop(have.programs.insert(*index, wanted.clone())),
                Ok(mut found) => displaced.append(&mut found),
                Err(error) => {
                    have.programs.insert(*index, wanted.clone());
                    unknown.push(error);
                }
            }
        }
        Found { have, displaced, unknown }
    }

    async fn find_queues(&self, want: &Slice, have: &mut Slice) -> Result<(), Error> {
        if want.queues.is_empty() {
            return Ok(());
        }
        let queues = self.links.queues().await?;
        let found = want.queues.iter().filter(|(index, queue)| queues.limit(**index, &queue.bucket));
        have.queues.extend(found.map(|(index, queue)| (*index, queue.clone())));
        Ok(())
    }

    /// Returns the programs of a link that are not attached where they belong.
    async fn displaced(&self, index: u32, wanted: &Programs) -> Result<Vec<Displaced>, Error> {
        let filters = self.links.filters(index).await?;
        let mut displaced = Vec::new();
        let found = [("ingress", filters.ingress), ("egress", filters.egress)];
        for (program, (direction, found)) in programs_of(wanted.hooks).iter().copied().zip(found) {
            let id = self.dataplane.program_id(program)?;
            if found.as_ref().is_none_or(|found| found.program != id) {
                let device = wanted.device.clone();
                displaced.push(Displaced { index, device, program, direction, found });
            }
        }
        Ok(displaced)
    }
}

/// Returns the part of the desired state that the agent does not look for, but assumes.
fn assumed(want: &Slice) -> Slice {
    Slice {
        addresses: want.addresses.clone(),
        files: want.files.clone(),
        flows: want.flows.clone(),
        ..Slice::default()
    }
}

fn found_link(device: &Device, wanted: &Link, host: &Host) -> Link {
    // Only the tunnel's addresses are the agent's. A wanted address counts only if its scope is
    // global.
    let is_tunnel = device.name == VXLAN_DEVICE;
    let addresses = host.addresses.iter().filter(|entry| is_tunnel && entry.device == device.index);
    let addresses = addresses.filter_map(|entry| Some((entry.network()?, entry.global)));
    let addresses = addresses.filter(|(network, global)| *global || !wanted.addresses.contains(network));
    let addresses = addresses.map(|(network, _)| network);
    Link {
        name: device.name.clone(),
        mtu: device.mtu,
        mac: device.mac,
        up: device.up,
        addresses: addresses.collect(),
    }
}
