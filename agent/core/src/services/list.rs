//! Services and EndpointSlices as the sources send them: everything at first, then what changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::{EndpointSlice, Service, ServiceName};

/// All services and EndpointSlices that exist and that the agent has a use for.
#[derive(Debug, Default)]
pub struct ServiceList {
    /// The services.
    pub services: Vec<Arc<Service>>,
    /// The slices, also those of services that are not in the list.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Objects that do not decode.
    pub problems: Vec<ServiceProblem>,
    /// Time since the source last confirmed the list. Zero if the source sends it now; more if it
    /// is the last good list from the disk.
    pub age: Duration,
}

/// What has changed since the last list or the last changes.
#[derive(Debug, Default)]
pub struct ServiceChanges {
    /// Services that are new or changed; `None`: gone.
    pub services: BTreeMap<ServiceName, Option<Arc<Service>>>,
    /// Slices that are new or changed; `None`: gone. A slice that now belongs to another service is
    /// gone under its earlier name.
    pub slices: BTreeMap<SliceName, Option<Arc<EndpointSlice>>>,
    /// All objects that do not decode; `None`: the same as before.
    pub problems: Option<Vec<ServiceProblem>>,
}

/// An EndpointSlice: the service that it belongs to, and its own name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    /// The service.
    pub service: ServiceName,
    /// `metadata.name`.
    pub name: String,
}

/// An object that does not decode. The rest of the list is used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{entry} is skipped: {reason}")]
pub struct ServiceProblem {
    /// Its kind and name, or its position in the list.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}
