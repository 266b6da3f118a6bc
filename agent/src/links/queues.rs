//! Queues of pods' links: they limit how fast a pod receives.

use futures_util::{StreamExt, TryStreamExt};
use podwire_cni::token_bucket;
use podwire_common::token_bucket::TokenBucket;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::{LinkError, Links, netlink, unless_absent};

/// All queues of the network namespace.
#[derive(Debug)]
pub struct Queues(Vec<TcMessage>);

impl Queues {
    /// Returns whether a device has this limit on what it sends.
    pub fn limit(&self, device: u32, bucket: &TokenBucket) -> bool {
        self.0.iter().any(|message| token_bucket::is_told_by(bucket, message, device))
    }
}

impl Links {
    /// Returns the current queues.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn queues(&self) -> Result<Queues, LinkError> {
        let queues = self.handle.qdisc().get().execute();
        Ok(Queues(queues.try_collect().await.map_err(netlink("list queues"))?))
    }

    /// Limits what a device sends. Replaces any queue that the device has.
    ///
    /// # Errors
    /// [`LinkError::Netlink`], for example if the kernel has no `tbf` queue.
    pub async fn set_limit(&self, device: u32, name: &str, bucket: &TokenBucket) -> Result<(), LinkError> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(
            token_bucket::message(bucket, device),
        ));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let operation = || format!("limit the rate of {name} to its pod (needs the kernel's tbf queue)");
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(netlink(operation()))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(refusal) = answer.payload {
                return Err(netlink(operation())(rtnetlink::Error::NetlinkError(refusal)));
            }
        }
        Ok(())
    }

    /// Removes the limit on what a device sends. Does nothing if there is none.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn remove_limit(&self, device: u32, name: &str) -> Result<(), LinkError> {
        let mut request = self.handle.qdisc().del(i32::try_from(device).unwrap_or_default());
        request.message_mut().header.parent = TcHandle::ROOT;
        unless_absent(request.execute().await, || format!("remove the limit of what {name} sends to its pod"))
    }
}
