use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;

fn key(byte: u8) -> GossipKey {
    GossipKey::new([byte; 32])
}

fn ring(keys: &[u8]) -> Ring {
    Ring::new(&keys.iter().map(|byte| key(*byte)).collect::<Vec<_>>())
}

fn to() -> SocketAddr {
    "10.0.0.2:7002".parse().unwrap()
}

fn from() -> SocketAddr {
    "10.0.0.1:7002".parse().unwrap()
}

/// What was opened, which has come from there.
fn said(message: &[u8]) -> Result<Option<Opened>, Dropped> {
    Ok(Some(Opened { from: from(), message: message.to_vec() }))
}

fn sealer() -> Sealer {
    Sealer::new("shop", from(), [7; 8])
}

fn opener() -> Opener {
    Opener::new("shop", to())
}

/// Different each time, and the same in each run.
fn nonces() -> impl FnMut() -> [u8; NONCE] {
    let mut count = 0u64;
    move || {
        count += 1;
        let mut nonce = [0; NONCE];
        nonce[..8].copy_from_slice(&count.to_be_bytes());
        nonce
    }
}

fn sealed(message: &[u8]) -> Vec<Vec<u8>> {
    sealer().seal(&ring(&[1]), message, to(), NOW, nonces()).unwrap()
}

#[test]
fn what_was_sealed_is_opened_once() {
    let mut opener = opener();
    let datagrams = sealed(b"hello");
    assert_eq!(datagrams.len(), 1);
    assert_eq!(opener.open(&ring(&[1]), &datagrams[0], NOW), said(b"hello"));
    assert_eq!(opener.open(&ring(&[1]), &datagrams[0], NOW), Err(Dropped::Replayed));
}

#[test]
fn a_large_message_comes_in_pieces_in_any_order() {
    let message: Vec<u8> = (0..60_000u32).map(|number| number as u8).collect();
    let mut datagrams = sealed(&message);
    assert!(datagrams.iter().all(|datagram| datagram.len() <= LARGEST));
    datagrams.reverse();
    let mut opener = opener();
    let (last, first) = datagrams.split_last().unwrap();
    for datagram in first {
        assert_eq!(opener.open(&ring(&[1]), datagram, NOW), Ok(None));
    }
    assert_eq!(opener.open(&ring(&[1]), last, NOW), said(&message));
    assert_eq!(opener.waiting, 0);
    let too_long = vec![0; MOST_PIECES * PIECE + 1];
    assert_eq!(sealer().seal(&ring(&[1]), &too_long, to(), NOW, nonces()), Err(TooLong(too_long.len())));
}

#[test]
fn pieces_that_stay_alone_are_forgotten() {
    let datagrams = sealed(&[0; 3000]);
    let mut opener = opener();
    assert_eq!(opener.open(&ring(&[1]), &datagrams[0], NOW), Ok(None));
    assert!(opener.waiting > 0);
    opener.forget(NOW + PATIENCE + 1);
    assert_eq!(opener.waiting, 0);
    assert_eq!(opener.open(&ring(&[1]), &datagrams[1], NOW + PATIENCE + 1), Ok(None), "it is not whole any more");
    // A piece of nothing takes its place, too.
    assert!(opener.waiting >= 3 * SLOT);
}

#[test]
fn without_the_key_nothing_is_opened() {
    let datagram = &sealed(b"hello")[0];
    assert_eq!(opener().open(&ring(&[2]), datagram, NOW), Err(Dropped::UnknownKey));
    // A key that is in the ring, but not the first.
    assert_eq!(opener().open(&ring(&[2, 1]), datagram, NOW), said(b"hello"));
    let mut plain = datagram.clone();
    plain[..2].copy_from_slice(&45_139u16.to_le_bytes());
    assert_eq!(opener().open(&ring(&[1]), &plain, NOW), Err(Dropped::NotSealed));
}

#[test]
fn what_is_for_others_is_dropped() {
    let datagram = &sealed(b"hello")[0];
    let other = "10.0.0.3:7002".parse().unwrap();
    assert_eq!(Opener::new("shop", other).open(&ring(&[1]), datagram, NOW), Err(Dropped::ForAnother));
    assert_eq!(Opener::new("bank", to()).open(&ring(&[1]), datagram, NOW), Err(Dropped::NotAuthentic));
    // The same address, written otherwise.
    let mapped = SocketAddr::new("::ffff:10.0.0.2".parse().unwrap(), 7002);
    assert_eq!(Opener::new("shop", mapped).open(&ring(&[1]), datagram, NOW), said(b"hello"));
}

#[test]
fn a_sender_from_another_time_is_not_let_in_and_one_that_is_known_may_be_late() {
    let mut opener = opener();
    let mut sealer = sealer();
    let mut nonces = nonces();
    let mut at = |seconds| sealer.seal(&ring(&[1]), b"a", to(), seconds, &mut nonces).unwrap().remove(0);
    let (old, new, late) = (at(NOW - SKEW - 1), at(NOW), at(NOW - SKEW - 1));
    assert_eq!(opener.open(&ring(&[1]), &old, NOW), Err(Dropped::OldOrClocksDiffer));
    assert!(opener.open(&ring(&[1]), &new, NOW).is_ok());
    assert!(opener.open(&ring(&[1]), &late, NOW).is_ok());
    // Once its boot is forgotten, what it said before is from another time.
    let later = NOW + REMEMBERED + 1;
    assert_eq!(opener.open(&ring(&[1]), &new, later), Err(Dropped::OldOrClocksDiffer));
}

#[test]
fn memory_has_bounds_even_for_who_has_a_key() {
    let mut opener = opener();
    let mut nonces = nonces();
    for boot in 0..MOST_BOOTS as u64 {
        let mut sealer = Sealer::new("shop", from(), boot.to_be_bytes());
        let datagram = sealer.seal(&ring(&[1]), b"a", to(), NOW, &mut nonces).unwrap().remove(0);
        assert!(opener.open(&ring(&[1]), &datagram, NOW).is_ok());
    }
    let one_more = sealer().seal(&ring(&[1]), b"a", to(), NOW, &mut nonces).unwrap().remove(0);
    assert_eq!(opener.open(&ring(&[1]), &one_more, NOW), Err(Dropped::TooMany));

    let mut opener = self::opener();
    let mut sealer = sealer();
    let mut dropped = 0;
    for _ in 0..2 * MOST_PARTIAL {
        let datagrams = sealer.seal(&ring(&[1]), &[0; 60_000], to(), NOW, &mut nonces).unwrap();
        for datagram in &datagrams[1..] {
            dropped += usize::from(opener.open(&ring(&[1]), datagram, NOW) == Err(Dropped::TooMany));
        }
        assert!(opener.waiting <= MOST_WAITING);
    }
    assert!(dropped > 0);
}

proptest! {
    #[test]
    fn anything_may_arrive(datagram in proptest::collection::vec(any::<u8>(), 0..1300), cut in any::<bool>()) {
        let mut datagram = datagram;
        if cut {
            datagram.splice(..0, MAGIC.into_iter().chain(key(1).id().0));
        }
        prop_assert!(opener().open(&ring(&[1]), &datagram, NOW).is_err());
    }

    #[test]
    fn a_changed_bit_is_noticed(at in 0..8 * 1200usize, size in 0..1000usize) {
        let mut datagram = sealed(&vec![0; size]).remove(0);
        let at = at % (8 * datagram.len());
        datagram[at / 8] ^= 1 << (at % 8);
        prop_assert!(opener().open(&ring(&[1]), &datagram, NOW).is_err());
    }

    #[test]
    fn the_window_lets_in_each_counter_once(counters in proptest::collection::vec(1..5000u64, 1..300)) {
        let mut boot = Boot::new(NOW);
        let mut seen = BTreeSet::new();
        let mut highest = 0;
        for counter in counters {
            let is_new = !seen.contains(&counter) && (counter > highest || highest - counter < WINDOW);
            prop_assert_eq!(boot.admit(counter), is_new, "{} of {}", counter, highest);
            seen.insert(counter);
            highest = highest.max(counter);
        }
    }
}
