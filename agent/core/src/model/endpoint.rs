//! A pod's attachment to this node.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};

use podwire_common::abi;
use podwire_common::addr::Mac;
use podwire_common::names::host_interface;
use podwire_common::token_bucket::TokenBucket;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Family;

/// A pod's attachment, as the agent persists it and writes it into the maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Container and interface.
    pub attachment: Attachment,
    /// The pod's network namespace, for messages.
    pub netns: String,
    /// Name of the veth pair's host side.
    pub host_interface: String,
    /// ifindex of the host side. Not persisted: after a reboot the kernel gives out new ones.
    #[serde(skip)]
    pub ifindex: u32,
    /// Number of the endpoint, unique on the node while the endpoint lives.
    pub id: u32,
    /// Link address of the pod side.
    #[serde(serialize_with = "mac_to_text", deserialize_with = "mac_from_text")]
    pub pod_mac: Mac,
    /// Link address of the host side.
    #[serde(serialize_with = "mac_to_text", deserialize_with = "mac_from_text")]
    pub host_mac: Mac,
    /// The pod's addresses in the order of the Node object's podCIDRs: one or two, and at most one
    /// of each family.
    pub pod_addresses: Vec<PodAddress>,
    /// MTU of the pod's link, in bytes.
    pub mtu: u32,
    /// The pod's hostPorts.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's name, if the runtime gave it.
    pub pod: Option<PodName>,
    /// Name of the network configuration that the pod was added with. `None`: the endpoint's file
    /// was lost.
    pub network: Option<String>,
    /// Limits of what the pod receives and sends.
    pub bandwidth: Bandwidth,
}

impl Endpoint {
    /// Returns whether the endpoint's file was lost. Then neither the container nor the limits are
    /// known (`recovery.rs`).
    pub fn is_recovered(&self) -> bool {
        self.attachment.interface.is_empty()
    }

    /// Returns the pod's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pod_addresses.iter().map(|of_family| of_family.address)
    }

    /// Returns the pod's address of a family.
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        family.first_of(self.addresses())
    }

    /// Returns whether one of the two endpoints has an address of the other.
    pub fn shares_address(&self, other: &Self) -> bool {
        self.addresses().any(|address| other.addresses().any(|of_other| of_other == address))
    }

    /// Returns the limit of what the pod receives, for the host side of its veth pair.
    pub fn ingress_limit(&self) -> Option<TokenBucket> {
        self.bandwidth.ingress.map(|limit| limit.bucket(self.mtu))
    }

    /// Returns the guard that keeps the pod from sending faster than the queue on the pod's side
    /// allows.
    pub fn guard(&self) -> Option<abi::Guard> {
        let bucket = self.bandwidth.egress.map(|limit| limit.bucket(self.mtu))?;
        let (cost, credit) = bucket.guard();
        Some(abi::Guard { paid: 0, cost, credit })
    }
}

impl fmt::Display for Endpoint {
    /// Writes the pod's name if it is known, else the container. The addresses and the name of the
    /// host side follow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{}/{}", pod.namespace, pod.name)?,
            None if self.is_recovered() => f.write_str("a pod without a name")?,
            None => write!(f, "container {}", self.attachment.container_id)?,
        }
        f.write_str(" (")?;
        for address in self.addresses() {
            write!(f, "{address}, ")?;
        }
        write!(f, "{})", self.host_interface)
    }
}

/// A pod's address of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodAddress {
    /// The address.
    pub address: IpAddr,
    /// The node's overlay address of this family when the pod was added: the source of the
    /// programs' ICMP errors, and the pod's gateway in IPv4. Kept with the endpoint because the
    /// node's podCIDR may change while the pod lives.
    pub gateway: IpAddr,
}

/// Key of an attachment (CNI specification, section 2: container ID and interface name).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the pod.
    pub interface: String,
}

impl Attachment {
    /// Returns the name of the host side of the attachment's veth pair.
    pub fn host_interface(&self) -> String {
        host_interface(&self.container_id, &self.interface)
    }
}

/// Limits of what a pod receives and sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Limit of what the pod receives.
    pub ingress: Option<Limit>,
    /// Limit of what the pod sends.
    pub egress: Option<Limit>,
}

/// A rate, and the amount that may pass at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Bits per second.
    pub rate: NonZeroU64,
    /// Bits. `None`: Podwire chooses.
    pub burst: Option<NonZeroU64>,
}

impl Limit {
    /// Returns the token bucket that enforces the limit on a link with this MTU (bytes).
    fn bucket(self, mtu: u32) -> TokenBucket {
        TokenBucket::new(self.rate.get(), self.burst.map(NonZeroU64::get), mtu)
    }
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The node's address of the hostPort. `None`: every address of the node.
    pub host_address: Option<IpAddr>,
    /// The port on the node.
    pub host_port: NonZeroU16,
    /// The pod's port.
    pub container_port: NonZeroU16,
    /// Protocol of both ports.
    pub protocol: Transport,
}

impl fmt::Display for PortMapping {
    /// Writes `*:9088/tcp to port 8080`, for example.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("*")?,
        }
        write!(f, ":{}/{} to port {}", self.host_port, self.protocol, self.container_port)
    }
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// A pod as Kubernetes names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Reads `aa:bb:cc:dd:ee:ff`. `None` for anything else.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut parts = text.split(':');
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Mac { bytes })
}

/// Writes `aa:bb:cc:dd:ee:ff`.
pub fn format_mac(mac: Mac) -> String {
    format!("{mac:?}")
}

fn mac_to_text<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_mac(*mac))
}

fn mac_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_mac(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is not a link address")))
}

#[cfg(any(test, feature = "examples"))]
impl Endpoint {
    /// Returns an endpoint for tests, without hostPorts and limits.
    pub fn example() -> Self {
        let attachment = Attachment { container_id: "c".into(), interface: "eth0".into() };
        Self {
            netns: "/run/netns/c".into(),
            host_interface: attachment.host_interface(),
            attachment,
            ifindex: 20,
            id: 1,
            pod_mac: Mac { bytes: [2, 0, 0, 0, 0, 1] },
            host_mac: Mac { bytes: [2, 0, 0, 0, 0, 2] },
            pod_addresses: vec![PodAddress {
                address: IpAddr::from([10, 244, 1, 2]),
                gateway: IpAddr::from([10, 244, 1, 1]),
            }],
            mtu: 1450,
            port_mappings: Vec::new(),
            pod: Some(PodName { namespace: "default".into(), name: "web".into() }),
            network: None,
            bandwidth: Bandwidth::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_address_survives_the_way_there_and_back() {
        let mac = Mac { bytes: [0x02, 0x0a, 0, 0xff, 0x10, 0x01] };
        assert_eq!(parse_mac(&format_mac(mac)), Some(mac));
    }

    #[test]
    fn what_is_no_link_address_is_refused() {
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "2:0:0:0:0:0", "zz:00:00:00:00:00"] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
