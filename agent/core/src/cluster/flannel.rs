//! Reads what flannel has written to Node objects. So pods on flannel's nodes and on Podwire's
//! nodes reach each other while an operator moves a cluster from flannel to Podwire.
//!
//! The agent writes no such annotations. Flannel's annotations may stay on a node that now runs
//! Podwire: they do no harm, because such a node accepts frames for any link address.

use std::net::IpAddr;

use podwire_common::addr::Mac;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{NodeProblem, NodeRecord};
use crate::model::{Mode, parse_mac};

/// The annotations that the agent reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Annotations {
    #[serde(rename = "flannel.alpha.coreos.com/backend-type")]
    backend_type: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/backend-data")]
    backend_data: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ip")]
    public_ip: Option<String>,
}

/// Flannel's announcement of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How the node sends and receives, or why the annotations are not understood.
    backend: Result<Backend, String>,
    /// The annotations as they were read.
    annotations: Annotations,
}

/// How a flannel node sends and receives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Backend {
    /// By a VXLAN device, which accepts frames for this link address only. Old releases of flannel
    /// did not write the VNI.
    Vxlan { vni: Option<u32>, mac: Mac },
    /// By another backend, with this name.
    Other(String),
}

/// Reason why pods of a node that flannel has announced may be out of reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Problem {
    /// The annotation does not decode.
    #[error(
        "annotation flannel.alpha.coreos.com/backend-data is not understood ({0}) and ignored: if flannel runs on that node, its pods cannot be reached until you restart flannel, which writes the annotation again; if flannel does not run there, remove the annotation"
    )]
    Malformed(String),
    /// The backend is not the one that fits `--mode`.
    #[error(
        "flannel's backend there is {backend}, but --mode is {mode}: its pods and this node's pods cannot reach each other; {way_out}; if flannel no longer runs there, remove its annotations"
    )]
    Backend {
        /// Its name.
        backend: String,
        /// `--mode`.
        mode: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The VNI is not the one of `--vni`.
    #[error(
        "flannel's VNI there is {theirs}, and --vni is {ours}: its pods and this node's pods cannot reach each other; give all agents --vni {theirs}; if flannel no longer runs there, remove its annotations"
    )]
    Vni {
        /// VNI in the annotation.
        theirs: u32,
        /// `--vni`.
        ours: u32,
    },
    /// The address is not the InternalIP.
    #[error(
        "flannel's public-ip there is {public}, and its InternalIP is {internal}: flannel uses the public-ip for tunnel packets and agents use the InternalIP, and each drops the other's packets; start flannel with --iface or --public-ip so that it uses the InternalIP, or start kubelet with --node-ip; if flannel no longer runs there, remove its annotations"
    )]
    Address {
        /// Address in the annotation.
        public: String,
        /// InternalIP of the node.
        internal: IpAddr,
    },
}

impl Lease {
    /// Returns the announcement in the annotations. `None`: they name no backend.
    pub fn from_annotations(annotations: Annotations) -> Option<Self> {
        let Annotations { backend_type, backend_data, .. } = &annotations;
        if backend_type.is_none() && backend_data.is_none() {
            return None;
        }
        let backend = match backend_type {
            Some(other) if other != "vxlan" => Ok(Backend::Other(other.clone())),
            _ => vxlan(backend_data.as_deref().unwrap_or_default()),
        };
        Some(Self { backend, annotations })
    }

    /// Returns the annotations that flannel has written.
    pub fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    /// Returns the only link address for which the node's VXLAN device accepts frames.
    pub fn vtep_mac(&self) -> Option<Mac> {
        match self.backend {
            Ok(Backend::Vxlan { mac, .. }) => Some(mac),
            _ => None,
        }
    }

    fn problems(&self, internal: Option<IpAddr>, mode: Mode, vni: u32) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.backend, mode) {
            (Err(reason), Mode::Vxlan) => problems.push(Problem::Malformed(reason.clone())),
            (Ok(Backend::Vxlan { vni: Some(theirs), .. }), Mode::Vxlan) if *theirs != vni => {
                problems.push(Problem::Vni { theirs: *theirs, ours: vni });
            }
            (Ok(Backend::Vxlan { .. }), Mode::Vxlan) => {}
            (Ok(Backend::Other(name)), Mode::Direct) if name == "host-gw" => {}
            (Ok(Backend::Other(name)), Mode::Vxlan) => problems.push(Problem::Backend {
                backend: name.clone(),
                mode: "vxlan",
                way_out: match name.as_str() {
                    "host-gw" => "--mode direct reaches them",
                    _ => "have flannel use vxlan before nodes are moved",
                },
            }),
            (Ok(Backend::Other(name)), Mode::Direct) => problems.push(Problem::Backend {
                backend: name.clone(),
                mode: "direct",
                way_out: "have flannel use host-gw before nodes are moved",
            }),
            (Ok(Backend::Vxlan { .. }) | Err(_), Mode::Direct) => problems.push(Problem::Backend {
                backend: "vxlan".into(),
                mode: "direct",
                way_out: "--mode vxlan reaches them",
            }),
        }
        if let (Some(public), Some(internal)) = (&self.annotations.public_ip, internal)
            && public.parse() != Ok(internal)
        {
            problems.push(Problem::Address { public: public.clone(), internal });
        }
        problems
    }
}

/// Returns the problems of nodes that flannel has announced, for an agent with these options.
pub fn problems(records: &[NodeRecord], mode: Mode, vni: u32) -> impl Iterator<Item = NodeProblem> {
    let announced = records.iter().filter_map(|record| Some((record, record.flannel.as_ref()?)));
    announced.flat_map(move |(record, lease)| {
        let internal = record.internal_addresses.iter().find(|address| address.is_ipv4()).copied();
        let problems = lease.problems(internal, mode, vni).into_iter();
        problems.map(|problem| NodeProblem::Flannel { node: record.name.clone(), problem })
    })
}

fn vxlan(data: &str) -> Result<Backend, String> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = "VNI")]
        vni: Option<u32>,
        #[serde(rename = "VtepMAC")]
        mac: String,
    }
    let data: Data = serde_json::from_str(data).map_err(|error| error.to_string())?;
    let mac = parse_mac(&data.mac).filter(|mac| !mac.is_group() && *mac != Mac::default());
    let mac = mac.ok_or_else(|| format!("VtepMAC `{}` is not a device's link address", data.mac))?;
    Ok(Backend::Vxlan { vni: data.vni, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac { bytes: [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5c] };
    const GOOD: &str = r#"{"VNI":1,"VtepMAC":"6a:0f:33:b2:71:5c"}"#;

    fn lease(backend: &str, data: &str) -> Lease {
        let annotations = Annotations {
            backend_type: Some(backend.into()),
            backend_data: Some(data.into()),
            public_ip: Some("10.200.0.2".into()),
        };
        Lease::from_annotations(annotations).unwrap()
    }

    fn check(lease: &Lease, mode: Mode, vni: u32, internal: &str, messages: &[&str]) {
        let record = NodeRecord {
            name: "node2".into(),
            pod_networks: Vec::new(),
            internal_addresses: vec!["fd00::2".parse().unwrap(), internal.parse().unwrap()],
            flannel: Some(lease.clone()),
            ..NodeRecord::default()
        };
        let said: Vec<_> = problems(&[record], mode, vni).map(|problem| problem.to_string()).collect();
        assert_eq!(said.len(), messages.len(), "{said:?}");
        for (said, expected) in said.iter().zip(messages) {
            assert!(said.starts_with("node node2: ") && said.contains(expected), "{said}");
        }
    }

    #[test]
    fn node_of_flannels_has_the_link_address_that_it_wrote() {
        let good = lease("vxlan", GOOD);
        assert_eq!(good.vtep_mac(), Some(MAC));
        check(&good, Mode::Vxlan, 1, "10.200.0.2", &[]);
        let old = lease("vxlan", r#"{"VtepMAC":"6a:0f:33:b2:71:5c"}"#);
        assert_eq!(old.vtep_mac(), Some(MAC));
        check(&old, Mode::Vxlan, 5, "10.200.0.2", &[]);
    }

    #[test]
    fn a_node_without_flannels_annotations_is_none_of_its() {
        let only_address = Annotations { public_ip: Some("10.200.0.2".into()), ..Annotations::default() };
        for annotations in [Annotations::default(), only_address] {
            assert_eq!(Lease::from_annotations(annotations), None);
        }
    }

    #[test]
    fn an_annotation_that_is_not_understood_is_left_out_and_named() {
        for data in [
            "",
            "null",
            "{}",
            r#"{"VNI":1}"#,
            r#"{"VNI":-1,"VtepMAC":"6a:0f:33:b2:71:5c"}"#,
            r#"{"VNI":1,"VtepMAC":"6a:0f:33:b2:71"}"#,
            r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#,
            r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
        ] {
            let bad = lease("vxlan", data);
            assert_eq!(bad.vtep_mac(), None, "{data}");
            check(&bad, Mode::Vxlan, 1, "10.200.0.2", &["backend-data is not understood"]);
        }
    }

    #[test]
    fn what_keeps_the_two_apart_is_said_with_the_way_out() {
        let good = lease("vxlan", GOOD);
        check(&good, Mode::Vxlan, 7, "10.200.0.2", &["give all agents --vni 1;"]);
        check(
            &good,
            Mode::Vxlan,
            1,
            "10.200.0.9",
            &["public-ip there is 10.200.0.2, and its InternalIP is 10.200.0.9"],
        );
        check(&good, Mode::Direct, 1, "10.200.0.2", &["--mode vxlan reaches them"]);
        let gateway = lease("host-gw", "null");
        check(&gateway, Mode::Direct, 1, "10.200.0.2", &[]);
        check(&gateway, Mode::Vxlan, 1, "10.200.0.2", &["--mode direct reaches them"]);
        let other = lease("wireguard", r#"{"PublicKey":"x"}"#);
        check(&other, Mode::Vxlan, 1, "10.200.0.2", &["have flannel use vxlan"]);
        check(&other, Mode::Direct, 1, "10.200.0.2", &["have flannel use host-gw"]);
    }
}
