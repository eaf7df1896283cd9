//! Whether answers of a register are those of one register: a checker of linearizability, after Wing and Gong, with the
//! memory of Lowe (a configuration that has come to nothing is not tried again).
//!
//! ```text
//! put 1 ├────────┤              1 was there between these ends at some moment,
//! get      ├────────┤ 0         so that this is right,
//! get                 ├──┤ 0    and this is not
//! ```
//! Each register is checked for itself: registers are linearizable together if each is ([Herlihy and Wing, 1990], theorem
//! 1). A tester that comes with a model checker has no such memory and tries all orders: with as many callers at a time as
//! a fault leaves behind, each of whose calls may have run at any time since, that does not end.
//!
//! [Herlihy and Wing, 1990]: https://doi.org/10.1145/78969.78972

use std::collections::HashSet;

use tokio::time::Instant;

/// How many operations of one register can be checked.
pub const MOST: usize = 128;

/// What is asked of a register, which is zero at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// It is this now.
    Put(i64),
    /// What is it?
    Get,
    /// It is so much more now. What was it?
    Add(i64),
}

/// A call that may have run.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// What it was for.
    pub deed: Deed,
    /// Not before this.
    pub sent: Instant,
    /// When it was answered, and with what; if it was not, it may run at any time, or never.
    pub answer: Option<(Instant, i64)>,
}

impl Operation {
    /// What is in the register after it, if this may have been the answer.
    fn after(&self, value: i64) -> Option<i64> {
        let told = self.answer.map(|(_, answer)| answer);
        match self.deed {
            Deed::Put(new) => Some(new),
            Deed::Get => told.is_none_or(|told| told == value).then_some(value),
            Deed::Add(by) => told.is_none_or(|told| told == value).then(|| value + by),
        }
    }
}

/// Whether there is an order of all that was answered, and of some that was not, in which each follows those which had
/// ended before it was sent, and each answer is right.
///
/// # Panics
/// When there are more than [`MOST`].
#[must_use]
pub fn is_linearizable(operations: &[Operation]) -> bool {
    assert!(operations.len() <= MOST, "{} operations of one register are too many", operations.len());
    let mut search = Search { operations, seen: HashSet::new() };
    search.goes_on(0, 0)
}

struct Search<'a> {
    operations: &'a [Operation],
    /// Which have run, and what is in the register then.
    seen: HashSet<(u128, i64)>,
}

impl Search<'_> {
    fn goes_on(&mut self, run: u128, value: i64) -> bool {
        let left = || (0..self.operations.len()).filter(|at| run & (1 << at) == 0).map(|at| (at, self.operations[at]));
        let Some(first_end) = left().filter_map(|(_, operation)| Some(operation.answer?.0)).min() else {
            return true;
        };
        let next: Vec<(usize, i64)> = left()
            .filter(|(_, operation)| operation.sent <= first_end)
            .filter_map(|(at, operation)| Some((at, operation.after(value)?)))
            .collect();
        next.into_iter().any(|(at, value)| {
            let run = run | (1 << at);
            self.seen.insert((run, value)) && self.goes_on(run, value)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Sent and answered at these milliseconds, with that.
    fn operation(began: Instant, deed: Deed, sent: u64, answer: Option<(u64, i64)>) -> Operation {
        let at = |ms: u64| began + Duration::from_millis(ms);
        Operation { deed, sent: at(sent), answer: answer.map(|(ended, answer)| (at(ended), answer)) }
    }

    /// What, sent at, answered at and with.
    type Told = (Deed, u64, Option<(u64, i64)>);

    fn check(operations: &[Told]) -> bool {
        let began = Instant::now();
        let operations: Vec<Operation> =
            operations.iter().map(|(deed, sent, answer)| operation(began, *deed, *sent, *answer)).collect();
        is_linearizable(&operations)
    }

    use Deed::{Add, Get, Put};

    #[test]
    fn one_after_the_other_is_linearizable() {
        assert!(check(&[]));
        assert!(check(&[(Get, 0, Some((1, 0))), (Put(5), 2, Some((3, 0))), (Get, 4, Some((5, 5)))]));
        assert!(check(&[(Add(1), 0, Some((1, 0))), (Add(1), 2, Some((3, 1))), (Get, 4, Some((5, 2)))]));
    }

    #[test]
    fn an_old_value_is_not() {
        assert!(!check(&[(Put(5), 0, Some((1, 0))), (Get, 2, Some((3, 0)))]));
        assert!(!check(&[(Put(5), 0, Some((1, 0))), (Put(6), 2, Some((3, 0))), (Get, 4, Some((5, 5)))]));
        assert!(!check(&[(Get, 0, Some((1, 7)))]), "nobody has put that");
    }

    #[test]
    fn what_was_seen_stays() {
        let put = (Put(5), 0, Some((9, 0)));
        assert!(check(&[put, (Get, 1, Some((2, 0))), (Get, 3, Some((4, 5)))]));
        assert!(!check(&[put, (Get, 1, Some((2, 5))), (Get, 3, Some((4, 0)))]));
    }

    #[test]
    fn an_addition_that_ran_twice_or_was_lost_is_found() {
        assert!(!check(&[(Add(1), 0, Some((1, 0))), (Get, 2, Some((3, 2)))]));
        assert!(!check(&[(Add(1), 0, Some((1, 0))), (Add(1), 2, Some((3, 0)))]));
        assert!(!check(&[(Add(1), 0, Some((5, 0))), (Add(1), 0, Some((5, 0)))]), "both at a time");
    }

    #[test]
    fn what_was_not_answered_may_run_late_or_never_but_once() {
        let lost = (Add(1), 0, None);
        assert!(check(&[lost, (Get, 1, Some((2, 0)))]));
        assert!(check(&[lost, (Get, 1, Some((2, 1)))]));
        assert!(check(&[lost, (Get, 1, Some((2, 0))), (Get, 3, Some((4, 1)))]));
        assert!(!check(&[lost, (Get, 1, Some((2, 1))), (Get, 3, Some((4, 0)))]));
        assert!(!check(&[lost, (Get, 1, Some((2, 2)))]));
        assert!(!check(&[(Get, 0, Some((1, 5))), (Put(5), 2, None)]), "not before it was sent");
    }

    #[test]
    fn many_at_a_time_do_not_take_forever() {
        let mut operations: Vec<_> = (0..8).map(|by| (Put(by), 0, None)).collect();
        operations.extend((0..100).map(|at| (Get, 10 * at + 1, Some((10 * at + 2, (at / 10).min(7) as i64)))));
        assert!(check(&operations));
        operations.push((Get, 2000, Some((2001, 99))));
        assert!(!check(&operations));
    }
}
