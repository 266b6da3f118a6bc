//! Limits of what pods receive and send.

use super::Scope;
use crate::model::Model;
use crate::slice::{Queue, Slice};

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    for endpoint in scope.endpoints(model) {
        slice.tables.guards.extend(endpoint.guard().map(|guard| (endpoint.ifindex, guard)));
        if !model.without_device.contains(&endpoint.attachment) {
            let device = endpoint.host_interface.clone();
            let queue = endpoint.ingress_limit().map(|bucket| Queue { device, bucket });
            slice.queues.extend(queue.map(|queue| (endpoint.ifindex, queue)));
        }
    }
    slice
}
