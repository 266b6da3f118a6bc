//! cgroup hook for IPv6: a process connects a socket. The address may be v4-mapped.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv6Call, stage::host_process, verdict::finish_call};

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let call = Ipv6Call(ctx);
    finish_call(&call, host_process::connect(&call))
}
