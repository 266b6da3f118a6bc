//! CHECK: an attachment compared with what the kernel has of it.

use podwire_cni::protocol::{Added, Attachment, Failure, codes};
use podwire_common::abi::ENDPOINT_STACK_ONLY;

use super::Daemon;
use super::calls::{added, failure, refuse};
use crate::desired::{endpoint_entry, frontends};

impl Daemon {
    pub(super) async fn check(&mut self, attachment: &Attachment) -> Result<Added, Failure> {
        let Some(endpoint) = self.model.endpoints.get(attachment).cloned() else {
            let message = format!("the agent has no attachment of container {}", attachment.container_id);
            return Err(refuse(codes::UNKNOWN_CONTAINER, message));
        };
        let name = &endpoint.host_interface;
        let wrong = |problem: &str| refuse(codes::CHECK_FAILED, format!("{endpoint}: {problem}"));
        let device = self.links.device(name).await.map_err(|error| failure(&error))?;
        match device {
            Some(device) if device.index != endpoint.ifindex || device.mac != Some(endpoint.host_mac) => {
                return Err(wrong("the host side is not the device that the plugin made"));
            }
            Some(device) if !device.up => return Err(wrong("the host side is down")),
            Some(_) => {}
            None => return Err(wrong("the host side is gone")),
        }
        let entry = self.dataplane.maps.endpoint(endpoint.address).map_err(|error| failure(&error))?;
        let entry = entry.map(|mut entry| {
            entry.flags &= !ENDPOINT_STACK_ONLY;
            entry
        });
        if entry != Some(endpoint_entry(&endpoint)) {
            return Err(wrong("its entry in the map ENDPOINTS is missing or wrong"));
        }
        for (frontend, backend) in frontends(&endpoint) {
            let there = self.dataplane.maps.backend(&frontend).map_err(|error| failure(&error))?;
            if there != Some(backend) {
                return Err(wrong("an entry of its hostPorts in the map FRONTENDS is missing or wrong"));
            }
        }
        let filters = self.links.filters(endpoint.ifindex).await.map_err(|error| failure(&error))?;
        if !filters.both() {
            return Err(wrong("its programs were detached from the host side"));
        }
        let host = self.links.host().await.map_err(|error| failure(&error))?;
        if host.own_routes.get(&endpoint.address.into()) != Some(&self.route_to(&endpoint)) {
            return Err(wrong("the host's route to it is missing or wrong"));
        }
        Ok(added(&endpoint))
    }
}
