//! What a cluster is given says the same in every form, in Kubernetes' own terms, and in the program's.
//!
//! Needs what `cargo xtask setup` installs: the chart is rendered by Go's templates, which are helm's.

mod chart;
mod documents;
mod images;
mod program;
mod types;
