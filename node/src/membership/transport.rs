//! Chitchat's datagrams, sealed: the shell around [`sealed`](crate::trust::sealed).
//!
//! ```text
//! chitchat ─▶ send ─▶ inner socket ═loopback═▶ side ─▶ seal ─▶ the network
//! chitchat ◀─ recv ◀── queue ◀── inner socket ◀═loopback═ side ◀─ open ◀─ the network
//!                                └────────── pump: a task ──────────────┘
//! ```
//!
//! Chitchat turns its messages into bytes only within its own UDP socket, so there is one of those on each way, which talks
//! to a socket of ours on loopback. Cheaper than a fork of chitchat, which would have to follow it for ever; the price is
//! two more datagrams within the machine for each on the network.
//!
//! What comes in from the network is parsed once it was opened. Another process of this machine can send to the inner
//! socket; that is dropped, since it does not come from ours, after it was parsed in the pump, which survives a panic of the
//! parser.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use chitchat::{
    ChitchatEnvelope,
    transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpSocket as Inner},
};
use futures_util::FutureExt as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    clock,
    config::PlainGossip,
    net::UdpSocket,
    trust::{
        Seal,
        sealed::{Dropped, Opened, Opener, Sealer},
    },
};

/// The largest datagram of all.
const LARGEST: usize = 65_507;
/// Where the inner sockets are. On another address than nodes that listen on loopback, whose ports they would take.
#[cfg(target_os = "linux")]
const INNER: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
#[cfg(not(target_os = "linux"))]
const INNER: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// How many messages may wait for chitchat.
const QUEUE: usize = 256;
/// A datagram within the machine is there at once, or never: what can't be parsed is not told.
const INNER_LIMIT: Duration = Duration::from_millis(50);
/// How often it is told what was dropped.
const TELL: Duration = Duration::from_secs(10);
/// What chitchat's own messages begin with.
const PLAIN: [u8; 2] = 45_139u16.to_le_bytes();

/// Opens sockets whose datagrams are sealed.
pub(super) struct Sealed {
    pub(super) seal: Seal,
    pub(super) cluster: String,
    /// Where others send to.
    pub(super) own: SocketAddr,
}

struct Sending {
    seal: Seal,
    sealer: Sealer,
    network: Arc<UdpSocket>,
    inner: Inner,
    side: UdpSocket,
    buffer: Vec<u8>,
    received: mpsc::Receiver<RecvOutcome>,
    _pump: JoinSet<()>,
}

async fn side_of(inner: &Inner) -> anyhow::Result<UdpSocket> {
    let side = UdpSocket::bind(SocketAddr::from((INNER, 0))).await?;
    // From nobody else; what has come before that is gone.
    side.connect(inner.local_addr()?).await?;
    drain(&side);
    Ok(side)
}

fn drain(socket: &UdpSocket) {
    while socket.try_recv(&mut [0; 1]).is_ok() {}
}

async fn inner() -> anyhow::Result<(Inner, UdpSocket)> {
    let inner = Inner::open(SocketAddr::from((INNER, 0))).await?;
    let side = side_of(&inner).await?;
    Ok((inner, side))
}

#[async_trait]
impl Transport for Sealed {
    async fn open(&self, listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let network = Arc::new(UdpSocket::bind(listen).await?);
        let (inner, side) = inner().await?;
        let (to, received) = mpsc::channel(QUEUE);
        let (parser, parser_side) = self::inner().await?;
        let pump = Pump {
            seal: self.seal.clone(),
            opener: Opener::new(&self.cluster, self.own),
            network: Arc::clone(&network),
            own: parser_side.local_addr()?,
            side: parser_side,
            parser,
            to,
            dropped: BTreeMap::new(),
            told: Instant::now(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(pump.run());
        let sealer = Sealer::new(&self.cluster, self.own, rand::random());
        let (seal, buffer) = (self.seal.clone(), vec![0; LARGEST]);
        Ok(Box::new(Sending { seal, sealer, network, inner, side, buffer, received, _pump: tasks }))
    }
}

#[async_trait]
impl Socket for Sending {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.network.local_addr()?)
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        let nothing = SendOutcome { num_bytes_sent: 0 };
        // What came too late for an earlier message.
        drain(&self.side);
        self.inner.send(self.side.local_addr()?, envelope).await?;
        let Ok(size) = timeout(INNER_LIMIT, self.side.recv(&mut self.buffer)).await else {
            tracing::warn!("a message of gossip was lost within this machine");
            return Ok(nothing);
        };
        let size = size?;
        let message = &self.buffer[..size];
        let datagrams = if self.seal.plain == PlainGossip::Send {
            vec![message.to_vec()]
        } else {
            let ring = self.seal.ring();
            match self.sealer.seal(&ring, message, to, clock::wall().0 / 1000, rand::random) {
                Ok(datagrams) => datagrams,
                Err(error) => {
                    tracing::warn!(%error, "a message of gossip was not sent");
                    return Ok(nothing);
                }
            }
        };
        let mut num_bytes_sent = 0;
        for datagram in datagrams {
            match self.network.send_to(&datagram, to).await {
                Ok(sent) => {
                    num_bytes_sent += sent;
                    self.seal.datagrams.sent.fetch_add(1, Ordering::Relaxed);
                }
                // One peer that can't be reached is no reason to end gossip with all.
                Err(error) => {
                    tracing::debug!(%error, peer = %to, "a datagram of gossip was not sent");
                    break;
                }
            }
        }
        Ok(SendOutcome { num_bytes_sent })
    }

    /// Cancel-safe, as chitchat needs it.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        self.received.recv().await.ok_or_else(|| anyhow::anyhow!("the socket for gossip is of no use any more"))
    }
}

/// As chitchat's own socket has it: what an earlier datagram met at its peer, or a moment without memory.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionRefused | Kind::ConnectionReset | Kind::OutOfMemory)
}

/// Brings what arrives to chitchat.
struct Pump {
    seal: Seal,
    opener: Opener,
    network: Arc<UdpSocket>,
    /// Parses what `side` sends it.
    parser: Inner,
    side: UdpSocket,
    own: SocketAddr,
    to: mpsc::Sender<RecvOutcome>,
    dropped: BTreeMap<&'static str, u64>,
    told: Instant,
}

impl Pump {
    async fn run(mut self) {
        let mut datagram = vec![0; LARGEST];
        loop {
            let (size, from) = match self.network.recv_from(&mut datagram).await {
                Ok(received) => received,
                Err(error) if is_passing(&error) => continue,
                Err(error) => {
                    tracing::error!(%error, "can't receive gossip any more");
                    return;
                }
            };
            self.seal.datagrams.received.fetch_add(1, Ordering::Relaxed);
            let opened = match self.open(&datagram[..size], from) {
                Ok(Some(opened)) => opened,
                Ok(None) => continue,
                Err(dropped) => {
                    self.drop(dropped, from);
                    continue;
                }
            };
            let parsed = self.parse(&opened.message).await;
            if parsed.is_none() && !self.begin_anew().await {
                return;
            }
            match parsed {
                Some(parsed) => {
                    let received = RecvOutcome { from_addr: opened.from, num_bytes_received: size, ..parsed };
                    if self.to.send(received).await.is_err() {
                        return;
                    }
                }
                None => self.drop(Dropped::NotGossip, from),
            }
        }
    }

    /// Another parser: what it may still hold must not be taken for what comes next.
    async fn begin_anew(&mut self) -> bool {
        let made = async {
            let (parser, side) = inner().await?;
            let own = side.local_addr()?;
            anyhow::Ok((parser, side, own))
        };
        match made.await {
            Ok((parser, side, own)) => {
                (self.parser, self.side, self.own) = (parser, side, own);
                true
            }
            Err(error) => {
                tracing::error!(%error, "can't receive gossip any more");
                false
            }
        }
    }

    fn open(&mut self, datagram: &[u8], from: SocketAddr) -> Result<Option<Opened>, Dropped> {
        if self.seal.plain != PlainGossip::Refuse && datagram.starts_with(&PLAIN) {
            return Ok(Some(Opened { from, message: datagram.to_vec() }));
        }
        self.opener.open(&self.seal.ring(), datagram, clock::wall().0 / 1000)
    }

    async fn parse(&mut self, message: &[u8]) -> Option<RecvOutcome> {
        self.side.send(message).await.ok()?;
        let own = self.own;
        let parser = &mut self.parser;
        let parsing = async {
            loop {
                match parser.recv().await {
                    Ok(parsed) if parsed.from_addr == own => return Some(parsed),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(INNER_LIMIT, AssertUnwindSafe(parsing).catch_unwind()).await.ok()?.ok()?
    }

    /// Counts, and tells now and then: whoever sends rubbish should not fill the log.
    fn drop(&mut self, why: Dropped, from: SocketAddr) {
        self.seal.datagrams.count_dropped(why);
        *self.dropped.entry(why.why()).or_default() += 1;
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            for (why, count) in std::mem::take(&mut self.dropped) {
                tracing::warn!(count, why, last_peer = %from, "dropped datagrams that were sent to the gossip address");
            }
        }
    }
}
