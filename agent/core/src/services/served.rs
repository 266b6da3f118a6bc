//! What this node serves of all services, and which of them has an address that several want.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Frontend, FrontendKind, Protocol, ServedPort, ServiceName};

/// The services that this node serves.
///
/// Any user may give a service any external address, even another service's ClusterIP. Then one
/// service has it: by the order of [`FrontendKind`], then by name. So a ClusterIP cannot be taken
/// away, and all nodes decide alike.
#[derive(Clone, Debug, Default)]
pub struct ServedServices {
    ports: BTreeMap<ServiceName, Vec<ServedPort>>,
    /// The services that want an address and port, sorted; the first one has it. Nearly always there
    /// is only one.
    wanted: BTreeMap<Place, Vec<(FrontendKind, ServiceName)>>,
}

/// Address, port and protocol of a frontend.
type Place = (IpAddr, NonZeroU16, Protocol);

impl ServedServices {
    /// Replaces what this node serves of a service. `None`: the service is gone.
    pub fn set(&mut self, name: &ServiceName, ports: Option<Vec<ServedPort>>) {
        for (place, kind) in self.ports.remove(name).iter().flatten().flat_map(places) {
            if let Some(all) = self.wanted.get_mut(&place) {
                all.retain(|(of_kind, of_name)| (of_kind, of_name) != (&kind, name));
                if all.is_empty() {
                    self.wanted.remove(&place);
                }
            }
        }
        let Some(ports) = ports else { return };
        for (place, kind) in ports.iter().flat_map(places) {
            let all = self.wanted.entry(place).or_default();
            let new = (kind, name.clone());
            if let Err(index) = all.binary_search(&new) {
                all.reserve_exact(1);
                all.insert(index, new);
            }
        }
        self.ports.insert(name.clone(), ports);
    }

    /// Returns whether a service has one of its frontends, or another service has it.
    pub fn has(&self, name: &ServiceName, port: &ServedPort, frontend: &Frontend) -> bool {
        let first = self.wanted.get(&place(port, frontend)).and_then(|all| all.first());
        first.is_some_and(|(_, first)| first == name)
    }

    /// Returns the services that want a frontend of a service, itself included, before and after it
    /// is served in this way.
    pub fn concerned<'a>(&'a self, name: &ServiceName, ports: &'a [ServedPort]) -> BTreeSet<ServiceName> {
        let before = self.ports.get(name).into_iter().flatten();
        let all = before.chain(ports).flat_map(places).filter_map(|(place, _)| self.wanted.get(&place));
        let names = all.flatten().map(|(_, name)| name);
        names.chain([name]).cloned().collect()
    }

    /// Returns all services.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Vec<ServedPort>)> {
        self.ports.iter()
    }

    /// Returns a service.
    pub fn get_key_value(&self, name: &ServiceName) -> Option<(&ServiceName, &Vec<ServedPort>)> {
        self.ports.get_key_value(name)
    }

    /// Returns whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }
}

fn place(port: &ServedPort, frontend: &Frontend) -> Place {
    (frontend.address, frontend.port, port.protocol)
}

fn places(port: &ServedPort) -> impl Iterator<Item = (Place, FrontendKind)> {
    port.frontends.iter().map(|frontend| (place(port, frontend), frontend.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "default".into(), name: name.into() }
    }

    fn port(frontends: &[(FrontendKind, u8)]) -> ServedPort {
        let frontends: Vec<_> =
            frontends.iter().map(|(kind, last)| (*kind, IpAddr::from([192, 0, 2, *last]))).collect();
        ServedPort::example(&frontends, &[])
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<ServiceName> {
        names.map(name).into()
    }

    #[test]
    fn one_service_has_an_address_that_several_want() {
        let mut services = ServedServices::default();
        let external = port(&[(FrontendKind::ExternalIp, 1), (FrontendKind::ExternalIp, 2)]);
        let cluster = port(&[(FrontendKind::ClusterIp, 1)]);
        let has = |services: &ServedServices, of: &str, port: &ServedPort, index: usize| {
            services.has(&name(of), port, &port.frontends[index])
        };
        assert_eq!(services.concerned(&name("b"), std::slice::from_ref(&external)), names(["b"]));
        services.set(&name("b"), Some(vec![external.clone()]));
        assert!(has(&services, "b", &external, 0));
        // The first name has it, whichever came first.
        assert_eq!(services.concerned(&name("a"), std::slice::from_ref(&external)), names(["a", "b"]));
        services.set(&name("a"), Some(vec![external.clone()]));
        assert!(has(&services, "a", &external, 0) && !has(&services, "b", &external, 0));
        // A ClusterIP comes before external addresses, and takes no other address.
        services.set(&name("c"), Some(vec![cluster.clone()]));
        assert!(has(&services, "c", &cluster, 0) && !has(&services, "a", &external, 0));
        assert!(has(&services, "a", &external, 1));
        // The others get it back.
        assert_eq!(services.concerned(&name("c"), &[]), names(["a", "b", "c"]));
        services.set(&name("c"), None);
        services.set(&name("a"), None);
        assert!(has(&services, "b", &external, 0) && has(&services, "b", &external, 1));
        services.set(&name("b"), None);
        assert!(services.is_empty() && services.wanted.is_empty(), "nothing stays");
    }
}
