//! One connection: messages in, answers out, until the client leaves or the server stops.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use datafusion_postgres::pgwire::api::{ClientInfo, NoopHandler, PgWireConnectionState};
use datafusion_postgres::pgwire::messages::PgWireFrontendMessage;
use datafusion_postgres::pgwire::tokio::server::{negotiate_tls, process_error, process_message};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::codec::{Framed, FramedParts};

use super::{STARTUP, Shared, pg_error};
use crate::error::ServeError;

pub(super) async fn serve(
    stream: TcpStream,
    shared: &Shared,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let startup = tokio::time::sleep(STARTUP);
    tokio::pin!(startup);
    let negotiated = tokio::select! {
        socket = negotiate_tls(stream, shared.acceptor.clone()) => socket?,
        () = &mut startup => return Ok(()),
    };
    let Some(socket) = negotiated else {
        return Ok(());
    };
    let most = shared.most_bytes;
    let parts = socket.into_parts();
    let mut io = Bounded::new(parts.io, most);
    io.look(&parts.read_buf)?;
    let mut bounded = FramedParts::new(io, parts.codec);
    bounded.read_buf = parts.read_buf;
    bounded.write_buf = parts.write_buf;
    let mut socket = Framed::from_parts(bounded);
    let copy = std::sync::Arc::new(NoopHandler);
    loop {
        let known = !matches!(
            socket.state(),
            PgWireConnectionState::AwaitingStartup
                | PgWireConnectionState::AuthenticationInProgress
        );
        // Between two statements; a transaction is none to wait for, since nothing is written.
        let stopped = async {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let next = tokio::select! {
            message = socket.next() => Next::Message(message),
            () = &mut startup, if !known => return Ok(()),
            () = stopped, if known => Next::Stop,
        };
        let message = match next {
            Next::Message(message) => message,
            Next::Stop => {
                let _ = process_error(&mut socket, pg_error(&ServeError::Stopping), false).await;
                return socket.close().await;
            }
        };
        let message = match message {
            None => return Ok(()),
            Some(Ok(PgWireFrontendMessage::Terminate(_))) => return Ok(()),
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                // Where the next message would start is not known any more.
                let text = ServeError::Message(format!("unreadable message: {error}"));
                let _ = process_error(&mut socket, pg_error(&text), false).await;
                return socket.close().await;
            }
        };
        let extended = message.is_extended_query();
        let result = process_message(
            message,
            &mut socket,
            shared.startup.clone(),
            shared.handlers.clone(),
            shared.handlers.clone(),
            copy.clone(),
            shared.startup.cancels.clone(),
        )
        .await;
        if let Err(error) = result {
            let fatal = !known;
            process_error(&mut socket, error, extended).await?;
            if fatal {
                return socket.close().await;
            }
        }
    }
}

enum Next<M> {
    Message(M),
    Stop,
}

/// Reads messages no longer than a limit: the length that a client announces is not trusted, and what
/// it goes on sending is not collected.
pub(super) struct Bounded<T> {
    inner: T,
    most: usize,
    /// Bytes of the present message that are still to come.
    left: usize,
    /// The head of the next message, as far as it is there.
    head: [u8; 5],
    held: usize,
    /// Every message but the first has a type before its length.
    first: bool,
}

/// Startup messages are short; PostgreSQL itself takes 10,000 bytes.
const MOST_STARTUP: usize = 10_000;

impl<T> Bounded<T> {
    fn new(inner: T, most: usize) -> Self {
        Self {
            inner,
            most,
            left: 0,
            head: [0; 5],
            held: 0,
            first: true,
        }
    }

    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            let need = if self.first { 4 } else { 5 };
            while self.left == 0 && self.held < need {
                let Some((byte, rest)) = bytes.split_first() else {
                    return Ok(());
                };
                self.head[self.held] = *byte;
                self.held += 1;
                bytes = rest;
            }
            if self.left == 0 {
                let at = need - 4;
                let length = u32::from_be_bytes([
                    self.head[at],
                    self.head[at + 1],
                    self.head[at + 2],
                    self.head[at + 3],
                ]) as usize;
                let most = if self.first { MOST_STARTUP } else { self.most };
                if length > most + 1024 {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a message of {length} bytes, more than the limit of {most}"),
                    ));
                }
                self.left = length.saturating_sub(4);
                self.held = 0;
                self.first = false;
            }
        }
        Ok(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Bounded<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.inner).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(this.look(&buffer.filled()[before..])),
            other => other,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Bounded<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(cuts: usize, bytes: &[u8]) -> io::Result<()> {
        let mut bounded = Bounded::new((), 100_000);
        bytes.chunks(cuts).try_for_each(|part| bounded.look(part))
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_by_its_head_however_it_is_cut() {
        let mut good = vec![0, 0, 0, 8, 0, 3, 0, 0];
        good.extend([b'Q', 0, 0, 0, 6, b'x', 0]);
        let mut long = good.clone();
        long.extend([b'Q', 0x7f, 0xff, 0xff, 0xff]);
        for cuts in 1..=20 {
            assert!(look(cuts, &good).is_ok());
            assert!(look(cuts, &long).is_err());
            assert!(look(cuts, &[0, 1, 0, 0]).is_err());
        }
    }
}
