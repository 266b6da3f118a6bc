//! Requests and replies over the agent's Unix socket.
//!
//! One connection carries one request and one reply. Each is a frame: its length as four bytes in network order,
//! then that many bytes of JSON, [`MAX_FRAME`] at most. Who closes its side before the reply has given up: a call that
//! nobody waits for is not begun, and an ADD that was is undone. Unknown fields are refused: a field that one side takes
//! seriously and the other never saw is how half a configuration gets applied.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU16, NonZeroU64};

use ipnet::IpNet;
use podwire_common::names::host_interface;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of the protocol. The agent refuses every other one.
pub const VERSION: u32 = 1;
/// The largest frame, in bytes of JSON.
pub const MAX_FRAME: usize = 1 << 20;
/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/podwire/agent.sock";

/// One call of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`]. The agent looks at it first.
    pub version: u32,
    /// What is asked for.
    pub call: Call,
}

impl Request {
    /// In this release's version.
    pub fn new(call: Call) -> Self {
        Self { version: VERSION, call }
    }
}

/// What the plugin asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Give the pod addresses and attach its link. Answered with [`Reply::Added`].
    Add(Box<Add>),
    /// Would this be refused? Nothing is done. Answered with [`Reply::Acceptable`].
    Propose(Box<Add>),
    /// Take everything back. Answered with [`Reply::Deleted`], also when there is nothing.
    Del(Attachment),
    /// Is the attachment as the agent made it? Answered with [`Reply::Checked`].
    Check(Attachment),
    /// Can an ADD be served now? Answered with [`Reply::Serving`].
    Status,
    /// Take back what the runtime knows no more. Answered with [`Reply::Collected`].
    Gc(Gc),
}

/// The attachments of a network that are still in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// `name` of the network configuration: those of other networks are not touched.
    pub network: String,
    /// Every one that is to stay.
    pub valid: Vec<Attachment>,
}

/// What names an attachment (CNI specification, section 2: container ID and interface name).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the name inside the pod.
    pub interface: String,
}

/// A link that the plugin has made for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// Whose link it is.
    pub attachment: Attachment,
    /// `CNI_NETNS`, for messages.
    pub netns: String,
    /// Name of the host side: [`Attachment::host_interface`]. Exists, is down and has no program yet.
    pub host_interface: String,
    /// The pod side's address, `aa:bb:cc:dd:ee:ff`.
    pub pod_mac: String,
    /// The host side's address.
    pub host_mac: String,
    /// Addresses asked for (`ips` capability); empty: the agent chooses.
    pub addresses: Vec<IpNet>,
    /// The MTU that the network configuration sets, if any.
    pub mtu: Option<u32>,
    /// hostPorts (`portMappings` capability).
    pub port_mappings: Vec<PortMapping>,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` out of `CNI_ARGS`, for messages.
    pub pod: Option<PodName>,
    /// `name` of the network configuration.
    pub network: String,
    /// `bandwidth` capability.
    pub bandwidth: Bandwidth,
}

/// How fast a pod may receive and send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// What the pod receives.
    pub ingress: Option<Limit>,
    /// What it sends.
    pub egress: Option<Limit>,
}

/// A rate, and how much may pass at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Bits per second.
    pub rate: NonZeroU64,
    /// Bits; `None`: left to Podwire.
    pub burst: Option<NonZeroU64>,
}

/// A port of the node behind which the pod answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The address of the node; `None`: each of its addresses.
    pub host_address: Option<Ipv4Addr>,
    /// The port there.
    pub host_port: NonZeroU16,
    /// The pod's port.
    pub container_port: NonZeroU16,
    /// Of both.
    pub protocol: Transport,
}

impl fmt::Display for PortMapping {
    /// As `*:9088/tcp to port 8080`.
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

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The attachment is persisted, in the maps and has its programs.
    Added(Added),
    /// An ADD would not be refused for what it asks for.
    Acceptable,
    /// Nothing is left of it.
    Deleted,
    /// It is as it was made.
    Checked(Added),
    /// An ADD can be served.
    Serving,
    /// So many attachments were taken back.
    Collected(u32),
    /// Refused, with nothing left behind.
    Failed(Failure),
}

/// What the plugin configures in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Added {
    /// One per family, with full prefix length (/32 or /128).
    pub addresses: Vec<IpNet>,
    /// The gateway of each family: a permanent neighbour with the host side's address.
    pub gateways: Vec<IpAddr>,
    /// MTU of the pod's link, bytes.
    pub mtu: u32,
    /// The pod side's address.
    pub pod_mac: String,
    /// The host side's address.
    pub host_mac: String,
    /// Name of the host side.
    pub host_interface: String,
}

/// Why the agent refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// A CNI error code: the specification's, or one of [`codes`].
    pub code: u32,
    /// What failed, for which object, and what to do.
    pub message: String,
}

/// Error codes (CNI specification, section "Error"); 100 and above are the plugin's own.
pub mod codes {
    /// The configuration's `cniVersion` is not one of ours.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO_FAILURE: u32 = 5;
    /// Content does not decode.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network configuration is not valid.
    pub const INVALID_CONFIGURATION: u32 = 7;
    /// A transient condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const UNAVAILABLE: u32 = 50;
    /// STATUS: no ADD can be served, and the pods that are there may be cut off.
    pub const UNAVAILABLE_AND_LIMITED: u32 = 51;
    /// The kernel refused a device, an address or a route.
    pub const NETLINK_FAILURE: u32 = 100;
    /// No address of this node's podCIDRs is free.
    pub const ADDRESSES_EXHAUSTED: u32 = 101;
    /// The address asked for is taken, or not of this node.
    pub const ADDRESS_UNAVAILABLE: u32 = 102;
    /// The attachment is not as it was made.
    pub const CHECK_FAILED: u32 = 103;
    /// The agent could not persist, attach or fill a map.
    pub const AGENT_FAILURE: u32 = 104;
    /// A hostPort asked for is another pod's, or the tunnel's.
    pub const HOST_PORT_UNAVAILABLE: u32 = 105;
}

impl Attachment {
    /// Name of the host side of its veth pair.
    pub fn host_interface(&self) -> String {
        host_interface(&self.container_id, &self.interface)
    }
}

/// Writes one frame.
///
/// # Errors
/// `InvalidInput` when the JSON is larger than [`MAX_FRAME`]; otherwise the stream's own.
pub fn write_frame(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&encode(message)?)?;
    stream.flush()
}

/// The bytes of one frame.
///
/// # Errors
/// `InvalidInput` when the JSON is larger than [`MAX_FRAME`].
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|length| *length as usize <= MAX_FRAME)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, too_large(json.len())))?;
    Ok([&length.to_be_bytes()[..], &json].concat())
}

/// Reads one frame.
///
/// # Errors
/// `InvalidData` when the frame is larger than [`MAX_FRAME`] or not the JSON of a `T`; otherwise the stream's own.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut json = vec![0; frame_length(header)?];
    stream.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// The length in a frame's first four bytes.
///
/// # Errors
/// `InvalidData` when it is larger than [`MAX_FRAME`].
pub fn frame_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, too_large(length)));
    }
    Ok(length)
}

fn too_large(length: usize) -> String {
    format!("a frame of {length} bytes is larger than the {MAX_FRAME} allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment { container_id: "4ba8eb2dbdf81d".into(), interface: "eth0".into() }
    }

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let request = Request::new(Call::Del(attachment()));
        let mut buffer = Vec::new();
        write_frame(&mut buffer, &request).unwrap();
        assert_eq!(read_frame::<Request>(&mut buffer.as_slice()).unwrap(), request);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let header = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes();
        let error = read_frame::<Request>(&mut header.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("1048577"), "{error}");
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = br#"{"version":1,"call":{"del":{"container_id":"a","interface":"b","force":true}}}"#;
        let frame = [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], json].concat();
        let error = read_frame::<Request>(&mut frame.as_slice()).unwrap_err();
        assert!(error.to_string().contains("force"), "{error}");
    }

    #[test]
    fn the_host_interface_depends_on_both_names_and_fits_the_kernel() {
        let name = attachment().host_interface();
        assert_eq!(name.len(), 14);
        let other = Attachment { interface: "net1".into(), ..attachment() };
        assert_ne!(name, other.host_interface());
    }
}
