use std::thread;

use tempfile::TempDir;

use super::*;

/// A new owner's store and a former one's, of one file.
struct Owners {
    former: Store,
    new: Store,
    folder: TempDir,
}

const FORMER: u64 = 4;
const NEW: u64 = 5;

fn owners() -> Owners {
    let folder = tempfile::tempdir().unwrap();
    let open = || Store::open(&folder.path().join("ledger.db"), "ledger".to_owned()).unwrap();
    let (former, new) = (open(), open());
    former.raise(FORMER).unwrap();
    Owners { former, new, folder }
}

fn entry(id: &str) -> Entry {
    Entry { id: id.to_owned(), account: "ada".to_owned(), amount: 10 }
}

#[track_caller]
fn assert_fenced(answer: Result<impl std::fmt::Debug, Refused>, ours: u64, stored: Option<u64>) {
    match answer {
        Err(Refused::Fenced(fenced)) => assert_eq!(fenced, Fenced { part: "ledger".to_owned(), ours, stored }),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_id_books_once_and_always_has_the_same_answer() {
    let Owners { former: store, new: _, folder: _folder } = owners();
    assert_eq!(store.post(FORMER, &entry("1")).unwrap(), 10);
    assert_eq!(store.post(FORMER, &entry("2")).unwrap(), 20);
    assert_eq!(store.post(FORMER, &entry("1")).unwrap(), 10);
    let other = Entry { amount: 11, ..entry("1") };
    assert!(matches!(store.post(FORMER, &other), Err(Refused::Taken)));
    let too_much = Entry { amount: i64::MAX, ..entry("3") };
    assert!(matches!(store.post(FORMER, &too_much), Err(Refused::TooMuch)));
    assert_eq!((store.balance("ada").unwrap(), store.balance("bob").unwrap()), (20, 0));
    assert_eq!(store.ids("ada").unwrap(), ["1", "2"]);
}

#[test]
fn a_former_owner_books_no_more_and_the_new_one_has_what_it_booked() {
    let Owners { former, new, folder: _folder } = owners();
    former.post(FORMER, &entry("1")).unwrap();
    new.raise(NEW).unwrap();
    assert_fenced(former.post(FORMER, &entry("2")), FORMER, Some(NEW));
    assert_fenced(former.raise(FORMER), FORMER, Some(NEW));
    assert_eq!(new.post(NEW, &entry("3")).unwrap(), 20);
    assert_eq!(new.ids("ada").unwrap(), ["1", "3"]);
}

#[test]
fn who_has_not_raised_its_fence_books_nothing() {
    let Owners { former: _, new, folder: _folder } = owners();
    assert_fenced(new.post(NEW, &entry("1")), NEW, Some(FORMER));
    let folder = tempfile::tempdir().unwrap();
    let empty = Store::open(&folder.path().join("ledger.db"), "ledger".to_owned()).unwrap();
    assert_fenced(empty.post(NEW, &entry("1")), NEW, None);
}

#[test]
fn a_fence_is_raised_again_without_harm() {
    let Owners { former, new: _, folder: _folder } = owners();
    former.raise(FORMER).unwrap();
    former.post(FORMER, &entry("1")).unwrap();
}

/// The former owner has looked at the fence, and is about to write.
#[test]
fn a_fence_is_not_raised_in_the_middle_of_a_transaction() {
    let Owners { former, new, folder: _folder } = owners();
    let mut connection = former.lock();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    former.check(&transaction, FORMER).unwrap();
    new.lock().busy_timeout(Duration::ZERO).unwrap();
    let error = new.raise(NEW).unwrap_err();
    let busy = Some(rusqlite::ErrorCode::DatabaseBusy);
    assert!(matches!(&error, Refused::Database(error) if error.sqlite_error_code() == busy), "{error:?}");
    book(&transaction, &entry("1")).unwrap();
    transaction.commit().unwrap();
    drop(connection);
    // With patience, it would have waited until now.
    new.raise(NEW).unwrap();
    assert_eq!(new.ids("ada").unwrap(), ["1"]);
    assert_fenced(former.post(FORMER, &entry("2")), FORMER, Some(NEW));
}

/// The former owner's write waits for the database while the new one has it.
#[test]
fn a_transaction_that_waited_while_the_fence_was_raised_books_nothing() {
    let Owners { former, new, folder: _folder } = owners();
    let mut connection = new.lock();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    transaction.execute(fence::RAISE, ("ledger", NEW.cast_signed())).unwrap();
    thread::scope(|scope| {
        let late = scope.spawn(|| former.post(FORMER, &entry("1")));
        transaction.commit().unwrap();
        assert_fenced(late.join().unwrap(), FORMER, Some(NEW));
    });
    drop(connection);
    assert_eq!(new.ids("ada").unwrap(), Vec::<String>::new());
}

/// Owners race, and each believes that it is the one.
#[test]
fn what_many_owners_were_told_is_booked_is_there() {
    const OWNERS: u64 = 8;
    let folder = tempfile::tempdir().unwrap();
    let told: Vec<(u64, String)> = thread::scope(|scope| {
        let owner = |epoch: u64| {
            let path = folder.path().join("ledger.db");
            move || {
                let store = Store::open(&path, "ledger".to_owned()).unwrap();
                let mut told = Vec::new();
                if store.raise(epoch).is_err() {
                    return told;
                }
                for number in 0..50 {
                    let id = format!("{epoch}-{number}");
                    match store.post(epoch, &entry(&id)) {
                        Ok(_) => told.push((epoch, id)),
                        Err(Refused::Fenced(_)) => break,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                told
            }
        };
        let owners: Vec<_> = (1..=OWNERS).map(|epoch| scope.spawn(owner(epoch))).collect();
        owners.into_iter().flat_map(|owner| owner.join().unwrap()).collect()
    });
    let store = Store::open(&folder.path().join("ledger.db"), "ledger".to_owned()).unwrap();
    let booked = store.ids("ada").unwrap();
    let mut expected: Vec<String> = told.iter().map(|(_, id)| id.clone()).collect();
    let epochs: Vec<u64> = booked.iter().map(|id| id.split('-').next().unwrap().parse().unwrap()).collect();
    assert!(epochs.is_sorted(), "an owner booked after a later one: {epochs:?}");
    expected.sort();
    let mut there = booked;
    there.sort();
    assert_eq!(there, expected);
    assert_eq!(there.iter().filter(|id| id.starts_with("8-")).count(), 50, "nobody stops the last one");
}
