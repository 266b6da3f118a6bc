//! Removes a device without waiting until the kernel has freed it.

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

/// Bytes for the kernel's report of a device. A report has about 1.5 kB.
const ANSWER: usize = 1 << 14;

impl Links {
    /// Removes a device, and with it the other end of a pair. Does nothing if the device does not
    /// exist. When this returns, no packet passes the device, it has no programs, and its name is
    /// free. The kernel frees it later.
    ///
    /// # Errors
    /// [`LinkError::File`] with the kernel's error.
    pub async fn remove_device(&self, index: u32, name: &str) -> Result<(), LinkError> {
        match remove(index).await {
            Err(error) if error.raw_os_error().is_some_and(|code| NOT_THERE.contains(&-code)) => Ok(()),
            removed => Ok(removed.map_err(FileError::of("remove the device", name))?),
        }
    }
}

/// Removes a device by a request on a separate thread. The kernel blocks the requesting thread
/// until no CPU uses the device: 12 ms and more, while the removal itself takes 0.5 ms. This
/// function waits only for the kernel's report of the removal (`NLM_F_ECHO`, Linux 6.2). Earlier
/// kernels send only the acknowledgement at the end.
async fn remove(index: u32) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    // The kernel also reports the other end of a pair: in the pod's namespace, to the socket there
    // that has the same port number as this socket. No program in the pod should get that report.
    // Programs usually get their process id as the port number. But the agent's first routing
    // socket has taken the agent's process id, so the kernel gives this socket a random number.
    socket.socket_mut().bind_auto()?;
    let socket = Arc::new(socket);
    let asking = Arc::clone(&socket);
    let asked = spawn_blocking(move || {
        let kernel = SocketAddr::new(0, 0);
        asking.socket_ref().send_to(&request(index), &kernel, 0)
    });
    tokio::select! {
        answer = answer(&socket) => answer,
        // The request did not reach the kernel, so no answer comes.
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

/// Waits for the first message: the report of the removal, or an error.
async fn answer(socket: &TokioSocket) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(ANSWER);
    socket.recv(&mut bytes).await?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
