//! Rows of a table of services: who asks, who may answer, and whom these see.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use podwire_common::reason::Path::{FromStack, ToStack};
use xtask::lab::{Mode, Ns};

use super::backends::{Answer, Connection, ask_by_udp};
use super::{Cluster, DOCKER};
use crate::check::{Counted, Counter};

/// So often that each of three backends, of which one is chosen at random each time, is not missed once in 10^30 rows.
const ATTEMPTS: usize = 200;
/// A service with one backend is asked more than once, too: the second connection meets what the first has left.
const AT_LEAST: usize = 3;
/// More than any MTU here.
const STREAM: usize = 100_000;
/// One that fits into a packet, and one that does not.
const DATAGRAMS: [usize; 2] = [1000, 4000];

/// As a service has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Whom a backend sees.
#[derive(Clone, Copy)]
pub enum Seen {
    /// The client's own address.
    Client,
    /// One of this node's (from 0).
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
    /// Where a client that is its own backend is masqueraded.
    node: usize,
    takes: Vec<Counter>,
}

impl<'a> Row<'a> {
    /// A pod, which every service here sees under its own address.
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
            client: (pod, pod.address()),
            protocol,
            service,
            backends,
            seen: Seen::Client,
            node,
            takes: vec![(node, ToStack), (node, FromStack)],
        }
    }

    /// A client whose address has become the node's (from 0) when it arrives.
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

    /// Whom its backends see, where it is not what others of its kind are seen as.
    pub fn seen_as(self, seen: Seen) -> Self {
        Self { seen, ..self }
    }
}

/// Fails with every row of which one connection or datagram fails, a backend is missing, or sees another client; and with
/// every packet that was dropped.
pub fn check(cluster: &Cluster, rows: &[Row<'_>]) {
    let _backends = cluster.serve();
    let mut failures = String::new();
    for row in rows {
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
                ensure!(self.backends.contains(&answer.backend.as_str()), "{answer:?} from a stranger");
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
        let is_itself =
            cluster.pods.get(answer.backend.as_str()).is_some_and(|pod| pod.address() == self.client.1);
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
    /// What a node (from 0) may masquerade as towards a backend. Answers of its own pods come to it under any address of
    /// its own, and the kernel takes the first: a pod's device has none.
    fn masquerade_addresses(&self, node: usize, backend: &str) -> Vec<IpAddr> {
        let lab_node = self.lab.node(node);
        let is_pod = self.pods.contains_key(backend);
        if self.node_of(backend) == node {
            vec![lab_node.address(), lab_node.gateway(), DOCKER, Self::second_address(node)]
        } else if is_pod && self.mode == Mode::Vxlan {
            vec![lab_node.gateway()]
        } else {
            vec![lab_node.address()]
        }
    }
}
