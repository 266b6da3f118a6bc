//! Tables of cases, and the verbs CHECK, STATUS and GC.

mod bad_input;
mod check;
mod ipv6;
mod node;
mod odd_input;
