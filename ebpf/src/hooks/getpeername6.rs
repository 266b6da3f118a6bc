//! cgroup hook for IPv6: a process asks for the peer of its socket. The address may be v4-mapped.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv6Call, stage::host_process, verdict::ALLOW};

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    host_process::show(&Ipv6Call(ctx));
    ALLOW
}
