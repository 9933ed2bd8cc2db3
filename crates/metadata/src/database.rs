//! Opening one file: schema, settings, damage.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, Transaction, TransactionBehavior};

use crate::reserve::{self, Reserve};
use crate::{Error, quarantine, unread};

/// How long a call waits for another process (an operator's `sqlite3`).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements kept compiled per connection.
const CACHED_STATEMENTS: usize = 32;

/// How durable a commit is (`PRAGMA synchronous`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Durability {
    /// On disk when the call returns.
    Full,
    /// In the kernel's hands when the call returns.
    Normal,
}

/// What the code knows of one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema {
    /// Step `n` leads from schema `n` to `n + 1`.
    pub(crate) steps: &'static [&'static str],
    /// Tables that got a column `sum`, without a step: a version that does not know it
    /// leaves it empty, and works as before.
    pub(crate) sums: &'static [&'static str],
    pub(crate) durability: Durability,
}

impl Schema {
    fn version(&self) -> u32 {
        u32::try_from(self.steps.len()).expect("a schema has few steps")
    }
}

/// One open file.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Declared after the connection, so that it is closed after it.
    file: unread::Kept,
    /// Of whom the file belongs to; an onlooker leaves it as it is.
    reserve: Option<Reserve>,
}

impl Database {
    pub(crate) fn open(path: &Path, schema: Schema) -> Result<Self, Error> {
        unread::second_look(path, None, || Self::open_once(path, schema))
    }

    fn open_once(path: &Path, schema: Schema) -> Result<Self, Error> {
        quarantine::check_kinds(path)?;
        if quarantine::is_beheaded(path) {
            let finding = "its log is there, and it is not".to_owned();
            return Err(Error::Damaged { path: path.to_owned(), finding });
        }
        refuse_newer(path, &schema)?;
        let failed = |action| move |source| Error::opening(path, action, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection =
            Connection::open_with_flags(path, flags).map_err(failed("open database"))?;
        refuse_read_only(&connection, path)?;
        configure(&connection, schema.durability).map_err(failed("configure database"))?;
        check_pages(&connection, path)?;
        migrate(&mut connection, &schema).map_err(failed("create tables"))?;
        check_schema(&connection, path, &schema)?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        let (path, connection) = (path.to_owned(), Mutex::new(connection));
        Ok(Self { path, connection, file: unread::Kept::default(), reserve: None })
    }

    /// Takes the file into possession: space is set aside for it.
    pub(crate) fn own(mut self) -> Result<Self, Error> {
        let reserve = Reserve::open(&self.path)?;
        {
            let connection = self.lock();
            let failed = |source| Error::query(&self.path, "keep the log", source);
            connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
                .map_err(failed)?;
            if let Err(error) = reserve.ensure(&connection) {
                // What exists can be looked at all the same, and removed as far as it goes.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "no space can be set aside: nothing new is stored");
            }
        }
        self.reserve = Some(reserve);
        Ok(self)
    }

    /// Must succeed before something new is stored: what exists must stay removable.
    pub(crate) fn make_room(&self) -> Result<(), Error> {
        let Some(reserve) = &self.reserve else { return Ok(()) };
        unread::second_look(&self.path, Some(&self.file), || reserve.ensure(&self.lock()))
    }

    /// Runs `work` on the connection; a failure names `action`.
    pub(crate) fn read<T>(
        &self,
        action: &'static str,
        work: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        unread::second_look(&self.path, Some(&self.file), || {
            work(&self.lock()).map_err(|source| Error::query(&self.path, action, source))
        })
    }

    /// Runs `work` in one transaction, committed when it succeeds.
    pub(crate) fn write<T>(
        &self,
        action: &'static str,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let run = || {
            let mut connection = self.lock();
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        unread::second_look(&self.path, Some(&self.file), || {
            run().map_err(|source| Error::query(&self.path, action, source))
        })
    }

    /// A panic in another call leaves no open transaction: it rolled back on its way out.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Database {
    /// Leaves a database without a log, as SQLite does itself, but with the log's space.
    fn drop(&mut self) {
        let Some(reserve) = &self.reserve else { return };
        let connection = self.lock();
        let written_back = connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
        // A log that stays, since somebody reads it or the disk fails, is read at the next
        // start.
        if let Err(error) = written_back {
            tracing::debug!(error = &error as &dyn std::error::Error, "write back the log");
        }
        if let Err(error) = reserve.set_log_aside() {
            tracing::debug!(error = &error as &dyn std::error::Error, "keep space for the log");
        }
    }
}

/// Looks at the schema number through a read-only connection, so that a newer file
/// stays exactly as it is.
fn refuse_newer(path: &Path, schema: &Schema) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    let failed = |source| Error::opening(path, "read schema version", source);
    let found = match found_version(path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        // A crash interrupted the making of the file, or its last change of journal mode:
        // that must be rolled back before anything can be read.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {
            found_version(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        }
        other => other,
    };
    let found = found.map_err(failed)?;
    if found > schema.version() {
        return Err(Error::NewerSchema { path: path.to_owned(), found, known: schema.version() });
    }
    Ok(())
}

/// SQLite opens what it cannot open for writing for reading alone, and would go on so for as
/// long as the connection lives, though the disk failed but once. To be asked before the
/// file is read: its header can say the same.
fn refuse_read_only(connection: &Connection, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::query(path, "open database", source);
    if !connection.is_readonly(MAIN_DB).map_err(failed)? {
        return Ok(());
    }
    let source = match File::options().write(true).open(path) {
        Err(source) => source,
        Ok(_) => std::io::Error::other("it could be opened for reading only"),
    };
    Err(Error::File { action: "open for writing", path: path.to_owned(), source })
}

fn found_version(path: &Path, access: OpenFlags) -> rusqlite::Result<u32> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Caches stay under 2 MB per connection; temporary tables never touch the disk.
fn configure(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // The answer comes before the commit: what fails there is only told by reading on.
    connection.pragma(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(
        None,
        "synchronous",
        match durability {
            Durability::Full => "FULL",
            Durability::Normal => "NORMAL",
        },
    )?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update_and_check(None, "journal_size_limit", reserve::LOG, |_| Ok(()))
}

/// Pages against each other, indexes against tables, values against their constraints.
fn check_pages(connection: &Connection, path: &Path) -> Result<(), Error> {
    let finding: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|source| Error::opening(path, "check pages", source))?;
    if finding == "ok" {
        return Ok(());
    }
    Err(Error::Damaged { path: path.to_owned(), finding })
}

fn migrate(connection: &mut Connection, schema: &Schema) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(found).unwrap_or(usize::MAX).min(schema.steps.len());
    for step in &schema.steps[done..] {
        transaction.execute_batch(step)?;
    }
    for table in schema.sums {
        let query = "SELECT 1 FROM pragma_table_info(?1) WHERE name = 'sum'";
        if !transaction.prepare(query)?.exists([table])? {
            transaction.execute(&format!("ALTER TABLE {table} ADD COLUMN sum INTEGER"), [])?;
        }
    }
    if found != schema.version() {
        transaction.pragma_update(None, "user_version", schema.version())?;
    }
    transaction.commit()
}

/// The tables must be those that a new file would have: a damaged definition reads
/// undamaged rows wrongly.
fn check_schema(connection: &Connection, path: &Path, schema: &Schema) -> Result<(), Error> {
    let failed = |source| Error::opening(path, "check tables", source);
    let mut fresh = Connection::open_in_memory().map_err(failed)?;
    migrate(&mut fresh, schema).map_err(failed)?;
    if definitions(connection).map_err(failed)? == definitions(&fresh).map_err(failed)? {
        return Ok(());
    }
    let finding = "its tables are not defined as any version defines them".to_owned();
    Err(Error::Damaged { path: path.to_owned(), finding })
}

/// Every table and index, without regard to white space, and the text encoding. What SQLite
/// counts rows in (`ANALYZE`, by an operator) changes no answer.
fn definitions(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare(
        "SELECT concat_ws(' ', type, name, tbl_name, sql) FROM sqlite_schema
         WHERE name NOT GLOB 'sqlite_stat[1-4]' ORDER BY type, name",
    )?;
    let rows = query.query_map([], |row| row.get::<_, String>(0))?;
    let words = |row: String| row.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut all = rows.map(|row| row.map(words)).collect::<rusqlite::Result<Vec<_>>>()?;
    all.push(connection.query_row("PRAGMA encoding", [], |row| row.get(0))?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// The locks of this process on the file at `path` (proc_locks(5)).
    fn locks(path: &Path) -> usize {
        let inode = format!(":{}", std::fs::metadata(path).unwrap().ino());
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let pid = std::process::id().to_string();
        let fields = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = |line: &Vec<&str>| line.contains(&pid.as_str());
        fields.filter(ours).filter(|line| line.iter().any(|word| word.ends_with(&inode))).count()
    }

    /// teeth: crates/metadata/src/database.rs: `if !connection.is_readonly(MAIN_DB).map_err(failed)?` → `if true`
    #[test]
    fn a_connection_that_can_only_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let schema = Schema { steps: &[], sums: &[], durability: Durability::Normal };
        drop(Database::open(&path, schema).unwrap());
        // As SQLite opens it by itself when it may not write.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(&path, flags).unwrap();
        let error = refuse_read_only(&connection, &path).unwrap_err();
        assert!(matches!(error, Error::File { action: "open for writing", .. }), "{error:?}");
        refuse_read_only(&Connection::open(&path).unwrap(), &path).unwrap();
    }

    #[test]
    fn a_second_look_at_a_database_that_is_open_leaves_it_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let schema = Schema { steps: &[], sums: &[], durability: Durability::Normal };
        let database = Database::open(&path, schema).unwrap();
        let held = locks(&path);
        assert_ne!(held, 0);
        let damage = || {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            Err::<(), _>(rusqlite::Error::SqliteFailure(code, None))
        };
        for error in [
            database.read("look", |_| damage()).unwrap_err(),
            database.write("change", |_| damage()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
            assert_eq!(locks(&path), held);
        }
    }
}
