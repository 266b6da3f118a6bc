//! HTTPS with a certificate that is made for one test.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

/// A self-signed certificate.
#[derive(Clone)]
pub struct Certificate {
    pem: String,
    key: String,
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Makes a certificate for these names and addresses.
    ///
    /// # Errors
    /// When one of them is neither a name nor an address.
    pub fn new(names: &[&str]) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).context("make a certificate")?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        Ok(Self { pem: cert.pem(), key: signing_key.serialize_pem(), config: Arc::new(config) })
    }

    /// Returns the certificate that a client has to trust, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the private key, PEM.
    pub fn key_pem(&self) -> &str {
        &self.key
    }

    pub(super) fn accept(&self, listener: TcpListener) -> Result<Listener> {
        Ok(Listener { listener, acceptor: TlsAcceptor::from(Arc::clone(&self.config)) })
    }
}

pub(super) struct Listener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            // A client that does not trust the certificate has gone. Accept the next one.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
