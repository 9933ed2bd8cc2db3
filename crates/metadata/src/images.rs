//! `images.db`: images, the names that lead to them, blobs, committed snapshots.

use std::path::Path;

use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::database::{Database, Durability, Schema};
use crate::{BlobRecord, Error, SnapshotRecord};

const SCHEMA: Schema = Schema {
    steps: &["
        CREATE TABLE images (
            id TEXT PRIMARY KEY,
            size INTEGER NOT NULL,
            pulled_at INTEGER NOT NULL,
            record TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE names (
            reference TEXT PRIMARY KEY,
            image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
            kind TEXT NOT NULL CHECK (kind IN ('tag', 'digest'))
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX names_image ON names(image);
        CREATE TABLE blobs (
            digest TEXT PRIMARY KEY,
            size INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE snapshots (
            chain TEXT PRIMARY KEY,
            parent TEXT,
            bytes INTEGER NOT NULL,
            inodes INTEGER NOT NULL,
            dir TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
    "],
    durability: Durability::Full,
};

/// The store of images; shared by reference between threads.
#[derive(Debug)]
pub struct ImageStore {
    database: Database,
}

impl ImageStore {
    /// Opens or creates the file at `path`, whose directory must exist.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { database: Database::open(path, SCHEMA)? })
    }

    /// Stores `image`. Its names are added to those it has already, and taken from
    /// whatever image had them, all in one commit.
    pub fn put_image(&self, image: &ImageRecord) -> Result<(), Error> {
        let bare = ImageRecord { tags: Vec::new(), digests: Vec::new(), ..image.clone() };
        let id = image.id.to_string();
        let record = encode("images", &id, &bare)?;
        self.database.write("store image", |sql| {
            sql.prepare_cached(
                "INSERT INTO images (id, size, pulled_at, record) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET size = ?2, pulled_at = ?3, record = ?4",
            )?
            .execute(params![id, signed(image.size), image.pulled_at.0, record])?;
            let mut name = sql.prepare_cached(
                "INSERT INTO names (reference, image, kind) VALUES (?1, ?2, ?3)
                 ON CONFLICT (reference) DO UPDATE SET image = ?2, kind = ?3",
            )?;
            for (names, kind) in [(&image.tags, "tag"), (&image.digests, "digest")] {
                for reference in names {
                    name.execute(params![reference, id, kind])?;
                }
            }
            Ok(())
        })
    }

    /// The image with the config digest `id`.
    pub fn image_by_id(&self, id: &Digest) -> Result<Option<ImageRecord>, Error> {
        self.one("read image", "SELECT id, record FROM images WHERE id = ?1", &id.to_string())
    }

    /// The image that the normalised reference `reference` (with a tag or a digest)
    /// leads to.
    pub fn image_by_tag(&self, reference: &str) -> Result<Option<ImageRecord>, Error> {
        self.one(
            "read image by name",
            "SELECT images.id, record FROM names JOIN images ON images.id = names.image
             WHERE reference = ?1",
            reference,
        )
    }

    /// Every image, in the order of their ids.
    pub fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        let rows = self.database.read("list images", |sql| {
            let mut query = sql.prepare_cached("SELECT id, record FROM images ORDER BY id")?;
            let rows = query.query_map([], pair)?.collect::<rusqlite::Result<Vec<_>>>()?;
            rows.into_iter()
                .map(|(id, record)| Ok((names_of(sql, &id)?, id, record)))
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(names, id, record)| assemble(&id, &record, names)).collect()
    }

    /// Forgets the image and every name of it; returns what was forgotten.
    pub fn remove_image(&self, id: &Digest) -> Result<Option<ImageRecord>, Error> {
        let id = id.to_string();
        let found = self.database.write("remove image", |sql| {
            let Some(row) = find(sql, "SELECT id, record FROM images WHERE id = ?1", &id)? else {
                return Ok(None);
            };
            sql.prepare_cached("DELETE FROM images WHERE id = ?1")?.execute([&id])?;
            Ok(Some(row))
        })?;
        found.map(|(names, id, record)| assemble(&id, &record, names)).transpose()
    }

    /// Forgets one name; says whether it was known. The image stays.
    pub fn untag(&self, reference: &str) -> Result<bool, Error> {
        self.delete("remove image name", "DELETE FROM names WHERE reference = ?1", reference)
    }

    /// Stores that a blob was verified and is on disk.
    pub fn put_blob(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        self.put_blobs(&[BlobRecord { digest: *digest, size }])
    }

    /// Stores several blobs in one commit.
    pub fn put_blobs(&self, blobs: &[BlobRecord]) -> Result<(), Error> {
        self.database.write("store blobs", |sql| {
            let mut insert =
                sql.prepare_cached("INSERT OR REPLACE INTO blobs (digest, size) VALUES (?1, ?2)")?;
            for blob in blobs {
                insert.execute(params![blob.digest.to_string(), signed(blob.size)])?;
            }
            Ok(())
        })
    }

    /// The blob called `digest`, if it is on disk.
    pub fn blob(&self, digest: &Digest) -> Result<Option<BlobRecord>, Error> {
        let size = self.database.read("read blob", |sql| {
            sql.prepare_cached("SELECT size FROM blobs WHERE digest = ?1")?
                .query_row([digest.to_string()], |row| row.get::<_, i64>(0))
                .optional()
        })?;
        Ok(size.map(|size| BlobRecord { digest: *digest, size: unsigned(size) }))
    }

    /// Every blob.
    pub fn blobs(&self) -> Result<Vec<BlobRecord>, Error> {
        let rows = self.database.read("list blobs", |sql| {
            sql.prepare_cached("SELECT digest, size FROM blobs ORDER BY digest")?
                .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter()
            .map(|(text, size)| {
                Ok(BlobRecord { digest: digest("blobs", &text)?, size: unsigned(size) })
            })
            .collect()
    }

    /// Forgets a blob; says whether it was known.
    pub fn remove_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.delete("remove blob", "DELETE FROM blobs WHERE digest = ?1", &digest.to_string())
    }

    /// Stores a committed snapshot.
    pub fn put_snapshot(&self, snapshot: &SnapshotRecord) -> Result<(), Error> {
        self.database.write("store snapshot", |sql| {
            sql.prepare_cached(
                "INSERT OR REPLACE INTO snapshots (chain, parent, bytes, inodes, dir)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                snapshot.chain.to_string(),
                snapshot.parent.map(|parent| parent.to_string()),
                signed(snapshot.bytes),
                signed(snapshot.inodes),
                snapshot.dir,
            ])?;
            Ok(())
        })
    }

    /// The snapshot called `chain`, if it is committed.
    pub fn snapshot(&self, chain: &ChainId) -> Result<Option<SnapshotRecord>, Error> {
        let row = self.database.read("read snapshot", |sql| {
            sql.prepare_cached(
                "SELECT chain, parent, bytes, inodes, dir FROM snapshots WHERE chain = ?1",
            )?
            .query_row([chain.to_string()], SnapshotRow::read)
            .optional()
        })?;
        row.map(SnapshotRow::record).transpose()
    }

    /// Every committed snapshot.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRecord>, Error> {
        let rows = self.database.read("list snapshots", |sql| {
            sql.prepare_cached(
                "SELECT chain, parent, bytes, inodes, dir FROM snapshots ORDER BY chain",
            )?
            .query_map([], SnapshotRow::read)?
            .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(SnapshotRow::record).collect()
    }

    /// Forgets a snapshot; says whether it was known.
    pub fn remove_snapshot(&self, chain: &ChainId) -> Result<bool, Error> {
        self.delete("remove snapshot", "DELETE FROM snapshots WHERE chain = ?1", &chain.to_string())
    }

    fn one(
        &self,
        action: &'static str,
        query: &str,
        key: &str,
    ) -> Result<Option<ImageRecord>, Error> {
        let found = self.database.read(action, |sql| find(sql, query, key))?;
        found.map(|(names, id, record)| assemble(&id, &record, names)).transpose()
    }

    fn delete(&self, action: &'static str, query: &str, key: &str) -> Result<bool, Error> {
        self.database.write(action, |sql| Ok(sql.prepare_cached(query)?.execute([key])? > 0))
    }
}

/// The references of one image: by tag, and by digest.
#[derive(Debug, Default)]
struct Names {
    tags: Vec<String>,
    digests: Vec<String>,
}

#[derive(Debug)]
struct SnapshotRow {
    chain: String,
    parent: Option<String>,
    bytes: i64,
    inodes: i64,
    dir: String,
}

impl SnapshotRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            chain: row.get(0)?,
            parent: row.get(1)?,
            bytes: row.get(2)?,
            inodes: row.get(3)?,
            dir: row.get(4)?,
        })
    }

    fn record(self) -> Result<SnapshotRecord, Error> {
        let parent = self.parent.map(|parent| digest("snapshots", &parent)).transpose()?;
        Ok(SnapshotRecord {
            chain: ChainId(digest("snapshots", &self.chain)?),
            parent: parent.map(ChainId),
            bytes: unsigned(self.bytes),
            inodes: unsigned(self.inodes),
            dir: self.dir,
        })
    }
}

fn pair(row: &Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn find(
    sql: &Connection,
    query: &str,
    key: &str,
) -> rusqlite::Result<Option<(Names, String, String)>> {
    let Some((id, record)) = sql.prepare_cached(query)?.query_row([key], pair).optional()? else {
        return Ok(None);
    };
    Ok(Some((names_of(sql, &id)?, id, record)))
}

fn names_of(sql: &Connection, id: &str) -> rusqlite::Result<Names> {
    let mut query = sql
        .prepare_cached("SELECT kind, reference FROM names WHERE image = ?1 ORDER BY reference")?;
    let mut names = Names::default();
    for row in query.query_map([id], pair)? {
        let (kind, reference) = row?;
        match kind.as_str() {
            "tag" => names.tags.push(reference),
            _ => names.digests.push(reference),
        }
    }
    Ok(names)
}

fn assemble(id: &str, record: &str, names: Names) -> Result<ImageRecord, Error> {
    let image: ImageRecord = decode("images", id, record)?;
    Ok(ImageRecord { tags: names.tags, digests: names.digests, ..image })
}

pub(crate) fn encode<T: serde::Serialize>(
    table: &'static str,
    key: &str,
    record: &T,
) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|source| unreadable(table, key, source))
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    table: &'static str,
    key: &str,
    record: &str,
) -> Result<T, Error> {
    serde_json::from_str(record).map_err(|source| unreadable(table, key, source))
}

fn digest(table: &'static str, text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|source| unreadable(table, text, source))
}

pub(crate) fn unreadable(
    table: &'static str,
    key: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Record { table, key: key.to_owned(), source: Box::new(source) }
}

/// SQLite's integers are signed; sizes above 2^63 do not occur.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn unsigned(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
