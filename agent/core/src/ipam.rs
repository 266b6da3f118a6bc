//! Tracks which addresses of the node's podCIDR are in use, and which one is next. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

use crate::model::Family;
use crate::other_pods::{Held, Holder};

/// Reason why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpamError {
    /// Every address is in use.
    #[error(
        "all {size} addresses of podCIDR {network} are in use, {held} of them not by Podwire's pods: delete pods or give the node a larger podCIDR"
    )]
    Exhausted {
        /// The podCIDR.
        network: IpNet,
        /// Addresses that can be handed out.
        size: u32,
        /// Number of these addresses that others hold.
        held: usize,
    },
    /// The podCIDR has no address that a pod could have.
    #[error(
        "podCIDR {0} has no room for pods: it has only the network's, the gateway's and the broadcast address; give the node a podCIDR of /30 or larger (/24 is usual)"
    )]
    NoRoom(IpNet),
    /// The address asked for belongs to a pod.
    #[error("address {0} is in use by another pod: ask for a free one")]
    Taken(IpAddr),
    /// Others hold the address asked for.
    #[error(
        "Podwire cannot give address {address}: {holder} has it; ask for another address, or remove that holder first"
    )]
    Held {
        /// The address asked for.
        address: IpAddr,
        /// The holder of the address.
        holder: Holder,
    },
    /// No podCIDR of the node has the family of the address asked for.
    #[error("address {0} is of a family of which this node has no podCIDR: leave it out")]
    NoNetworkOfFamily(IpAddr),
    /// Two addresses of one family are asked for.
    #[error("address {0} is the second of its family: a pod gets one of each")]
    SecondOfFamily(IpAddr),
    /// The address asked for is outside the node's podCIDR.
    #[error("address {address} is outside this node's podCIDR {network}")]
    Foreign {
        /// The address asked for.
        address: IpAddr,
        /// The podCIDR.
        network: IpNet,
    },
    /// The address asked for is the network's, the gateway's or the broadcast address.
    #[error(
        "address {address} of podCIDR {network} is the network's, the gateway's or the broadcast address"
    )]
    Reserved {
        /// The address asked for.
        address: IpAddr,
        /// The podCIDR.
        network: IpNet,
    },
}

/// The addresses of a podCIDR.
///
/// The pool hands them out round robin. A freed address rests until all others have had their turn,
/// so that late packets for a dead pod do not reach another pod. The network's own address, the
/// first one (the gateway's) and the broadcast address are never handed out.
#[derive(Clone, Debug)]
pub struct Pool {
    network: IpNet,
    taken: BTreeSet<IpAddr>,
    /// Addresses that others hold. A pod of Podwire may have the same address.
    held: Held,
    last: Option<IpAddr>,
}

impl Pool {
    /// Creates a pool.
    ///
    /// - `taken`: addresses in use. After a change of the podCIDR, older pods have addresses
    ///   outside `network`.
    /// - `last`: the address that was handed out last. The search starts after it.
    pub fn new(network: IpNet, taken: impl IntoIterator<Item = IpAddr>, last: Option<IpAddr>) -> Self {
        let taken = taken.into_iter().collect();
        Self { network: network.trunc(), taken, held: Held::new(), last }
    }

    /// Returns the podCIDR.
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Returns the address that was handed out last.
    pub fn last(&self) -> Option<IpAddr> {
        self.last
    }

    /// Replaces the addresses that others hold.
    pub fn set_held(&mut self, held: Held) {
        self.held = held;
    }

    /// Returns whether the pool could hand out this address if it were free: the address is in the
    /// podCIDR and not reserved.
    pub fn can_give(&self, address: IpAddr) -> bool {
        self.network.contains(&address)
            && self.usable().is_some_and(|(first, end)| (first..=end).contains(&number(address)))
    }

    /// Takes the next free address.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`], [`IpamError::NoRoom`].
    pub fn allocate(&mut self) -> Result<IpAddr, IpamError> {
        let exhausted = self.exhausted();
        let Some((first, end)) = self.usable() else {
            return Err(exhausted);
        };
        let last = self.last.map(number).filter(|last| (first..=end).contains(last));
        let start = last.map_or(first, |last| if last == end { first } else { last + 1 });
        let address = (start..=end)
            .chain(first..start)
            .map(|number| self.address(number))
            .find(|address| !self.taken.contains(address) && !self.held.contains_key(address))
            .ok_or(exhausted)?;
        self.taken.insert(address);
        self.last = Some(address);
        Ok(address)
    }

    /// Checks whether an address is left that [`Self::allocate`] could give.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`], [`IpamError::NoRoom`].
    pub fn has_free(&self) -> Result<(), IpamError> {
        if self.used() < self.size() { Ok(()) } else { Err(self.exhausted()) }
    }

    /// Returns the number of addresses that [`Self::allocate`] cannot give because a pod or another
    /// holder has them.
    pub fn used(&self) -> u32 {
        let taken = self.taken.iter().filter(|address| self.can_give(**address)).count();
        u32::try_from(taken + self.held_alone().count()).unwrap_or(u32::MAX)
    }

    /// Takes the address that the caller asks for. The next [`Self::allocate`] continues the round
    /// where it was.
    ///
    /// # Errors
    /// [`IpamError::Foreign`], [`IpamError::Reserved`], [`IpamError::Held`] or
    /// [`IpamError::Taken`].
    pub fn take(&mut self, address: IpAddr) -> Result<(), IpamError> {
        let network = self.network;
        if !network.contains(&address) {
            return Err(IpamError::Foreign { address, network });
        }
        if !self.can_give(address) {
            return Err(IpamError::Reserved { address, network });
        }
        if let Some(holder) = self.held.get(&address) {
            return Err(IpamError::Held { address, holder: holder.clone() });
        }
        if self.taken.insert(address) { Ok(()) } else { Err(IpamError::Taken(address)) }
    }

    /// Gives an address back. Does nothing if it was not taken.
    pub fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    /// Returns the number of addresses that can be handed out at all, at most [`u32::MAX`].
    pub fn size(&self) -> u32 {
        let size = self.usable().map_or(0, |(first, end)| end - first + 1);
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    fn exhausted(&self) -> IpamError {
        if self.size() == 0 {
            return IpamError::NoRoom(self.network);
        }
        let held = self.held_alone().count();
        IpamError::Exhausted { network: self.network, size: self.size(), held }
    }

    /// Returns the usable addresses that others hold and that no pod of Podwire has as well.
    fn held_alone(&self) -> impl Iterator<Item = &IpAddr> {
        self.held.keys().filter(|address| self.can_give(**address) && !self.taken.contains(address))
    }

    /// Returns the first and the last address that can be handed out, as numbers.
    fn usable(&self) -> Option<(u128, u128)> {
        let first = number(self.network.network()).checked_add(2)?;
        let end = number(self.network.broadcast()).checked_sub(1)?;
        (first <= end).then_some((first, end))
    }

    /// Converts a number to an address of this network's family.
    fn address(&self, number: u128) -> IpAddr {
        match self.network {
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

/// The pools of a node's podCIDRs, in the order of the Node object. A pod gets an address of each.
#[derive(Clone, Debug, Default)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// Uses these podCIDRs from now on. Keeps the pool of a podCIDR that stays. Returns whether any
    /// podCIDR is new or gone.
    ///
    /// - `taken`: addresses in use, of either family.
    /// - `last`: the address of a family that was handed out last before there was a pool.
    pub fn adopt(
        &mut self,
        networks: &[IpNet],
        taken: &BTreeSet<IpAddr>,
        last: impl Fn(Family) -> Option<IpAddr>,
    ) -> bool {
        if self.networks().eq(networks.iter().copied()) {
            return false;
        }
        let before = std::mem::take(&mut self.0);
        let pool = |network: &IpNet| {
            let family = Family::of(network.addr());
            let of_family = before.iter().find(|pool| Family::of(pool.network.addr()) == family);
            match of_family {
                Some(pool) if pool.network == *network => pool.clone(),
                Some(pool) => Pool::new(*network, taken.iter().copied(), pool.last),
                None => Pool::new(*network, taken.iter().copied(), last(family)),
            }
        };
        self.0 = networks.iter().map(pool).collect();
        true
    }

    /// Returns whether no podCIDR is known yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the pools.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter()
    }

    /// Returns the podCIDRs.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().map(|pool| pool.network)
    }

    /// Returns the addresses that were handed out last.
    pub fn last(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().filter_map(|pool| pool.last)
    }

    /// Replaces the addresses that others hold, and leaves out those that no pool would give.
    /// Returns the others.
    pub fn set_held(&mut self, mut held: Held) -> Held {
        held.retain(|address, _| self.0.iter().any(|pool| pool.can_give(*address)));
        self.0.iter_mut().for_each(|pool| pool.set_held(held.clone()));
        held
    }

    /// Takes an address of each podCIDR: the one of `asked`, or else the next free one. If one
    /// cannot be had, takes none.
    ///
    /// # Errors
    /// Why not.
    pub fn allocate(&mut self, asked: &[IpAddr]) -> Result<Vec<IpAddr>, IpamError> {
        let family = |address: &IpAddr| Family::of(*address);
        for (place, address) in asked.iter().enumerate() {
            if !self.networks().any(|network| family(&network.addr()) == family(address)) {
                return Err(IpamError::NoNetworkOfFamily(*address));
            }
            if asked[..place].iter().any(|before| family(before) == family(address)) {
                return Err(IpamError::SecondOfFamily(*address));
            }
        }
        let mut given = Vec::new();
        for pool in &mut self.0 {
            let asked = asked.iter().find(|asked| family(asked) == family(&pool.network.addr()));
            let taken = match asked {
                Some(asked) => pool.take(*asked).map(|()| *asked),
                None => pool.allocate(),
            };
            match taken {
                Ok(address) => given.push(address),
                Err(error) => {
                    given.into_iter().for_each(|address| self.release(address));
                    return Err(error);
                }
            }
        }
        Ok(given)
    }

    /// Gives an address back. Does nothing if it was not taken.
    pub fn release(&mut self, address: IpAddr) {
        self.0.iter_mut().for_each(|pool| pool.release(address));
    }

    /// Checks whether [`Self::allocate`] could give an address of each podCIDR.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`], [`IpamError::NoRoom`].
    pub fn has_free(&self) -> Result<(), IpamError> {
        self.0.iter().try_for_each(Pool::has_free)
    }

    /// Returns the number of pods that can have addresses: the size of the smallest pool.
    pub fn size(&self) -> u32 {
        self.0.iter().map(Pool::size).min().unwrap_or_default()
    }
}

/// Returns an address of either family as a number.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(network: &str) -> Pool {
        Pool::new(network.parse().unwrap(), [], None)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_handed_out() {
        let mut pool = pool("10.244.1.0/29");
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate().ok()).collect();
        assert_eq!(all, ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"].map(ip));
        assert_eq!(
            pool.allocate(),
            Err(IpamError::Exhausted { network: "10.244.1.0/29".parse().unwrap(), size: 5, held: 0 })
        );
    }

    #[test]
    fn a_freed_address_rests_until_the_others_had_their_turn() {
        let mut pool = pool("10.244.1.0/29");
        assert_eq!(pool.allocate(), Ok(ip("10.244.1.2")));
        pool.release(ip("10.244.1.2"));
        let next: Vec<_> = (0..5).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(next, ["10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6", "10.244.1.2"].map(ip));
    }

    #[test]
    fn the_round_goes_on_after_a_restart() {
        let taken = [ip("10.244.1.4")];
        let mut pool = Pool::new("10.244.1.0/29".parse().unwrap(), taken, Some(ip("10.244.1.3")));
        assert_eq!(pool.allocate(), Ok(ip("10.244.1.5")));
    }

    #[test]
    fn the_round_starts_anew_in_another_pod_cidr() {
        let taken = [ip("10.244.1.7")];
        let mut pool = Pool::new("10.244.9.0/24".parse().unwrap(), taken, Some(ip("10.244.1.7")));
        assert_eq!(pool.allocate(), Ok(ip("10.244.9.2")));
    }

    #[test]
    fn fixed_address_is_given_once_and_only_from_the_nodes_range() {
        let mut pool = pool("10.244.1.0/24");
        assert_eq!(pool.take(ip("10.244.1.77")), Ok(()));
        assert_eq!(pool.take(ip("10.244.1.77")), Err(IpamError::Taken(ip("10.244.1.77"))));
        assert!(matches!(pool.take(ip("10.244.2.77")), Err(IpamError::Foreign { .. })));
        for reserved in ["10.244.1.0", "10.244.1.1", "10.244.1.255"] {
            assert!(matches!(pool.take(ip(reserved)), Err(IpamError::Reserved { .. })), "{reserved}");
        }
    }

    #[test]
    fn what_others_have_is_not_given_until_they_have_it_no_more() {
        let mut pool = pool("10.244.1.0/29");
        let holder = Holder::HostLocal("cbr0".into());
        let held = ["10.244.1.2", "10.244.1.4"].map(|address| (ip(address), holder.clone()));
        pool.set_held(held.into());
        assert_eq!(pool.allocate(), Ok(ip("10.244.1.3")));
        assert_eq!(pool.take(ip("10.244.1.4")), Err(IpamError::Held { address: ip("10.244.1.4"), holder }));
        assert_eq!(pool.allocate(), Ok(ip("10.244.1.5")));
        assert_eq!(pool.allocate(), Ok(ip("10.244.1.6")));
        let exhausted = IpamError::Exhausted { network: pool.network(), size: 5, held: 2 };
        assert_eq!((pool.has_free(), pool.allocate()), (Err(exhausted.clone()), Err(exhausted)));
        pool.set_held(Held::new());
        assert_eq!(pool.has_free(), Ok(()));
        assert_eq!(pool.allocate(), Ok(ip("10.244.1.2")));
        assert_eq!(pool.take(ip("10.244.1.4")), Ok(()));
    }

    #[test]
    fn a_large_pod_cidr_of_ipv6_is_not_walked() {
        let mut pool =
            Pool::new("2001:db8::/64".parse().unwrap(), [], Some(ip("2001:db8::ffff:ffff:ffff:fffe")));
        assert_eq!(pool.size(), u32::MAX);
        assert_eq!(pool.allocate(), Ok(ip("2001:db8::2")));
        assert!(matches!(pool.take(ip("2001:db8::1")), Err(IpamError::Reserved { .. })));
        assert!(matches!(pool.take(ip("10.244.1.5")), Err(IpamError::Foreign { .. })));
        assert_eq!(pool.has_free(), Ok(()));
    }

    #[test]
    fn a_pod_cidr_too_small_for_any_pod_is_named() {
        for network in ["10.244.1.0/31", "10.244.1.0/32", "255.255.255.255/32"] {
            let no_room = Err(IpamError::NoRoom(network.parse().unwrap()));
            assert_eq!(pool(network).allocate().map(drop), no_room);
            assert_eq!(pool(network).has_free(), no_room);
        }
        assert_eq!(pool("10.244.1.0/30").allocate(), Ok(ip("10.244.1.2")));
    }

    fn pools(networks: &[&str]) -> Pools {
        let mut pools = Pools::default();
        let networks: Vec<_> = networks.iter().map(|network| network.parse().unwrap()).collect();
        assert!(pools.adopt(&networks, &BTreeSet::new(), |_| None));
        pools
    }

    #[test]
    fn a_pod_gets_an_address_of_each_pod_cidr_in_their_order() {
        let mut pools = pools(&["fd00:10:244:1::/64", "10.244.1.0/30"]);
        assert_eq!(pools.size(), 1);
        assert_eq!(pools.allocate(&[]), Ok(["fd00:10:244:1::2", "10.244.1.2"].map(ip).into()));
        assert!(matches!(pools.allocate(&[]), Err(IpamError::Exhausted { size: 1, .. })));
        assert!(matches!(pools.has_free(), Err(IpamError::Exhausted { size: 1, .. })));
        pools.release(ip("10.244.1.2"));
        // The failed attempt has given its IPv6 address back.
        let asked = ["fd00:10:244:1::3", "10.244.1.2"].map(ip);
        assert_eq!(pools.allocate(&asked), Ok(asked.into()));
    }

    #[test]
    fn addresses_asked_for_have_a_pod_cidr_and_differ_in_family() {
        let mut both = pools(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(
            both.allocate(&[ip("fd00:10:244:1::77")]),
            Ok(["10.244.1.2", "fd00:10:244:1::77"].map(ip).into())
        );
        let two = ["10.244.1.3", "10.244.1.4"].map(ip);
        assert_eq!(both.allocate(&two), Err(IpamError::SecondOfFamily(two[1])));
        let mut one = pools(&["10.244.1.0/24"]);
        let other = ip("fd00:10:244:1::77");
        assert_eq!(one.allocate(&[other]), Err(IpamError::NoNetworkOfFamily(other)));
    }

    #[test]
    fn a_family_comes_and_goes_without_a_change_to_the_other() {
        let mut pools = pools(&["10.244.1.0/24"]);
        pools.allocate(&[]).unwrap();
        let both = ["10.244.1.0/24", "fd00::/112"].map(|network| network.parse().unwrap());
        assert!(pools.adopt(&both, &BTreeSet::new(), |_| Some(ip("fd00::7"))));
        assert!(!pools.adopt(&both, &BTreeSet::new(), |_| None));
        assert_eq!(pools.allocate(&[]), Ok(["10.244.1.3", "fd00::8"].map(ip).into()));
        assert!(pools.adopt(&both[..1], &BTreeSet::new(), |_| None));
        assert_eq!(pools.allocate(&[]), Ok(vec![ip("10.244.1.4")]));
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_none_is_lost(
            length in 26u8..=30,
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..300),
        ) {
            let mut pool = Pool::new(IpNet::new(ip("10.9.8.0"), length).unwrap(), [], None);
            let mut held = Vec::new();
            for (add, which) in steps {
                if add {
                    let had_free = pool.has_free().is_ok();
                    match pool.allocate() {
                        Ok(address) => {
                            prop_assert!(had_free);
                            prop_assert!(!held.contains(&address));
                            prop_assert!(pool.network().contains(&address));
                            held.push(address);
                        }
                        Err(error) => {
                            prop_assert_eq!(held.len() as u32, pool.size());
                            prop_assert_eq!(pool.has_free(), Err(error));
                        }
                    }
                } else if !held.is_empty() {
                    pool.release(held.swap_remove(which.index(held.len())));
                }
            }
        }
    }
}
