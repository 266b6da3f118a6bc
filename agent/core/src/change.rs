//! One difference between the actual and the wanted state.

use std::collections::BTreeMap;

use podwire_common::abi;

/// A change of one entry. `before` and `now` are never both `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, V> {
    /// Key of the entry.
    pub key: K,
    /// Value before the change. `None`: the entry is added.
    pub before: Option<V>,
    /// Value after the change. `None`: the entry is removed.
    pub now: Option<V>,
}

impl<K, V> Change<K, V> {
    /// Returns the change that adds an entry.
    pub fn added(key: K, now: V) -> Self {
        Self { key, before: None, now: Some(now) }
    }

    /// Returns whether the change adds an entry that was not there.
    pub fn is_addition(&self) -> bool {
        self.before.is_none() && self.now.is_some()
    }

    /// Returns whether the change removes the entry.
    pub fn is_removal(&self) -> bool {
        self.now.is_none()
    }
}

impl<K: Ord + Clone, V: Clone> Change<K, V> {
    /// Applies the change to existing entries.
    pub fn apply_to(&self, entries: &mut BTreeMap<K, V>) {
        match &self.now {
            Some(now) => drop(entries.insert(self.key.clone(), now.clone())),
            None => drop(entries.remove(&self.key)),
        }
    }
}

/// A value of a table, or of another resource.
pub trait Value: Clone + PartialEq {
    /// Returns the value to write in place of `there`. Fields that programs write stay as they are.
    fn keeping(self, _there: &Self) -> Self {
        self
    }
}

impl Value for abi::Endpoint {
    /// Keeps [`abi::ENDPOINT_STACK_ONLY`], which programs set, if both entries describe the same
    /// endpoint.
    fn keeping(mut self, there: &Self) -> Self {
        if (there.id, there.ifindex) == (self.id, self.ifindex) {
            self.flags |= there.flags & abi::ENDPOINT_STACK_ONLY;
        }
        self
    }
}

impl Value for abi::Guard {
    /// Keeps [`abi::Guard::paid`], which programs write.
    fn keeping(self, there: &Self) -> Self {
        Self { paid: there.paid, ..self }
    }
}

impl Value for abi::Link {
    /// Keeps [`abi::Link::refused`], which programs write.
    fn keeping(self, there: &Self) -> Self {
        Self { refused: there.refused, ..self }
    }
}

impl Value for abi::Backend {}
impl Value for abi::Service {}
impl Value for abi::SourceRange {}
impl Value for abi::Node {}
impl Value for abi::Vtep {}
impl Value for u32 {}
impl Value for abi::Link6 {}

/// Returns the differences: entries to write, then entries to remove, each in the order of the
/// keys.
pub fn changes<K: Ord + Clone, V: Value>(
    want: &BTreeMap<K, V>,
    have: &BTreeMap<K, V>,
) -> impl Iterator<Item = Change<K, V>> {
    let made = want.iter().filter_map(|(key, wanted)| {
        let before = have.get(key);
        let now = before.map_or_else(|| wanted.clone(), |there| wanted.clone().keeping(there));
        let differs = before != Some(&now);
        differs.then(|| Change { key: key.clone(), before: before.cloned(), now: Some(now) })
    });
    let surplus = have.iter().filter(|(key, _)| !want.contains_key(key));
    made.chain(surplus.map(|(key, there)| Change {
        key: key.clone(),
        before: Some(there.clone()),
        now: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_common::addr::{Addr, Mac};

    fn endpoint(id: u32, flags: u32) -> abi::Endpoint {
        let mac = Mac { bytes: [2; 6] };
        let gateway = Addr::from_v4([10, 0, 0, 1]);
        abi::Endpoint { ifindex: id, id, flags, mtu: 1450, pod_mac: mac, host_mac: mac, gateway }
    }

    fn written(wanted: abi::Endpoint, there: abi::Endpoint) -> Option<abi::Endpoint> {
        let one = |endpoint| BTreeMap::from([(1, endpoint)]);
        changes(&one(wanted), &one(there)).next().and_then(|change| change.now)
    }

    #[test]
    fn flag_of_programs_survives_but_not_another_endpoint() {
        let marked = endpoint(7, abi::ENDPOINT_STACK_ONLY);
        assert_eq!(written(endpoint(7, 0), marked), None);
        let both = endpoint(7, abi::ENDPOINT_HAS_HOST_PORTS | abi::ENDPOINT_STACK_ONLY);
        assert_eq!(written(endpoint(7, abi::ENDPOINT_HAS_HOST_PORTS), marked), Some(both));
        assert_eq!(written(endpoint(7, 0), both), Some(marked), "the agent's own flag goes");
        assert_eq!(written(endpoint(8, 0), marked), Some(endpoint(8, 0)));
    }

    #[test]
    fn account_of_programs_is_no_difference() {
        let guard = |paid, cost| BTreeMap::from([(1, abi::Guard { paid, cost, credit: 1 })]);
        assert_eq!(changes(&guard(0, 5), &guard(77, 5)).count(), 0);
        let change = changes(&guard(0, 6), &guard(77, 5)).next().unwrap();
        assert_eq!(change.now, Some(abi::Guard { paid: 77, cost: 6, credit: 1 }));
    }
}
