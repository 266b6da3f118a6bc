//! The sources of services: the API server, or a file.

pub mod api_server;
pub mod file;
mod objects;
