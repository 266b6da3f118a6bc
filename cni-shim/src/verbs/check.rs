//! CHECK: compares the agent's view, the previous result and the kernel's state inside the pod.

use podwire_cni::protocol::codes;
use podwire_cni::token_bucket;

use super::require_version;
use crate::agent::{Agent, AgentError, REQUEST_DEADLINE};
use crate::config::Config;
use crate::environment::Target;
use crate::error::CniError;
use crate::ipv6;
use crate::netns::Netns;
use crate::pod::{self, PodNetwork};
use crate::version::SpecVersion;
use crate::veth;

/// Fails if the attachment is not as ADD left it. The error names all faults. The agent checks the
/// node's side.
pub(crate) fn check(config: &Config, target: &Target) -> Result<(), CniError> {
    require_version(config, "CHECK", SpecVersion::V0_4_0)?;
    let previous = config.previous_result()?;
    let netns = Netns::open(&target.netns)?;
    let mut inside = netns.netlink()?;
    let interface = &target.attachment.interface;
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    let mut faults = Vec::new();
    let network = match agent.check(&target.attachment) {
        Ok(checked) => {
            let network = PodNetwork::try_from(checked).map_err(|unusable| agent.nonsense(unusable))?;
            faults.extend(previous.faults(interface, &network));
            Some(network)
        }
        // The pod's side is checked too, with ADD's earlier answer, so that one CHECK reports all
        // faults.
        Err(AgentError::Refused(failure)) if failure.code == codes::CHECK_FAILED => {
            faults.push(failure.message);
            let mtu = veth::find(&mut inside, interface)?.and_then(|link| link.mtu);
            previous.network(target, mtu.unwrap_or_default())
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(mut network) = network {
        let routes = network.routes(&config.routes)?;
        // A route that is no longer in the result belongs to another plugin: a later plugin may
        // have moved it (CNI specification, section "CHECK").
        let routes = routes.iter().filter(|route| previous.lists(route));
        let egress = config.bandwidth.egress.map(|limit| (limit, token_bucket::of_limit(limit, network.mtu)));
        // A later plugin may have lowered the MTU. Routes and limit still depend on the MTU that
        // ADD set.
        network.mtu = previous.mtu(interface).map_or(network.mtu, |mtu| mtu.min(network.mtu));
        faults.extend(pod::faults(&netns, &mut inside, interface, &network, routes, egress)?);
        if network.has_ipv6() {
            faults.extend(ipv6::faults(&network.host_interface, &ipv6::OF_PAIR)?);
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!("{interface} in {} is not as ADD made it: {}", target.netns, faults.join("; "));
    Err(CniError::new(codes::CHECK_FAILED, message).with_details("delete the pod and create it again"))
}
