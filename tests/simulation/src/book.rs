//! What happened, written down by whom it happened to; and what must be true of it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use outpost::simulation::{Passing, Placement, Record};
use serde::{Deserialize, Serialize};

use crate::{answers::Answers, machine::turn, state::Lists};

/// How a call ended, as its caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With an answer.
    Acknowledged,
    /// With an error that says that nothing has run.
    NotExecuted,
    /// With an error that does not.
    Unknown,
}

/// The sums of a run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Calls {
    /// Calls that were begun.
    pub sent: u64,
    /// Calls that were answered.
    pub acknowledged: u64,
    /// Calls that have not run, as their callers were told.
    pub not_executed: u64,
    /// Calls of which their callers know nothing.
    pub unknown: u64,
    /// Answered, and without effect: must be 0.
    pub lost: u64,
    /// With an effect more than once: must be 0.
    pub duplicated: u64,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which.
    pub invariant: String,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.text)
    }
}

#[derive(Debug, Default)]
struct Book {
    now_ms: u64,
    sent: BTreeSet<String>,
    ended: BTreeMap<String, End>,
    executed: BTreeMap<String, Vec<(String, u64)>>,
    /// Of each module, the newest record that any node has applied.
    truth: BTreeMap<String, Record>,
    /// The record of each version of each module.
    records: BTreeMap<(String, u64), Record>,
    /// The owner of each epoch of each module.
    owners: BTreeMap<(String, u64), (String, u64)>,
    /// Calls that were let in by somebody who was not the owner a millisecond ago.
    suspects: Vec<Suspect>,
    violation: Option<Violation>,
    take_overs: u64,
    hand_overs: u64,
    lists: Lists,
    answers: Answers,
}

/// A call that was let in by somebody who was not the owner then.
#[derive(Debug)]
struct Suspect {
    call: String,
    module: &'static str,
    node: String,
    generation: u64,
}

thread_local! {
    static BOOK: RefCell<Book> = RefCell::default();
}

fn violated(book: &mut Book, invariant: &str, text: String) {
    // The first one is the cause of the others.
    let text = format!("{text} (at {} ms)", book.now_ms);
    book.violation.get_or_insert(Violation { invariant: invariant.to_owned(), text });
}

/// The time, for what is written from now on.
pub fn at(now_ms: u64) {
    BOOK.with_borrow_mut(|book| book.now_ms = now_ms);
}

/// A promise was not kept.
pub fn violation(invariant: &str, text: String) {
    BOOK.with_borrow_mut(|book| violated(book, invariant, text));
}

/// The first promise that was not kept.
#[must_use]
pub fn first_violation() -> Option<Violation> {
    BOOK.with_borrow(|book| book.violation.clone())
}

/// A call begins.
pub fn sent(call: &str) {
    BOOK.with_borrow_mut(|book| book.sent.insert(call.to_owned()));
}

/// A call has ended.
pub fn ended(call: &str, end: End) {
    BOOK.with_borrow_mut(|book| {
        let count = book.executed.get(call).map_or(0, Vec::len);
        if end == End::Acknowledged && count == 0 {
            violated(book, "answered means done", format!("{call} was answered, and has not run"));
        }
        if end == End::NotExecuted && count > 0 {
            let by = book.executed[call].clone();
            violated(book, "I7", format!("{call} was said not to have run, and ran: {by:?}"));
        }
        book.ended.insert(call.to_owned(), end);
    });
}

/// A call was let in by the instance of a process. (INV-1)
pub fn admitted(call: &str, module: &'static str, node: &str, generation: u64) {
    BOOK.with_borrow_mut(|book| {
        let Some(owner) = book.truth.get(module).and_then(|record| record.owner.as_ref()) else { return };
        if (owner.0.as_str(), owner.1) != (node, generation) {
            // What this node has applied in this millisecond is not written down yet.
            book.suspects.push(Suspect { call: call.to_owned(), module, node: node.to_owned(), generation });
        }
    });
}

/// All nodes have told what they have applied in this millisecond.
pub fn settle() {
    BOOK.with_borrow_mut(|book| {
        settle_lists(book);
        for Suspect { call, module, node, generation } in std::mem::take(&mut book.suspects) {
            let Some(record) = book.truth.get(module) else { continue };
            let Some((owner, of)) = &record.owner else { continue };
            if (owner, of) != (&node, &generation) {
                let epoch = record.epoch;
                let text = format!(
                    "{node}/{generation} let {call} in although {owner}/{of} owns `{module}` since epoch {epoch}, \
                     which is committed"
                );
                violated(book, "INV-1, I2", text);
            }
        }
    });
}

/// A process begins at a node.
pub fn begins(node: &str) {
    BOOK.with_borrow_mut(|book| book.answers.begins(node));
}

/// An answer passes through the node whose turn it is. (I5)
pub fn passes(answer: Passing<'_>) {
    let Some(board) = turn() else { return };
    BOOK.with_borrow_mut(|book| {
        if let Some(text) = book.answers.passes(board.name(), answer) {
            violated(book, "I5", text);
        }
    });
}

/// A call has had its effect.
pub fn executed(call: &str, node: &str, generation: u64) {
    BOOK.with_borrow_mut(|book| {
        let by = book.executed.entry(call.to_owned()).or_default();
        by.push((node.to_owned(), generation));
        if by.len() > 1 {
            let text = format!("{call} ran {} times: {by:?}", by.len());
            violated(book, "INV-2, I4", text);
        } else if book.ended.get(call) == Some(&End::NotExecuted) {
            violated(book, "I7", format!("{call} was said not to have run, and then ran at {node}/{generation}"));
        }
    });
}

/// What is noted about the lists of modules.
pub fn lists<T>(note: impl FnOnce(&mut Lists) -> T) -> T {
    BOOK.with_borrow_mut(|book| {
        let noted = note(&mut book.lists);
        tell(book);
        noted
    })
}

/// An entry was added to the list of a module, at an epoch, and the call's answer will say where.
pub fn appended(call: &str, module: &str, epoch: u64, node: &str, generation: u64) {
    BOOK.with_borrow_mut(|book| {
        // Twice, if another owner lost the first.
        book.executed.entry(call.to_owned()).or_default().push((node.to_owned(), generation));
        book.lists.appended(module, epoch, call);
        if book.ended.get(call) == Some(&End::NotExecuted) {
            violated(book, "I7", format!("{call} was said not to have run, and then ran at {node}/{generation}"));
        }
        tell(book);
    });
}

fn settle_lists(book: &mut Book) {
    book.lists.settle();
    tell(book);
    for (call, node) in book.lists.arrive(book.now_ms) {
        book.executed.entry(call.clone()).or_default().push((node.clone(), 0));
        if book.ended.get(&call) == Some(&End::NotExecuted) {
            violated(book, "I7", format!("{call} was said not to have run, and then ran at {node}"));
        }
    }
    tell(book);
}

fn tell(book: &mut Book) {
    if let Some((invariant, text)) = book.lists.wrong.take() {
        violated(book, invariant, text);
    }
}

/// Nobody calls any more: what was acknowledged is there.
pub fn last_check() {
    BOOK.with_borrow_mut(|book| {
        book.lists.last_check();
        tell(book);
    });
}

/// What a node has applied. (I1, and that all nodes apply the same)
pub fn applied(node: &str, placement: &Placement) {
    BOOK.with_borrow_mut(|book| {
        for (module, record) in &placement.records {
            book.answers.applied(node, module, record.fence);
            let version = (module.clone(), record.version);
            match book.records.get(&version) {
                Some(known) if known != record => {
                    let text = format!(
                        "{node} has {record:?} as version {} of `{module}`, another node {known:?}",
                        record.version
                    );
                    violated(book, "one log", text);
                }
                Some(_) => continue,
                None => drop(book.records.insert(version, record.clone())),
            }
            if let Some(owner) = &record.owner {
                let epoch = (module.clone(), record.epoch);
                let known = book.owners.entry(epoch).or_insert_with(|| owner.clone());
                if known != owner {
                    let text = format!("epoch {} of `{module}` belongs to {known:?} and to {owner:?}", record.epoch);
                    violated(book, "I1", text);
                }
            }
            tracing::info!(module, ?record, "a record has changed");
            // Who handed a state over has it still, and loses nothing when it gets the part back; unless somebody may have
            // served what that one has not.
            let before = book.truth.get(module).filter(|newest| !newest.active);
            let before = before.and_then(|newest| newest.sealed_by.as_ref());
            let kept = record.sealed_by.is_some() || (before.is_some() && before == record.owner.as_ref());
            book.lists.taken_over(module, record.fence, record.epoch == record.fence && kept);
            let Some(newest) = book.truth.get(module).cloned() else {
                book.truth.insert(module.clone(), record.clone());
                continue;
            };
            let (older, newer) = if newest.version < record.version { (&newest, record) } else { (record, &newest) };
            if newer.epoch < older.epoch || (newer.epoch == older.epoch && newer.owner != older.owner) {
                let text = format!("`{module}` went from {older:?} to {newer:?}");
                violated(book, "I1", text);
            }
            if newest.version < record.version {
                if newest.epoch < record.epoch {
                    match newest.moving_to {
                        Some((to, _)) if record.owner.as_ref().is_some_and(|(owner, _)| *owner == to) => {
                            book.hand_overs += 1
                        }
                        _ => book.take_overs += 1,
                    }
                }
                book.truth.insert(module.clone(), record.clone());
            }
        }
    });
}

/// The newest record of a module that any node has applied.
#[must_use]
pub fn truth(module: &str) -> Option<Record> {
    BOOK.with_borrow(|book| book.truth.get(module).cloned())
}

/// The sums; finds out what is lost.
#[must_use]
pub fn calls() -> Calls {
    BOOK.with_borrow(|book| {
        let ended = |wanted| book.ended.values().filter(|end| **end == wanted).count() as u64;
        let lost = |(call, end): &(&String, &End)| **end == End::Acknowledged && !book.executed.contains_key(*call);
        Calls {
            sent: book.sent.len() as u64,
            acknowledged: ended(End::Acknowledged),
            not_executed: ended(End::NotExecuted),
            unknown: ended(End::Unknown),
            lost: book.ended.iter().filter(lost).count() as u64,
            duplicated: book.executed.iter().filter(|(call, by)| by.len() > 1 && !book.lists.is_of_one(call)).count()
                as u64,
        }
    })
}

/// How often the register went to another owner by a move, and otherwise.
#[must_use]
pub fn changes() -> (u64, u64) {
    BOOK.with_borrow(|book| (book.hand_overs, book.take_overs))
}

/// The time that was written last.
#[must_use]
pub fn now_ms() -> u64 {
    BOOK.with(|book| book.try_borrow().map_or(0, |book| book.now_ms))
}
