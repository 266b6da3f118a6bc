//! Where the node list comes from: the API server, or a file.

pub mod file;
mod json;
pub mod kube;
mod objects;
