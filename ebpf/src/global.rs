//! Functions that the verifier checks once, by themselves and for whatever arguments (global functions, with pointers from Linux 5.12 on):
//! inlined or as static functions they would be walked through again for each way into them, a million instructions in all.

/// Defines a global function of a socket buffer and references to whole values, `ref` or `mut`. What it answers where a
/// pointer is null, which none of ours is, comes after `or`.
macro_rules! global {
    (fn $name:ident($ctx:ident, $($argument:ident: $kind:ident $type:ty),*) -> i32, or $otherwise:ident $body:block) => {
        // SAFETY: nothing else bears the name.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(
            unsafe_code,
            reason = "a global function is known by its symbol and takes pointers that may be null"
        )]
        extern "C" fn $name(
            skb: *mut aya_ebpf::bindings::__sk_buff,
            $($argument: $crate::global::pointer!($kind $type)),*
        ) -> i32 {
            // SAFETY: the verifier lets in only null and pointers to whole values that nobody else writes meanwhile.
            let ($(Some($argument),)*) = ($(unsafe { $crate::global::reference!($kind $argument) },)*) else {
                return $otherwise;
            };
            let $ctx = &aya_ebpf::programs::TcContext::new(skb);
            $body
        }
    };
}

macro_rules! pointer {
    (ref $type:ty) => { *const $type };
    (mut $type:ty) => { *mut $type };
}

macro_rules! reference {
    (ref $pointer:ident) => {
        $pointer.as_ref()
    };
    (mut $pointer:ident) => {
        $pointer.as_mut()
    };
}

pub(crate) use {global, pointer, reference};
