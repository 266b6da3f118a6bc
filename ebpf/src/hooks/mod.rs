//! One file per attach point: the order of its stages, and nothing else.

mod begun;
mod captured;
mod connect4;
mod connect6;
mod dropped;
#[cfg(feature = "count-helpers")]
mod empty;
mod from_bare_uplink;
mod from_overlay;
mod from_pod;
mod from_uplink;
mod getpeername4;
mod getpeername6;
mod outside;
mod recvmsg4;
mod recvmsg6;
mod sendmsg4;
mod sendmsg6;
mod served;
mod sock_release;
mod to_overlay;
mod to_pod;
mod to_uplink;
mod uplink_xdp;
