//! The queueing discipline that filters of a device are on.

use futures_util::TryStreamExt as _;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::{LinkError, Links, filter, netlink};

/// TCA_INGRESS_BLOCK and TCA_EGRESS_BLOCK (include/uapi/linux/rtnetlink.h): filters are elsewhere, and
/// may be those of other devices too.
const SHARED_BLOCKS: [u16; 2] = [13, 14];

/// What became of a discipline in the place of clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Displaced {
    /// There was none: the device has clsact, or nothing.
    No,
    /// It was removed.
    Removed,
    /// Filters of others are on it.
    InUse,
}

impl Links {
    /// Whether a device has a clsact queueing discipline, whoever made it.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn has_clsact(&self, device: u32) -> Result<bool, LinkError> {
        Ok(self.discipline(device).await?.is_some_and(|message| is_clsact(&message)))
    }

    /// Removes a device's clsact queueing discipline unless a filter is on it. `false`: there is none, or one that is used.
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

    /// Removes what stands in the place of clsact:
    ///
    /// - an `ingress` discipline: it has one block for both directions, so that the filter of one
    ///   takes the other's place;
    /// - clsact with shared blocks, whose filters the kernel changes by the block's number only.
    ///
    /// `ours`: it stays where it has filters of other programs than these.
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
            // Without a handle a message tells of a priority, which filters of the agent share with none.
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

    /// What a device has where clsact belongs.
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

    /// All filters of both directions, whosever they are.
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

/// clsact with blocks of its own.
fn is_plain(message: &TcMessage) -> bool {
    let is_shared = |attribute: &TcAttribute| match attribute {
        TcAttribute::Other(other) => SHARED_BLOCKS.contains(&other.kind()),
        _ => false,
    };
    is_clsact(message) && !message.attributes.iter().any(is_shared)
}
