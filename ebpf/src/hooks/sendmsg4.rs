//! cgroup hook for IPv4: a process sends a datagram to an address. An IPv6 socket's datagrams to
//! IPv4 addresses come here, too.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv4Call, stage::host_process, verdict::finish_call};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = Ipv4Call(ctx);
    finish_call(&call, host_process::send(&call))
}
