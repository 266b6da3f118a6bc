//! The kernel's IPv6 switches of a link (Documentation/networking/ip-sysctl.rst). Netlink cannot
//! set all of them, and none while it makes a link.

use std::fs;
use std::io;

use crate::error::CniError;

/// The smallest MTU of a link with IPv6 (RFC 8200 section 5). The kernel takes IPv6 off a link with
/// a smaller one.
pub(crate) const MIN_MTU: u32 = 1280;

/// Each link with IPv6 has a folder here, in the network namespace of the reading thread.
const LINKS: &str = "/proc/sys/net/ipv6/conf";

/// The switches of both ends of a pod's pair, set while the link is down:
///
/// - The kernel generates no address (`IN6_ADDR_GEN_MODE_NONE`). It would first look for duplicates
///   of such an address, and the programs accept only the pod's own.
/// - Router advertisements change nothing: the agent alone decides on addresses and routes.
/// - IPv6 is on. A runtime may switch it off for all future links of a pod, and an operator for all
///   future links of a node.
pub(crate) const OF_PAIR: [Switch; 3] =
    [Switch("addr_gen_mode", "1"), Switch("accept_ra", "0"), Switch("disable_ipv6", "0")];

/// The switch of a pod's `lo`: the kernel delivers there what a pod sends to its own address.
pub(crate) const OF_LOOPBACK: [Switch; 1] = [Switch("disable_ipv6", "0")];

/// A switch and the value that it must have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Switch(&'static str, &'static str);

/// A switch that cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    #[error(
        "{link} has no IPv6: its MTU is below {MIN_MTU}, it is gone, or the kernel has IPv6 switched off (ipv6.disable=1)"
    )]
    NoIpv6 { link: String },
    #[error("{operation} net.ipv6.conf.{link}.{name}: {source}")]
    File { operation: &'static str, link: String, name: &'static str, source: io::Error },
}

impl From<SwitchError> for CniError {
    fn from(error: SwitchError) -> Self {
        CniError::new(podwire_cni::protocol::codes::NETLINK_FAILURE, error.to_string())
    }
}

/// Sets the switches of a link of the current network namespace. Writes only those that differ, so
/// that a read-only `/proc/sys` with the right values is enough.
pub(crate) fn set(link: &str, switches: &[Switch]) -> Result<(), SwitchError> {
    for switch in switches {
        if switch.read(link)? != switch.1 {
            fs::write(switch.path(link), switch.1).map_err(|error| switch.failed("set", link, error))?;
        }
    }
    Ok(())
}

/// Returns each switch of a link of the current network namespace that has another value.
pub(crate) fn faults(link: &str, switches: &[Switch]) -> Result<Vec<String>, SwitchError> {
    let mut faults = Vec::new();
    for switch in switches {
        match switch.read(link) {
            Ok(value) if value == switch.1 => {}
            Ok(value) => {
                faults.push(format!("net.ipv6.conf.{link}.{} is {value}, not {}", switch.0, switch.1))
            }
            Err(error @ SwitchError::NoIpv6 { .. }) => return Ok(vec![error.to_string()]),
            Err(error) => return Err(error),
        }
    }
    Ok(faults)
}

impl Switch {
    fn path(self, link: &str) -> String {
        format!("{LINKS}/{link}/{}", self.0)
    }

    fn read(self, link: &str) -> Result<String, SwitchError> {
        let text = fs::read_to_string(self.path(link)).map_err(|error| self.failed("read", link, error))?;
        Ok(text.trim_end().to_owned())
    }

    fn failed(self, operation: &'static str, link: &str, source: io::Error) -> SwitchError {
        let link = link.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => SwitchError::NoIpv6 { link },
            _ => SwitchError::File { operation, link, name: self.0, source },
        }
    }
}
