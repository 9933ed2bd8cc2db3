//! Addresses that belong to sandboxes. An address has one owner; it is free again when
//! its row is gone, whoever died in between.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use berth_model::SandboxId;
use rusqlite::{Connection, Row, params};

use crate::images::{contradiction, unreadable};
use crate::{Error, Lease, PodStore, check};

impl PodStore {
    /// Leases to `sandbox` the next free address from `first` to `last`, both included.
    ///
    /// The search goes on where the last one ended, so that an address rests as long as
    /// the range allows before it is given again.
    pub fn lease_address(
        &self,
        sandbox: &SandboxId,
        first: Ipv4Addr,
        last: Ipv4Addr,
    ) -> Result<Ipv4Addr, Error> {
        let (low, high) = (u32::from(first), u32::from(last));
        let start = self.cursor.load(Ordering::Relaxed).clamp(low, high.max(low));
        self.database.make_room()?;
        let leased = self.database.write("lease address", |sql| {
            let free = match free_number(sql, start, high)? {
                Some(free) => Some(free),
                None => free_number(sql, low, start)?,
            };
            let Some(number) = free else { return Ok(None) };
            insert(sql, number, sandbox)?;
            Ok(Some(number))
        })?;
        let number = leased.ok_or(Error::NoAddress { first, last })?;
        self.cursor.store(number.wrapping_add(1), Ordering::Relaxed);
        Ok(number.into())
    }

    /// Gives `address` back if `sandbox` has it; says whether it had.
    pub fn release_address(&self, sandbox: &SandboxId, address: Ipv4Addr) -> Result<bool, Error> {
        self.database.write("release address", |sql| {
            Ok(sql
                .prepare_cached("DELETE FROM leases WHERE number = ?1 AND sandbox = ?2")?
                .execute(params![u32::from(address), sandbox.as_str()])?
                > 0)
        })
    }

    /// Gives back every address of `sandbox`; returns how many there were.
    pub fn release_sandbox(&self, sandbox: &SandboxId) -> Result<usize, Error> {
        self.database.write("release addresses", |sql| {
            sql.prepare_cached("DELETE FROM leases WHERE sandbox = ?1")?.execute([sandbox.as_str()])
        })
    }

    /// Every lease, in the order of the addresses.
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        let rows = self.database.read("list leases", |sql| {
            sql.prepare_cached("SELECT number, address, sandbox, sum FROM leases ORDER BY number")?
                .query_map([], LeaseRow::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(LeaseRow::record).collect()
    }
}

struct LeaseRow {
    number: i64,
    address: String,
    sandbox: String,
    sum: Option<i64>,
}

impl LeaseRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            address: row.get(1)?,
            sandbox: row.get(2)?,
            sum: row.get(3)?,
        })
    }

    fn record(self) -> Result<Lease, Error> {
        let address = u32::try_from(self.number).map(Ipv4Addr::from);
        let address = address.ok().filter(|address| address.to_string() == self.address);
        let address = address.ok_or_else(|| contradiction("leases", &self.address))?;
        if self.sum.is_some_and(|sum| sum != check::row(&[&self.address, &self.sandbox])) {
            return Err(contradiction("leases", &self.address));
        }
        let sandbox = SandboxId::new(self.sandbox)
            .map_err(|source| unreadable("leases", &self.address, source))?;
        Ok(Lease { address, sandbox })
    }
}

/// Leases the address with the given number, which is free.
pub(crate) fn insert(sql: &Connection, number: u32, sandbox: &SandboxId) -> rusqlite::Result<()> {
    let address = Ipv4Addr::from(number).to_string();
    let sum = check::row(&[&address, sandbox.as_str()]);
    sql.prepare_cached(
        "INSERT INTO leases (number, address, sandbox, sum) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![number, address, sandbox.as_str(), sum])?;
    Ok(())
}

/// The lowest number from `low` to `high` that no row has.
fn free_number(sql: &Connection, low: u32, high: u32) -> rusqlite::Result<Option<u32>> {
    let mut query = sql.prepare_cached(
        "SELECT number FROM leases WHERE number BETWEEN ?1 AND ?2 ORDER BY number",
    )?;
    let mut expected = low;
    for taken in query.query_map([low, high], |row| row.get::<_, u32>(0))? {
        if taken? != expected {
            break;
        }
        let Some(next) = expected.checked_add(1) else { return Ok(None) };
        expected = next;
    }
    Ok((expected <= high).then_some(expected))
}
