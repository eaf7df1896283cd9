//! The network: the one place where this crate gets its sockets from. With the feature `simulation` they are those of a
//! simulated machine.

#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(feature = "simulation"))]
pub(crate) use chitchat::transport::UdpTransport;
#[cfg(feature = "simulation")]
pub(crate) use simulated::*;
#[cfg(not(feature = "simulation"))]
pub(crate) use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket, lookup_host};
