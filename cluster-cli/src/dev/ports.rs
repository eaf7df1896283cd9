//! Which ports a node gets.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

/// How far the first ports of two nodes are apart: easy to read, and to type.
const APART: u16 = 10;

/// The three ports of a node, by the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block(u16);

impl Block {
    pub(super) fn ingress(self) -> SocketAddr {
        self.at(0)
    }

    pub(super) fn admin(self) -> SocketAddr {
        self.at(1)
    }

    pub(super) fn cluster(self) -> SocketAddr {
        self.at(2)
    }

    /// The first port of the block that follows.
    pub(super) fn next(self) -> u16 {
        self.0.saturating_add(APART)
    }

    fn at(self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0.saturating_add(offset)).into()
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.0.saturating_add(2))
    }
}

/// The first free block from a port on, and the blocks that were passed over; `None` when the ports are at an end.
pub(super) fn first_free(from: u16, is_free: impl Fn(Block) -> bool) -> Option<(Block, Vec<Block>)> {
    let mut taken = Vec::new();
    let mut port = from;
    while port <= u16::MAX - APART {
        let block = Block(port);
        if is_free(block) {
            return Some((block, taken));
        }
        taken.push(block);
        port = block.next();
    }
    None
}

/// Whether nobody listens on any of a block's ports now.
pub(super) fn is_free(block: Block) -> bool {
    // The third is for gossip too.
    [block.ingress(), block.admin(), block.cluster()].iter().all(|address| TcpListener::bind(address).is_ok())
        && UdpSocket::bind(block.cluster()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_three_ports() {
        let block = Block(7010);
        assert_eq!(block.ingress().to_string(), "127.0.0.1:7010");
        assert_eq!(block.admin().to_string(), "127.0.0.1:7011");
        assert_eq!(block.cluster().to_string(), "127.0.0.1:7012");
        assert_eq!(block.next(), 7020);
    }

    #[test]
    fn taken_blocks_are_passed_over_and_named() {
        let found = first_free(7000, |block| block.0 >= 7020);
        assert_eq!(found, Some((Block(7020), vec![Block(7000), Block(7010)])));
        assert_eq!(first_free(7000, |_| true), Some((Block(7000), Vec::new())));
        assert_eq!(first_free(65_000, |_| false), None);
    }

    #[test]
    fn a_port_in_use_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_free(Block(listener.local_addr().unwrap().port() - 1)));
    }
}
