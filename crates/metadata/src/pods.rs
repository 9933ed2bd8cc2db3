//! `pods.db`: sandboxes, containers, leased addresses.

use std::path::Path;
use std::sync::atomic::AtomicU32;

use berth_model::{ContainerId, SandboxId};
use rusqlite::params;

use crate::database::{Database, Durability, Schema};
use crate::images::{decode, encode};
use crate::{ContainerRecord, Error, SandboxRecord};

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
    durability: Durability::Normal,
};

/// The store of sandboxes and containers; shared by reference between threads.
#[derive(Debug)]
pub struct PodStore {
    pub(crate) database: Database,
    /// Where the search for a free address goes on, so that one just given back rests.
    pub(crate) cursor: AtomicU32,
}

impl PodStore {
    /// Opens or creates the file at `path`, whose directory must exist.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { database: Database::open(path, SCHEMA)?, cursor: AtomicU32::new(0) })
    }

    /// Stores a sandbox, new or changed. A second id under a known name is
    /// [`Error::Taken`].
    pub fn put_sandbox(&self, sandbox: &SandboxRecord) -> Result<(), Error> {
        let id = sandbox.id.as_str();
        let name = &sandbox.spec.name;
        let record = encode("sandboxes", id, sandbox)?;
        self.database.write("store sandbox", |sql| {
            sql.prepare_cached(
                "INSERT INTO sandboxes
                     (id, namespace, name, uid, attempt, state, created_at, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET state = ?6, record = ?8",
            )?
            .execute(params![
                id,
                name.namespace,
                name.name,
                name.uid,
                name.attempt,
                sandbox.phase.as_str(),
                sandbox.created_at.0,
                record,
            ])?;
            Ok(())
        })
    }

    /// Every sandbox, oldest first.
    pub fn sandboxes(&self) -> Result<Vec<SandboxRecord>, Error> {
        self.all(
            "list sandboxes",
            "sandboxes",
            "SELECT id, record FROM sandboxes ORDER BY created_at",
        )
    }

    /// Forgets a sandbox and its containers; says whether it was known.
    pub fn remove_sandbox(&self, id: &SandboxId) -> Result<bool, Error> {
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
        let record = encode("containers", id, container)?;
        self.database.write("store container", |sql| {
            sql.prepare_cached(
                "INSERT INTO containers
                     (id, sandbox, name, attempt, state, image, created_at, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET state = ?5, record = ?8",
            )?
            .execute(params![
                id,
                container.sandbox.as_str(),
                container.spec.name.name,
                container.spec.name.attempt,
                container.state.name(),
                container.image.to_string(),
                container.created_at.0,
                record,
            ])?;
            Ok(())
        })
    }

    /// Every container, oldest first.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>, Error> {
        self.all(
            "list containers",
            "containers",
            "SELECT id, record FROM containers ORDER BY created_at",
        )
    }

    /// Forgets a container; says whether it was known.
    pub fn remove_container(&self, id: &ContainerId) -> Result<bool, Error> {
        self.database.write("remove container", |sql| {
            Ok(sql
                .prepare_cached("DELETE FROM containers WHERE id = ?1")?
                .execute([id.as_str()])?
                > 0)
        })
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

    fn all<T: serde::de::DeserializeOwned>(
        &self,
        action: &'static str,
        table: &'static str,
        query: &str,
    ) -> Result<Vec<T>, Error> {
        let rows = self.database.read(action, |sql| {
            sql.prepare_cached(query)?
                .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(id, record)| decode(table, &id, &record)).collect()
    }
}
