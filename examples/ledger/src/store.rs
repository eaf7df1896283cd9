//! The database. Each write looks first whether the module still owns it.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outpost::fence::{self, Fenced};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};

/// An entry has the balance of its account after it, so that the answer to a second try is that of the first.
const ENTRIES: &str = "CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    account TEXT NOT NULL,
    amount BIGINT NOT NULL,
    balance BIGINT NOT NULL
)";
const BY_ACCOUNT: &str = "CREATE INDEX IF NOT EXISTS entries_by_account ON entries (account, number)";

/// How long a transaction waits for those of others.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be booked.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) amount: i64,
}

/// Why nothing was booked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Fenced(#[from] Fenced),
    #[error("the id was used for another account or amount")]
    Taken,
    #[error("the account can't hold so much")]
    TooMuch,
    #[error("the database failed: {0}")]
    Database(#[from] rusqlite::Error),
}

/// The database, as one instance of the module sees it.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Mutex<Connection>,
    part: String,
}

impl Store {
    pub(crate) fn open(path: &Path, part: String) -> Result<Self, Refused> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        for statement in [fence::TABLE, ENTRIES, BY_ACCOUNT] {
            connection.execute(statement, ())?;
        }
        Ok(Self { connection: Mutex::new(connection), part })
    }

    /// Takes the database over from owners of lower epochs. What they have booked is there; they book no more.
    pub(crate) fn raise(&self, epoch: u64) -> Result<(), Refused> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(fence::RAISE, (&self.part, epoch.cast_signed()))?;
        self.check(&transaction, epoch)?;
        Ok(transaction.commit()?)
    }

    /// Books an entry, or finds that it is booked. Returns the balance after it.
    pub(crate) fn post(&self, epoch: u64, entry: &Entry) -> Result<i64, Refused> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.check(&transaction, epoch)?;
        let balance = book(&transaction, entry)?;
        transaction.commit()?;
        Ok(balance)
    }

    pub(crate) fn balance(&self, account: &str) -> Result<i64, Refused> {
        Ok(balance(&self.lock(), account)?)
    }

    pub(crate) fn ids(&self, account: &str) -> Result<Vec<String>, Refused> {
        let connection = self.lock();
        let mut ids = connection.prepare_cached("SELECT id FROM entries WHERE account = ?1 ORDER BY number")?;
        Ok(ids.query_map([account], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic left open was rolled back when it was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an owner at this epoch may write, in this transaction.
    fn check(&self, transaction: &Transaction<'_>, epoch: u64) -> Result<(), Refused> {
        let stored = transaction.query_row(fence::READ_SQLITE, [&self.part], |row| row.get(0)).optional()?;
        Ok(fence::check(&self.part, epoch, stored)?)
    }
}

fn book(transaction: &Transaction<'_>, entry: &Entry) -> Result<i64, Refused> {
    let Entry { id, account, amount } = entry;
    let known = transaction
        .prepare_cached("SELECT account, amount, balance FROM entries WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
        .optional()?;
    if let Some((of, booked, balance)) = known {
        return if (of, booked) == (account.clone(), *amount) { Ok(balance) } else { Err(Refused::Taken) };
    }
    let balance = balance(transaction, account)?.checked_add(*amount).ok_or(Refused::TooMuch)?;
    transaction
        .prepare_cached("INSERT INTO entries (id, account, amount, balance) VALUES (?1, ?2, ?3, ?4)")?
        .execute((id, account, amount, balance))?;
    Ok(balance)
}

fn balance(connection: &Connection, account: &str) -> rusqlite::Result<i64> {
    let last = connection
        .prepare_cached("SELECT balance FROM entries WHERE account = ?1 ORDER BY number DESC LIMIT 1")?
        .query_row([account], |row| row.get(0))
        .optional()?;
    Ok(last.unwrap_or_default())
}

#[cfg(test)]
mod tests;
