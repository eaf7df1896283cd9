use openraft::{
    storage::RaftLogStorageExt as _,
    testing::{StoreBuilder, Suite, blank_ent},
};
use tempfile::TempDir;

use super::*;
use crate::{id::Timestamp, placement::state::Command};

fn owner() -> Owner {
    Owner { raft_id: 7, marker: "seven".to_owned() }
}

fn machine(store: &Store) -> Machine {
    Machine::load(store.clone(), watch::Sender::default(), Arc::default()).unwrap()
}

struct OnDisk;

impl StoreBuilder<Types, Store, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Stored<(TempDir, Store, Machine)> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path()), &owner()).unwrap();
        let machine = machine(&store);
        Ok((dir, store, machine))
    }
}

struct InMemory;

impl StoreBuilder<Types, Store, Machine, ()> for InMemory {
    async fn build(&self) -> Stored<((), Store, Machine)> {
        let store = Store::open(None, &owner()).unwrap();
        let machine = machine(&store);
        Ok(((), store, machine))
    }
}

#[test]
fn the_store_on_disk_does_all_that_raft_asks_of_it() {
    Suite::test_all(OnDisk).unwrap();
}

#[test]
fn the_store_in_memory_does_all_that_raft_asks_of_it() {
    Suite::test_all(InMemory).unwrap();
}

fn entry(index: u64, term: Option<u64>) -> Entry<Types> {
    let command = Command::Found { cluster: "c".to_owned() };
    let request =
        Request { proposal: Some(Proposal { at: Timestamp(1), by: "test".to_owned(), asked: None, command }), term };
    Entry { log_id: blank_ent::<Types>(3, 7, index).log_id, payload: EntryPayload::Normal(request) }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut store = Store::open(Some(dir.path()), &owner()).unwrap();
        store.bind("cluster").await.unwrap();
        store.save_vote(&Vote::new(3, 7)).await.unwrap();
        store.blocking_append([entry(1, None), entry(2, None)]).await.unwrap();
        let mut machine = machine(&store);
        machine.apply([entry(1, None)]).await.unwrap();
        machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    }
    let mut store = Store::open(Some(dir.path()), &owner()).unwrap();
    assert_eq!(store.cluster().unwrap().as_deref(), Some("cluster"));
    assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(3, 7)));
    assert_eq!(store.try_get_log_entries(..).await.unwrap().len(), 2);
    let mut machine = machine(&store);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(entry(1, None).log_id));
    assert_eq!(machine.states.borrow().cluster, "c");
}

#[tokio::test]
async fn a_word_is_given_once() {
    let store = Store::open(None, &owner()).unwrap();
    let word = |set: &str| Elected { set: set.to_owned(), cluster: "c".to_owned() };
    assert_eq!(store.elect(word("a")).await.unwrap(), word("a"));
    assert_eq!(store.elect(word("b")).await.unwrap(), word("a"));
    assert_eq!(store.elected().await.unwrap(), Some(word("a")));
}

#[tokio::test]
async fn a_proposal_for_another_term_changes_nothing() {
    let store = Store::open(None, &owner()).unwrap();
    let mut machine = machine(&store);
    let answers = machine.apply([entry(1, Some(2)), entry(2, Some(3))]).await.unwrap();
    assert_eq!(answers, [Answer::OtherTerm, Answer::Applied(Ok(2))]);
    let recent = machine.recent.after(0).unwrap();
    assert!(recent[0].1.is_empty(), "watchers must not apply it either");
    assert!(!recent[1].1.is_empty());
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(Some(dir.path()), &owner()).unwrap());
    let other = Owner { raft_id: 8, ..owner() };
    assert!(matches!(Store::open(Some(dir.path()), &other), Err(StoreError::Foreign { .. })));
}

#[test]
fn a_log_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(Some(dir.path()), &owner()).unwrap();
    assert!(matches!(Store::open(Some(dir.path()), &owner()), Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_damaged_file_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut store = Store::open(Some(dir.path()), &owner()).unwrap();
        store.blocking_append((0..200).map(|index| entry(index, None))).await.unwrap();
    }
    let path = dir.path().join(FILE);
    let good = std::fs::read(&path).unwrap();
    let mut damages: Vec<(&str, Vec<u8>)> =
        vec![("not a database", b"nothing like it".to_vec()), ("cut", good[..good.len() / 2].to_vec())];
    let mut flipped = good.clone();
    let text = b"\"proposal\"";
    let at = good.windows(text.len()).position(|window| window == text).unwrap();
    flipped[at + 1] ^= 0x20;
    damages.push(("flipped", flipped));
    for (what, bytes) in damages {
        std::fs::write(&path, bytes).unwrap();
        let error = Store::open(Some(dir.path()), &owner()).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error}");
    }
}

#[test]
fn a_snapshot_with_another_digest_is_refused() {
    let mut snapshot = Applied::default().encode().unwrap();
    assert!(Applied::decode(&snapshot).is_ok());
    *snapshot.last_mut().unwrap() = b' ';
    assert_eq!(Applied::decode(&snapshot).unwrap_err(), "the snapshot's digest does not match");
}

#[test]
fn recent_entries_are_given_without_holes() {
    let recent = Recent::default();
    assert_eq!(recent.after(0), None);
    for index in 5..5 + RECENT as u64 + 10 {
        recent.push(index, Bytes::new());
    }
    assert_eq!(recent.after(3), None, "some are gone");
    assert_eq!(recent.after(14).unwrap().len(), RECENT);
    assert_eq!(recent.after(5 + RECENT as u64 + 9).unwrap().len(), 0);
    assert_eq!(recent.after(5 + RECENT as u64 + 10), None, "it is ahead of this");
    recent.push(9999, Bytes::new());
    assert_eq!(recent.after(9998).unwrap().len(), 1);
    assert_eq!(recent.after(20), None);
}
