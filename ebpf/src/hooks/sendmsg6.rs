//! cgroup hook for IPv6: a process sends a datagram to an address that is not v4-mapped.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv6Call, stage::host_process, verdict::finish_call};

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = Ipv6Call(ctx);
    finish_call(&call, host_process::send(&call))
}
