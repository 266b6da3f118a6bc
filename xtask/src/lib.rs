//! The lab: nodes, pods and a world in network namespaces, with real agents and the real plugin. The
//! demonstration and the agent's namespace tests are written on it.

pub mod api_server;
pub mod lab;
