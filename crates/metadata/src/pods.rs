//! `pods.db`: sandboxes, containers, leased addresses.

use std::path::Path;
use std::sync::atomic::AtomicU32;

use berth_model::{ContainerId, SandboxId};
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params};

use crate::copies::{Copies, Record};
use crate::database::{Database, Durability, Schema};
use crate::images::{agree, decode, encode};
use crate::{ContainerRecord, Error, SandboxRecord, quarantine};

const SCHEMA: Schema = Schema {
    steps: &["
        CREATE TABLE sandboxes (
            id TEXT PRIMARY KEY,
            namespace TEXT NOT NULL,
            name TEXT NOT NULL,
            uid TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            state TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (namespace, name, uid, attempt)
        ) STRICT;
        CREATE TABLE containers (
            id TEXT PRIMARY KEY,
            sandbox TEXT NOT NULL REFERENCES sandboxes(id),
            name TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            state TEXT NOT NULL,
            image TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (sandbox, name, attempt)
        ) STRICT;
        CREATE TABLE leases (
            number INTEGER PRIMARY KEY,
            address TEXT NOT NULL UNIQUE,
            sandbox TEXT NOT NULL
        ) STRICT;
        CREATE INDEX leases_sandbox ON leases(sandbox);
    "],
    sums: &["leases"],
    durability: Durability::Normal,
};

/// The store of sandboxes and containers; shared by reference between threads.
#[derive(Debug)]
pub struct PodStore {
    pub(crate) database: Database,
    /// Where the search for a free address goes on, so that one just given back rests.
    pub(crate) cursor: AtomicU32,
    pub(crate) copies: Option<Copies>,
}

/// What a store holds, validated.
#[derive(Debug, Default)]
pub struct Pods {
    /// Every sandbox, oldest first.
    pub sandboxes: Vec<SandboxRecord>,
    /// Every container, oldest first.
    pub containers: Vec<ContainerRecord>,
}

impl PodStore {
    /// Opens or creates the file at `path`, whose directory must exist. Copies are not
    /// kept: this is for who looks from outside.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, None)
    }

    /// Opens or creates the file at `path`, brings it in line with the copies, and reads
    /// all there is. A damaged file is set aside, and another made from the copies alone.
    ///
    /// # Errors
    /// A file of a newer version, and whatever has another cause than the file's content.
    pub fn recover(path: &Path, copies: &Copies) -> Result<(Self, Pods), Error> {
        quarantine::open_or_replace(path, || {
            let mut store = Self::open_with(path, Some(copies.clone()))?;
            store.database = store.database.own()?;
            let pods = store.reconcile()?;
            Ok((store, pods))
        })
    }

    fn open_with(path: &Path, copies: Option<Copies>) -> Result<Self, Error> {
        Ok(Self { database: Database::open(path, SCHEMA)?, cursor: AtomicU32::new(0), copies })
    }

    /// Stores a sandbox, new or changed. A second id under a known name is
    /// [`Error::Taken`].
    pub fn put_sandbox(&self, sandbox: &SandboxRecord) -> Result<(), Error> {
        let id = sandbox.id.as_str();
        let row = encode("sandboxes", id, sandbox)?;
        self.make_room::<SandboxRecord>(id)?;
        self.database.write("store sandbox", |sql| insert_sandbox(sql, sandbox, &row))?;
        self.copy(sandbox, &row)
    }

    /// Every sandbox, oldest first.
    pub fn sandboxes(&self) -> Result<Vec<SandboxRecord>, Error> {
        Ok(self.rows::<SandboxRecord>()?.into_iter().map(|row| row.record).collect())
    }

    /// Forgets a sandbox and its containers; says whether it was known.
    pub fn remove_sandbox(&self, id: &SandboxId) -> Result<bool, Error> {
        if let Some(copies) = &self.copies {
            let members = self.database.read("list containers of sandbox", |sql| {
                sql.prepare_cached("SELECT id FROM containers WHERE sandbox = ?1")?
                    .query_map([id.as_str()], |row| row.get::<_, String>(0))?
                    .collect::<rusqlite::Result<Vec<_>>>()
            })?;
            for member in members {
                copies.remove::<ContainerRecord>(&member)?;
            }
            copies.remove::<SandboxRecord>(id.as_str())?;
        }
        self.database.write("remove sandbox", |sql| {
            sql.prepare_cached("DELETE FROM containers WHERE sandbox = ?1")?
                .execute([id.as_str()])?;
            Ok(sql.prepare_cached("DELETE FROM sandboxes WHERE id = ?1")?.execute([id.as_str()])?
                > 0)
        })
    }

    /// Stores a container, new or changed. Its sandbox must be stored; a second id under
    /// a known name of that sandbox is [`Error::Taken`].
    pub fn put_container(&self, container: &ContainerRecord) -> Result<(), Error> {
        let id = container.id.as_str();
        let row = encode("containers", id, container)?;
        self.make_room::<ContainerRecord>(id)?;
        self.database.write("store container", |sql| insert_container(sql, container, &row))?;
        self.copy(container, &row).inspect_err(|_| {
            // A container that was not made has no record; the cause is told.
            drop(self.remove_container(&container.id));
        })
    }

    /// Every container, oldest first.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>, Error> {
        Ok(self.rows::<ContainerRecord>()?.into_iter().map(|row| row.record).collect())
    }

    /// Forgets a container; says whether it was known.
    pub fn remove_container(&self, id: &ContainerId) -> Result<bool, Error> {
        if let Some(copies) = &self.copies {
            copies.remove::<ContainerRecord>(id.as_str())?;
        }
        self.database.write("remove container", |sql| {
            Ok(sql
                .prepare_cached("DELETE FROM containers WHERE id = ?1")?
                .execute([id.as_str()])?
                > 0)
        })
    }

    /// What is known already may be changed without room for more.
    fn make_room<R: Record>(&self, id: &str) -> Result<(), Error> {
        let Err(error) = self.database.make_room() else { return Ok(()) };
        let query = format!("SELECT 1 FROM {} WHERE id = ?1", R::TABLE);
        let known = self
            .database
            .read("look for a record", |sql| sql.prepare_cached(&query)?.exists([id]))?;
        if known { Ok(()) } else { Err(error) }
    }

    /// Writes the copy of a stored record. What cannot be copied is not made; what exists
    /// already lives on without.
    fn copy<R: Record>(&self, record: &R, row: &str) -> Result<(), Error> {
        let Some(copies) = self.copies.as_ref().filter(|_| record.is_copied()) else {
            return Ok(());
        };
        match copies.write::<R>(record.key(), row) {
            Err(error) if !record.is_new() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "copy a record");
                Ok(())
            }
            other => other,
        }
    }

    /// Makes the file act as a disk of `pages` pages would.
    #[cfg(test)]
    pub(crate) fn limit_pages_for_test(&self, pages: u32) {
        self.database
            .read("limit pages", |sql| {
                sql.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            })
            .expect("the pragma is known");
    }

    /// Every row of a table, oldest first, validated.
    pub(crate) fn rows<R: Record>(&self) -> Result<Vec<StoredRow<R>>, Error> {
        let rows = self.database.read(R::LIST.0, |sql| {
            let mut query = sql.prepare_cached(R::LIST.1)?;
            let columns = query.column_count();
            let read = |row: &Row<'_>| -> rusqlite::Result<Vec<Value>> {
                (0..columns).map(|column| row.get(column)).collect()
            };
            query.query_map([], read)?.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(stored_row).collect()
    }
}

/// A row as it is, and what it says.
#[derive(Debug)]
pub(crate) struct StoredRow<R> {
    pub(crate) record: R,
    pub(crate) text: String,
}

fn stored_row<R: Record>(columns: Vec<Value>) -> Result<StoredRow<R>, Error> {
    let mut columns: Vec<String> = columns.into_iter().map(text).collect();
    let text = columns.pop().unwrap_or_default();
    let key = columns.first().map_or("", String::as_str).to_owned();
    let record: R = decode(R::TABLE, &key, &text)?;
    let said = record.columns();
    let pairs: Vec<_> =
        said.iter().map(String::as_str).zip(columns.iter().map(String::as_str)).collect();
    agree(R::TABLE, &key, &pairs)?;
    Ok(StoredRow { record, text })
}

fn text(value: Value) -> String {
    match value {
        Value::Text(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Null | Value::Real(_) | Value::Blob(_) => String::new(),
    }
}

pub(crate) fn insert_sandbox(
    sql: &Connection,
    sandbox: &SandboxRecord,
    row: &str,
) -> rusqlite::Result<()> {
    let name = &sandbox.spec.name;
    sql.prepare_cached(
        "INSERT INTO sandboxes
             (id, namespace, name, uid, attempt, state, created_at, record)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (id) DO UPDATE SET state = ?6, record = ?8",
    )?
    .execute(params![
        sandbox.id.as_str(),
        name.namespace,
        name.name,
        name.uid,
        name.attempt,
        sandbox.phase.as_str(),
        sandbox.created_at.0,
        row,
    ])?;
    Ok(())
}

pub(crate) fn insert_container(
    sql: &Connection,
    container: &ContainerRecord,
    row: &str,
) -> rusqlite::Result<()> {
    sql.prepare_cached(
        "INSERT INTO containers
             (id, sandbox, name, attempt, state, image, created_at, record)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (id) DO UPDATE SET state = ?5, record = ?8",
    )?
    .execute(params![
        container.id.as_str(),
        container.sandbox.as_str(),
        container.spec.name.name,
        container.spec.name.attempt,
        container.state.name(),
        container.image.to_string(),
        container.created_at.0,
        row,
    ])?;
    Ok(())
}
