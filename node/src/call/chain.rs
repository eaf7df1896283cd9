//! The modules that a call has come through, as a set that a call can carry along.

use std::sync::atomic::{AtomicU64, Ordering};

/// A set of modules, each of which stands for one of 128 bits. Two modules may share one, so the set may seem to hold a
/// module that it does not: whoever asks must be safe with that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Chain(u128);

impl Chain {
    /// The empty set.
    pub(crate) const NONE: Self = Self(0);

    /// The set of one module. The same on all nodes, whatever their versions.
    pub(crate) fn of(module: &str) -> Self {
        // FNV-1a (Fowler, Noll and Vo).
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = module.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        Self(1 << ((hash ^ (hash >> 32)) % u64::from(u128::BITS)))
    }

    /// Both sets together.
    #[inline]
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of another set seems to be in it.
    pub(crate) fn may_have(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set in two halves.
    pub(crate) fn to_bits(self) -> (u64, u64) {
        (self.0 as u64, (self.0 >> 64) as u64)
    }

    /// See [`Chain::to_bits`].
    pub(crate) fn from_bits(low: u64, high: u64) -> Self {
        Self(u128::from(low) | u128::from(high) << 64)
    }

    /// As it is written into metadata: hexadecimal.
    pub(crate) fn to_text(self) -> String {
        format!("{:x}", self.0)
    }

    /// The empty set where it is none.
    pub(crate) fn from_text(text: &str) -> Self {
        u128::from_str_radix(text, 16).map(Self).unwrap_or_default()
    }
}

/// The parts that are being sealed, on any node, as far as this one knows.
///
/// A call inside one of them must come to its end before the part can move. So what it calls must let it in, even where
/// that is being sealed itself; and only such calls, or it would never be empty.
#[derive(Debug, Default)]
pub(crate) struct Sealing([AtomicU64; 2]);

impl Sealing {
    pub(crate) fn set(&self, modules: Chain) {
        let (low, high) = modules.to_bits();
        self.0[0].store(low, Ordering::SeqCst);
        self.0[1].store(high, Ordering::SeqCst);
    }

    /// Whether a call has come through one of them.
    pub(crate) fn concerns(&self, call: Chain) -> bool {
        let [low, high] = [self.0[0].load(Ordering::SeqCst), self.0[1].load(Ordering::SeqCst)];
        Chain::from_bits(low, high).0 & call.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_carried_as_text() {
        let set = Chain::of("cart").with(Chain::of("orders"));
        assert_eq!(Chain::from_text(&set.to_text()), set);
        let (low, high) = set.to_bits();
        assert_eq!(Chain::from_bits(low, high), set);
        assert_eq!(Chain::from_text("no number"), Chain::default());
        assert_eq!(Chain::from_text(""), Chain::default());
        assert!(Chain::default().is_empty());
    }

    #[test]
    fn calls_are_told_apart_by_what_they_have_come_through() {
        let sealing = Sealing::default();
        assert!(!sealing.concerns(Chain::of("cart")));
        sealing.set(Chain::of("cart").with(Chain::of("pricing")));
        assert!(sealing.concerns(Chain::of("pricing").with(Chain::of("catalog"))));
        assert!(!sealing.concerns(Chain::of("catalog")));
        assert!(!sealing.concerns(Chain::default()));
    }
}
