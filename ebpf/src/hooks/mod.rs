//! One file per attach point: the order of its stages, and nothing else.

mod from_overlay;
mod from_pod;
mod from_uplink;
mod to_overlay;
mod to_pod;
mod to_uplink;
mod uplink_xdp;
