//! cgroup hook: the last process that has a socket closes it.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::{packet::ClosedSocket, stage::host_process, verdict::ALLOW};

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    host_process::release(&ClosedSocket(ctx));
    ALLOW
}
