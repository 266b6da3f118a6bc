//! The sources of the node list: the API server, or a file.

pub mod file;
pub mod kube;
mod objects;

pub use self::kube::kept;
