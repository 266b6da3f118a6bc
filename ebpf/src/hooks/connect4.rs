//! cgroup hook for IPv4: a process connects a socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv4Call, stage::host_process, verdict::ALLOW};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    host_process::connect(&Ipv4Call(ctx));
    ALLOW
}
