//! ADD: makes the pair, asks the agent, configures the pod's side.

use podwire_cni::fault::Step;
use podwire_cni::protocol::{self, codes};
use serde_json::Value;

use super::del::undo_with;
use super::taken;
use crate::agent::{Agent, REQUEST_DEADLINE};
use crate::chain::Earlier;
use crate::config::Config;
use crate::environment::Target;
use crate::error::CniError;
use crate::ipv6;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::note;
use crate::pod::{self, PodNetwork};
use crate::port_mappings;
use crate::result::{self, Made};
use crate::routes::Route;
use crate::version::SpecVersion;
use crate::veth::{self, Link, Pair};

/// Attaches a pod. After an error nothing is left, neither here nor in the agent.
pub(crate) fn add(config: &Config, target: &Target) -> Result<Value, CniError> {
    let earlier = match config.version >= SpecVersion::V0_3_0 {
        true => Earlier::parse(config.previous.as_ref(), &target.attachment.interface)?,
        // Versions before 0.3.0 have no chaining: the key has no meaning.
        false => Earlier::default(),
    };
    let netns = Netns::open(&target.netns)?;
    let mut host = Netlink::open()?;
    let mut inside = netns.netlink()?;
    let host_interface = target.attachment.host_interface();
    // Only this attachment uses the name. A link with the name is left from an ADD that was cut
    // short or that succeeded. In the second case the pod keeps its link unless this ADD can
    // replace it.
    let earlier_link = veth::find(&mut host, &host_interface)?;
    require_free(&mut inside, target, earlier_link.as_ref())?;
    let pod_mac = config.mac.or(target.mac);
    let pair = Pair::new(host_interface, target.attachment.interface.clone(), pod_mac)?;
    if earlier_link.is_some() {
        let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
        agent.propose(request(config, target, &pair))?;
        veth::delete(&mut host, &pair.host_interface)?;
    }

    pair.create(&mut host, &netns)?;
    match attach(config, target, &pair, &mut host, &netns, &mut inside) {
        Ok((network, routes)) => {
            let made = Made { target, network: &network, routes: &routes, dns: &config.dns };
            Ok(result::success(config.version, &made, earlier))
        }
        Err(failed) => {
            let troubles = undo_with(config, &target.attachment, &mut host, failed.agent_may_hold_it);
            Err(match troubles.is_empty() {
                true => failed.error,
                false => failed.error.with_details(format!("while undoing: {}", troubles.join("; "))),
            })
        }
    }
}

/// A step of ADD that failed after the pair was made.
struct Failed {
    error: CniError,
    agent_may_hold_it: bool,
}

impl Failed {
    /// Makes the error of a step after the agent's answer: the agent may hold the attachment.
    fn after_the_agent(error: impl Into<CniError>) -> Self {
        Failed { error: error.into(), agent_may_hold_it: true }
    }
}

/// Refuses a name that another link inside the pod already has: a link of another network, or one
/// that was there from the start. The other end of the attachment's own link does not count.
fn require_free(inside: &mut Netlink, target: &Target, earlier_link: Option<&Link>) -> Result<(), CniError> {
    let interface = &target.attachment.interface;
    match veth::find(inside, interface)? {
        None => Ok(()),
        Some(link) if earlier_link.is_some_and(|earlier| earlier.is_peer_of(&link)) => Ok(()),
        Some(link) => Err(CniError::new(
            codes::INVALID_ENVIRONMENT,
            format!(
                "CNI_IFNAME {interface} is already the name of another link in {} (ifindex {}{}{}): \
                 choose another name, or remove that link",
                target.netns,
                link.index,
                if link.kind.is_empty() { "" } else { ", " },
                link.kind
            ),
        )),
    }
}

fn attach(
    config: &Config,
    target: &Target,
    pair: &Pair,
    host: &mut Netlink,
    netns: &Netns,
    inside: &mut Netlink,
) -> Result<(PodNetwork, Vec<Route>), Failed> {
    taken(Step::PairMade).map_err(Failed::after_the_agent)?;
    // The agent sets the host side up, so its switches come first. Only a pod with an IPv6 address
    // needs them, and no one knows its addresses yet.
    let host_side_is_switched = ipv6::set(&pair.host_interface, &ipv6::OF_PAIR);
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    let added = agent.add(request(config, target, pair)).map_err(|error| {
        let agent_may_hold_it = error.may_have_acted();
        Failed { error: error.into(), agent_may_hold_it }
    })?;
    let network =
        PodNetwork::try_from(added).map_err(|unusable| Failed::after_the_agent(agent.nonsense(unusable)))?;
    if (network.host_mac, network.pod_mac) != (pair.host_mac, pair.pod_mac)
        || network.host_interface != pair.host_interface
    {
        let reason =
            format!("it answered for {}, which is not the link of this call", network.host_interface);
        return Err(Failed::after_the_agent(agent.nonsense(reason)));
    }
    taken(Step::AddAnswered).map_err(Failed::after_the_agent)?;
    network.require_mtu().map_err(Failed::after_the_agent)?;
    port_mappings::unserved(&config.port_mappings, network.has_ipv4(), network.has_ipv6())
        .map_err(Failed::after_the_agent)?
        .iter()
        .for_each(|warning| note(warning));
    if network.has_ipv6() {
        host_side_is_switched.map_err(Failed::after_the_agent)?;
        pod::switch_ipv6_on(netns, &target.attachment.interface).map_err(Failed::after_the_agent)?;
    }
    let routes = network.routes(&config.routes).map_err(Failed::after_the_agent)?;
    pod::configure(inside, &target.attachment.interface, &network, &routes, config.bandwidth.egress)
        .map_err(Failed::after_the_agent)?;
    taken(Step::PodConfigured).map_err(Failed::after_the_agent)?;
    veth::wait_until_running(host, &pair.host_interface).map_err(Failed::after_the_agent)?;
    taken(Step::LinkRuns).map_err(Failed::after_the_agent)?;
    Ok((network, routes))
}

/// Returns the request to the agent.
fn request(config: &Config, target: &Target, pair: &Pair) -> protocol::Add {
    protocol::Add {
        attachment: target.attachment.clone(),
        netns: target.netns.clone(),
        host_interface: pair.host_interface.clone(),
        pod_mac: pair.pod_mac.to_string(),
        host_mac: pair.host_mac.to_string(),
        addresses: match config.addresses[..] {
            [] => target.addresses.clone(),
            _ => config.addresses.clone(),
        },
        mtu: config.mtu,
        port_mappings: config.port_mappings.clone(),
        pod: target.pod.clone(),
        network: config.network.clone(),
        bandwidth: config.bandwidth,
    }
}
