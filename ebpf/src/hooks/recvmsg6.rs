//! cgroup hook for IPv6: the kernel tells a process where a datagram comes from. The address may be
//! v4-mapped.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv6Call, stage::host_process, verdict::ALLOW};

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    host_process::show(&Ipv6Call(ctx));
    ALLOW
}
