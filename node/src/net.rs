//! The network: the one place where this crate gets its sockets and connections from. With the feature `simulation` they
//! are those of a simulated machine.

#[cfg(not(feature = "simulation"))]
mod real {
    pub(crate) use chitchat::transport::UdpTransport;
    pub(crate) use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
    use tonic::transport::{Channel, Endpoint, Error};

    /// A connection that is made when it is first used, and made again when it broke.
    pub(crate) fn connect_lazily(endpoint: &Endpoint) -> Channel {
        endpoint.connect_lazy()
    }

    /// A connection that is there.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
        endpoint.connect().await
    }
}

#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(feature = "simulation"))]
pub(crate) use real::*;
#[cfg(feature = "simulation")]
pub(crate) use simulated::*;
