//! Data that the loader writes into the object: the configuration, and the layout of the kernel's
//! socket buffers.

use core::ptr::read_volatile;

use podwire_common::abi::{
    ASK_EACH_CONNECTION, ASK_EACH_DESTINATION, Config, LINK_ADDRESSES_ANY, LINK_ADDRESSES_CHECKED,
    MODE_DIRECT, MODE_VXLAN, SERVICES_HAVE_NETWORKS, SkbLayout,
};
use podwire_common::addr::Be16;

// SAFETY: the loader writes it by this name before the program runs. No other symbol has the name.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    mode: MODE_VXLAN,
    link_addresses: LINK_ADDRESSES_ANY,
    vni: 0,
    vxlan_ifindex: 0,
    vxlan_port: Be16::ZERO,
    snat_port_first: 0,
    snat_port_last: 0,
    node_port_first: 0,
    node_port_last: 0,
    ask: ASK_EACH_DESTINATION,
    services: 0,
    reserved: 0,
    netns_cookie: 0,
};

// SAFETY: the loader writes it by this name, as `CONFIG`. No other symbol has the name.
#[unsafe(no_mangle)]
static SKB_LAYOUT: SkbLayout = SkbLayout {
    window: 0,
    ip_summed: 0,
    encapsulation: 0,
    csum_start: 0,
    csum_offset: 0,
    mac_header: 0,
    head: 0,
    end: 0,
    gso_type: 0,
};

/// Returns whether pods' packets travel between nodes unencapsulated, not inside VXLAN.
#[inline(always)]
pub fn is_direct() -> bool {
    // SAFETY: a static. Volatile: the loader replaces the value that the compiler sees.
    unsafe { read_volatile(&raw const CONFIG.mode) == MODE_DIRECT }
}

/// Returns whether a remote pod's unencapsulated packet must come from its node's link address.
#[inline(always)]
pub fn checks_link_addresses() -> bool {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.link_addresses) == LINK_ADDRESSES_CHECKED }
}

/// Returns whether the programs serve services, for pods and for processes of this node.
#[inline(always)]
pub fn has_services() -> bool {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.services) != 0 }
}

/// Returns whether the agent knows networks of services.
#[inline(always)]
pub fn has_service_networks() -> bool {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.services) & SERVICES_HAVE_NETWORKS != 0 }
}

/// Returns the VXLAN network identifier, host order.
#[inline(always)]
pub fn vni() -> u32 {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.vni) }
}

/// Returns the ifindex of the VXLAN device.
#[inline(always)]
pub fn vxlan_ifindex() -> u32 {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.vxlan_ifindex) }
}

/// Returns the UDP port of the tunnel.
#[inline(always)]
pub fn vxlan_port() -> Be16 {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.vxlan_port) }
}

/// Returns the first and the last source port that SNAT chooses from, host order.
#[inline(always)]
pub fn snat_ports() -> (u16, u16) {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe {
        (read_volatile(&raw const CONFIG.snat_port_first), read_volatile(&raw const CONFIG.snat_port_last))
    }
}

/// Returns the first and the last port of Kubernetes' NodePort range, host order.
#[inline(always)]
pub fn node_ports() -> (u16, u16) {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe {
        (read_volatile(&raw const CONFIG.node_port_first), read_volatile(&raw const CONFIG.node_port_last))
    }
}

/// Returns whether the host's rules see the first packet of each connection from a pod to the
/// world.
#[inline(always)]
pub fn asks_each_connection() -> bool {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.ask) == ASK_EACH_CONNECTION }
}

/// Returns the cookie of this node's network namespace.
#[inline(always)]
pub fn netns_cookie() -> u64 {
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe { read_volatile(&raw const CONFIG.netns_cookie) }
}

/// Returns the offsets of those fields of the running kernel's socket buffer that a program's
/// context does not show.
#[inline(always)]
pub fn skb_layout() -> SkbLayout {
    // Field by field: the verifier must know each number.
    // SAFETY: a static; volatile as in `is_direct`.
    unsafe {
        SkbLayout {
            window: read_volatile(&raw const SKB_LAYOUT.window),
            ip_summed: read_volatile(&raw const SKB_LAYOUT.ip_summed),
            encapsulation: read_volatile(&raw const SKB_LAYOUT.encapsulation),
            csum_start: read_volatile(&raw const SKB_LAYOUT.csum_start),
            csum_offset: read_volatile(&raw const SKB_LAYOUT.csum_offset),
            mac_header: read_volatile(&raw const SKB_LAYOUT.mac_header),
            head: read_volatile(&raw const SKB_LAYOUT.head),
            end: read_volatile(&raw const SKB_LAYOUT.end),
            gso_type: read_volatile(&raw const SKB_LAYOUT.gso_type),
        }
    }
}
