//! Packet tables: the kernel runs each program on one frame at a time, with maps that the agent's
//! own code filled. The tables check the verdict, the exact bytes, the counters and the maps.

mod chain;
mod collector;
mod costs;
mod counting;
mod fixture;
mod forgotten;
mod from_overlay;
mod from_pod;
mod from_uplink;
mod host_ports;
mod ipv6;
mod ipv6_host_ports;
mod ipv6_traffic;
mod ipv6_tunnel;
mod ipv6_world;
mod kernels;
mod kind;
mod kinds;
mod known;
mod known_destinations;
mod known_kinds;
mod limited;
mod namespace;
mod packets;
mod packets6;
mod pool;
mod protocols;
mod snat;
mod to_overlay;
mod to_pod;
mod to_uplink;
mod trial;
mod upgrade;
mod uplink_xdp;
mod vtep;
