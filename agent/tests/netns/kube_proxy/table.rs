//! Rows of a table of services: the client, the backends that may answer, and the source that they
//! see.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use podwire_common::reason::Path::{FromStack, ToStack};
use xtask::family_table;
use xtask::lab::{Mode, Ns};

use super::{Cluster, DOCKER};
use crate::backends::{Answer, Connection, ask_by_udp};
use crate::check::{Counted, Counter};

/// The maximum number of attempts. kube-proxy picks one of two or three backends at random each time. So
/// fewer than one in 10^30 rows misses a backend.
const ATTEMPTS: usize = 200;
/// The minimum number of attempts, for a service with one backend too: the second connection meets
/// what the first one left.
const AT_LEAST: usize = 3;
/// More bytes than any MTU here.
const STREAM: usize = 100_000;
/// A datagram that fits into a packet, and one that does not.
const DATAGRAMS: [usize; 2] = [1000, 4000];

/// The protocol of a service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// The source that a backend sees.
#[derive(Clone, Copy)]
pub enum Seen {
    /// The client's own address.
    Client,
    /// An address of this node (from 0).
    Node(usize),
}

/// A client of a service.
pub struct Row<'a> {
    name: &'static str,
    client: (&'a Ns, IpAddr),
    protocol: Protocol,
    service: SocketAddr,
    backends: &'a [&'a str],
    seen: Seen,
    /// The node (from 0) that masquerades a client that is its own backend.
    node: usize,
    takes: Vec<Counter>,
}

impl<'a> Row<'a> {
    /// Returns a row with a pod as the client. Every service here sees a pod under its own address.
    pub fn pod(
        cluster: &'a Cluster,
        name: &'static str,
        client: &str,
        protocol: Protocol,
        service: SocketAddr,
        backends: &'a [&'a str],
    ) -> Self {
        let (pod, node) = (cluster.pod(client), cluster.node_of(client));
        Self {
            name,
            client: (pod, cluster.address(client)),
            protocol,
            service,
            backends,
            seen: Seen::Client,
            node,
            takes: vec![(node, ToStack), (node, FromStack)],
        }
    }

    /// Returns a row with a client that arrives with the node's (from 0) address as its source.
    pub fn masqueraded(
        name: &'static str,
        client: (&'a Ns, IpAddr),
        protocol: Protocol,
        service: SocketAddr,
        backends: &'a [&'a str],
        node: usize,
    ) -> Self {
        Self { name, client, protocol, service, backends, seen: Seen::Node(node), node, takes: Vec::new() }
    }

    /// Sets the source that backends see, where it differs from similar rows.
    pub fn seen_as(self, seen: Seen) -> Self {
        Self { seen, ..self }
    }
}

/// Asserts that in each row all connections and datagrams succeed, all backends answer, they see
/// the right client, and no packet is dropped. Fails with a list of the other rows.
#[track_caller]
pub fn check(cluster: &Cluster, rows: &[Row<'_>]) {
    let _backends = cluster.serve();
    let mut failures = String::new();
    for row in rows {
        family_table::record(&cluster.lab, row.name, row.service.ip()).unwrap();
        let before = Counted::quiet(&cluster.lab);
        let outcome = row.ask_until_all_answered(cluster);
        let grown = Counted::quiet(&cluster.lab).since(&before);
        if let Err(error) =
            outcome.with_context(|| grown.to_string()).and_then(|()| grown.expect(&row.takes, &[]))
        {
            writeln!(failures, "{}, {}: {error:#}", row.name, row.service).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

impl Row<'_> {
    fn ask_until_all_answered(&self, cluster: &Cluster) -> Result<()> {
        let mut answered = BTreeSet::new();
        for attempt in 1..=ATTEMPTS {
            for answer in self.ask()? {
                ensure!(self.backends.contains(&answer.backend.as_str()), "{answer:?} from another backend");
                self.expect_seen(cluster, &answer)?;
                answered.insert(answer.backend);
            }
            if answered.len() == self.backends.len() && attempt >= AT_LEAST {
                return Ok(());
            }
        }
        bail!("only {answered:?} have answered")
    }

    fn ask(&self) -> Result<Vec<Answer>> {
        match self.protocol {
            Protocol::Tcp => {
                let mut connection = Connection::open(self.client.0, self.service)?;
                connection.echo(STREAM)?;
                Ok(vec![connection.answer])
            }
            Protocol::Udp => {
                DATAGRAMS.iter().map(|size| ask_by_udp(self.client.0, self.service, *size)).collect()
            }
        }
    }

    fn expect_seen(&self, cluster: &Cluster, answer: &Answer) -> Result<()> {
        let is_itself = cluster
            .pods
            .get(answer.backend.as_str())
            .is_some_and(|pod| pod.addresses().contains(&self.client.1));
        let node = match self.seen {
            Seen::Node(node) => node,
            Seen::Client if is_itself => self.node,
            Seen::Client => {
                ensure!(answer.seen == answer.client, "{answer:?}: the backend sees another client");
                return Ok(());
            }
        };
        let own = cluster.masquerade_addresses(node, &answer.backend);
        ensure!(own.contains(&answer.seen.ip()), "{answer:?}: the backend sees none of {own:?}");
        Ok(())
    }
}

impl Cluster {
    /// Returns the source addresses that a node (from 0) may use when it masquerades towards a
    /// backend. Answers of its own pods reach the node under any of its addresses. The kernel takes
    /// the node's first address, since a pod's device has none.
    fn masquerade_addresses(&self, node: usize, backend: &str) -> Vec<IpAddr> {
        let is_pod = self.pods.contains_key(backend);
        if self.node_of(backend) == node {
            vec![
                self.node_address(node),
                self.lab.node(node).overlay_addresses()[self.family],
                DOCKER,
                self.second_address(node),
            ]
        } else if is_pod && self.mode == Mode::Vxlan {
            vec![self.lab.node(node).overlay_addresses()[self.family]]
        } else {
            vec![self.node_address(node)]
        }
    }
}
