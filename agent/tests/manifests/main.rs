//! Compares the manifests with the chart, with Kubernetes' own types and with the program's help.
//!
//! Needs what `cargo xtask setup` installs. Go's templates, which helm uses too, render the chart.

mod chart;
mod documents;
mod images;
mod kubectl;
mod program;
mod types;
