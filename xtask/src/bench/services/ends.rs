//! A client, a pod that it reaches itself, and one that it reaches by a service.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use xtask::lab::reference::{Join, Masquerade};
use xtask::lab::{KubeProxy, Lab, Ns, Proxied};

use super::{READY_PORT, cluster_ip, objects, population, wait, write};
use crate::bench::client::ROUND_TRIP_PORT;
use crate::bench::site::{self, Family, Place, Programs, Site, Way};

/// Both ways in one network. Servers of two sites may need the same port, so each has its own pod.
pub(super) struct Ends {
    lab: Lab,
    client: Ns,
    server: (Ns, IpAddr),
    backend: (Ns, IpAddr),
    service: IpAddr,
    /// The folder of the services' file.
    _folder: Option<TempDir>,
}

/// The service among how many, and its ports for connections.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) services: usize,
    pub(super) connections: RangeInclusive<u16>,
}

impl Ends {
    /// Makes them on Podwire, which serves the service.
    pub(super) fn podwire(
        programs: &Programs,
        place: Place,
        family: Family,
        served: &Served,
    ) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the services")?;
        let file = folder.path().join("services.json");
        write(&file, &[])?;
        let path = file.to_string_lossy();
        let arguments = ["--services", "on", "--services-file", &path];
        let way = Way { arguments: &arguments, ..Way::VXLAN };
        let lab = site::podwire(programs, way, place, family.families())?;
        let ends = Self { _folder: Some(folder), ..Self::of_podwire(lab, family)? };
        let mut all = objects(ends.service, ends.backend.1, served.connections.clone()).to_vec();
        all.extend((1..served.services).flat_map(population::objects));
        write(&file, &all)?;
        wait(&ends.client, &ends.backend.0, ends.service)?;
        Ok(ends)
    }

    /// Makes them on Podwire, with kube-proxy's rules for the service.
    pub(super) fn podwire_with(
        rules: KubeProxy,
        programs: &Programs,
        place: Place,
        family: Family,
        served: &Served,
    ) -> Result<Self> {
        let way = Way { rules, ..Way::VXLAN };
        let ends = Self::of_podwire(site::podwire(programs, way, place, family.families())?, family)?;
        ends.proxied(rules, served)
    }

    /// Makes them on the reference, with kube-proxy's rules for the service.
    pub(super) fn bridge(rules: KubeProxy, place: Place, family: Family, served: &Served) -> Result<Self> {
        let masquerade = match rules {
            KubeProxy::Nftables => Masquerade::Nftables,
            KubeProxy::Iptables => Masquerade::Iptables,
        };
        let lab = site::reference(Join::Vxlan, masquerade, place, family.families())?;
        let pod = |node, name| site::reference_pod(node, name, Join::Vxlan, masquerade, family);
        let last = &lab.nodes()[lab.nodes().len() - 1];
        let (client, _) = pod(lab.node(0), "client")?;
        let (server, backend) = (pod(last, "server")?, pod(last, "backend")?);
        let service = cluster_ip(family);
        Self { lab, client, server, backend, service, _folder: None }.proxied(rules, served)
    }

    fn of_podwire(lab: Lab, family: Family) -> Result<Self> {
        let last = &lab.nodes()[lab.nodes().len() - 1];
        let client = lab.node(0).add_pod("client")?;
        let (server, backend) = (last.add_pod("server")?, last.add_pod("backend")?);
        Ok(Self {
            client: (*client).clone(),
            server: ((*server).clone(), server.address()),
            backend: ((*backend).clone(), backend.address()),
            service: cluster_ip(family),
            lab,
            _folder: None,
        })
    }

    /// Writes kube-proxy's rules for all services.
    fn proxied(self, rules: KubeProxy, served: &Served) -> Result<Self> {
        let of_ports = |protocol, ports| Proxied {
            service: "default/web".to_owned(),
            address: self.service,
            protocol,
            ports,
            target: None,
            endpoints: vec![self.backend.1],
        };
        let mut all = vec![
            of_ports("tcp", served.connections.clone()),
            of_ports("tcp", ROUND_TRIP_PORT..=ROUND_TRIP_PORT),
            of_ports("udp", ROUND_TRIP_PORT..=ROUND_TRIP_PORT),
            of_ports("tcp", READY_PORT..=READY_PORT),
        ];
        all.extend((1..served.services).map(population::proxied));
        rules.add_services(self.lab.node(0), &all)?;
        wait(&self.client, &self.backend.0, self.service)?;
        Ok(self)
    }

    /// Returns the way without the service.
    pub(super) fn pod(&self, name: &str) -> Site {
        Site::of_namespaces(name, &self.client, &self.server.0, self.server.1)
    }

    /// Returns the way by the service.
    pub(super) fn by_service(&self, name: &str) -> Site {
        Site::of_namespaces(name, &self.client, &self.backend.0, self.backend.1).by(self.service)
    }

    /// Returns both ways of a process of the client's node.
    pub(super) fn of_process(&self, names: [&str; 2]) -> [Site; 2] {
        let node: &Ns = self.lab.node(0);
        [
            Site::of_namespaces(names[0], node, &self.server.0, self.server.1),
            Site::of_namespaces(names[1], node, &self.backend.0, self.backend.1).by(self.service),
        ]
    }
}
