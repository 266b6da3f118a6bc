//! cgroup hook for IPv6: a process connects a socket. The address may be v4-mapped.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv6Call, stage::host_process, verdict::ALLOW};

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    host_process::connect(&Ipv6Call(ctx));
    ALLOW
}
