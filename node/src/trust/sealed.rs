//! Gossip that nobody without a key can read, change or add to. Pure: messages to datagrams and back.
//!
//! ```text
//! datagram   "OPg1" ‖ key id 4 ‖ nonce 24 ‖ sealed: head 70 ‖ piece of the message ‖ tag 16
//! head       boot 8 ‖ counter 8 ‖ seconds 8 ‖ message 8 ‖ piece 1 ‖ pieces 1 ‖ from, to: address 16, port 2, each
//! ```
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), since its nonces are long enough to be random: one key serves a whole
//! cluster for good. The cluster's name is authenticated with each datagram, as is where it goes, so that it is of no use
//! anywhere else. The pieces are sealed one by one: what takes memory is only what a key's holder sent. A window per boot
//! of a sender (as in RFC 4303, section 3.4.3) lets nothing in twice; a boot that is new has to show a time of now.
//!
//! **Invariant:** what [`Opener::open`] gives was sealed with a key of the ring, for this node of this cluster, and was not
//! given before, since this node's start.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use outpost_proto::keyring::{GossipKey, KeyId};

const MAGIC: [u8; 4] = *b"OPg1";
const NONCE: usize = 24;
const CLEAR: usize = 4 + 4 + NONCE;
const HEAD: usize = 70;
const TAG: usize = 16;
/// The largest datagram: no network takes it apart.
const LARGEST: usize = 1200;
/// How much of a message is in one.
const PIECE: usize = LARGEST - CLEAR - HEAD - TAG;
/// The most pieces of a message. Chitchat's messages have 65,507 bytes at the most.
const MOST_PIECES: usize = 64;
/// How many counters back a datagram may come late.
const WINDOW: u64 = 1024;
/// How far the clocks of two nodes may be apart.
const SKEW: u64 = 60;
/// The most boots that are remembered; a node that restarts has a new one.
const MOST_BOOTS: usize = 4096;
/// For how long a boot is remembered that is silent: longer than its datagrams would pass for new.
const REMEMBERED: u64 = 2 * SKEW + 30;
/// How long the pieces of a message are waited for.
const PATIENCE: u64 = 2;
/// Bytes of messages that are not whole.
const MOST_WAITING: usize = 1 << 20;
/// What a piece that is waited for takes.
const SLOT: usize = size_of::<Option<Vec<u8>>>();
/// How many messages of one boot may be not whole.
const MOST_PARTIAL: usize = 64;

/// The keys, as ciphers: the first seals, all of them open.
pub(crate) struct Ring(Vec<(KeyId, XChaCha20Poly1305)>);

impl Ring {
    pub(crate) fn new(keys: &[GossipKey]) -> Self {
        Self(keys.iter().map(|key| (key.id(), XChaCha20Poly1305::new(key.bytes().into()))).collect())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.0.iter().map(|(id, _)| *id)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// What is said about a datagram beside its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    boot: [u8; 8],
    counter: u64,
    /// By the wall clock.
    seconds: u64,
    message: u64,
    piece: u8,
    pieces: u8,
    /// Where the sender is answered.
    from: SocketAddr,
    to: SocketAddr,
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

impl Head {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.boot);
        [self.counter, self.seconds, self.message].iter().for_each(|number| out.extend(number.to_be_bytes()));
        out.extend([self.piece, self.pieces]);
        for address in [self.from, self.to] {
            out.extend(wide(address.ip()).octets());
            out.extend(address.port().to_be_bytes());
        }
    }

    /// The head and what follows it.
    fn read(opened: &[u8]) -> Option<(Self, &[u8])> {
        let (head, piece) = opened.split_first_chunk::<HEAD>()?;
        let number = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let address = |at: usize| {
            let (ip, port) = head.get(at..at + 18)?.split_first_chunk::<16>()?;
            let port = u16::from_be_bytes(port.try_into().ok()?);
            Some(SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), port))
        };
        let (from, to) = (address(34)?, address(52)?);
        let boot = head[..8].try_into().ok()?;
        let (counter, seconds, message) = (number(8)?, number(16)?, number(24)?);
        let head = Self { boot, counter, seconds, message, piece: head[32], pieces: head[33], from, to };
        (head.piece < head.pieces && usize::from(head.pieces) <= MOST_PIECES).then_some((head, piece))
    }
}

/// Seals what one start of a node says.
#[derive(Debug)]
pub(crate) struct Sealer {
    cluster: String,
    /// Where this node is answered.
    own: SocketAddr,
    boot: [u8; 8],
    counter: u64,
    message: u64,
}

/// What can't be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes is too large to be sealed")]
pub(crate) struct TooLong(usize);

impl Sealer {
    /// `boot` is random, and new at each start.
    pub(crate) fn new(cluster: &str, own: SocketAddr, boot: [u8; 8]) -> Self {
        Self { cluster: cluster.to_owned(), own, boot, counter: 0, message: 0 }
    }

    /// The datagrams of a message, at `seconds` of the wall clock. `nonce` gives random bytes, never the same.
    ///
    /// # Errors
    /// More than a message may have.
    pub(crate) fn seal(
        &mut self,
        ring: &Ring,
        message: &[u8],
        to: SocketAddr,
        seconds: u64,
        mut nonce: impl FnMut() -> [u8; NONCE],
    ) -> Result<Vec<Vec<u8>>, TooLong> {
        let too_long = TooLong(message.len());
        let pieces = u8::try_from(message.len().div_ceil(PIECE).max(1)).map_err(|_| too_long)?;
        if usize::from(pieces) > MOST_PIECES {
            return Err(too_long);
        }
        let (id, cipher) = &ring.0[0];
        self.message += 1;
        let mut datagrams = Vec::with_capacity(pieces.into());
        for piece in 0..pieces {
            self.counter += 1;
            let (boot, counter, from) = (self.boot, self.counter, self.own);
            let head = Head { boot, counter, seconds, message: self.message, piece, pieces, from, to };
            let begin = usize::from(piece) * PIECE;
            let content = &message[begin..message.len().min(begin + PIECE)];
            let mut clear = Vec::with_capacity(HEAD + content.len());
            head.write(&mut clear);
            clear.extend_from_slice(content);
            let nonce = nonce();
            let payload = Payload { msg: &clear, aad: &associated(*id, &self.cluster) };
            let sealed = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| too_long)?;
            datagrams.push([&MAGIC[..], &id.0, &nonce, &sealed].concat());
        }
        Ok(datagrams)
    }
}

fn associated(id: KeyId, cluster: &str) -> Vec<u8> {
    [&MAGIC[..], &id.0, cluster.as_bytes()].concat()
}

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dropped {
    /// It is nothing that was sealed: plain gossip, or a stranger's.
    NotSealed,
    /// With a key that is not in the ring.
    UnknownKey,
    /// Changed on the way, or of another cluster.
    NotAuthentic,
    /// It was here before, or is too late to tell.
    Replayed,
    /// Of a sender that is new, and from another time.
    OldOrClocksDiffer,
    /// For another address.
    ForAnother,
    /// More senders, or more pieces, than there is room for.
    TooMany,
    /// Of a node that has a key, and does not speak as chitchat does.
    NotGossip,
}

impl Dropped {
    /// For an operator.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::NotSealed => "not sealed",
            Self::UnknownKey => "sealed with an unknown key",
            Self::NotAuthentic => "not authentic",
            Self::Replayed => "replayed",
            Self::OldOrClocksDiffer => "of another time: replayed, or the nodes' clocks differ",
            Self::ForAnother => "sent to another address: reflected, or cluster.advertise is not where others send to",
            Self::TooMany => "too many at a time",
            Self::NotGossip => "sealed, and no gossip",
        }
    }
}

/// What has become of datagrams.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Of those, the ones that were dropped.
    dropped: [AtomicU64; Self::REASONS.len()],
}

impl Datagrams {
    /// Each reason to drop one, and what it is called in metrics.
    pub(crate) const REASONS: [(Dropped, &str); 8] = [
        (Dropped::NotSealed, "not_sealed"),
        (Dropped::UnknownKey, "unknown_key"),
        (Dropped::NotAuthentic, "not_authentic"),
        (Dropped::Replayed, "replayed"),
        (Dropped::OldOrClocksDiffer, "old_or_clocks_differ"),
        (Dropped::ForAnother, "for_another"),
        (Dropped::TooMany, "too_many"),
        (Dropped::NotGossip, "not_gossip"),
    ];

    pub(crate) fn count_dropped(&self, why: Dropped) {
        self.dropped[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, why: Dropped) -> u64 {
        self.dropped[why as usize].load(Ordering::Relaxed)
    }
}

/// What has come of a boot.
struct Boot {
    /// The highest counter, and which of those below it have come: bit 0 is the highest.
    highest: u64,
    seen: [u64; (WINDOW / 64) as usize],
    last: u64,
    partial: BTreeMap<u64, Partial>,
}

struct Partial {
    since: u64,
    bytes: usize,
    pieces: Vec<Option<Vec<u8>>>,
}

impl Boot {
    fn new(last: u64) -> Self {
        Self { highest: 0, seen: [0; (WINDOW / 64) as usize], last, partial: BTreeMap::new() }
    }

    /// Whether a counter is new; from then on it is not.
    fn admit(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            self.shift(counter - self.highest);
            self.highest = counter;
            self.seen[0] |= 1;
            return true;
        }
        let back = self.highest - counter;
        if counter == 0 || back >= WINDOW {
            return false;
        }
        let (word, bit) = ((back / 64) as usize, 1 << (back % 64));
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }

    fn shift(&mut self, by: u64) {
        let words = usize::try_from(by / 64).unwrap_or(usize::MAX);
        let bits = (by % 64) as u32;
        for at in (0..self.seen.len()).rev() {
            let from = |back: usize| at.checked_sub(back).map_or(0, |at| self.seen[at]);
            let low = if bits == 0 { 0 } else { from(words.saturating_add(1)) >> (64 - bits) };
            self.seen[at] = from(words) << bits | low;
        }
    }
}

/// A message, and where its sender is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) from: SocketAddr,
    pub(crate) message: Vec<u8>,
}

/// Opens what other nodes say.
pub(crate) struct Opener {
    cluster: String,
    /// Where others send to.
    own: SocketAddr,
    boots: HashMap<[u8; 8], Boot>,
    /// Bytes in pieces of messages that are not whole.
    waiting: usize,
    /// When it was last looked at what can be forgotten.
    swept: u64,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("boots", &self.boots.len()).field("waiting", &self.waiting).finish()
    }
}

impl Opener {
    pub(crate) fn new(cluster: &str, own: SocketAddr) -> Self {
        Self { cluster: cluster.to_owned(), own, boots: HashMap::new(), waiting: 0, swept: 0 }
    }

    /// The message that a datagram completes, if it does, at `now` seconds of the wall clock.
    ///
    /// # Errors
    /// Why it is dropped.
    pub(crate) fn open(&mut self, ring: &Ring, datagram: &[u8], now: u64) -> Result<Option<Opened>, Dropped> {
        let rest = datagram.strip_prefix(&MAGIC).filter(|_| datagram.len() <= LARGEST).ok_or(Dropped::NotSealed)?;
        let (id, rest) = rest.split_first_chunk::<4>().ok_or(Dropped::NotSealed)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(Dropped::NotSealed)?;
        let id = KeyId(*id);
        let (_, cipher) = ring.0.iter().find(|(known, _)| *known == id).ok_or(Dropped::UnknownKey)?;
        let payload = Payload { msg: sealed, aad: &associated(id, &self.cluster) };
        let opened = cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| Dropped::NotAuthentic)?;
        let (head, piece) = Head::read(&opened).ok_or(Dropped::NotAuthentic)?;
        if head.to != SocketAddr::new(self.own.ip().to_canonical(), self.own.port()) {
            return Err(Dropped::ForAnother);
        }
        self.forget(now);
        let full = self.boots.len() >= MOST_BOOTS;
        let boot = match self.boots.entry(head.boot) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if head.seconds.abs_diff(now) > SKEW => {
                return Err(Dropped::OldOrClocksDiffer);
            }
            Entry::Vacant(_) if full => return Err(Dropped::TooMany),
            Entry::Vacant(new) => new.insert(Boot::new(now)),
        };
        if !boot.admit(head.counter) {
            return Err(Dropped::Replayed);
        }
        // By the sender's clock, if that is ahead: as long as its datagrams would pass for new.
        boot.last = boot.last.max(now).max(head.seconds.min(now + SKEW));
        if head.pieces == 1 {
            return Ok(Some(Opened { from: head.from, message: piece.to_vec() }));
        }
        let is_new = !boot.partial.contains_key(&head.message);
        let more = piece.len() + if is_new { usize::from(head.pieces) * SLOT } else { 0 };
        if self.waiting + more > MOST_WAITING || (boot.partial.len() >= MOST_PARTIAL && is_new) {
            return Err(Dropped::TooMany);
        }
        let pieces = usize::from(head.pieces);
        let empty = || Partial { since: now, bytes: pieces * SLOT, pieces: vec![None; pieces] };
        let partial = boot.partial.entry(head.message).or_insert_with(empty);
        let slot = partial.pieces.get_mut(usize::from(head.piece)).filter(|slot| slot.is_none());
        // A sender that says something else of the same message can't be believed.
        let Some(slot) = slot else { return Err(Dropped::NotAuthentic) };
        *slot = Some(piece.to_vec());
        partial.bytes += piece.len();
        self.waiting += more;
        if partial.pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole = boot.partial.remove(&head.message).map(|partial| {
            self.waiting -= partial.bytes;
            let message = partial.pieces.into_iter().flatten().flatten().collect();
            Opened { from: head.from, message }
        });
        Ok(whole)
    }

    /// Forgets what nobody waits for any more.
    fn forget(&mut self, now: u64) {
        if std::mem::replace(&mut self.swept, now) == now {
            return;
        }
        let waiting = &mut self.waiting;
        self.boots.retain(|_, boot| {
            boot.partial.retain(|_, partial| {
                let keep = now.saturating_sub(partial.since) <= PATIENCE;
                if !keep {
                    *waiting -= partial.bytes;
                }
                keep
            });
            let keep = now.saturating_sub(boot.last) <= REMEMBERED;
            if !keep {
                *waiting -= boot.partial.values().map(|partial| partial.bytes).sum::<usize>();
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests;
