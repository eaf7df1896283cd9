//! The same names, on a simulated machine.

use std::{
    any::Any,
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use async_trait::async_trait;
use chitchat::{
    ChitchatEnvelope,
    transport::{RecvOutcome, SendOutcome, Socket, Transport},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::simulation::{Datagrams, Listener, Stream, machine};

pub(crate) struct TcpStream(Box<dyn Stream>);

impl TcpStream {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let connecting = machine().connect(address);
        connecting.await.map(Self)
    }

    /// Writes are not gathered here.
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as that of tokio")]
    pub(crate) fn set_nodelay(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpStream").field(&self.0.local_address()).field(&self.0.peer_address()).finish()
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Connected for TcpStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: Some(self.0.local_address()), remote_addr: Some(self.0.peer_address()) }
    }
}

pub(crate) struct TcpListener(Box<dyn Listener>);

impl TcpListener {
    #[expect(clippy::unnecessary_wraps, reason = "as that of tokio")]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.address())
    }

    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let stream = poll_fn(|cx| self.0.poll_accept(cx)).await?;
        let peer = stream.peer_address();
        Ok((TcpStream(stream), peer))
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpListener").field(&self.0.address()).finish()
    }
}

/// Begins to listen only when it is told to, and needs a port that is not 0.
#[derive(Debug)]
pub(crate) struct TcpSocket {
    address: std::sync::OnceLock<SocketAddr>,
}

#[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as those of tokio")]
impl TcpSocket {
    pub(crate) fn new_v4() -> io::Result<Self> {
        Ok(Self { address: std::sync::OnceLock::new() })
    }

    pub(crate) fn new_v6() -> io::Result<Self> {
        Self::new_v4()
    }

    pub(crate) fn set_reuseaddr(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        self.address.set(address).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    pub(crate) fn listen(self, _: u32) -> io::Result<TcpListener> {
        let address = self.address.into_inner().ok_or(io::ErrorKind::InvalidInput)?;
        machine().listen(address).map(TcpListener)
    }
}

pub(crate) async fn lookup_host(name: &str) -> io::Result<std::vec::IntoIter<SocketAddr>> {
    machine().look_up(name).map(Vec::into_iter)
}

/// Carries gossip.
pub(crate) struct UdpTransport;

struct UdpSocket(Box<dyn Datagrams>);

/// What a datagram of gossip counts for.
const SIZE: usize = 1000;

#[async_trait]
impl Transport for UdpTransport {
    async fn open(&self, listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(UdpSocket(machine().datagrams(listen)?)))
    }
}

#[async_trait]
impl Socket for UdpSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.0.address())
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        self.0.send(to, Box::new(envelope));
        Ok(SendOutcome { num_bytes_sent: SIZE })
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            let (from_addr, message): (SocketAddr, Box<dyn Any + Send>) = poll_fn(|cx| self.0.poll_receive(cx)).await;
            if let Ok(envelope) = message.downcast::<ChitchatEnvelope>() {
                return Ok(RecvOutcome { from_addr, envelope: *envelope, num_bytes_received: SIZE });
            }
        }
    }
}
