//! Attaches programs so that they outlive the agent, and replaces them without a gap.
//!
//! There are two ways:
//!
//! - Pods' devices and the VXLAN device get classic filters (clsact) at a fixed priority and
//!   handle. The device holds the filters. A TCX attachment would wait for an RCU grace period
//!   under the routing lock: 8 to 20 ms for each pod.
//! - Uplinks get TCX links where the kernel has TCX (6.6), because other tools attach programs
//!   there too and must not displace the agent's. A pinned link holds the attachment. Older kernels
//!   use clsact here as well.

use std::io;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::xdp::XdpMode;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp};
use podwire_common::names::programs;
use podwire_core::model::NodeLink;
use podwire_core::slice::Hooks;

use super::error::DataplaneError;
use super::{Dataplane, pins};

/// Priority and handle of every filter that the agent makes. They are documented, so that other
/// tools can avoid them.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// The side of a device that a filter is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// The way in which uplinks get their programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkAttachment {
    /// TCX links, pinned.
    Tcx,
    /// clsact filters.
    Clsact,
}

/// `--uplink-xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UplinkXdp {
    /// No XDP program.
    Off,
    /// Run by the network stack: works on every device.
    Generic,
    /// Run by the driver. On a veth it costs the peer's segmentation offload.
    Native,
}

/// Returns the ingress program of hooks and, if there is one, the egress program.
pub fn programs_of(hooks: Hooks) -> &'static [&'static str] {
    match hooks {
        Hooks::Pod => &[programs::FROM_POD, programs::TO_POD],
        Hooks::Overlay => &[programs::FROM_OVERLAY, programs::TO_OVERLAY],
        Hooks::Uplink => &[programs::FROM_UPLINK, programs::TO_UPLINK],
        Hooks::BareUplink => &[programs::FROM_BARE_UPLINK, programs::TO_BARE_UPLINK],
        Hooks::Inner => &[programs::FROM_UPLINK],
    }
}

impl Dataplane {
    /// Attaches `from_pod` and `to_pod` to the host side of a pod's veth pair. Replaces the
    /// programs that are there.
    ///
    /// # Errors
    /// [`DataplaneError::Attach`].
    pub fn attach_pod(&mut self, interface: &str) -> Result<(), DataplaneError> {
        self.attach_hooks(Hooks::Pod, interface, UplinkAttachment::Clsact)
    }

    /// Detaches `from_pod` and `to_pod` from a device. Does nothing if they or the device do not
    /// exist.
    pub fn detach_pod(&mut self, interface: &str) {
        detach_filters(interface);
    }

    /// Attaches `from_overlay` and `to_overlay` to the VXLAN device. Replaces the programs that are
    /// there.
    ///
    /// # Errors
    /// [`DataplaneError::Attach`].
    pub fn attach_overlay(&mut self, interface: &str) -> Result<(), DataplaneError> {
        self.attach_hooks(Hooks::Overlay, interface, UplinkAttachment::Clsact)
    }

    /// Attaches `from_uplink` to a link of the host, and `to_uplink` unless the link is an inner
    /// one. A link without link header gets the bare variants. Replaces the programs that are
    /// there.
    ///
    /// `xdp` says whether and how to attach `uplink_xdp`. `None` leaves the XDP program of the link
    /// as it is.
    ///
    /// # Errors
    /// [`DataplaneError::Attach`].
    pub fn attach_link(
        &mut self,
        index: u32,
        interface: &str,
        hooks: Hooks,
        how: UplinkAttachment,
        xdp: Option<UplinkXdp>,
    ) -> Result<(), DataplaneError> {
        self.name_links_of(index, interface)?;
        self.attach_hooks(hooks, interface, how)?;
        for program in programs::UPLINK_LINKS {
            if program != programs::UPLINK_XDP && !programs_of(hooks).contains(&program) {
                self.detach(program, interface)?;
            }
        }
        match xdp {
            None => Ok(()),
            Some(UplinkXdp::Off) => Ok(self.detach(programs::UPLINK_XDP, interface)?),
            Some(UplinkXdp::Generic) => self.attach_xdp(interface, XdpMode::Skb),
            Some(UplinkXdp::Native) => self.attach_xdp(interface, XdpMode::Driver),
        }
    }

    /// Replaces the programs of an earlier agent in every pinned link of an uplink. This happens
    /// before the agent knows which links are uplinks, so that all programs of a node are replaced
    /// together.
    ///
    /// # Errors
    /// [`DataplaneError::File`].
    pub fn take_over_uplinks(&mut self) -> Result<(), DataplaneError> {
        let Some(folder) = self.bpf_dir.clone() else {
            return Ok(());
        };
        for (program, interface) in pins::links_of(&folder, &programs::UPLINK_LINKS)? {
            self.take_over(program, Some(&pins::link(&folder, program, &interface)))?;
        }
        Ok(())
    }

    /// Removes the pinned links without a purpose: their device has no role any more, or this
    /// release has no such program.
    ///
    /// # Errors
    /// [`DataplaneError::File`].
    pub fn detach_other_links(&mut self, links: &[NodeLink]) -> Result<(), DataplaneError> {
        let places: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        let concerned = |pin: &Path| !pins::is_link_of(pin, &programs::CGROUP);
        self.detach_others(concerned, &programs::UPLINK_LINKS, &places, "no longer needed on its device")
    }

    fn attach_hooks(
        &mut self,
        hooks: Hooks,
        interface: &str,
        how: UplinkAttachment,
    ) -> Result<(), DataplaneError> {
        for (program, direction) in programs_of(hooks).iter().zip([Direction::Ingress, Direction::Egress]) {
            match how {
                UplinkAttachment::Tcx => self.attach_tcx(program, interface, direction)?,
                UplinkAttachment::Clsact => self.attach_filter(program, interface, direction)?,
            }
        }
        Ok(())
    }

    fn attach_filter(
        &mut self,
        name: &'static str,
        interface: &str,
        direction: Direction,
    ) -> Result<(), DataplaneError> {
        let attaching = Attaching { program: name, interface };
        match qdisc_add_clsact(interface) {
            Err(TcError::NetlinkError(netlink)) if is_there_already(netlink.raw_os_error()) => {}
            other => other.map_err(|source| attaching.failed(source))?,
        }
        let program = self.classifier(name)?;
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        let created =
            program.attach_with_options(interface, direction.into(), TcAttachOptions::Netlink(options));
        let id = match created {
            // The filter exists. A request for its handle without NLM_F_EXCL swaps the filter's
            // program in one step.
            Err(ProgramError::TcError(TcError::NetlinkError(netlink)))
                if is_there_already(netlink.raw_os_error()) =>
            {
                let link =
                    existing_filter(interface, direction).map_err(|source| attaching.failed(source))?;
                program.attach_to_link(link).map_err(|source| attaching.failed(source))?
            }
            other => other.map_err(|source| attaching.failed(source))?,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "the device holds the filter; dropping this would remove it"
        )]
        std::mem::forget(program.take_link(id).map_err(|source| attaching.failed(source))?);
        Ok(())
    }

    fn attach_tcx(
        &mut self,
        name: &'static str,
        interface: &str,
        direction: Direction,
    ) -> Result<(), DataplaneError> {
        let attaching = Attaching { program: name, interface };
        let pin = self.bpf_dir.as_ref().map(|folder| pins::link(folder, name, interface));
        if self.take_over(name, pin.as_deref())? {
            return Ok(());
        }
        let program = self.classifier(name)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(interface, direction.into(), options)
            .map_err(|source| attaching.failed(source))?;
        let link = FdLink::try_from(program.take_link(id).map_err(|source| attaching.failed(source))?)
            .map_err(|source| attaching.failed(source))?;
        self.keep(link, pin.as_deref(), &attaching)
    }

    fn attach_xdp(&mut self, interface: &str, mode: XdpMode) -> Result<(), DataplaneError> {
        let name = programs::UPLINK_XDP;
        let attaching = Attaching { program: name, interface };
        let pin = self.bpf_dir.as_ref().map(|folder| pins::link(folder, name, interface));
        if self.take_over(name, pin.as_deref())? {
            return Ok(());
        }
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| missing(name))?
            .try_into()
            .map_err(|source: ProgramError| attaching.failed(source))?;
        let id = program.attach(interface, mode).map_err(|source| attaching.failed(source))?;
        let link = FdLink::try_from(program.take_link(id).map_err(|source| attaching.failed(source))?)
            .map_err(|source| attaching.failed(source))?;
        self.keep(link, pin.as_deref(), &attaching)
    }

    fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, DataplaneError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        program.try_into().map_err(DataplaneError::load::<ProgramError>(name))
    }
}

/// Removes the agent's filters from a device, whichever programs they run. Does nothing if there
/// are none.
pub fn detach_filters(interface: &str) {
    for direction in [Direction::Ingress, Direction::Egress] {
        if let Ok(link) = existing_filter(interface, direction) {
            drop(link);
        }
    }
}

impl From<Direction> for TcAttachType {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

/// Returns a handle to the agent's filter on a device, by priority and handle. Dropping it detaches
/// the filter.
fn existing_filter(interface: &str, direction: Direction) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction.into(), PRIORITY, HANDLE, None)
}

fn is_there_already(errno: Option<i32>) -> bool {
    errno == Some(rustix::io::Errno::EXIST.raw_os_error())
}

pub(super) fn missing(name: &str) -> DataplaneError {
    DataplaneError::load(name)("the embedded object has no such program")
}

/// A program and its target: the context of the errors that aya returns while attaching.
pub(super) struct Attaching<'a> {
    pub(super) program: &'static str,
    pub(super) interface: &'a str,
}

impl Attaching<'_> {
    pub(super) fn failed(&self, source: impl std::error::Error + Send + Sync + 'static) -> DataplaneError {
        DataplaneError::Attach {
            program: self.program,
            interface: self.interface.into(),
            source: Box::new(source),
        }
    }
}
