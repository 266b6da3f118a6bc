//! Networks towards which pods keep their own addresses.

use super::Scope;
use crate::model::Model;
use crate::slice::{Prefix, Slice};

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    if scope.is_all() {
        let networks = model.non_masquerade.iter();
        slice.tables.non_masquerade.extend(networks.map(|network| (Prefix::from(*network), 1)));
    }
    slice
}
