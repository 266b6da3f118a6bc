//! The manifests say the same in every form, in Kubernetes' terms and in the program's own.
//!
//! Needs what `cargo xtask setup` installs: Go's templates, which are helm's, render the chart.

mod chart;
mod documents;
mod images;
mod program;
mod types;
