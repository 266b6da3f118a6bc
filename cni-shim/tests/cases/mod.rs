//! Tables of cases, and the verbs that make and delete nothing.

mod bad_input;
mod check;
mod node;
mod odd_input;
