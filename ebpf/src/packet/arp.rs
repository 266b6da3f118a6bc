//! ARP for IPv4 over Ethernet (RFC 826).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::Macs,
    addr::{Be16, Mac},
    reason::Drop,
};

use super::Skb;

const OFFSET: u32 = 14;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// An ARP packet as on the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arp {
    hardware: Be16,
    protocol: Be16,
    lengths: [u8; 2],
    operation: Be16,
    /// Link address of the host that asks.
    pub sender_mac: Mac,
    /// IPv4 address of the host that asks, network order.
    pub sender: [u8; 4],
    target_mac: Mac,
    /// IPv4 address that is asked for, network order.
    pub target: [u8; 4],
}

const _: () = assert!(size_of::<Arp>() == 28);

impl Arp {
    /// Loads the packet behind the Ethernet header.
    ///
    /// # Errors
    /// [`Drop::Truncated`].
    #[inline(always)]
    pub fn load(ctx: &TcContext) -> Result<Self, Drop> {
        ctx.load_at(OFFSET)
    }

    /// Returns whether the packet is a request about IPv4 over Ethernet.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.hardware.get() == 1
            && self.protocol.get() == super::ethertype::IPV4
            && self.lengths[0] == 6
            && self.lengths[1] == 4
            && self.operation.get() == REQUEST
    }

    /// Turns the request in the frame into its answer.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    #[inline(always)]
    pub fn answer(&self, ctx: &TcContext, mac: Mac) -> Result<(), Drop> {
        let answer = Self {
            operation: Be16::new(REPLY),
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
            ..*self
        };
        super::set_macs(ctx, Macs { destination: self.sender_mac, source: mac })?;
        ctx.store_at(OFFSET, &answer)
    }
}
