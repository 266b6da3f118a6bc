//! CHECK: the agent's view, the previous result and the kernel's state inside the pod, compared.

use podwire_cni::protocol::codes;

use crate::agent::{Agent, REQUEST_DEADLINE};
use crate::config::Config;
use crate::environment::Target;
use crate::error::CniError;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::pod::{self, PodNetwork};
use crate::version::SpecVersion;
use crate::veth;

/// Fails with every fault named when the attachment is not as ADD left it.
pub(crate) fn check(config: &Config, target: &Target) -> Result<(), CniError> {
    if config.version < SpecVersion::V0_4_0 {
        let message = format!("CHECK needs cniVersion 0.4.0 or later, not {}", config.version.as_str());
        return Err(CniError::new(codes::INCOMPATIBLE_VERSION, message));
    }
    let previous = config.previous_result()?;
    let netns = Netns::open(&target.netns)?;
    let mut inside = netns.netlink()?;
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    let checked = agent.check(&target.attachment)?;
    let network = PodNetwork::try_from(checked).map_err(|unusable| agent.nonsense(unusable))?;

    let interface = &target.attachment.interface;
    let mut faults = previous.faults(interface, &network);
    faults.extend(host_faults(&network)?);
    faults.extend(pod::faults(&mut inside, interface, &network, config.bandwidth.egress)?);
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!("{interface} in {} is not as it was made: {}", target.netns, faults.join("; "));
    Err(CniError::new(codes::CHECK_FAILED, message).with_details("the pod has to be made anew"))
}

fn host_faults(network: &PodNetwork) -> Result<Vec<String>, CniError> {
    let name = &network.host_interface;
    Ok(match veth::find(&mut Netlink::open()?, name)? {
        None => vec![format!("{name} is missing on the node")],
        Some(link) if link.mac != Some(network.host_mac) => {
            vec![format!("{name} has not the MAC address {}", network.host_mac)]
        }
        Some(link) if !link.up => vec![format!("{name} is down on the node")],
        Some(_) => Vec::new(),
    })
}
