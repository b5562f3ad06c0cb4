//! The embedded store: one SQLite file in the state directory.
//!
//! Why SQLite: several processes (`smctl` twice, a daemon) use the state directory at once, and
//! SQLite's locks, write-ahead log and recovery are made for that. A pure Rust store with one
//! writer per file would need to be opened and closed around every access; see
//! `docs/decisions/0002-sqlite-catalog.md` for the figures.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};
use sm_model::{Error, Kind, Result};

use crate::store::{Batch, Commit, Store, Stored};

/// Version of the tables below. A file with a higher one is refused.
const SCHEMA: i64 = 1;

/// Marks the file as ours (`PRAGMA application_id`): "smCT".
const APPLICATION: i64 = 0x736d_4354;

/// Pages of 4 KiB in the log before it is folded into the file: of a process that has just begun, and
/// of one that has committed [`LONG`] times. To fold is to sync, with everybody waiting.
const LOG_PAGES: [i64; 2] = [64, 1000];

/// See [`LOG_PAGES`]. A command commits a few times.
const LONG: u32 = 64;

/// How long to wait for another process that is writing. Each of its transactions takes
/// milliseconds.
const WAIT: Duration = Duration::from_secs(10);

/// A [`Store`] in an SQLite file.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    open: Mutex<Open>,
    path: String,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// What `synchronous` was last set to: whether a commit syncs.
    durable: Option<bool>,
    commits: u32,
}

impl SqliteStore {
    /// Opens the file, making it if it is not there. It is readable by its owner only.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        make_private(path).map_err(|error| {
            Error::from(error).context("path", &shown).hint("is the state directory writable?")
        })?;
        let connection = Connection::open(path).map_err(|e| describe(&e, &shown))?;
        let open = Mutex::new(Open { connection, durable: None, commits: 0 });
        let store = Self { open, path: shown };
        store.prepare().map_err(|error| match error {
            Prepare::Sqlite(error) => describe(&error, &store.path),
            Prepare::Refused(error) => *error,
        })?;
        Ok(store)
    }

    fn prepare(&self) -> Result<(), Prepare> {
        let connection = &mut self.lock().connection;
        connection.busy_timeout(WAIT)?;
        // The log is folded into the file every so many pages, not at each exit of an smctl: that
        // would cost two fsyncs each time. Nor much later: whoever opens the catalog next reads
        // and checks the whole log (1,000 pages, SQLite's own choice, cost 2 ms of CPU). Who goes on
        // for long opens it once: he folds less often, and leaves a log that the next command folds.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES[0])?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
        if version > SCHEMA {
            return Err(Prepare::Refused(Box::new(
                Error::new(
                    Kind::Unsupported,
                    format!(
                        "the catalog {} has schema version {version}, this release knows {SCHEMA}",
                        self.path
                    ),
                )
                .hint("use the newer release that wrote it"),
            )));
        }
        if version == SCHEMA {
            return Ok(());
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        let version: i64 = transaction.pragma_query_value(None, "user_version", |r| r.get(0))?;
        if version == 0 {
            transaction.execute_batch(
                "CREATE TABLE entry (
                    key TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL
                 ) WITHOUT ROWID;",
            )?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", SCHEMA)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // A panic while it was held cannot have left a transaction open: they roll back on drop.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Stored>> {
        let open = self.lock();
        let mut statement = open
            .connection
            .prepare_cached("SELECT version, value FROM entry WHERE key = ?1")
            .map_err(|e| describe(&e, &self.path))?;
        statement
            .query_row([key], |row| Ok(Stored { version: version(row, 0)?, value: row.get(1)? }))
            .optional()
            .map_err(|e| describe(&e, &self.path))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Stored)>> {
        let open = self.lock();
        let read = || -> rusqlite::Result<Vec<(String, Stored)>> {
            let mut statement = open.connection.prepare_cached(
                "SELECT key, version, value FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key",
            )?;
            // Keys are ASCII, so nothing sorts above the prefix followed by this character.
            let end = format!("{prefix}\u{10ffff}");
            let rows = statement.query_map([prefix, &end], |row| {
                Ok((row.get(0)?, Stored { version: version(row, 1)?, value: row.get(2)? }))
            })?;
            rows.collect()
        };
        read().map_err(|e| describe(&e, &self.path))
    }

    fn commit(&self, batch: Batch) -> Result<Commit> {
        let mut open = self.lock();
        let Open { connection, durable, commits } = &mut *open;
        let mut apply = || -> rusqlite::Result<Commit> {
            if *durable != Some(batch.durable) {
                *durable = None; // Until it is known to be set.
                let synchronous = if batch.durable { "FULL" } else { "NORMAL" };
                connection.pragma_update(None, "synchronous", synchronous)?;
                *durable = Some(batch.durable);
            }
            *commits = commits.saturating_add(1);
            if *commits == LONG {
                connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES[1])?;
            }
            // Immediate: two writers queue up here instead of failing at their first change.
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for expectation in &batch.expect {
                let found: Option<i64> = transaction
                    .prepare_cached("SELECT version FROM entry WHERE key = ?1")?
                    .query_row([&expectation.key], |row| row.get(0))
                    .optional()?;
                if found.map(i64::cast_unsigned) != expectation.version {
                    return Ok(Commit::Conflict);
                }
            }
            for change in &batch.changes {
                match &change.value {
                    Some(value) => transaction
                        .prepare_cached(
                            "INSERT INTO entry (key, version, value) VALUES (?1, 1, ?2)
                             ON CONFLICT (key) DO UPDATE SET version = version + 1, value = ?2",
                        )?
                        .execute((&change.key, value))?,
                    None => transaction
                        .prepare_cached("DELETE FROM entry WHERE key = ?1")?
                        .execute([&change.key])?,
                };
            }
            transaction.commit()?;
            Ok(Commit::Done)
        };
        apply().map_err(|e| describe(&e, &self.path))
    }
}

fn version(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    // SQLite gives its log the mode of the file.
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(())
}

enum Prepare {
    Sqlite(rusqlite::Error),
    Refused(Box<Error>),
}

impl From<rusqlite::Error> for Prepare {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn describe(error: &rusqlite::Error, path: &str) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Kind::Busy { retry_after_ms: None }
        }
        Some(ErrorCode::DiskFull) => Kind::NoSpace,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Corrupt,
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::CannotOpen) => {
            Kind::Auth
        }
        _ => Kind::Internal,
    };
    Error::new(kind, format!("the catalog {path} cannot be used: {error}")).context("path", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, Expectation};

    fn put(key: &str, value: &str) -> Change {
        Change { key: key.into(), value: Some(value.into()) }
    }

    fn batch(expect: Option<(&str, Option<u64>)>, changes: Vec<Change>) -> Batch {
        let expect = expect
            .map(|(key, version)| Expectation { key: key.into(), version })
            .into_iter()
            .collect();
        Batch { expect, changes, durable: false }
    }

    fn store() -> (tempfile::TempDir, SqliteStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("catalog.db")).unwrap();
        (folder, store)
    }

    #[test]
    fn a_batch_is_all_or_nothing() {
        let (_folder, store) = store();
        assert_eq!(store.commit(batch(Some(("a", None)), vec![put("a", "1")])), Ok(Commit::Done));
        let second = batch(Some(("a", None)), vec![put("b", "2"), put("a", "2")]);
        assert_eq!(store.commit(second), Ok(Commit::Conflict));
        assert_eq!(store.get("b"), Ok(None));
        let third = batch(Some(("a", Some(1))), vec![put("a", "3"), put("b", "3")]);
        assert_eq!(store.commit(third), Ok(Commit::Done));
        assert_eq!(store.get("a"), Ok(Some(Stored { version: 2, value: b"3".to_vec() })));
    }

    #[test]
    fn a_prefix_lists_only_its_own_keys_in_order() {
        let (_folder, store) = store();
        let changes = ["sr/b", "sr/a", "ss/a", "sr", "sq/z"].map(|key| put(key, "x")).to_vec();
        assert_eq!(store.commit(batch(None, changes)), Ok(Commit::Done));
        let keys: Vec<String> = store.list("sr/").unwrap().into_iter().map(|(k, _)| k).collect();
        assert_eq!(keys, ["sr/a", "sr/b"]);
    }

    #[test]
    fn two_connections_see_each_other_and_survive_reopening() {
        let (folder, first) = store();
        let path = folder.path().join("catalog.db");
        let second = SqliteStore::open(&path).unwrap();
        assert_eq!(first.commit(batch(None, vec![put("a", "1")])), Ok(Commit::Done));
        assert_eq!(second.get("a").unwrap().unwrap().value, b"1");
        drop((first, second));
        assert_eq!(SqliteStore::open(&path).unwrap().get("a").unwrap().unwrap().value, b"1");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let (folder, store) = store();
        store.lock().connection.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        drop(store);
        let path = folder.path().join("catalog.db");
        let error = SqliteStore::open(&path).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert_eq!(
            error.message,
            format!("the catalog {} has schema version 2, this release knows 1", path.display())
        );
    }

    #[test]
    fn garbage_is_refused_as_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.db");
        std::fs::write(&path, [b'x'; 4096]).unwrap();
        assert_eq!(SqliteStore::open(&path).unwrap_err().kind, Kind::Corrupt);
    }

    #[test]
    fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, _store) = store();
        let mode = |name: &str| {
            std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode("catalog.db"), 0o600);
    }

    /// A process may die with any log: whoever comes next has all of it, and folds it in.
    #[test]
    fn a_log_that_has_grown_is_whole_for_the_next_one_and_folded_by_it() {
        let (folder, store) = store();
        let log = folder.path().join("catalog.db-wal");
        let most = u64::try_from(LOG_PAGES[0]).unwrap() * 4096;
        let mut written = 0;
        while written < LONG || std::fs::metadata(&log).unwrap().len() < 2 * most {
            let change = put(&format!("key/{written:05}"), &"x".repeat(700));
            assert_eq!(store.commit(batch(None, vec![change])), Ok(Commit::Done));
            written += 1;
        }
        // As after a kill: what the first process has open is never closed.
        let next = SqliteStore::open(&folder.path().join("catalog.db")).unwrap();
        assert_eq!(next.list("key/").unwrap().len(), written as usize);
        let folded = || std::fs::metadata(folder.path().join("catalog.db")).unwrap().len();
        let before = folded();
        assert_eq!(next.commit(batch(None, vec![put("one", "more")])), Ok(Commit::Done));
        assert!(folded() > before, "{before} bytes stay {}", folded());
        drop(store);
    }

    #[test]
    fn many_writers_lose_no_update() {
        let (folder, store) = store();
        assert_eq!(store.commit(batch(None, vec![put("n", "0")])), Ok(Commit::Done));
        let path = folder.path().join("catalog.db");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let store = SqliteStore::open(&path).unwrap();
                    for _ in 0..25 {
                        loop {
                            let now = store.get("n").unwrap().unwrap();
                            let n: u64 = String::from_utf8(now.value).unwrap().parse().unwrap();
                            let next = put("n", &(n + 1).to_string());
                            let change = batch(Some(("n", Some(now.version))), vec![next]);
                            if store.commit(change).unwrap() == Commit::Done {
                                break;
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(store.get("n").unwrap().unwrap().value, b"100");
    }
}
