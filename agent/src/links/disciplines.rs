//! The queueing discipline that holds the filters of a device.

use futures_util::TryStreamExt as _;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::{LinkError, Links, filter, netlink};

/// TCA_INGRESS_BLOCK and TCA_EGRESS_BLOCK (include/uapi/linux/rtnetlink.h): the filters are in a
/// shared block, and may also be filters of other devices.
const SHARED_BLOCKS: [u16; 2] = [13, 14];

/// The result of looking for a discipline in the place of clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Displaced {
    /// There was none: the device has clsact, or no discipline there.
    No,
    /// The agent removed it.
    Removed,
    /// It stays, because filters of other tools are on it.
    InUse,
}

impl Links {
    /// Returns whether a device has a clsact queueing discipline, made by any tool.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn has_clsact(&self, device: u32) -> Result<bool, LinkError> {
        Ok(self.discipline(device).await?.is_some_and(|message| is_clsact(&message)))
    }

    /// Removes a device's clsact queueing discipline unless it has a filter. `false`: there is no
    /// clsact, or it is in use.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn remove_empty_clsact(&self, device: u32) -> Result<bool, LinkError> {
        let clsact = self.discipline(device).await?.filter(is_clsact);
        let is_used = !self.filters_on(device).await?.is_empty();
        let Some(clsact) = clsact.filter(|_| !is_used) else {
            return Ok(false);
        };
        self.remove_discipline(&clsact).await?;
        Ok(true)
    }

    /// Removes a discipline that stands in the place of clsact:
    ///
    /// - an `ingress` discipline: it has one block for both directions, so that the filter of one
    ///   direction replaces the filter of the other;
    /// - clsact with shared blocks: the kernel changes their filters only by the block's number.
    ///
    /// With `ours`, a discipline stays if it has filters of programs other than these.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn remove_displacing(
        &self,
        device: u32,
        ours: Option<&[&str]>,
    ) -> Result<Displaced, LinkError> {
        let Some(discipline) = self.discipline(device).await?.filter(|message| !is_plain(message)) else {
            return Ok(Displaced::No);
        };
        if let Some(ours) = ours {
            // A message without a handle describes a priority, not a filter. Each filter at that
            // priority has its own message.
            let is_ours = |message: &TcMessage| {
                message.header.info >> 16 == 1
                    && (u32::from(message.header.handle) == 0
                        || filter(message).is_some_and(|filter| ours.contains(&&*filter.name)))
            };
            if !self.filters_on(device).await?.iter().all(is_ours) {
                return Ok(Displaced::InUse);
            }
        }
        self.remove_discipline(&discipline).await?;
        Ok(Displaced::Removed)
    }

    /// Returns the discipline in the place of clsact.
    async fn discipline(&self, device: u32) -> Result<Option<TcMessage>, LinkError> {
        let index = i32::try_from(device).unwrap_or_default();
        let mut disciplines = self.handle.qdisc().get().execute();
        let mut found = None;
        while let Some(message) =
            disciplines.try_next().await.map_err(netlink("list queueing disciplines"))?
        {
            if message.header.index == index && message.header.parent == TcHandle::CLSACT {
                found = Some(message);
            }
        }
        Ok(found)
    }

    /// Returns all filters of both directions, made by any tool.
    async fn filters_on(&self, device: u32) -> Result<Vec<TcMessage>, LinkError> {
        let index = i32::try_from(device).unwrap_or_default();
        let mut all = Vec::new();
        for get in [
            self.handle.traffic_filter(index).get().ingress(),
            self.handle.traffic_filter(index).get().egress(),
        ] {
            let filters: Vec<_> = get.execute().try_collect().await.map_err(netlink("list filters"))?;
            all.extend(filters);
        }
        Ok(all)
    }

    async fn remove_discipline(&self, discipline: &TcMessage) -> Result<(), LinkError> {
        let mut request = self.handle.qdisc().del(discipline.header.index);
        request.message_mut().header = discipline.header.clone();
        request.execute().await.map_err(netlink("remove a queueing discipline"))
    }
}

fn is_clsact(message: &TcMessage) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact"))
}

/// Returns whether a discipline is clsact without shared blocks.
fn is_plain(message: &TcMessage) -> bool {
    let is_shared = |attribute: &TcAttribute| match attribute {
        TcAttribute::Other(other) => SHARED_BLOCKS.contains(&other.kind()),
        _ => false,
    };
    is_clsact(message) && !message.attributes.iter().any(is_shared)
}
