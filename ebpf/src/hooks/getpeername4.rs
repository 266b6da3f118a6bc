//! cgroup hook for IPv4: a process asks for the peer of its socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv4Call, stage::host_process, verdict::ALLOW};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    host_process::show(&Ipv4Call(ctx));
    ALLOW
}
