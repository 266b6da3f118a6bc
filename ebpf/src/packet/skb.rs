//! The socket buffer that a TC program is given.

use core::mem::MaybeUninit;

use aya_ebpf::programs::TcContext;
use aya_ebpf::cty::c_void;
use podwire_common::reason::Drop;

use crate::helpers::{self, bpf_skb_change_type, bpf_skb_load_bytes};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// The bits of a VLAN tag that name the VLAN.
const VLAN_ID: u32 = 0x0fff;
/// Written into `tc_index`, which nothing else on a packet's way from hook to hook uses. Not the mark: that is seen by
/// every rule of the host.
const READY: u32 = 0x7077;

/// Loads, stores and fields of a socket buffer.
///
/// Everything goes through helpers: they read and write paged data as well as linear, and unclone before a write.
pub trait Skb {
    /// Length of the frame.
    fn bytes(&self) -> u32;
    /// The link that the hook is on.
    fn ifindex(&self) -> u32;
    /// Whether a VLAN tag was taken out of the frame by the link.
    fn has_vlan_tag(&self) -> bool;
    /// Whether the frame belongs to a VLAN. A tag of VLAN 0 only bears a priority: the kernel takes the frame as untagged
    /// (IEEE 802.1Q section 6.8).
    fn has_foreign_vlan_tag(&self) -> bool;
    /// Whether the link found the frame addressed to this host.
    fn is_for_this_host(&self) -> bool;
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
    fn load_into_far<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop>;
    /// Stores a value at an offset from the start of the frame.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`] when the kernel refuses.
    fn store_at<T>(&self, offset: u32, value: &T) -> Result<(), Drop>;
    /// Says to [`Self::is_ready_to_leave`], further on this packet's way, that a program of ours has made it ready.
    fn set_ready_to_leave(&self);
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
    fn segment_payload(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).gso_size }
    }

    #[inline(always)]
    fn load_at<T>(&self, offset: u32) -> Result<T, Drop> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: only types made of bytes are loaded, and the whole value is written before it is used.
        self.load_into(offset, unsafe { &mut *value.as_mut_ptr() })?;
        Ok(unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn load_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop> {
        let start = self.data() + (offset & 0xff) as usize;
        if size_of::<T>() % 2 == 0 && start + size_of::<T>() <= self.data_end() {
            unsafe {
                core::ptr::copy_nonoverlapping(start as *const u16, (&raw mut *value).cast::<u16>(), size_of::<T>() / 2);
            }
            return Ok(());
        }
        load_paged(self, offset, (&raw mut *value).cast(), size_of::<T>() as u32)
    }

    #[inline(always)]
    fn load_into_far<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop> {
        let code = unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset, (&raw mut *value).cast(), size_of::<T>() as u32) };
        if code == 0 { Ok(()) } else { Err(Drop::Truncated) }
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

#[inline(never)]
fn load_paged(ctx: &TcContext, offset: u32, value: *mut c_void, size: u32) -> Result<(), Drop> {
    let code = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, value, size & 0x3f) };
    if code == 0 { Ok(()) } else { Err(Drop::Truncated) }
}
