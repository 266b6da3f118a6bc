//! The addresses at which the API server can be reached, for an agent in a pod.
//!
//! Behind the ClusterIP of the service `default/kubernetes` are the endpoints of this service. An
//! agent that serves services remembers them, so that it depends on no translation of the
//! ClusterIP.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::files;

/// The endpoints of the service `default/kubernetes`, and which address is used now.
#[derive(Debug)]
pub(super) struct Ways {
    /// Whether the configured address comes before the endpoints.
    is_configured_first: bool,
    file: Option<PathBuf>,
    state: Arc<Mutex<State>>,
    /// Held while the file is written. Nobody else waits for a slow disk.
    writing: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they are tried.
    endpoints: Vec<SocketAddr>,
    /// How often an address did not answer.
    failures: usize,
}

impl Ways {
    /// Reads the endpoints that an earlier agent wrote into the file. They may be of another boot:
    /// the agent gives its token only to a server with the cluster's certificate.
    pub(super) fn new(file: Option<PathBuf>, is_configured_first: bool) -> Self {
        let endpoints = file.as_deref().map(read).unwrap_or_default();
        let state = Arc::new(Mutex::new(State { endpoints: rotated(endpoints), failures: 0 }));
        Self { is_configured_first, file, state, writing: Arc::default() }
    }

    /// Returns the endpoint to ask now. `None`: the configured address.
    pub(super) fn now(&self) -> Option<SocketAddr> {
        let state = lock(&self.state);
        let turn = state.failures % (state.endpoints.len() + 1);
        match self.is_configured_first {
            true => turn.checked_sub(1).map(|index| state.endpoints[index]),
            false => state.endpoints.get(turn).copied(),
        }
    }

    /// Returns whether there is more than one address.
    pub(super) fn are_several(&self) -> bool {
        !lock(&self.state).endpoints.is_empty()
    }

    /// Goes on to the next address.
    pub(super) fn skip(&self) {
        let mut state = lock(&self.state);
        state.failures = state.failures.wrapping_add(1);
    }

    /// Returns whether the address of now is the first one again: none has answered.
    pub(super) fn is_round_over(&self) -> bool {
        let state = lock(&self.state);
        state.failures.is_multiple_of(state.endpoints.len() + 1)
    }

    /// Takes the endpoints that the service has now, and writes them into the file. An address that
    /// answers stays in use until it fails.
    pub(super) fn replace(&self, endpoints: Vec<SocketAddr>) {
        let mut known = lock(&self.state);
        let (mut before, mut after) = (known.endpoints.clone(), endpoints.clone());
        before.sort_unstable();
        after.sort_unstable();
        if before == after {
            return;
        }
        known.endpoints = rotated(endpoints);
        drop(known);
        let Some(file) = self.file.clone() else { return };
        let (state, writing) = (Arc::clone(&self.state), Arc::clone(&self.writing));
        tokio::task::spawn_blocking(move || {
            // The last write has the last endpoints, because each write reads them.
            let _writing = lock(&writing);
            let endpoints = lock(&state).endpoints.clone();
            let written = serde_json::to_vec(&endpoints)
                .map_err(|error| error.to_string())
                .and_then(|text| files::replace(&file, &text).map_err(|error| error.to_string()));
            if let Err(reason) = written {
                warn!("cannot save the API server's addresses for a restart: {reason}");
            }
        });
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins with a random endpoint, so that the nodes spread over the API servers.
fn rotated(mut endpoints: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if let Some(start) = (RandomState::new().hash_one(0) as usize).checked_rem(endpoints.len()) {
        endpoints.rotate_left(start);
    }
    endpoints
}

fn read(file: &Path) -> Vec<SocketAddr> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(path = %file.display(), "cannot read the API server's addresses: {error}");
            return Vec::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        warn!(path = %file.display(), "the API server's addresses cannot be used: {error}");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|number| ([172, 31, 0, number], 6443).into()).collect()
    }

    /// Returns the addresses in the order in which they are tried.
    fn tried(ways: &Ways, count: usize) -> Vec<Option<SocketAddr>> {
        let next = |_| {
            let now = ways.now();
            ways.skip();
            now
        };
        (0..count).map(next).collect()
    }

    #[tokio::test]
    async fn the_configured_address_is_first_only_if_an_option_gave_it() {
        for is_first in [false, true] {
            let ways = Ways::new(None, is_first);
            assert_eq!((ways.now(), ways.are_several()), (None, false));
            ways.skip();
            assert_eq!(ways.now(), None);
            ways.state.lock().unwrap().failures = 0;
            ways.replace(endpoints(3));
            assert!(ways.are_several() && ways.is_round_over());
            let tried = tried(&ways, 8);
            assert_eq!(tried[..4], tried[4..]);
            let place = if is_first { 0 } else { 3 };
            assert_eq!(tried.iter().position(Option::is_none), Some(place), "{tried:?}");
            let mut others: Vec<_> = tried[..4].iter().flatten().copied().collect();
            others.sort_unstable();
            assert_eq!(others, endpoints(3));
            let over = [0; 4].map(|_| {
                ways.skip();
                ways.is_round_over()
            });
            assert_eq!(over, [false, false, false, true]);
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_gives_no_endpoints() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("api-servers.json");
        for text in ["", "[\"172.31.0.1\"]", "{}", "[\"172.31.0.1:6443\"]"] {
            std::fs::write(&file, text).unwrap();
            let expected = if text.ends_with("6443\"]") { endpoints(1) } else { Vec::new() };
            assert_eq!(read(&file), expected, "{text}");
        }
        assert_eq!(read(folder.path()), []);
        assert_eq!(read(&folder.path().join("missing")), []);
    }
}
