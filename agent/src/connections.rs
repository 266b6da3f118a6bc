//! A bound on the open connections of a socket. When all places are taken, the connection that has
//! been idle longest gives way to a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, yield_now};

/// The connections of one socket.
#[derive(Clone, Debug)]
pub(crate) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    open: Mutex<Open>,
    closed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    next: u64,
    /// Connections that have sent no request yet, in the order in which they came.
    idle: BTreeMap<u64, AbortHandle>,
}

impl Connections {
    /// Allows at most `limit` open connections.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Shared { limit, open: Mutex::default(), closed: Notify::new() }))
    }

    /// Waits until one more connection can be served: a place is free, or an idle connection has
    /// one.
    pub(crate) async fn room(&self) {
        loop {
            if self.0.open().count < self.0.limit {
                return;
            }
            // A new connection may already have sent its request. Let its task read the request
            // first, so that the connection is no longer idle.
            yield_now().await;
            if !self.0.open().idle.is_empty() {
                return;
            }
            self.0.closed.notified().await;
        }
    }

    /// Serves a connection on its own task. If no place is free, closes the connection that has
    /// been idle longest.
    pub(crate) fn spawn<F>(&self, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Hold the lock until the task is registered. Otherwise the task could end first, and its
        // handle would stay in `idle`.
        let mut open = self.0.open();
        if open.count >= self.0.limit
            && let Some((_, longest_idle)) = open.idle.pop_first()
        {
            longest_idle.abort();
        }
        let number = open.next;
        open.next += 1;
        open.count += 1;
        let task = tokio::spawn(serve(Place { shared: Arc::clone(&self.0), number }));
        open.idle.insert(number, task.abort_handle());
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    number: u64,
}

impl Place {
    /// Keeps the connection open until its request is answered. The task calls this when the client
    /// has sent its request.
    pub(crate) fn keep(&self) {
        self.shared.open().idle.remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.count -= 1;
        open.idle.remove(&self.number);
        drop(open);
        self.shared.closed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    /// Opens a connection that stays open until it is closed for another one. The returned channel
    /// shows whether it is open.
    fn open(connections: &Connections, keeps_its_place: bool) -> oneshot::Receiver<()> {
        let (open, ended) = oneshot::channel::<()>();
        connections.spawn(async move |place| {
            if keeps_its_place {
                place.keep();
            }
            let _open = open;
            std::future::pending::<()>().await;
        });
        ended
    }

    fn is_open(connection: &mut oneshot::Receiver<()>) -> bool {
        connection.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[tokio::test]
    async fn the_longest_idle_connection_gives_way() {
        let connections = Connections::new(3);
        let mut asked = open(&connections, true);
        let mut first = open(&connections, false);
        let mut second = open(&connections, false);
        connections.room().await;
        let mut third = open(&connections, false);
        yield_now().await;
        assert!(!is_open(&mut first));
        assert!([&mut asked, &mut second, &mut third].into_iter().all(is_open));
    }

    #[tokio::test]
    async fn connections_with_a_request_are_waited_for() {
        let connections = Connections::new(2);
        let (end, ended) = oneshot::channel::<()>();
        connections.spawn(async move |place| {
            place.keep();
            let _ = ended.await;
        });
        let mut asked = open(&connections, true);
        assert!(timeout(Duration::from_millis(20), connections.room()).await.is_err());
        drop(end);
        connections.room().await;
        open(&connections, true);
        assert!(is_open(&mut asked));
    }

    #[tokio::test]
    async fn places_of_connections_that_ended_are_free() {
        let connections = Connections::new(1);
        let served = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            connections.room().await;
            let served = Arc::clone(&served);
            connections.spawn(async move |_place| {
                served.fetch_add(1, Ordering::Relaxed);
            });
            yield_now().await;
        }
        assert_eq!(served.load(Ordering::Relaxed), 10);
        assert_eq!(connections.0.open().count, 0);
    }
}
