//! The lab: nodes, pods and a world in network namespaces, with real agents and the real plugin.
//! The demonstration and the agent's namespace tests are built on it.
//!
//! The library also makes the image and the manifests for a cluster.

pub mod api_server;
pub mod archive;
pub mod envtest;
pub mod family_table;
pub mod image;
pub mod lab;
pub mod licences;
pub mod manifests;
pub mod matrix;
pub mod oci;
pub mod picture;
pub mod prometheus;
pub mod transcripts;
