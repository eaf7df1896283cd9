//! The network: datagrams that get lost, and connections that do not lose anything but stall, for as long as the link is
//! cut, and go on when it heals, as TCP does.
//!
//! Links have two directions, each with a state of its own. Nothing arrives in the millisecond in which it was sent.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, Bytes};
use outpost::simulation;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A millisecond, in nanoseconds.
pub const MS: u64 = 1_000_000;
/// How much of one direction of a connection may be under way or unread.
const WINDOW: usize = 256 << 10;
/// How many datagrams, and connections that nobody has accepted, a socket keeps.
const BACKLOG: usize = 1024;
/// How soon a connection's first segment is sent again to a machine that is off.
const AGAIN: u64 = 1000 * MS;

/// How one direction of a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// As it should.
    #[default]
    Up,
    /// Datagrams are lost, connections stall.
    Cut,
    /// All is kept, and delivered when the link is up again.
    Held,
}

/// How long things take, in milliseconds, and how many datagrams get lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// At the least.
    pub least: f64,
    /// At the most; most are nearer to the least.
    pub most: f64,
    /// Of datagrams, from 0 to 1.
    pub loss: f64,
}

type Message = Box<dyn Any + Send>;

struct Machine {
    on: bool,
    /// Sockets of an earlier boot are gone.
    boot: u64,
    listeners: BTreeMap<SocketAddr, Listening>,
    sockets: BTreeMap<SocketAddr, Receiving>,
    next_port: u16,
}

#[derive(Default)]
struct Listening {
    backlog: VecDeque<u64>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Receiving {
    queue: VecDeque<(SocketAddr, Message)>,
    waker: Option<Waker>,
}

enum Segment {
    /// To the listener.
    Open,
    /// To the one who connects.
    Opened,
    Data(Bytes),
    End,
    Reset,
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    flight: VecDeque<(u64, Segment)>,
    /// Bytes that are under way or unread.
    bytes: usize,
    arrived: VecDeque<Bytes>,
    ended: bool,
    /// The reader may not read, nor write, any more.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct End {
    address: SocketAddr,
    boot: u64,
    dropped: bool,
}

struct Connection {
    /// The one who connects, and the listener.
    ends: [End; 2],
    /// By the end that it leads to.
    to: [Direction; 2],
    opened: bool,
}

/// What the network did.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Datagrams that arrived.
    pub datagrams: u64,
    /// Datagrams that did not.
    pub lost: u64,
    /// Segments of connections that arrived.
    pub segments: u64,
    /// Connections that were reset.
    pub resets: u64,
}

/// See the module.
pub struct Network {
    now: u64,
    random: StdRng,
    machines: BTreeMap<IpAddr, Machine>,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    quality: BTreeMap<(IpAddr, IpAddr), Quality>,
    usual: Quality,
    connections: BTreeMap<u64, Connection>,
    datagrams: BTreeMap<(u64, u64), (SocketAddr, SocketAddr, Message)>,
    held: Vec<(SocketAddr, SocketAddr, Message)>,
    sequence: u64,
    /// Of all that has arrived, in order.
    hash: u64,
    /// What was done.
    pub counts: Counts,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("now", &self.now).field("links", &self.links).finish_non_exhaustive()
    }
}

/// The network, as all machines have it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Network>>);

/// FNV-1a.
fn mix(hash: &mut u64, bytes: &[u8]) {
    for byte in bytes {
        *hash = (*hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
}

impl Shared {
    /// A network without machines.
    #[must_use]
    pub fn new(seed: u64, usual: Quality) -> Self {
        Self(Arc::new(Mutex::new(Network {
            now: 0,
            random: StdRng::seed_from_u64(seed),
            machines: BTreeMap::new(),
            links: BTreeMap::new(),
            quality: BTreeMap::new(),
            usual,
            connections: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            held: Vec::new(),
            sequence: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            counts: Counts::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Network> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// A digest of all that has arrived so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    /// Adds to the digest.
    pub fn note(&self, text: &str) {
        mix(&mut self.lock().hash, text.as_bytes());
    }

    /// Switches a machine on; one with that address that was there before has lost its sockets.
    pub fn switch_on(&self, ip: IpAddr) {
        let mut network = self.lock();
        let machine = network.machines.entry(ip).or_insert_with(|| Machine {
            on: true,
            boot: 0,
            listeners: BTreeMap::new(),
            sockets: BTreeMap::new(),
            next_port: 49_152,
        });
        machine.on = true;
    }

    /// Cuts the power of a machine: it says nothing more to anybody.
    pub fn switch_off(&self, ip: IpAddr) {
        if let Some(machine) = self.lock().machines.get_mut(&ip) {
            machine.on = false;
            machine.boot += 1;
            machine.listeners.clear();
            machine.sockets.clear();
        }
    }

    /// Sets one direction of a link.
    pub fn set(&self, from: IpAddr, to: IpAddr, link: Link) {
        let mut network = self.lock();
        network.links.insert((from, to), link);
        if link != Link::Held {
            let held = std::mem::take(&mut network.held);
            for (source, target, message) in held {
                if (source.ip(), target.ip()) == (from, to) {
                    if link == Link::Up {
                        network.send(source, target, message);
                    }
                } else {
                    network.held.push((source, target, message));
                }
            }
        }
    }

    /// Sets how long one direction of a link takes; none is as usual.
    pub fn set_quality(&self, from: IpAddr, to: IpAddr, quality: Option<Quality>) {
        let mut network = self.lock();
        match quality {
            Some(quality) => network.quality.insert((from, to), quality),
            None => network.quality.remove(&(from, to)),
        };
    }

    /// All links are up, and as usual.
    pub fn heal(&self) {
        let links: Vec<_> = self.lock().links.keys().copied().collect();
        for (from, to) in links {
            self.set(from, to, Link::Up);
        }
        self.lock().quality.clear();
    }

    /// Resets all connections between two machines, as something between them does that has forgotten them.
    pub fn reset_between(&self, one: IpAddr, other: IpAddr) -> usize {
        let mut network = self.lock();
        let now = network.now;
        let mut count = 0;
        for connection in network.connections.values_mut() {
            let [a, b] = [&connection.ends[0], &connection.ends[1]].map(|end| end.address.ip());
            if (a, b) == (one, other) || (b, a) == (one, other) {
                count += 1;
                for direction in &mut connection.to {
                    direction.flight.clear();
                    direction.flight.push_back((now, Segment::Reset));
                }
            }
        }
        count
    }

    /// Delivers what arrives until now.
    pub fn advance(&self, now: u64) {
        let mut wakers = Vec::new();
        {
            let mut network = self.lock();
            network.now = now;
            network.deliver(&mut wakers);
        }
        // What wakes may drop a socket.
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Network {
    fn link(&self, from: IpAddr, to: IpAddr) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or_default()
    }

    fn latency(&mut self, from: IpAddr, to: IpAddr) -> u64 {
        if from == to {
            return MS / 20;
        }
        let Quality { least, most, .. } = self.quality.get(&(from, to)).copied().unwrap_or(self.usual);
        let share: f64 = self.random.random();
        ((least + (most - least) * share * share * share) * MS as f64) as u64
    }

    fn is_current(&self, end: &End) -> bool {
        let machine = self.machines.get(&end.address.ip());
        !end.dropped && machine.is_some_and(|machine| machine.on && machine.boot == end.boot)
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, message: Message) {
        let loss = self.quality.get(&(from.ip(), to.ip())).unwrap_or(&self.usual).loss;
        match self.link(from.ip(), to.ip()) {
            Link::Held => return self.held.push((from, to, message)),
            Link::Cut => {
                self.counts.lost += 1;
                return;
            }
            Link::Up => {}
        }
        if loss > 0.0 && self.random.random_bool(loss) {
            self.counts.lost += 1;
            return;
        }
        let at = self.now + self.latency(from.ip(), to.ip());
        self.sequence += 1;
        self.datagrams.insert((at, self.sequence), (from, to, message));
    }

    /// Puts a segment on its way to one end of a connection.
    fn push(&mut self, id: u64, to: usize, segment: Segment) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (from, target) = (connection.ends[1 - to].address.ip(), connection.ends[to].address.ip());
        let at = self.now + self.latency(from, target);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let direction = &mut connection.to[to];
        let at = direction.flight.back().map_or(at, |(last, _)| at.max(*last));
        direction.flight.push_back((at, segment));
    }

    fn deliver(&mut self, wakers: &mut Vec<Waker>) {
        while let Some(entry) = self.datagrams.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let ((at, _), (from, to, message)) = entry.remove_entry();
            let machine = self.machines.get_mut(&to.ip()).filter(|machine| machine.on);
            let Some(socket) = machine.and_then(|machine| machine.sockets.get_mut(&to)) else { continue };
            if socket.queue.len() == BACKLOG {
                continue;
            }
            self.counts.datagrams += 1;
            mix(&mut self.hash, format!("{at} {from} {to}").as_bytes());
            socket.queue.push_back((from, message));
            wakers.extend(socket.waker.take());
        }
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            for to in [0, 1] {
                while self.deliver_segment(id, to, wakers) {}
            }
            let connection = &self.connections[&id];
            let gone = [0, 1].map(|end| !self.is_current(&connection.ends[end]));
            if gone == [true, true] {
                self.connections.remove(&id);
            }
        }
    }

    /// Delivers the next segment to an end; false when there is none for now.
    fn deliver_segment(&mut self, id: u64, to: usize, wakers: &mut Vec<Waker>) -> bool {
        let now = self.now;
        let Some(connection) = self.connections.get(&id) else { return false };
        let [source, target] = [1 - to, to].map(|end| connection.ends[end].address);
        let Some((at, _)) = connection.to[to].flight.front() else { return false };
        if *at > now || self.link(source.ip(), target.ip()) != Link::Up {
            return false;
        }
        let opens = matches!(connection.to[to].flight.front(), Some((_, Segment::Open)));
        let current = self.is_current(&connection.ends[to]);
        let Some(machine) = self.machines.get(&target.ip()) else { return false };
        let (on, boot) = (machine.on, machine.boot);
        let listens = on && machine.listeners.get(&target).is_some_and(|listening| listening.backlog.len() < BACKLOG);
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        if !on {
            // It is sent again and again, until somebody is there to answer.
            if let Some((at, _)) = connection.to[to].flight.front_mut() {
                *at = now + AGAIN;
            }
            return false;
        }
        let Some((_, segment)) = connection.to[to].flight.pop_front() else { return false };
        self.counts.segments += 1;
        let kind: &[u8] = match &segment {
            Segment::Open => b"open",
            Segment::Opened => b"opened",
            Segment::Data(bytes) => bytes,
            Segment::End => b"end",
            Segment::Reset => b"reset",
        };
        mix(&mut self.hash, format!("{now} {source} {target}").as_bytes());
        mix(&mut self.hash, kind);
        if opens {
            connection.ends[to].boot = boot;
            if !listens {
                self.push(id, 1 - to, Segment::Reset);
                return true;
            }
            let Some(machine) = self.machines.get_mut(&target.ip()) else { return false };
            let Some(listening) = machine.listeners.get_mut(&target) else { return false };
            listening.backlog.push_back(id);
            wakers.extend(listening.waker.take());
            self.push(id, 1 - to, Segment::Opened);
            return true;
        }
        if !current {
            // Nobody knows of it here, or nobody will read it.
            if matches!(segment, Segment::Data(_) | Segment::Opened) {
                let flight = &connection.to[1 - to].flight;
                if !flight.iter().any(|(_, segment)| matches!(segment, Segment::Reset)) {
                    self.push(id, 1 - to, Segment::Reset);
                }
            }
            return true;
        }
        let Connection { to: directions, opened, .. } = connection;
        match segment {
            Segment::Open => {}
            Segment::Opened => *opened = true,
            Segment::Data(bytes) => directions[to].arrived.push_back(bytes),
            Segment::End => directions[to].ended = true,
            Segment::Reset => {
                self.counts.resets += 1;
                directions[to].reset = true;
                directions[to].arrived.clear();
                wakers.extend(directions[1 - to].writer.take());
            }
        }
        wakers.extend(directions[to].reader.take());
        true
    }

    fn forget(&mut self, id: u64, end: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let unread = !connection.to[end].arrived.is_empty();
        let reset = connection.to[end].reset;
        let was_current = {
            let connection = &self.connections[&id];
            self.is_current(&connection.ends[end])
        };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.ends[end].dropped = true;
        if was_current && !reset {
            self.push(id, 1 - end, if unread { Segment::Reset } else { Segment::End });
        }
    }
}

/// What a machine does on the network.
impl Shared {
    /// See [`simulation::Machine::listen`].
    ///
    /// # Errors
    /// An address that is taken.
    pub fn listen(&self, ip: IpAddr, address: SocketAddr) -> io::Result<Box<dyn simulation::Listener>> {
        let mut network = self.lock();
        let machine = network.machines.get_mut(&ip).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = own(ip, address)?;
        if machine.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        machine.listeners.insert(address, Listening::default());
        let boot = machine.boot;
        Ok(Box::new(Listener { network: self.clone(), ip, address, boot }))
    }

    /// See [`simulation::Machine::datagrams`].
    ///
    /// # Errors
    /// An address that is taken.
    pub fn datagrams(&self, ip: IpAddr, address: SocketAddr) -> io::Result<Box<dyn simulation::Datagrams>> {
        let mut network = self.lock();
        let machine = network.machines.get_mut(&ip).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = own(ip, address)?;
        if machine.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        machine.sockets.insert(address, Receiving::default());
        let boot = machine.boot;
        Ok(Box::new(Datagrams { network: self.clone(), ip, address, boot }))
    }

    /// See [`simulation::Machine::connect`].
    ///
    /// # Errors
    /// A peer that refuses. One that is not there does not answer.
    pub async fn connect(self, ip: IpAddr, peer: SocketAddr) -> io::Result<Stream> {
        let stream = {
            let mut network = self.lock();
            // An address of loopback is the machine itself.
            let peer = if peer.ip().is_loopback() { SocketAddr::new(ip, peer.port()) } else { peer };
            if !network.machines.contains_key(&peer.ip()) {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let machine = network.machines.get_mut(&ip).ok_or(io::ErrorKind::AddrNotAvailable)?;
            let local = SocketAddr::new(ip, machine.next_port);
            machine.next_port = machine.next_port.checked_add(1).unwrap_or(49_152);
            let ends = [
                End { address: local, boot: machine.boot, dropped: false },
                End { address: peer, boot: u64::MAX, dropped: false },
            ];
            network.sequence += 1;
            let id = network.sequence;
            network.connections.insert(id, Connection { ends, to: Default::default(), opened: false });
            network.push(id, 1, Segment::Open);
            drop(network);
            Stream { network: self.clone(), id, end: 0, local, peer }
        };
        std::future::poll_fn(|cx| {
            let mut network = self.lock();
            let Some(connection) = network.connections.get_mut(&stream.id) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            if connection.to[0].reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
            }
            if connection.opened {
                return Poll::Ready(Ok::<(), io::Error>(()));
            }
            connection.to[0].reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await?;
        Ok(stream)
    }
}

fn own(ip: IpAddr, address: SocketAddr) -> io::Result<SocketAddr> {
    if address.port() == 0 || !(address.ip() == ip || address.ip().is_loopback()) {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(SocketAddr::new(ip, address.port()))
}

struct Listener {
    network: Shared,
    ip: IpAddr,
    address: SocketAddr,
    boot: u64,
}

impl simulation::Listener for Listener {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn simulation::Stream>>> {
        let mut network = self.network.lock();
        let Some(machine) = network.machines.get_mut(&self.ip) else { return Poll::Pending };
        let Some(listening) = machine.listeners.get_mut(&self.address) else { return Poll::Pending };
        let Some(id) = listening.backlog.pop_front() else {
            listening.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let Some(connection) = network.connections.get(&id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        let [peer, local] = [0, 1].map(|end| connection.ends[end].address);
        Poll::Ready(Ok(Box::new(Stream { network: self.network.clone(), id, end: 1, local, peer })))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut network = self.network.lock();
        let Some(machine) = network.machines.get_mut(&self.ip).filter(|machine| machine.boot == self.boot) else {
            return;
        };
        let Some(listening) = machine.listeners.remove(&self.address) else { return };
        for id in listening.backlog {
            network.push(id, 0, Segment::Reset);
            if let Some(connection) = network.connections.get_mut(&id) {
                connection.ends[1].dropped = true;
            }
        }
    }
}

struct Datagrams {
    network: Shared,
    ip: IpAddr,
    address: SocketAddr,
    boot: u64,
}

impl simulation::Datagrams for Datagrams {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn send(&self, to: SocketAddr, message: Message) {
        self.network.lock().send(self.address, to, message);
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<(SocketAddr, Message)> {
        let mut network = self.network.lock();
        let machine = network.machines.get_mut(&self.ip);
        let Some(socket) = machine.and_then(|machine| machine.sockets.get_mut(&self.address)) else {
            return Poll::Pending;
        };
        match socket.queue.pop_front() {
            Some(message) => Poll::Ready(message),
            None => {
                socket.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        let mut network = self.network.lock();
        if let Some(machine) = network.machines.get_mut(&self.ip).filter(|machine| machine.boot == self.boot) {
            machine.sockets.remove(&self.address);
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Stream {
    network: Shared,
    id: u64,
    end: usize,
    local: SocketAddr,
    peer: SocketAddr,
}

impl simulation::Stream for Stream {
    fn local_address(&self) -> SocketAddr {
        self.local
    }

    fn peer_address(&self) -> SocketAddr {
        self.peer
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let waker = {
            let mut network = self.network.lock();
            let Some(connection) = network.connections.get_mut(&self.id) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            let direction = &mut connection.to[self.end];
            if direction.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let Some(bytes) = direction.arrived.front_mut() else {
                if direction.ended {
                    return Poll::Ready(Ok(()));
                }
                direction.reader = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let count = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..count]);
            bytes.advance(count);
            if bytes.is_empty() {
                direction.arrived.pop_front();
            }
            direction.bytes -= count;
            direction.writer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut network = self.network.lock();
        let Some(connection) = network.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if connection.to[self.end].reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let direction = &mut connection.to[1 - self.end];
        let count = WINDOW.saturating_sub(direction.bytes).min(buf.len());
        if count == 0 && !buf.is_empty() {
            direction.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        direction.bytes += count;
        network.push(self.id, 1 - self.end, Segment::Data(Bytes::copy_from_slice(&buf[..count])));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.lock().push(self.id, 1 - self.end, Segment::End);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.lock().forget(self.id, self.end);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::{FutureExt as _, task::noop_waker};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const QUALITY: Quality = Quality { least: 1.0, most: 2.0, loss: 0.0 };

    fn machines() -> (Shared, IpAddr, IpAddr) {
        let network = Shared::new(1, QUALITY);
        let [a, b] = [1, 2].map(|last| Ipv4Addr::new(10, 0, 0, last).into());
        network.switch_on(a);
        network.switch_on(b);
        (network, a, b)
    }

    fn pass(network: &Shared, now: &mut u64, milliseconds: u64) {
        for _ in 0..milliseconds {
            *now += MS;
            network.advance(*now);
        }
    }

    /// What has arrived, without waiting.
    fn read(stream: &mut Stream) -> Option<io::Result<Vec<u8>>> {
        let mut buffer = vec![0; 64];
        let count = stream.read(&mut buffer).now_or_never()?;
        Some(count.map(|count| buffer[..count].to_vec()))
    }

    /// Both ends.
    fn connect(network: &Shared, now: &mut u64, a: IpAddr, b: IpAddr) -> (Stream, Box<dyn simulation::Stream>) {
        let listener = network.listen(b, SocketAddr::new(b, 80)).unwrap();
        let mut connecting = Box::pin(network.clone().connect(a, SocketAddr::new(b, 80)));
        assert!((&mut connecting).now_or_never().is_none());
        pass(network, now, 10);
        let stream = connecting.now_or_never().expect("it is connected").unwrap();
        let accepted = listener.poll_accept(&mut Context::from_waker(&noop_waker()));
        let Poll::Ready(accepted) = accepted else { panic!("nobody connected") };
        (stream, accepted.unwrap())
    }

    #[test]
    fn a_connection_stalls_while_its_link_is_cut_and_loses_nothing() {
        let (network, a, b) = machines();
        let mut now = 0;
        let (mut client, mut server) = connect(&network, &mut now, a, b);
        network.set(b, a, Link::Cut);
        server.write_all(b"one").now_or_never().unwrap().unwrap();
        client.write_all(b"two").now_or_never().unwrap().unwrap();
        pass(&network, &mut now, 5000);
        assert!(read(&mut client).is_none(), "this way is cut");
        let mut got = [0; 3];
        server.read_exact(&mut got).now_or_never().expect("the other is not").unwrap();
        assert_eq!(&got, b"two");
        network.set(b, a, Link::Up);
        pass(&network, &mut now, 5);
        assert_eq!(read(&mut client).unwrap().unwrap(), b"one");
        drop(server);
        pass(&network, &mut now, 5);
        assert_eq!(read(&mut client).unwrap().unwrap(), b"", "it has ended");
    }

    #[test]
    fn a_machine_without_power_says_nothing_and_later_knows_nothing() {
        let (network, a, b) = machines();
        let mut now = 0;
        let (mut client, server) = connect(&network, &mut now, a, b);
        network.switch_off(b);
        drop(server);
        client.write_all(b"is somebody there?").now_or_never().unwrap().unwrap();
        pass(&network, &mut now, 5000);
        assert!(read(&mut client).is_none());
        network.switch_on(b);
        pass(&network, &mut now, 5000);
        assert_eq!(read(&mut client).unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut refused = Box::pin(network.clone().connect(a, SocketAddr::new(b, 80)));
        assert!((&mut refused).now_or_never().is_none());
        pass(&network, &mut now, 10);
        assert_eq!(refused.now_or_never().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn datagrams_are_lost_where_a_link_is_cut_and_late_where_it_is_held() {
        let (network, a, b) = machines();
        let mut now = 0;
        let [one, other] = [a, b].map(|ip| network.datagrams(ip, SocketAddr::new(ip, 7)).unwrap());
        let arrived = |now: &mut u64| {
            pass(&network, now, 10);
            let received = other.poll_receive(&mut Context::from_waker(&noop_waker()));
            match received {
                Poll::Ready((from, message)) => Some((from, *message.downcast::<u8>().unwrap())),
                Poll::Pending => None,
            }
        };
        let from = SocketAddr::new(a, 7);
        one.send(other.address(), Box::new(1_u8));
        assert_eq!(arrived(&mut now), Some((from, 1)));
        network.set(a, b, Link::Cut);
        one.send(other.address(), Box::new(2_u8));
        network.set(a, b, Link::Held);
        one.send(other.address(), Box::new(3_u8));
        assert_eq!(arrived(&mut now), None);
        network.set(a, b, Link::Up);
        assert_eq!(arrived(&mut now), Some((from, 3)));
        assert_eq!(arrived(&mut now), None);
    }
}
