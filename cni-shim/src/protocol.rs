//! Requests and replies over the agent's Unix socket.
//!
//! One connection carries one request and one reply. Each is a frame: its length as four bytes in
//! network order, then that many bytes of JSON, [`MAX_FRAME`] at most.
//!
//! If a plugin closes its side before the reply comes, it has given up. Then the agent does not
//! begin the call, or undoes an ADD that it has already begun.
//!
//! Both sides refuse unknown fields. Otherwise one side could rely on a field that the other
//! ignores, and half a configuration would be applied.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU64};

use ipnet::IpNet;
use podwire_common::names::host_interface;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of the protocol. The agent refuses all others.
pub const VERSION: u32 = 1;
/// The largest frame, in bytes of JSON.
pub const MAX_FRAME: usize = 1 << 20;
/// Default path of the agent's socket.
pub const DEFAULT_SOCKET: &str = "/run/podwire/agent.sock";

/// A call of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`]. The agent looks at it first.
    pub version: u32,
    /// The call itself.
    pub call: Call,
}

impl Request {
    /// Makes a request in this release's version.
    pub fn new(call: Call) -> Self {
        Self { version: VERSION, call }
    }
}

/// The operation that the plugin requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Gives the pod addresses and attaches its link. Answered with [`Reply::Added`].
    Add(Box<Add>),
    /// Asks whether the agent would refuse this ADD. The agent does nothing else. Answered with
    /// [`Reply::Acceptable`].
    Propose(Box<Add>),
    /// Removes everything of the attachment. Answered with [`Reply::Deleted`], even if there is
    /// nothing.
    Del(Attachment),
    /// Asks whether the attachment is as the agent made it. Answered with [`Reply::Checked`].
    Check(Attachment),
    /// Asks whether an ADD can be served now. Answered with [`Reply::Serving`].
    Status,
    /// Removes attachments that the runtime no longer knows. Answered with [`Reply::Collected`].
    Gc(Gc),
}

/// The attachments of a network that are still in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// `name` of the network configuration. Attachments of other networks stay.
    pub network: String,
    /// All attachments that must stay.
    pub valid: Vec<Attachment>,
}

/// The identity of an attachment (CNI specification, section 2: container ID and interface name).
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
    /// The attachment that the link belongs to.
    pub attachment: Attachment,
    /// `CNI_NETNS`, for messages.
    pub netns: String,
    /// Name of the host side: [`Attachment::host_interface`]. The link exists, is down and has no
    /// program yet.
    pub host_interface: String,
    /// The pod side's address, `aa:bb:cc:dd:ee:ff`.
    pub pod_mac: String,
    /// The host side's address, in the same form.
    pub host_mac: String,
    /// Requested addresses (`ips` capability); empty: the agent chooses.
    pub addresses: Vec<IpNet>,
    /// The MTU that the network configuration sets, if any.
    pub mtu: Option<u32>,
    /// hostPorts (`portMappings` capability).
    pub port_mappings: Vec<PortMapping>,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` from `CNI_ARGS`, for messages.
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
    /// Limit for packets to the pod.
    pub ingress: Option<Limit>,
    /// Limit for packets from the pod.
    pub egress: Option<Limit>,
}

/// A rate, and the burst that may pass at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Rate, bits per second.
    pub rate: NonZeroU64,
    /// Burst, bits; `None`: Podwire chooses.
    pub burst: Option<NonZeroU64>,
}

/// A port of the node that leads to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The address of the node. `0.0.0.0`: all of its IPv4 addresses; `::`: all of its IPv6
    /// addresses; `None`: all addresses of both families.
    pub host_address: Option<IpAddr>,
    /// The port of the node.
    pub host_port: NonZeroU16,
    /// The pod's port.
    pub container_port: NonZeroU16,
    /// Protocol of both ports.
    pub protocol: Transport,
}

impl fmt::Display for PortMapping {
    /// Writes it as `*:9088/tcp to port 8080` or `[::]:9088/tcp to port 8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address {
            Some(address) => SocketAddr::new(address, self.host_port.get()).fmt(f)?,
            None => write!(f, "*:{}", self.host_port)?,
        }
        write!(f, "/{} to port {}", self.protocol, self.container_port)
    }
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
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
    /// The attachment is on disk and in the maps, and has its programs.
    Added(Added),
    /// The agent would not refuse the ADD because of its contents.
    Acceptable,
    /// Nothing is left of the attachment.
    Deleted,
    /// The attachment is as the agent made it.
    Checked(Added),
    /// An ADD can be served.
    Serving,
    /// The number of attachments that the agent released.
    Collected(u32),
    /// The agent refused the call or could not complete it. Nothing is left of a failed ADD.
    Failed(Failure),
}

/// The agent's answer for the configuration of the pod's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Added {
    /// One address for each family, with full prefix length (/32 or /128).
    pub addresses: Vec<IpNet>,
    /// The gateway of each family, a permanent neighbour with the host side's link address.
    pub gateways: Vec<IpAddr>,
    /// MTU of the pod's link, bytes.
    pub mtu: u32,
    /// The pod side's link address.
    pub pod_mac: String,
    /// The host side's link address.
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
    /// The plugin does not support the configuration's `cniVersion`.
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
    /// No address in this node's podCIDRs is free.
    pub const ADDRESSES_EXHAUSTED: u32 = 101;
    /// The requested address is taken, or does not belong to this node.
    pub const ADDRESS_UNAVAILABLE: u32 = 102;
    /// The attachment is not as ADD made it.
    pub const CHECK_FAILED: u32 = 103;
    /// The agent could not write to disk, attach a program or fill a map.
    pub const AGENT_FAILURE: u32 = 104;
    /// A requested hostPort belongs to another pod, or to the tunnel.
    pub const HOST_PORT_UNAVAILABLE: u32 = 105;
}

impl Attachment {
    /// Returns the name of the host side of its veth pair.
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

/// Returns the bytes of one frame.
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
/// `InvalidData` when the frame is larger than [`MAX_FRAME`] or not the JSON of a `T`; otherwise
/// the stream's own.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut json = vec![0; frame_length(header)?];
    stream.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Returns the length from a frame's first four bytes.
///
/// # Errors
/// `InvalidData` when the length is larger than [`MAX_FRAME`].
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
