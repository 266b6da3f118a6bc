//! cgroup hook for IPv4: the kernel tells a process where a datagram comes from.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{packet::Ipv4Call, stage::host_process, verdict::ALLOW};

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    host_process::show(&Ipv4Call(ctx));
    ALLOW
}
