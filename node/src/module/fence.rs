//! The fence of a module's own database: how a former owner is kept from writing.
//!
//! ```text
//! epoch 4: BEGIN, check: 4 ─ write ─ COMMIT              BEGIN, check: 5, not mine ─ ROLLBACK
//! epoch 5:                               └─▶ raise to 5 ─ load ─ serve: BEGIN, check: 5 ─ write ─ COMMIT
//! ```
//! A lease says who may serve, and a process that was stopped, or whose clock was, may learn late that it is over. What
//! it has begun to write then must not reach the database. So each write looks, in its own transaction, whether the
//! epoch in the database is still the writer's: the database, which can't be stopped half-way, has the last word.
//!
//! The rule, for a module that is [`durable`](crate::Module::durable):
//! 1. In [`Context::on_activate`](crate::Context::on_activate), in one transaction: [`RAISE`], then the same as before
//!    a write. Load afterwards what the module keeps of the database in memory.
//! 2. In each transaction that writes, before anything else: [`READ_SQLITE`] or [`READ_POSTGRES`], then [`check`] against
//!    [`Context::epoch`](crate::Context::epoch), and roll back if that fails.
//!
//! **Invariant:** of two transactions that check different epochs, the one of the lower epoch is committed before the
//! raise of the higher one, or not at all. Whoever raises sees all that was written before.
//!
//! Nothing here knows a driver. Parameters are `$1` and `$2`, which both databases understand, bound by their position.

/// The table, made if it is not there: one row for each module.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS outpost_fence (part TEXT PRIMARY KEY, epoch BIGINT NOT NULL)";

/// Sets the epoch `$2` of the module `$1`, if that is higher than the one that is there. Check afterwards: it may not be.
pub const RAISE: &str = "INSERT INTO outpost_fence (part, epoch) VALUES ($1, $2) \
     ON CONFLICT (part) DO UPDATE SET epoch = excluded.epoch WHERE outpost_fence.epoch < excluded.epoch";

/// Reads the epoch of the module `$1`: one row with one number, or none. For SQLite, in a transaction that was begun by
/// `BEGIN IMMEDIATE`. A plain `BEGIN` locks the database when it first writes, which may fail after the check.
pub const READ_SQLITE: &str = "SELECT epoch FROM outpost_fence WHERE part = $1";

/// The same for PostgreSQL, where it locks the row: whoever wants to raise it waits until the transaction ends.
pub const READ_POSTGRES: &str = "SELECT epoch FROM outpost_fence WHERE part = $1 FOR UPDATE";

/// A module may not write: another owner has raised its fence, or this one has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("module `{part}` may not write at epoch {ours}: {}", why(*.ours, *.stored))]
pub struct Fenced {
    /// The module.
    pub part: String,
    /// The epoch of the one who wants to write.
    pub ours: u64,
    /// The epoch in the database, if there is one.
    pub stored: Option<u64>,
}

fn why(ours: u64, stored: Option<u64>) -> String {
    match stored {
        Some(stored) if stored > ours => format!(
            "its database was taken over at epoch {stored}. If the cluster was founded anew, and nothing of the old one \
             runs, delete the module's row of `outpost_fence`"
        ),
        Some(stored) => format!("its database is still at epoch {stored}; raise it in `Context::on_activate`"),
        None => "its database has no epoch; raise it in `Context::on_activate`".to_owned(),
    }
}

/// Whether an owner at epoch `ours` may write, where the database has the epoch `stored`, as it was read in the same
/// transaction.
///
/// # Errors
/// It may not: the transaction has to be rolled back, and the call to fail.
pub fn check(part: &str, ours: u64, stored: Option<i64>) -> Result<(), Fenced> {
    #[cfg(feature = "simulation")]
    if crate::simulation::is_broken(crate::simulation::Rule::FenceIsChecked) {
        return Ok(());
    }
    let stored = stored.map(|epoch| u64::try_from(epoch).unwrap_or_default());
    if stored == Some(ours) { Ok(()) } else { Err(Fenced { part: part.to_owned(), ours, stored }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_epoch_that_is_stored_may_write() {
        assert_eq!(check("ledger", 5, Some(5)), Ok(()));
        for (stored, remedy) in [(Some(6), "taken over at epoch 6"), (Some(4), "on_activate"), (None, "on_activate")] {
            let error = check("ledger", 5, stored).unwrap_err();
            assert_eq!(error.stored, stored.map(|epoch| epoch as u64));
            let text = error.to_string();
            assert!(text.starts_with("module `ledger` may not write at epoch 5") && text.contains(remedy), "{text}");
        }
    }
}
