//! Listening: each connection is counted, at most so many are open, and TLS is agreed on before a
//! protocol sees a byte.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::ServeError;
use crate::metrics::Metrics;

/// How long agreeing on TLS may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Opens an address; port 0 takes one that is free.
///
/// # Errors
/// When it cannot be had.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let fail = |source| ServeError::Listen {
        address: address.to_string(),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

/// Counts the connections of one protocol.
#[derive(Clone)]
pub struct Doorman {
    protocol: &'static str,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
}

/// A place for one connection; dropping it gives it back.
pub struct Place {
    doorman: Doorman,
    _permit: OwnedSemaphorePermit,
}

impl Doorman {
    /// At most `most` connections.
    #[must_use]
    pub fn new(protocol: &'static str, metrics: Arc<Metrics>, most: usize) -> Self {
        Self {
            protocol,
            metrics,
            places: Arc::new(Semaphore::new(most)),
        }
    }

    /// A place, if there is one left.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => {
                self.metrics
                    .connections
                    .with_label_values(&[self.protocol])
                    .inc();
                Some(Place {
                    doorman: self.clone(),
                    _permit: permit,
                })
            }
            Err(_) => {
                self.metrics
                    .refused
                    .with_label_values(&[self.protocol])
                    .inc();
                tracing::warn!(
                    protocol = self.protocol,
                    "connection beyond the limit refused"
                );
                None
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doorman
            .metrics
            .connections
            .with_label_values(&[self.doorman.protocol])
            .dec();
    }
}

/// A connection, encrypted or not.
pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
    _place: Place,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The next connection, waiting after an error so that a lack of file handles is no busy loop.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Only a matter of delay.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Connections as they come, until the receiver goes away.
#[must_use]
pub fn connections(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    doorman: Doorman,
) -> mpsc::Receiver<Connection> {
    let (sender, receiver) = mpsc::channel(16);
    let acceptor = tls.map(TlsAcceptor::from);
    tokio::spawn(async move {
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(&listener) => accepted,
                () = sender.closed() => return,
            };
            let Some(place) = doorman.place() else {
                continue;
            };
            let (sender, acceptor) = (sender.clone(), acceptor.clone());
            tokio::spawn(async move {
                let stream = match acceptor {
                    None => Stream::Plain(stream),
                    Some(acceptor) => {
                        match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
                            // A scanner, a client without TLS, one without a certificate.
                            Ok(Err(error)) => {
                                tracing::debug!(%error, "no agreement on TLS");
                                return;
                            }
                            Err(_) => return,
                        }
                    }
                };
                // The server is stopping when nobody takes it.
                let _ = sender
                    .send(Connection {
                        stream,
                        peer,
                        _place: place,
                    })
                    .await;
            });
        }
    });
    receiver
}

impl Connection {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

/// Address of a client.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
