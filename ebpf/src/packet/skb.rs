//! The socket buffer that a TC program is given.

use core::{mem::MaybeUninit, ptr::copy_nonoverlapping};

use aya_ebpf::{cty::c_void, programs::TcContext};
use podwire_common::reason::Drop;

use crate::helpers::{self, bpf_skb_change_type, bpf_skb_load_bytes};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`.
const PACKET_OTHERHOST: u32 = 3;
/// The bits of a VLAN tag that name the VLAN.
const VLAN_ID: u32 = 0x0fff;
/// Written into `tc_index`, which nothing else on a packet's way from hook to hook uses. Not the mark: that is seen by
/// every rule of the host.
const READY: u32 = 0x7077;
/// The same place, another word.
const BEGINS: u32 = 0x7078;

/// Offsets that the verifier is shown to be small; all headers are within, whatever options they have.
const NEAR: u32 = 0xff;

/// Loads, stores and fields of a socket buffer.
///
/// Helpers read and write paged data as well as linear, and unclone before a write. [`Skb::read_into`] spares a call. Stores do not:
/// a program with a direct write anywhere unclones every packet before it starts, which costs as much and is done again by the helpers that
/// follow.
pub trait Skb {
    /// Length of the frame.
    fn bytes(&self) -> u32;
    /// The link that the hook is on.
    fn ifindex(&self) -> u32;
    /// What the packet is, by its link.
    fn ethertype(&self) -> u16;
    /// Whether a VLAN tag was taken out of the frame by the link.
    fn has_vlan_tag(&self) -> bool;
    /// Whether the frame belongs to a VLAN. A tag of VLAN 0 only bears a priority: the kernel takes the frame as untagged
    /// (IEEE 802.1Q section 6.8).
    fn has_foreign_vlan_tag(&self) -> bool;
    /// The link by which the packet came to this host; 0 when it did not: a socket's, or the VXLAN
    /// device's.
    fn ingress_ifindex(&self) -> u32;
    /// Whether the link found the frame addressed to this host, and not to a group.
    fn is_for_this_host(&self) -> bool;
    /// Whether the link found the frame addressed to another host.
    fn is_for_another_host(&self) -> bool;
    /// Payload bytes per segment of a large segment; 0 for a single packet.
    fn segment_payload(&self) -> u32;
    /// Loads a value at an offset from the start of the frame.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame ends before.
    fn load_at<T>(&self, offset: u32) -> Result<T, Drop>;
    /// As [`Self::load_at`], in place: for values that are large beside the 512 bytes of stack.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame ends before.
    fn load_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop>;
    /// As [`Self::load_into`], without a helper's call where the data is linear: for what every packet is asked.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame ends before.
    fn read_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop>;
    /// Stores a value at an offset from the start of the frame.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`] when the kernel refuses.
    fn store_at<T>(&self, offset: u32, value: &T) -> Result<(), Drop>;
    /// Says to [`Self::is_ready_to_leave`], further on this packet's way, that a program of ours has made it ready.
    fn set_ready_to_leave(&self);
    /// Says to [`Self::is_beginning`], further on this packet's way, that the host stack was given a flow's first packet.
    fn set_beginning(&self);
    /// Whether [`Self::set_beginning`] was said, and no rule of the host has marked the packet since.
    fn is_unmarked_beginning(&self) -> bool;
    /// Whether [`Self::set_beginning`] was said.
    fn is_beginning(&self) -> bool;
    /// Takes back what a sender may have put where [`Self::set_ready_to_leave`] writes: the field crosses namespaces.
    fn clear_ready_to_leave(&self);
    /// Whether a program of ours has made the packet ready for the link that it leaves by.
    fn is_ready_to_leave(&self) -> bool;
    /// Marks the packet as addressed to this host, whatever its link address says.
    fn set_packet_host(&self);
}

impl Skb for TcContext {
    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: as above; in network order.
        u16::from_be(unsafe { (*self.skb.skb).protocol } as u16)
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn has_foreign_vlan_tag(&self) -> bool {
        // SAFETY: as above.
        self.has_vlan_tag() && unsafe { (*self.skb.skb).vlan_tci } & VLAN_ID != 0
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn is_for_another_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).pkt_type == PACKET_OTHERHOST }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).gso_size }
    }

    #[inline(always)]
    fn load_at<T>(&self, offset: u32) -> Result<T, Drop> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: only types made of bytes are loaded.
        self.load_into(offset, unsafe { &mut *value.as_mut_ptr() })?;
        // SAFETY: the whole value has been written.
        Ok(unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn load_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop> {
        // SAFETY: the context is valid, the size is that of the value, and only types made of bytes are loaded.
        let code = unsafe {
            bpf_skb_load_bytes(self.skb.skb.cast(), offset, (&raw mut *value).cast(), size_of::<T>() as u32)
        };
        if code == 0 { Ok(()) } else { Err(Drop::Truncated) }
    }

    #[inline(always)]
    fn read_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop> {
        let (start, value) = (self.data() + (offset & NEAR) as usize, &raw mut *value);
        if offset <= NEAR && start + size_of::<T>() <= self.data_end() {
            // SAFETY: both are as large as the value, and the verifier refuses what is beyond the frame.
            unsafe { copy::<T>(start as *const u8, value.cast()) };
            return Ok(());
        }
        load_paged(self, offset, value.cast(), size_of::<T>() as u32)
    }

    #[inline(always)]
    fn store_at<T>(&self, offset: u32, value: &T) -> Result<(), Drop> {
        helpers::store(self, offset as usize, value, 0).map_err(|_| Drop::RewriteFailed)
    }

    #[inline(always)]
    fn set_ready_to_leave(&self) {
        // SAFETY: as above; the field may be written by a TC program.
        unsafe { (*self.skb.skb).tc_index = READY };
    }

    #[inline(always)]
    fn set_beginning(&self) {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index = BEGINS };
    }

    #[inline(always)]
    fn is_beginning(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index == BEGINS }
    }

    #[inline(always)]
    fn is_unmarked_beginning(&self) -> bool {
        // SAFETY: as above.
        self.is_beginning() && unsafe { (*self.skb.skb).mark } == 0
    }

    #[inline(always)]
    fn clear_ready_to_leave(&self) {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index = 0 };
    }

    #[inline(always)]
    fn is_ready_to_leave(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index == READY }
    }

    #[inline(always)]
    fn set_packet_host(&self) {
        // SAFETY: the context is valid. The only error is an unknown type.
        unsafe { bpf_skb_change_type(self.skb.skb, PACKET_HOST) };
    }
}

/// # Safety
/// Both are as large as the type, and aligned as it is. No frame begins at an odd address, nor a header in it.
#[inline(always)]
unsafe fn copy<T>(from: *const u8, to: *mut u8) {
    // SAFETY: by the contract.
    unsafe {
        if align_of::<T>().is_multiple_of(2) {
            copy_nonoverlapping(from.cast::<u16>(), to.cast::<u16>(), size_of::<T>() / 2);
        } else {
            copy_nonoverlapping(from, to, size_of::<T>());
        }
    }
}

// A function of its own: it is hardly ever called.
#[inline(never)]
fn load_paged(ctx: &TcContext, offset: u32, value: *mut c_void, size: u32) -> Result<(), Drop> {
    // SAFETY: the context is valid, the size is that of the value, and only types made of bytes are loaded. No value has more bytes than the
    // mask, which is for the verifier.
    let code = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, value, size & NEAR) };
    if code == 0 { Ok(()) } else { Err(Drop::Truncated) }
}
