//! A stage looks something up, lets `common` decide, and rewrites the packet.

pub mod arp;
pub mod checksum;
pub mod direct;
pub mod ends;
pub mod event;
pub mod fastpath;
pub mod flow;
pub mod frontend;
pub mod host_process;
pub mod icmp_error;
pub mod inbound;
pub mod local;
pub mod neighbour;
pub mod outer;
pub mod outside;
pub mod refusal;
pub mod service;
pub mod service_network;
pub mod snat;
pub mod source;
pub mod stack_flow;
pub mod too_big;
pub mod translation;
pub mod tunnel_in;
pub mod tunnel_out;
