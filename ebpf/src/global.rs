//! Global functions: the verifier checks each of them once, separately, for any arguments. Pointer
//! arguments need Linux 5.12. If these functions were inlined or static, the verifier would walk
//! through them on every path that leads to them, and it allows only a million instructions in
//! total.

/// Defines a global function that takes a socket buffer and references to whole values, `ref` or
/// `mut`. After `or` comes the result for a null pointer, which these programs never pass.
macro_rules! global {
    (fn $name:ident($ctx:ident, $($argument:ident: $kind:ident $type:ty),*) -> i32, or $otherwise:ident $body:block) => {
        // SAFETY: no other symbol has this name.
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
            // SAFETY: the verifier admits only null and pointers to whole values. No other code
            // writes them meanwhile.
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
