//! `images.db`: images, the names that lead to them, blobs, committed snapshots.

use std::io;
use std::path::Path;

use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest, Reference};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::database::{Database, Durability, Schema};
use crate::{BlobRecord, Error, SnapshotRecord, check, quarantine};

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
    sums: &["blobs", "snapshots"],
    durability: Durability::Full,
};

/// Rows that one commit forgets. Each may change a page or more, and the log has room for
/// 500 beyond those at which it is written back.
const FORGOTTEN_AT_ONCE: usize = 64;

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

    /// Opens or creates the file at `path`, having read every row. A damaged file is set
    /// aside, and an empty one takes its place.
    ///
    /// # Errors
    /// A file of a newer version, and whatever has another cause than the file's content.
    pub fn recover(path: &Path) -> Result<Self, Error> {
        quarantine::open_or_replace(path, || {
            let store = Self::open(path)?;
            store.images()?;
            store.blobs()?;
            store.snapshots()?;
            Ok(Self { database: store.database.own()? })
        })
    }

    /// Whether nothing is recorded at all.
    pub fn is_empty(&self) -> Result<bool, Error> {
        self.database.read("look for rows", |sql| {
            let found = "SELECT EXISTS (SELECT 1 FROM images) OR EXISTS (SELECT 1 FROM blobs)
                             OR EXISTS (SELECT 1 FROM snapshots)";
            Ok(!sql.query_row(found, [], |row| row.get::<_, bool>(0))?)
        })
    }

    /// Stores what was found on disk in one commit: all of it is recorded, or nothing.
    pub fn put_found(
        &self,
        images: &[ImageRecord],
        blobs: &[BlobRecord],
        snapshots: &[SnapshotRecord],
    ) -> Result<(), Error> {
        let records: Vec<_> = images.iter().map(bare).collect::<Result<_, _>>()?;
        self.database.make_room()?;
        self.database.write("store what was found", |sql| {
            blobs.iter().try_for_each(|blob| insert_blob(sql, blob))?;
            snapshots.iter().try_for_each(|snapshot| insert_snapshot(sql, snapshot))?;
            images.iter().zip(&records).try_for_each(|(image, row)| insert_image(sql, image, row))
        })
    }

    /// Stores `image`. Its names are added to those it has already, and taken from
    /// whatever image had them, all in one commit.
    pub fn put_image(&self, image: &ImageRecord) -> Result<(), Error> {
        let row = bare(image)?;
        self.database.make_room()?;
        self.database.write("store image", |sql| insert_image(sql, image, &row))
    }

    /// The image with the config digest `id`.
    pub fn image_by_id(&self, id: &Digest) -> Result<Option<ImageRecord>, Error> {
        self.one(
            "read image",
            "SELECT id, size, pulled_at, record FROM images WHERE id = ?1",
            &id.to_string(),
        )
    }

    /// The image that the normalised reference `reference` (with a tag or a digest)
    /// leads to.
    pub fn image_by_tag(&self, reference: &str) -> Result<Option<ImageRecord>, Error> {
        self.one(
            "read image by name",
            "SELECT images.id, size, pulled_at, record FROM names JOIN images ON images.id = names.image
             WHERE reference = ?1",
            reference,
        )
    }

    /// Every image, in the order of their ids.
    pub fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        let rows = self.database.read("list images", |sql| {
            let query = "SELECT id, size, pulled_at, record FROM images ORDER BY id";
            let mut query = sql.prepare_cached(query)?;
            let rows =
                query.query_map([], ImageRow::read)?.collect::<rusqlite::Result<Vec<_>>>()?;
            rows.into_iter()
                .map(|row| Ok((names_of(sql, &row.id)?, row)))
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(names, row)| row.record(names)).collect()
    }

    /// Forgets the image and every name of it; returns what was forgotten.
    pub fn remove_image(&self, id: &Digest) -> Result<Option<ImageRecord>, Error> {
        let id = id.to_string();
        let found = self.database.write("remove image", |sql| {
            let Some(row) =
                find(sql, "SELECT id, size, pulled_at, record FROM images WHERE id = ?1", &id)?
            else {
                return Ok(None);
            };
            sql.prepare_cached("DELETE FROM images WHERE id = ?1")?.execute([&id])?;
            Ok(Some(row))
        })?;
        found.map(|(names, row)| row.record(names)).transpose()
    }

    /// Forgets one name; says whether it was known. The image stays.
    pub fn untag(&self, reference: &str) -> Result<bool, Error> {
        self.database.write("remove image name", |sql| {
            let delete = "DELETE FROM names WHERE reference = ?1";
            Ok(sql.prepare_cached(delete)?.execute([reference])? > 0)
        })
    }

    /// Stores that a blob was verified and is on disk.
    pub fn put_blob(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        self.put_blobs(&[BlobRecord { digest: *digest, size }])
    }

    /// Stores several blobs in one commit.
    pub fn put_blobs(&self, blobs: &[BlobRecord]) -> Result<(), Error> {
        self.database.make_room()?;
        self.database
            .write("store blobs", |sql| blobs.iter().try_for_each(|blob| insert_blob(sql, blob)))
    }

    /// The blob called `digest`, if it is on disk.
    pub fn blob(&self, digest: &Digest) -> Result<Option<BlobRecord>, Error> {
        let row = self.database.read("read blob", |sql| {
            sql.prepare_cached("SELECT digest, size, sum FROM blobs WHERE digest = ?1")?
                .query_row([digest.to_string()], BlobRow::read)
                .optional()
        })?;
        row.map(BlobRow::record).transpose()
    }

    /// Every blob.
    pub fn blobs(&self) -> Result<Vec<BlobRecord>, Error> {
        let rows = self.database.read("list blobs", |sql| {
            sql.prepare_cached("SELECT digest, size, sum FROM blobs ORDER BY digest")?
                .query_map([], BlobRow::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(BlobRow::record).collect()
    }

    /// Stores a committed snapshot.
    pub fn put_snapshot(&self, snapshot: &SnapshotRecord) -> Result<(), Error> {
        self.database.make_room()?;
        self.database.write("store snapshot", |sql| insert_snapshot(sql, snapshot))
    }

    /// The snapshot called `chain`, if it is committed.
    pub fn snapshot(&self, chain: &ChainId) -> Result<Option<SnapshotRecord>, Error> {
        let row = self.database.read("read snapshot", |sql| {
            sql.prepare_cached(
                "SELECT chain, parent, bytes, inodes, dir, sum FROM snapshots WHERE chain = ?1",
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
                "SELECT chain, parent, bytes, inodes, dir, sum FROM snapshots ORDER BY chain",
            )?
            .query_map([], SnapshotRow::read)?
            .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(SnapshotRow::record).collect()
    }

    /// Forgets `image`, if one is named, then layers and blobs: few commits, of which each
    /// waits for the disk, and none of them larger than the space set aside for the log.
    pub fn forget(
        &self,
        image: Option<&Digest>,
        chains: &[ChainId],
        blobs: &[Digest],
    ) -> Result<(), Error> {
        let images = image.map(|id| ("DELETE FROM images WHERE id = ?1", id.to_string()));
        let chains = chains
            .iter()
            .map(|chain| ("DELETE FROM snapshots WHERE chain = ?1", chain.to_string()));
        let blobs =
            blobs.iter().map(|digest| ("DELETE FROM blobs WHERE digest = ?1", digest.to_string()));
        let all: Vec<_> = images.into_iter().chain(chains).chain(blobs).collect();
        for some in all.chunks(FORGOTTEN_AT_ONCE) {
            self.database.write("remove what nothing needs", |sql| {
                some.iter().try_for_each(|(delete, key)| {
                    sql.prepare_cached(delete)?.execute([key]).map(drop)
                })
            })?;
        }
        Ok(())
    }

    fn one(
        &self,
        action: &'static str,
        query: &str,
        key: &str,
    ) -> Result<Option<ImageRecord>, Error> {
        let found = self.database.read(action, |sql| find(sql, query, key))?;
        found.map(|(names, row)| row.record(names)).transpose()
    }
}

/// The references of one image: by tag, and by digest.
#[derive(Debug, Default)]
struct Names {
    tags: Vec<String>,
    digests: Vec<String>,
}

#[derive(Debug)]
struct ImageRow {
    id: String,
    size: i64,
    pulled_at: i64,
    record: String,
}

impl ImageRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, size: row.get(1)?, pulled_at: row.get(2)?, record: row.get(3)? })
    }

    fn record(self, names: Names) -> Result<ImageRecord, Error> {
        let image: ImageRecord = decode("images", &self.id, &self.record)?;
        agree(
            "images",
            &self.id,
            &[
                (&image.id.to_string(), &self.id),
                (&signed(image.size).to_string(), &self.size.to_string()),
                (&image.pulled_at.0.to_string(), &self.pulled_at.to_string()),
            ],
        )?;
        for (names, digest) in [(&names.tags, false), (&names.digests, true)] {
            for name in names {
                let reference: Reference =
                    name.parse().map_err(|source| unreadable("names", name, source))?;
                if reference.digest().is_some() != digest {
                    return Err(contradiction("names", name));
                }
            }
        }
        Ok(ImageRecord { tags: names.tags, digests: names.digests, ..image })
    }
}

#[derive(Debug)]
struct BlobRow {
    digest: String,
    size: i64,
    sum: Option<i64>,
}

impl BlobRow {
    fn sum(digest: &str, size: i64) -> i64 {
        check::row(&[digest, &size.to_string()])
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { digest: row.get(0)?, size: row.get(1)?, sum: row.get(2)? })
    }

    fn record(self) -> Result<BlobRecord, Error> {
        if self.sum.is_some_and(|sum| sum != Self::sum(&self.digest, self.size)) {
            return Err(contradiction("blobs", &self.digest));
        }
        Ok(BlobRecord { digest: digest("blobs", &self.digest)?, size: unsigned(self.size) })
    }
}

#[derive(Debug)]
struct SnapshotRow {
    chain: String,
    parent: Option<String>,
    bytes: i64,
    inodes: i64,
    dir: String,
    sum: Option<i64>,
}

impl SnapshotRow {
    fn new(snapshot: &SnapshotRecord) -> Self {
        let mut row = Self {
            chain: snapshot.chain.to_string(),
            parent: snapshot.parent.map(|parent| parent.to_string()),
            bytes: signed(snapshot.bytes),
            inodes: signed(snapshot.inodes),
            dir: snapshot.dir.clone(),
            sum: None,
        };
        row.sum = Some(row.summed());
        row
    }

    fn summed(&self) -> i64 {
        let (bytes, inodes) = (self.bytes.to_string(), self.inodes.to_string());
        let parent = self.parent.as_deref().unwrap_or_default();
        check::row(&[&self.chain, parent, &bytes, &inodes, &self.dir])
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            chain: row.get(0)?,
            parent: row.get(1)?,
            bytes: row.get(2)?,
            inodes: row.get(3)?,
            dir: row.get(4)?,
            sum: row.get(5)?,
        })
    }

    fn record(self) -> Result<SnapshotRecord, Error> {
        if self.sum.is_some_and(|sum| sum != self.summed()) {
            return Err(contradiction("snapshots", &self.chain));
        }
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

/// An image as its row has it: its names are rows of their own.
fn bare(image: &ImageRecord) -> Result<String, Error> {
    let bare = ImageRecord { tags: Vec::new(), digests: Vec::new(), ..image.clone() };
    encode("images", &image.id.to_string(), &bare)
}

fn insert_image(sql: &Connection, image: &ImageRecord, record: &str) -> rusqlite::Result<()> {
    let id = image.id.to_string();
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
}

fn insert_blob(sql: &Connection, blob: &BlobRecord) -> rusqlite::Result<()> {
    let (digest, size) = (blob.digest.to_string(), signed(blob.size));
    let sum = BlobRow::sum(&digest, size);
    sql.prepare_cached("INSERT OR REPLACE INTO blobs (digest, size, sum) VALUES (?1, ?2, ?3)")?
        .execute(params![digest, size, sum])?;
    Ok(())
}

fn insert_snapshot(sql: &Connection, snapshot: &SnapshotRecord) -> rusqlite::Result<()> {
    let row = SnapshotRow::new(snapshot);
    sql.prepare_cached(
        "INSERT OR REPLACE INTO snapshots (chain, parent, bytes, inodes, dir, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![row.chain, row.parent, row.bytes, row.inodes, row.dir, row.sum])?;
    Ok(())
}

fn pair(row: &Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn find(sql: &Connection, query: &str, key: &str) -> rusqlite::Result<Option<(Names, ImageRow)>> {
    let row = sql.prepare_cached(query)?.query_row([key], ImageRow::read).optional()?;
    row.map(|row| Ok((names_of(sql, &row.id)?, row))).transpose()
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

pub(crate) fn encode<T: serde::Serialize>(
    table: &'static str,
    key: &str,
    record: &T,
) -> Result<String, Error> {
    check::seal(record).map_err(|source| unreadable(table, key, source))
}

pub(crate) fn decode<T: serde::Serialize + serde::de::DeserializeOwned>(
    table: &'static str,
    key: &str,
    record: &str,
) -> Result<T, Error> {
    check::open(record, false).map_err(|source| unreadable(table, key, source))
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

/// The columns that repeat what the record says must say the same.
pub(crate) fn agree(table: &'static str, key: &str, columns: &[(&str, &str)]) -> Result<(), Error> {
    match columns.iter().all(|(record, column)| record == column) {
        true => Ok(()),
        false => Err(contradiction(table, key)),
    }
}

pub(crate) fn contradiction(table: &'static str, key: &str) -> Error {
    unreadable(table, key, io::Error::other("its columns contradict each other"))
}

/// SQLite's integers are signed; sizes above 2^63 do not occur.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn unsigned(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
