//! What the plugin asks for, and how ADD and DEL are done. Each replies only when disk, maps and programs agree.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use podwire_cni::fault::{self, Step};
use podwire_cni::protocol::{
    Add, Added, Attachment, Call, Failure, PortMapping, Reply, codes, host_interface,
};
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tracing::{error, info, warn};

use super::Daemon;
use crate::conditions::ConditionName;
use crate::desired::{Route, endpoint_entry, frontends};
use crate::diff::Op;
use crate::error::Error;
use crate::events::Event;
use crate::host::Host;
use crate::host_ports::{self, Unavailable};
use crate::ipam::{IpamError, Pool};
use crate::model::{Endpoint, Mode, format_mac, parse_mac};
use crate::sysctl::Switch;

/// The least MTU of IPv4 (RFC 791).
const LEAST_MTU: u32 = 68;

/// An ADD whose endpoint is being written to disk.
pub(super) struct Adding {
    endpoint: Endpoint,
    /// What became of all the rest.
    linked: Result<(), Error>,
    reply: oneshot::Sender<Reply>,
}

/// What became of writing an endpoint to disk.
pub(super) type Saved = (Attachment, Result<(), Error>);

impl Daemon {
    /// Does what is asked for. An ADD is answered later, by [`Self::finish_saved`].
    pub(super) async fn serve(&mut self, call: &Call, reply: oneshot::Sender<Reply>) {
        let result = match call {
            Call::Add(add) => {
                let mut prepared = self.prepare(add).await;
                if prepared.is_err() && !self.adding.is_empty() {
                    // Perhaps because of what one of them holds that is about to fail.
                    self.finish_all_saved().await;
                    prepared = self.prepare(add).await;
                }
                match prepared {
                    Ok(endpoint) => return self.connect(endpoint, reply).await,
                    Err(failure) => Err(failure),
                }
            }
            Call::Propose(add) => self.plan(add).map(|_| Reply::Acceptable),
            Call::Del(attachment) => self.del(attachment).await.map(|()| Reply::Deleted),
            Call::Check(attachment) => self.check(attachment).await.map(Reply::Checked),
            Call::Status => {
                // Without a line in the log: a runtime asks every few seconds, and what changes is logged when it does.
                let _ = reply.send(self.status().map_or_else(Reply::Failed, |()| Reply::Serving));
                return;
            }
            Call::Gc(gc) => self.collect_garbage(gc).await.map(Reply::Collected),
        };
        answer(reply, result);
    }

    /// Whether an event can be dealt with while endpoints are being written to disk: so can ADDs of others.
    pub(super) fn can_overlap(&self, event: &Event) -> bool {
        match event {
            Event::Call { call, .. } => {
                matches!(&**call, Call::Add(add) if !self.adding.contains_key(&add.attachment))
            }
            // A disk that takes its time is no reason to be taken for dead.
            Event::Alive(_) => true,
            _ => false,
        }
    }

    /// The endpoint that is asked for, with its address; the model has it.
    async fn prepare(&mut self, add: &Add) -> Result<Endpoint, Failure> {
        let mut endpoint = self.plan(add)?;
        endpoint.ifindex = self.checked_device(&endpoint).await?;
        match self.model.endpoint_of(&endpoint.attachment).cloned() {
            Some(known) => {
                endpoint.address = known.address;
                if known.ifindex != endpoint.ifindex {
                    // Of a device that the plugin has replaced.
                    self.remove_guard(&known).await.map_err(|error| failure(&error))?;
                }
                self.model.endpoints.remove(&known.attachment);
            }
            None => endpoint.address = self.allocate(&add.addresses)?,
        }
        self.model.endpoints.insert(endpoint.attachment.clone(), endpoint.clone());
        Ok(endpoint)
    }

    /// The endpoint that is asked for, its address and device still open.
    fn plan(&self, add: &Add) -> Result<Endpoint, Failure> {
        if let Some(why) = self.conditions.refusal() {
            return Err(refuse(codes::TRY_AGAIN_LATER, format!("the agent is not ready: {}", why.sentence)));
        }
        let expected = host_interface(&add.attachment);
        if add.host_interface != expected {
            let message = format!(
                "the host side is to be named {expected}, not {}: install plugin and agent of one release",
                add.host_interface
            );
            return Err(refuse(codes::DECODING_FAILURE, message));
        }
        let mac = |text: &String| {
            parse_mac(text).filter(|mac| !mac.is_group()).ok_or_else(|| {
                refuse(codes::DECODING_FAILURE, format!("`{text}` is not a unicast link address"))
            })
        };
        let known = self.model.endpoint_of(&add.attachment);
        if let Some(known) = known
            && let Some(other) = add.addresses.iter().find(|asked| asked.addr() != IpAddr::V4(known.address))
        {
            let message = format!(
                "address {other} is asked for, but the attachment has {} already: DEL it first",
                known.address
            );
            return Err(refuse(codes::ADDRESS_UNAVAILABLE, message));
        }
        self.check_host_ports(add, known)?;
        if known.is_some_and(|known| !known.is_recovered() && known.bandwidth != add.bandwidth) {
            let message = "another bandwidth is asked for than the attachment has: DEL it first".into();
            return Err(refuse(codes::INVALID_CONFIGURATION, message));
        }
        let own = self.model.own.as_ref();
        let gateway = known.map(|known| known.gateway).or(own.map(|own| own.overlay_address()));
        let (Some(gateway), Some(fitting)) = (gateway, self.pod_mtu) else {
            return Err(refuse(
                codes::TRY_AGAIN_LATER,
                "the agent is not ready: this node is not known yet".into(),
            ));
        };
        Ok(Endpoint {
            attachment: add.attachment.clone(),
            netns: add.netns.clone(),
            host_interface: expected,
            ifindex: 0,
            id: known.map_or_else(|| self.free_id(), |known| known.id),
            pod_mac: mac(&add.pod_mac)?,
            host_mac: mac(&add.host_mac)?,
            address: Ipv4Addr::UNSPECIFIED,
            gateway,
            mtu: wanted_mtu(add.mtu, fitting)?,
            port_mappings: add.port_mappings.clone(),
            pod: add.pod.clone(),
            network: add.network.clone(),
            bandwidth: add.bandwidth,
        })
    }

    fn check_host_ports(&self, add: &Add, known: Option<&Endpoint>) -> Result<(), Failure> {
        // Flows that are under way know the ports of before: only DEL ends them.
        if let Some(known) = known
            && sorted(&known.port_mappings) != sorted(&add.port_mappings)
        {
            let message = "other portMappings are asked for than the attachment has: DEL it first".into();
            return Err(refuse(codes::INVALID_CONFIGURATION, message));
        }
        let tunnel_port = (self.config.mode == Mode::Vxlan).then_some(self.config.vxlan_port);
        let others = self.model.endpoints.values().filter(|other| other.host_interface != add.host_interface);
        let capacity = self.dataplane.maps.frontends_capacity;
        host_ports::check(&add.port_mappings, others, tunnel_port, capacity).map_err(|unavailable| {
            let code = match unavailable {
                Unavailable::Contradiction(..) => codes::INVALID_CONFIGURATION,
                _ => codes::HOST_PORT_UNAVAILABLE,
            };
            refuse(code, unavailable.to_string())
        })
    }

    /// The smallest number that no endpoint has.
    fn free_id(&self) -> u32 {
        let mut used: Vec<_> = self.model.endpoints.values().map(|endpoint| endpoint.id).collect();
        used.sort_unstable();
        (1..).zip(used).find(|(free, used)| free != used).map_or_else(
            || u32::try_from(self.model.endpoints.len()).unwrap_or(u32::MAX).saturating_add(1),
            |(free, _)| free,
        )
    }

    /// The device's ifindex, once it is what the plugin says it made.
    async fn checked_device(&self, endpoint: &Endpoint) -> Result<u32, Failure> {
        let name = endpoint.host_interface.clone();
        let device = self.links.device(&name).await.map_err(|error| failure(&error))?;
        let Some(device) = device else {
            return Err(failure(&Error::NoDevice { name }));
        };
        if device.mac != Some(endpoint.host_mac) {
            let has = device.mac.map_or_else(|| "none".into(), format_mac);
            let problem = format!(
                "its link address is {has}, not {} as it was made with: keep other tools (udev, networkd) off devices named pw*",
                format_mac(endpoint.host_mac)
            );
            return Err(failure(&Error::Device { name, problem }));
        }
        Ok(device.index)
    }

    fn allocate(&mut self, asked: &[IpNet]) -> Result<Ipv4Addr, Failure> {
        self.look_at_host_local();
        let Some(pool) = &mut self.pool else {
            return Err(refuse(
                codes::TRY_AGAIN_LATER,
                "the agent is not ready: this node's podCIDR is not known".into(),
            ));
        };
        let address = match asked {
            [] => pool.allocate(),
            [IpNet::V4(asked)] => pool.take(asked.addr()).map(|()| asked.addr()),
            [other] => {
                let message = format!("address {other} is asked for: this node has IPv4 addresses only");
                return Err(refuse(codes::ADDRESS_UNAVAILABLE, message));
            }
            several => {
                let message = format!("{} addresses are asked for: a pod gets one per family", several.len());
                return Err(refuse(codes::ADDRESS_UNAVAILABLE, message));
            }
        };
        address.map_err(|error| {
            let code = match error {
                IpamError::Exhausted { .. } | IpamError::NoRoom(_) => codes::ADDRESSES_EXHAUSTED,
                _ => codes::ADDRESS_UNAVAILABLE,
            };
            refuse(code, error.to_string())
        })
    }

    /// Disk and kernel, both of them: a disk takes longer than all the rest, which is done meanwhile, for this pod and for the next ones.
    async fn connect(&mut self, endpoint: Endpoint, reply: oneshot::Sender<Reply>) {
        let last = self.pool.as_ref().and_then(Pool::last);
        let taken = last.map_or(Ok(()), |last| self.store.save_last_address(last));
        if let Err(error) = taken.and_then(|()| step(Step::AddressTaken)) {
            return self.finish(endpoint, Err(error), reply).await;
        }
        let (attachment, save) = (endpoint.attachment.clone(), self.store.saving(&endpoint));
        self.saving.spawn_blocking(move || (attachment, save()));
        let linked = self.link(&endpoint).await;
        self.adding.insert(endpoint.attachment.clone(), Adding { endpoint, linked, reply });
    }

    /// Answers the ADDs that wait for the disk.
    pub(super) async fn finish_all_saved(&mut self) {
        while let Some(saved) = self.saving.join_next().await {
            self.finish_saved(saved).await;
        }
    }

    /// Answers an ADD whose endpoint was written to disk, or could not be.
    pub(super) async fn finish_saved(&mut self, saved: Result<Saved, JoinError>) {
        let (attachment, saved) = saved.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        // Only now, also where the rest has failed: what is undone must not be written afterwards.
        if saved.is_err() {
            self.try_state_folder();
        }
        if let Some(Adding { endpoint, linked, reply }) = self.adding.remove(&attachment) {
            self.finish(endpoint, linked.and(saved), reply).await;
        }
    }

    async fn finish(
        &mut self,
        endpoint: Endpoint,
        connected: Result<(), Error>,
        reply: oneshot::Sender<Reply>,
    ) {
        if let Err(error) = connected.and_then(|()| step(Step::Agreed)) {
            self.undo(&endpoint).await;
            return answer(reply, Err(failure(&error)));
        }
        if reply.is_closed() {
            warn!(pod = %endpoint, "undone: its plugin has given up waiting, or is dead");
            return self.undo(&endpoint).await;
        }
        info!(pod = %endpoint, container = endpoint.attachment.container_id, "added");
        self.conditions.clear_for(ConditionName::EndpointRecovered, &endpoint.host_interface);
        if !endpoint.port_mappings.is_empty() {
            let host = Arc::clone(&self.host);
            self.look_at_host_addresses(&host);
        }
        answer(reply, Ok(Reply::Added(added(&endpoint))));
    }

    /// Whether the node has the addresses that hostPorts are at.
    pub(super) fn look_at_host_addresses(&mut self, host: &Host) {
        let own = host.own_addresses();
        let pods = self.model.endpoints.values().filter(|pod| !pod.port_mappings.is_empty());
        let absent = pods.filter_map(|pod| {
            let absent: Vec<_> = host_ports::foreign_addresses(&pod.port_mappings, &own)
                .into_iter()
                .map(|address| address.to_string())
                .collect();
            let why = format!(
                "hostIP {} is no address of this node: the hostPorts of {pod} answer when it is",
                absent.join(", ")
            );
            (!absent.is_empty()).then(|| (pod.host_interface.clone(), why))
        });
        let absent: Vec<_> = absent.collect();
        self.conditions.replace(ConditionName::HostIpAbsent, absent);
    }

    /// Programs, limit, link, maps, route: in this order, so that at each step what it needs is there.
    async fn link(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        self.dataplane.attach_pod(&endpoint.host_interface)?;
        step(Step::ProgramsAttached)?;
        if let Some(limit) = endpoint.ingress_limit() {
            self.links.set_limit(endpoint.ifindex, &endpoint.host_interface, &limit).await?;
        }
        step(Step::LimitSet)?;
        self.config.places.switches().put_right(&Switch::forwarding(&endpoint.host_interface))?;
        self.links.set_mtu_and_up(endpoint.ifindex, &endpoint.host_interface, endpoint.mtu).await?;
        step(Step::LinkUp)?;
        if let Some(guard) = endpoint.guard() {
            self.apply(Op::SetGuard(endpoint.ifindex, guard)).await?;
        }
        step(Step::GuardWritten)?;
        self.apply(Op::SetEndpoint(endpoint.address.into(), endpoint_entry(endpoint))).await?;
        step(Step::EndpointWritten)?;
        for (frontend, backend) in frontends(endpoint) {
            self.apply(Op::SetFrontend(frontend, backend)).await?;
        }
        step(Step::FrontendsWritten)?;
        let route = self.route_to(endpoint);
        self.apply(Op::SetRoute(endpoint.address.into(), route)).await?;
        step(Step::RouteSet)
    }

    /// After an ADD that failed half way. The device stays: the plugin made it and removes it.
    async fn undo(&mut self, endpoint: &Endpoint) {
        let route = self.route_to(endpoint);
        let undone = [
            self.remove_frontends(endpoint).await,
            self.apply(Op::RemoveRoute(endpoint.address.into(), route)).await,
            self.apply(Op::RemoveEndpoint(endpoint.address.into())).await,
            self.remove_guard(endpoint).await,
            self.links.set_down(endpoint.ifindex, &endpoint.host_interface).await,
            self.dataplane.maps.forget_pod(endpoint.address),
            self.store.remove(endpoint),
        ];
        self.dataplane.detach_pod(&endpoint.host_interface);
        let failed: Vec<_> = undone.into_iter().filter_map(Result::err).collect();
        if failed.is_empty() {
            return self.forget(endpoint);
        }
        // What still bears its address would be another pod's. It is released by its DEL, or when its device is gone.
        for error in failed {
            error!(pod = %endpoint, "undo a failed ADD: {error}; its address is kept until that is done");
        }
    }

    async fn del(&mut self, attachment: &Attachment) -> Result<(), Failure> {
        let Some(endpoint) = self.model.endpoint_of(attachment).cloned() else {
            return Ok(());
        };
        self.release(&endpoint).await.map_err(|error| failure(&error))?;
        info!(pod = %endpoint, container = attachment.container_id, "deleted");
        Ok(())
    }

    /// Takes everything of an endpoint back, what points at something before what it points at; the address last, when
    /// nothing refers to it any more.
    pub(super) async fn release(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        self.remove_frontends(endpoint).await?;
        step(Step::FrontendsRemoved)?;
        let route = self.route_to(endpoint);
        self.apply(Op::RemoveRoute(endpoint.address.into(), route)).await?;
        step(Step::RouteRemoved)?;
        self.apply(Op::RemoveEndpoint(endpoint.address.into())).await?;
        step(Step::EndpointRemoved)?;
        self.remove_guard(endpoint).await?;
        step(Step::GuardRemoved)?;
        // By its number, and its name or its link address: a device that somebody else made meanwhile is not the pod's.
        if endpoint.ifindex != 0
            && let Some(device) = self.links.device_at(endpoint.ifindex).await?
            && (device.name == endpoint.host_interface || device.mac == Some(endpoint.host_mac))
        {
            self.links.remove_device(endpoint.ifindex, &device.name).await?;
        }
        step(Step::PairRemoved)?;
        self.dataplane.maps.forget_pod(endpoint.address)?;
        step(Step::FlowsForgotten)?;
        self.store.remove(endpoint)?;
        step(Step::FileRemoved)?;
        self.forget(endpoint);
        step(Step::Released)
    }

    async fn remove_guard(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        match endpoint.guard() {
            Some(_) => self.apply(Op::RemoveGuard(endpoint.ifindex)).await,
            None => Ok(()),
        }
    }

    async fn remove_frontends(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        for (frontend, _) in frontends(endpoint) {
            self.apply(Op::RemoveFrontend(frontend)).await?;
        }
        Ok(())
    }

    fn forget(&mut self, endpoint: &Endpoint) {
        self.model.endpoints.remove(&endpoint.attachment);
        for of_pod in [
            ConditionName::PodsOutsidePodCidr,
            ConditionName::NotReleased,
            ConditionName::HostIpAbsent,
            ConditionName::EndpointRecovered,
        ] {
            self.conditions.clear_for(of_pod, &endpoint.host_interface);
        }
        if let Some(pool) = &mut self.pool {
            pool.release(endpoint.address);
        }
    }

    pub(super) fn route_to(&self, endpoint: &Endpoint) -> Route {
        let source = self.model.own.as_ref().map(|own| own.address);
        Route::Link { device: endpoint.ifindex, gateway: None, source }
    }
}

/// The plugin may have given up at this very moment: what was done stays and is undone by its DEL.
fn answer(reply: oneshot::Sender<Reply>, result: Result<Reply, Failure>) {
    let _ = reply.send(result.unwrap_or_else(|failure| {
        warn!(code = failure.code, "refused: {failure}");
        Reply::Failed(failure)
    }));
}

fn sorted(mappings: &[PortMapping]) -> Vec<PortMapping> {
    let mut mappings = mappings.to_vec();
    mappings.sort_unstable();
    mappings
}

fn wanted_mtu(configured: Option<u32>, fitting: u32) -> Result<u32, Failure> {
    match configured {
        None => Ok(fitting),
        Some(mtu) if mtu > fitting => {
            let message = format!(
                "mtu: {mtu} is more than the {fitting} bytes that fit this node's uplinks: lower it or leave it out"
            );
            Err(refuse(codes::INVALID_CONFIGURATION, message))
        }
        Some(mtu) if mtu < LEAST_MTU => Err(refuse(
            codes::INVALID_CONFIGURATION,
            format!("mtu: {mtu} is less than the {LEAST_MTU} bytes of IPv4"),
        )),
        Some(mtu) => Ok(mtu),
    }
}

pub(super) fn added(endpoint: &Endpoint) -> Added {
    Added {
        addresses: vec![IpNet::from(IpAddr::V4(endpoint.address))],
        gateways: vec![endpoint.gateway.into()],
        mtu: endpoint.mtu,
        pod_mac: format_mac(endpoint.pod_mac),
        host_mac: format_mac(endpoint.host_mac),
        host_interface: endpoint.host_interface.clone(),
    }
}

/// A numbered step is over (ARCHITECTURE.md, "Life of a pod").
fn step(step: Step) -> Result<(), Error> {
    fault::after(step).map_err(Error::file("go on after", step.name()))
}

pub(super) fn refuse(code: u32, message: String) -> Failure {
    Failure { code, message }
}

pub(super) fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::File { .. } => codes::IO_FAILURE,
        Error::Netlink { .. } | Error::NoDevice { .. } | Error::Device { .. } => codes::NETLINK_FAILURE,
        _ => codes::AGENT_FAILURE,
    };
    refuse(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_mtu_has_to_fit() {
        assert_eq!(wanted_mtu(None, 1450), Ok(1450));
        assert_eq!(wanted_mtu(Some(1400), 1450), Ok(1400));
        let failure = wanted_mtu(Some(1500), 1450).unwrap_err();
        assert_eq!(failure.code, codes::INVALID_CONFIGURATION);
        assert!(failure.message.contains("1500") && failure.message.contains("1450"), "{failure}");
        assert_eq!(wanted_mtu(Some(67), 1450).unwrap_err().code, codes::INVALID_CONFIGURATION);
    }
}
