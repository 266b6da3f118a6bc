//! The socket buffer of a TC program.

use core::{hint::black_box, mem::MaybeUninit, ptr::copy_nonoverlapping};

use aya_ebpf::{cty::c_void, programs::TcContext};
use podwire_common::reason::{Drop, Hook};

use crate::helpers::{self, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes};

/// Offset of the EtherType in a frame.
const ETHERTYPE: u32 = 12;
/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`.
const PACKET_OTHERHOST: u32 = 3;
/// The bits of a VLAN tag that name the VLAN.
const VLAN_ID: u32 = 0x0fff;
/// The mark of a packet that is ready to leave, in `tc_index`. Nothing else uses that field on a
/// packet's way from hook to hook. It is not in the packet mark, because every rule of the host
/// sees that.
const READY: u32 = 0x7077;
/// The mark of a flow's first packet, in the same field.
const BEGINS: u32 = 0x7078;

/// The mark of a packet with a begun event, in the control block.
const BEGUN: u32 = 0x7079_0001;

/// The mark of a packet that has been captured at a hook, in the control block.
const CAPTURED: u32 = 0x707a_0001;

/// Mask that shows the verifier a small offset. All headers are within it, whatever options they
/// have.
const NEAR: u32 = 0xff;

/// Loads, stores and fields of a socket buffer.
///
/// Helpers read and write paged data as well as linear data, and unclone the packet before a write.
/// [`Skb::read_into`] avoids a helper call, but stores do not. A program with a direct write
/// anywhere makes the kernel unclone every packet before the program starts. That costs as much as
/// the call, and the helpers that follow do it again.
pub trait Skb {
    /// Returns the length of the frame.
    fn bytes(&self) -> u32;
    /// Returns the link that the hook is on.
    fn ifindex(&self) -> u32;
    /// Returns the packet's EtherType, as its link found it.
    fn ethertype(&self) -> u16;
    /// Returns the EtherType in the frame, or 0 if the frame ends before it. A sender on this host
    /// chooses [`Self::ethertype`] as it likes, but not what receivers read here.
    fn frame_ethertype(&self) -> u16;
    /// Returns whether the link took a VLAN tag out of the frame.
    fn has_vlan_tag(&self) -> bool;
    /// Returns whether the frame belongs to a VLAN. A tag of VLAN 0 carries only a priority: the
    /// kernel treats the frame as untagged (IEEE 802.1Q section 6.8).
    fn has_foreign_vlan_tag(&self) -> bool;
    /// Returns the link by which the packet came to this host. It is 0 if the packet comes from a
    /// socket or from the VXLAN device.
    fn ingress_ifindex(&self) -> u32;
    /// Returns whether the link found the frame addressed to this host, not to a group.
    fn is_for_this_host(&self) -> bool;
    /// Returns whether the link found the frame addressed to another host.
    fn is_for_another_host(&self) -> bool;
    /// Returns the payload bytes per segment of a large segment; 0 for a single packet.
    fn segment_payload(&self) -> u32;
    /// Loads a value at an offset from the start of the frame.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame ends before the value does.
    fn load_at<T>(&self, offset: u32) -> Result<T, Drop>;
    /// Loads a value in place, as [`Self::load_at`] does, for values that are large compared with
    /// the 512 bytes of stack.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame ends before the value does.
    fn load_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop>;
    /// Loads a value in place, without a helper call if the data is linear. Use it for values that
    /// are read from every packet.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame ends before the value does.
    fn read_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop>;
    /// Stores a value at an offset from the start of the frame.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`] when the kernel refuses.
    fn store_at<T>(&self, offset: u32, value: &T) -> Result<(), Drop>;
    /// Cuts the frame to this many bytes, or extends it with zeros. A large segment becomes a single
    /// packet.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`] when the kernel refuses.
    fn resize(&self, bytes: u32) -> Result<(), Drop>;
    /// Marks the packet as made ready by one of these programs. [`Self::is_ready_to_leave`] sees
    /// the mark further on the packet's way.
    fn set_ready_to_leave(&self);
    /// Marks the packet as a flow's first packet that the host stack gets. [`Self::is_beginning`]
    /// sees the mark further on the packet's way.
    fn set_beginning(&self);
    /// Returns whether the packet has the mark of [`Self::set_beginning`], and no rule of the host
    /// has marked it since.
    fn is_unmarked_beginning(&self) -> bool;
    /// Returns whether the packet has the mark of [`Self::set_beginning`].
    fn is_beginning(&self) -> bool;
    /// Clears the field that [`Self::set_ready_to_leave`] writes. The field crosses network
    /// namespaces, so the sender may have set it.
    fn clear_ready_to_leave(&self);
    /// Returns whether one of these programs has made the packet ready for the link by which it
    /// leaves.
    fn is_ready_to_leave(&self) -> bool;
    /// Notes why and where the packet is dropped, for the program that writes its event.
    fn set_note(&self, reason: Drop, hook: Hook);
    /// Returns what [`Self::set_note`] has noted: the reason and the hook.
    fn note(&self) -> (u32, u32);
    /// Marks the packet as one with a begun event. `number` tells this event from others.
    fn set_begun(&self, number: u32);
    /// Returns whether the packet may have the mark of [`Self::set_begun`]. Other users of the
    /// control block may have left the same bytes there.
    fn has_begun(&self) -> bool;
    /// Returns the number of [`Self::set_begun`].
    fn begun(&self) -> u32;
    /// Notes the path that a packet takes, the hook and the code that the program would return, for
    /// the program that writes the packet's event.
    fn set_verdict(&self, path: u32, hook: Hook, code: i32);
    /// Returns the code that [`Self::set_verdict`] has noted. [`Self::note`] returns the rest.
    fn noted_code(&self) -> i32;
    /// Notes the hook from which a packet of a service comes.
    fn set_served(&self, hook: Hook);
    /// Returns the number of the hook of [`Self::set_served`].
    fn served_at(&self) -> u32;
    /// Marks the packet as captured at a hook.
    fn set_captured(&self, hook: Hook);
    /// Returns whether the packet has the mark of [`Self::set_captured`] of this hook, and clears
    /// the mark.
    fn take_captured(&self, hook: Hook) -> bool;
    /// Returns the number of the hook of [`Self::set_captured`].
    fn captured_at(&self) -> u32;
    /// Loads the first bytes of the frame, as many as it has and at most `N`. Returns their number.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame is empty.
    fn load_start<const N: usize>(&self, bytes: &mut [u8; N]) -> Result<u32, Drop>;
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
        // SAFETY: the context is valid while the program runs. The field is in network order.
        u16::from_be(unsafe { (*self.skb.skb).protocol } as u16)
    }

    #[inline(always)]
    fn frame_ethertype(&self) -> u16 {
        let mut ethertype = [0; 2];
        match self.read_into(ETHERTYPE, &mut ethertype) {
            Ok(()) => u16::from_be_bytes(ethertype),
            Err(_) => 0,
        }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn has_foreign_vlan_tag(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        self.has_vlan_tag() && unsafe { (*self.skb.skb).vlan_tci } & VLAN_ID != 0
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn is_for_another_host(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).pkt_type == PACKET_OTHERHOST }
    }

    #[inline(always)]
    fn set_note(&self, reason: Drop, hook: Hook) {
        // SAFETY: the context is valid while the program runs.
        unsafe { ((*self.skb.skb).cb[0], (*self.skb.skb).cb[1]) = (reason as u32, hook as u32) }
    }

    #[inline(always)]
    fn note(&self) -> (u32, u32) {
        // SAFETY: the context is valid while the program runs.
        unsafe { ((*self.skb.skb).cb[0], (*self.skb.skb).cb[1]) }
    }

    #[inline(always)]
    fn set_begun(&self, number: u32) {
        // SAFETY: the context is valid while the program runs.
        unsafe { ((*self.skb.skb).cb[3], (*self.skb.skb).cb[4]) = (BEGUN, number) }
    }

    #[inline(always)]
    fn has_begun(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).cb[3] == BEGUN }
    }

    #[inline(always)]
    fn begun(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).cb[4] }
    }

    #[inline(always)]
    fn set_verdict(&self, path: u32, hook: Hook, code: i32) {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            ((*self.skb.skb).cb[0], (*self.skb.skb).cb[1], (*self.skb.skb).cb[2]) =
                (path, hook as u32, code as u32);
        }
    }

    #[inline(always)]
    fn noted_code(&self) -> i32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).cb[2] as i32 }
    }

    #[inline(always)]
    fn set_served(&self, hook: Hook) {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).cb[1] = hook as u32 }
    }

    #[inline(always)]
    fn served_at(&self) -> u32 {
        // In a box: the compiler would compute the field's address once for this read and for
        // `set_note`. The verifier refuses a write through such an address.
        let skb = black_box(self.skb.skb);
        // SAFETY: the context is valid while the program runs.
        unsafe { (*skb).cb[1] }
    }

    #[inline(always)]
    fn set_captured(&self, hook: Hook) {
        // SAFETY: the context is valid while the program runs.
        unsafe { ((*self.skb.skb).cb[0], (*self.skb.skb).cb[1]) = (CAPTURED, hook as u32) }
    }

    #[inline(always)]
    fn take_captured(&self, hook: Hook) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            let is_captured = (*self.skb.skb).cb[0] == CAPTURED && (*self.skb.skb).cb[1] == hook as u32;
            (*self.skb.skb).cb[0] = 0;
            is_captured
        }
    }

    #[inline(always)]
    fn captured_at(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).cb[1] }
    }

    #[inline(always)]
    fn load_start<const N: usize>(&self, bytes: &mut [u8; N]) -> Result<u32, Drop> {
        // One less, in a box: the verifier of Linux 6.1 learns no lower bound from a comparison with
        // zero, but from an addition.
        let last = black_box(self.len().min(N as u32).wrapping_sub(1));
        if last >= N as u32 {
            return Err(Drop::Truncated);
        }
        let length = last + 1;
        // SAFETY: the context is valid, and the length is at most that of the array.
        let code = unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), 0, bytes.as_mut_ptr().cast(), length) };
        if code == 0 { Ok(length) } else { Err(Drop::Truncated) }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
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
        // SAFETY: the context is valid, the size is the value's, and only types made of bytes are
        // loaded.
        let code = unsafe {
            bpf_skb_load_bytes(self.skb.skb.cast(), offset, (&raw mut *value).cast(), size_of::<T>() as u32)
        };
        if code == 0 { Ok(()) } else { Err(Drop::Truncated) }
    }

    #[inline(always)]
    fn read_into<T>(&self, offset: u32, value: &mut T) -> Result<(), Drop> {
        let (start, value) = (self.data() + (offset & NEAR) as usize, &raw mut *value);
        if offset <= NEAR && start + size_of::<T>() <= self.data_end() {
            // SAFETY: both are as large as the value, and the verifier refuses a read beyond the
            // frame.
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
    fn resize(&self, bytes: u32) -> Result<(), Drop> {
        // SAFETY: the context is valid.
        let code = unsafe { bpf_skb_change_tail(self.skb.skb, bytes, 0) };
        if code == 0 { Ok(()) } else { Err(Drop::RewriteFailed) }
    }

    #[inline(always)]
    fn set_ready_to_leave(&self) {
        // SAFETY: the context is valid while the program runs. A TC program may write this field.
        unsafe { (*self.skb.skb).tc_index = READY };
    }

    #[inline(always)]
    fn set_beginning(&self) {
        // SAFETY: a field that a TC program may write; see `set_ready_to_leave`.
        unsafe { (*self.skb.skb).tc_index = BEGINS };
    }

    #[inline(always)]
    fn is_beginning(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).tc_index == BEGINS }
    }

    #[inline(always)]
    fn is_unmarked_beginning(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        self.is_beginning() && unsafe { (*self.skb.skb).mark } == 0
    }

    #[inline(always)]
    fn clear_ready_to_leave(&self) {
        // SAFETY: a field that a TC program may write; see `set_ready_to_leave`.
        unsafe { (*self.skb.skb).tc_index = 0 };
    }

    #[inline(always)]
    fn is_ready_to_leave(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).tc_index == READY }
    }

    #[inline(always)]
    fn set_packet_host(&self) {
        // SAFETY: the context is valid. The only error is an unknown type.
        unsafe { bpf_skb_change_type(self.skb.skb, PACKET_HOST) };
    }
}

/// # Safety
/// Both pointers are valid for the whole type. If the type's alignment is even, both addresses are
/// even: no frame begins at an odd address, and no header in it does.
#[inline(always)]
unsafe fn copy<T>(from: *const u8, to: *mut u8) {
    // SAFETY: the caller keeps this function's contract.
    unsafe {
        if align_of::<T>().is_multiple_of(2) {
            copy_nonoverlapping(from.cast::<u16>(), to.cast::<u16>(), size_of::<T>() / 2);
        } else {
            copy_nonoverlapping(from, to, size_of::<T>());
        }
    }
}

// Not inlined: it is rarely called.
#[inline(never)]
fn load_paged(ctx: &TcContext, offset: u32, value: *mut c_void, size: u32) -> Result<(), Drop> {
    // SAFETY: the context is valid, the size is the value's, and only types made of bytes are
    // loaded. No value has more bytes than the mask, which is for the verifier.
    let code = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, value, size & NEAR) };
    if code == 0 { Ok(()) } else { Err(Drop::Truncated) }
}
