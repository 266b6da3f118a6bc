//! A proxy in front of an API server. A test can shut it while the server keeps running.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A proxy with an address of its own, which forwards connections to another address.
pub(super) struct Door {
    pub(super) address: SocketAddr,
    beyond: SocketAddr,
    keeper: Option<JoinHandle<()>>,
}

impl Door {
    /// Returns a proxy that is shut.
    pub(super) fn new(address: SocketAddr, beyond: SocketAddr) -> Self {
        Self { address, beyond, keeper: None }
    }

    pub(super) async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let beyond = self.beyond;
        self.keeper = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    if let Ok(mut there) = TcpStream::connect(beyond).await {
                        // When one side closes its connection, the proxy closes the other.
                        let _ = copy_bidirectional(&mut here, &mut there).await;
                    }
                });
            }
        }));
    }

    /// Ends every connection and refuses new ones.
    pub(super) async fn shut(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
            let _ = keeper.await;
        }
    }
}
