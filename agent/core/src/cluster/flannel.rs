//! Reads what flannel has written to Node objects. So pods on flannel's nodes and on Podwire's
//! nodes reach each other while an operator moves a cluster from flannel to Podwire.
//!
//! The agent writes no such annotations. Flannel's annotations may stay on a node that now runs
//! Podwire: they do no harm, because such a node accepts frames for any link address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podwire_common::addr::Mac;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{NodeProblem, NodeRecord};
use crate::model::{Family, Mode, parse_mac};

/// The annotations that the agent reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Annotations {
    #[serde(rename = "flannel.alpha.coreos.com/backend-type")]
    backend_type: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/backend-data")]
    backend_data: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/backend-v6-data")]
    backend_v6_data: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ip")]
    public_ip: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ipv6")]
    public_ipv6: Option<String>,
}

/// Flannel's announcement of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How the node sends and receives.
    backend: Backend,
    /// The annotations as they were read.
    annotations: Annotations,
}

/// How a flannel node sends and receives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Backend {
    /// By a VXLAN device for each family: `flannel.VNI` for tunnel packets with IPv4 headers and
    /// `flannel-v6.VNI` for those with IPv6 headers. `None`: flannel has no device of that family.
    Vxlan { ipv4: Option<Announced>, ipv6: Option<Announced> },
    /// By another backend, with this name.
    Other(String),
}

/// A VXLAN device, or why its annotation is not understood.
type Announced = Result<Vtep, String>;

/// A VXLAN device, which accepts frames for its link address only. Old releases of flannel did not
/// write the VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vtep {
    vni: Option<u32>,
    mac: Mac,
}

/// Reason why pods of a node that flannel has announced may be out of reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Problem {
    /// The annotation does not decode.
    #[error(
        "annotation flannel.alpha.coreos.com/{annotation} is not understood ({reason}) and ignored: if flannel runs on that node, its pods cannot be reached until you restart flannel, which writes the annotation again; if flannel does not run there, remove the annotation"
    )]
    Malformed {
        /// The annotation, without its prefix.
        annotation: &'static str,
        /// What is wrong with it.
        reason: String,
    },
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
        "flannel's {annotation} there is {public}, and its InternalIP is {internal}: flannel uses the {annotation} for tunnel packets and agents use the InternalIP, and each drops the other's packets; start flannel with --iface or --{annotation} so that it uses the InternalIP, or start kubelet with --node-ip; if flannel no longer runs there, remove its annotations"
    )]
    Address {
        /// `public-ip` or `public-ipv6`.
        annotation: &'static str,
        /// Address in the annotation.
        public: String,
        /// InternalIP of the node.
        internal: IpAddr,
    },
}

impl Lease {
    /// Returns the announcement in the annotations. `None`: they name no backend.
    pub fn from_annotations(annotations: Annotations) -> Option<Self> {
        let Annotations { backend_type, backend_data, backend_v6_data, .. } = &annotations;
        if backend_type.is_none() && backend_data.is_none() && backend_v6_data.is_none() {
            return None;
        }
        let backend = match backend_type {
            Some(other) if other != "vxlan" => Backend::Other(other.clone()),
            _ => {
                let ipv6 = backend_v6_data.as_deref().map(vxlan);
                // Flannel writes no backend-data if it has IPv6 only.
                let ipv4 = match backend_data {
                    None if ipv6.is_some() => None,
                    data => Some(vxlan(data.as_deref().unwrap_or_default())),
                };
                Backend::Vxlan { ipv4, ipv6 }
            }
        };
        Some(Self { backend, annotations })
    }

    /// Returns the annotations that flannel has written.
    pub fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    /// Returns the link addresses of the node's VXLAN devices, by the family of the tunnel packets
    /// that each takes. A device accepts frames to its own address only.
    pub fn vtep_macs(&self) -> BTreeMap<Family, Mac> {
        let Backend::Vxlan { ipv4, ipv6 } = &self.backend else { return BTreeMap::new() };
        let of_family = |(family, device): (_, &Option<_>)| Some((family, mac(device.as_ref())?));
        [(Family::V4, ipv4), (Family::V6, ipv6)].into_iter().filter_map(of_family).collect()
    }

    /// `internal`: the node's InternalIPs.
    fn problems(&self, internal: &[IpAddr], mode: Mode, vni: u32) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.backend, mode) {
            (Backend::Vxlan { ipv4, ipv6 }, Mode::Vxlan) => {
                for (annotation, announced) in [("backend-data", ipv4), ("backend-v6-data", ipv6)] {
                    match announced {
                        Some(Err(reason)) => {
                            problems.push(Problem::Malformed { annotation, reason: reason.clone() });
                        }
                        Some(Ok(Vtep { vni: Some(theirs), .. })) if *theirs != vni => {
                            problems.push(Problem::Vni { theirs: *theirs, ours: vni });
                        }
                        _ => {}
                    }
                }
                // Both devices have the same VNI.
                problems.dedup();
            }
            (Backend::Other(name), Mode::Direct) if name == "host-gw" => {}
            (Backend::Other(name), Mode::Vxlan) => problems.push(Problem::Backend {
                backend: name.clone(),
                mode: "vxlan",
                way_out: match name.as_str() {
                    "host-gw" => "--mode direct reaches them",
                    _ => "have flannel use vxlan before nodes are moved",
                },
            }),
            (Backend::Other(name), Mode::Direct) => problems.push(Problem::Backend {
                backend: name.clone(),
                mode: "direct",
                way_out: "have flannel use host-gw before nodes are moved",
            }),
            (Backend::Vxlan { .. }, Mode::Direct) => problems.push(Problem::Backend {
                backend: "vxlan".into(),
                mode: "direct",
                way_out: "--mode vxlan reaches them",
            }),
        }
        let Annotations { public_ip, public_ipv6, .. } = &self.annotations;
        for (annotation, public, is_ipv4) in
            [("public-ip", public_ip, true), ("public-ipv6", public_ipv6, false)]
        {
            let internal = internal.iter().find(|address| address.is_ipv4() == is_ipv4);
            if let (Some(public), Some(internal)) = (public, internal)
                && public.parse() != Ok(*internal)
            {
                problems.push(Problem::Address { annotation, public: public.clone(), internal: *internal });
            }
        }
        problems
    }
}

/// Returns the problems of nodes that flannel has announced, for an agent with these options.
pub fn problems(records: &[NodeRecord], mode: Mode, vni: u32) -> impl Iterator<Item = NodeProblem> {
    let announced = records.iter().filter_map(|record| Some((record, record.flannel.as_ref()?)));
    announced.flat_map(move |(record, lease)| {
        let problems = lease.problems(&record.internal_addresses, mode, vni).into_iter();
        problems.map(|problem| NodeProblem::Flannel { node: record.name.clone(), problem })
    })
}

fn mac(announced: Option<&Announced>) -> Option<Mac> {
    announced?.as_ref().ok().map(|vtep| vtep.mac)
}

fn vxlan(data: &str) -> Announced {
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
    Ok(Vtep { vni: data.vni, mac })
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
            ..Annotations::default()
        };
        Lease::from_annotations(annotations).unwrap()
    }

    /// Returns what flannel writes to a node of a dual-stack cluster.
    fn dual(v6_data: &str, public_ipv6: &str) -> Annotations {
        Annotations {
            backend_v6_data: Some(v6_data.into()),
            public_ipv6: Some(public_ipv6.into()),
            ..lease("vxlan", GOOD).annotations
        }
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
        assert_eq!(good.vtep_macs(), [(Family::V4, MAC)].into());
        check(&good, Mode::Vxlan, 1, "10.200.0.2", &[]);
        let old = lease("vxlan", r#"{"VtepMAC":"6a:0f:33:b2:71:5c"}"#);
        assert_eq!(old.vtep_macs(), [(Family::V4, MAC)].into());
        check(&old, Mode::Vxlan, 5, "10.200.0.2", &[]);
    }

    #[test]
    fn each_family_has_a_device_of_its_own() {
        let other = Mac { bytes: [0x6a, 0, 0, 0, 0, 6] };
        let good6 = r#"{"VNI":1,"VtepMAC":"6a:00:00:00:00:06"}"#;
        let both = Lease::from_annotations(dual(good6, "fd00::2")).unwrap();
        assert_eq!(both.vtep_macs(), [(Family::V4, MAC), (Family::V6, other)].into());
        check(&both, Mode::Vxlan, 1, "10.200.0.2", &[]);
        check(&both, Mode::Vxlan, 7, "10.200.0.2", &["give all agents --vni 1;"]);
        let elsewhere = Lease::from_annotations(dual(good6, "fd00::9")).unwrap();
        check(
            &elsewhere,
            Mode::Vxlan,
            1,
            "10.200.0.2",
            &["public-ipv6 there is fd00::9, and its InternalIP is fd00::2"],
        );
        let spoilt = Lease::from_annotations(dual("{}", "fd00::2")).unwrap();
        assert_eq!(spoilt.vtep_macs(), [(Family::V4, MAC)].into());
        check(&spoilt, Mode::Vxlan, 1, "10.200.0.2", &["backend-v6-data is not understood"]);
        // A cluster with IPv6 only.
        let annotations = Annotations { backend_data: None, public_ip: None, ..dual(good6, "fd00::2") };
        let only6 = Lease::from_annotations(annotations).unwrap();
        assert_eq!(only6.vtep_macs(), [(Family::V6, other)].into());
        check(&only6, Mode::Vxlan, 1, "10.200.0.2", &[]);
        let gateway = Annotations { backend_type: Some("host-gw".into()), ..dual("null", "fd00::2") };
        check(&Lease::from_annotations(gateway).unwrap(), Mode::Direct, 1, "10.200.0.2", &[]);
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
            assert_eq!(bad.vtep_macs(), BTreeMap::new(), "{data}");
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
