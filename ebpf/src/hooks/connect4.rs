//! cgroup hook for IPv4: a process connects a socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv4Call, stage::host_process, verdict::finish_call};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let call = Ipv4Call(ctx);
    finish_call(&call, host_process::connect(&call))
}
