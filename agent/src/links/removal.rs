//! Removing a device, without waiting for what the kernel does after it is gone.

use std::io;
use std::sync::Arc;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_ECHO, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::task::spawn_blocking;

use super::{LinkError, Links, NOT_THERE};
use crate::files::FileError;

/// Room for what the kernel tells of a device: about 1.5 kB.
const ANSWER: usize = 1 << 14;

impl Links {
    /// Removes a device, and the other end of a pair with it. Nothing happens when it is not there. Afterwards it has no
    /// packets, no programs and no name. The kernel frees it later; how much later is nobody's business here.
    ///
    /// # Errors
    /// [`LinkError::File`]: the kernel's.
    pub async fn remove_device(&self, index: u32, name: &str) -> Result<(), LinkError> {
        match remove(index).await {
            Err(error) if error.raw_os_error().is_some_and(|code| NOT_THERE.contains(&-code)) => Ok(()),
            removed => Ok(removed.map_err(FileError::of("remove the device", name))?),
        }
    }
}

/// The kernel keeps the thread that asks until every CPU is known to have let go of the device: 12 ms and more, beside the
/// 0.5 ms of the removal itself. So a thread of its own asks, and what it waits for is heard of here: with `NLM_F_ECHO` the
/// kernel tells of the removal at once (Linux 6.2; before, there is only the answer at the end).
async fn remove(index: u32) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    // The kernel tells of the other end as well, in the pod's namespace, to the socket that has this one's number there. The
    // usual number, the process's, is taken by the agent's first routing socket, so that this is a random one, nobody's there.
    socket.socket_mut().bind_auto()?;
    let socket = Arc::new(socket);
    let asking = Arc::clone(&socket);
    let asked = spawn_blocking(move || {
        let kernel = SocketAddr::new(0, 0);
        asking.socket_ref().send_to(&request(index), &kernel, 0)
    });
    tokio::select! {
        answer = answer(&socket) => answer,
        // The kernel was not asked, so that it will not answer.
        Ok(Err(error)) = asked => Err(error),
    }
}

fn request(index: u32) -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelLink(link));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    bytes
}

/// The first thing that is heard: a refusal, or that the device is gone.
async fn answer(socket: &TokioSocket) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(ANSWER);
    socket.recv(&mut bytes).await?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
