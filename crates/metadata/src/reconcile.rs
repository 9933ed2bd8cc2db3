//! `pods.db` and the copies of its records, brought in line at a start.
//!
//! | row | copy | |
//! |---|---|---|
//! | there | the same | nothing to do |
//! | there | none, behind, or unreadable | the copy is written anew |
//! | there | ahead | the row is an old one: the copy is taken |
//! | none | there | the row was lost: the copy is taken |
//! | none | unreadable | cannot be rebuilt: ended and swept by whoever asked |
//!
//! A database that lost its last changes has also rows of what was removed since, without
//! a copy. Such a row does not keep its name from a younger copy.
//!
//! Leases follow: an address that a sandbox has is leased to it, and to nobody else.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::Ipv4Addr;

use berth_model::SandboxId;

use crate::copies::{Copies, Record};
use crate::images::encode;
use crate::pods::{StoredRow, insert_container, insert_sandbox};
use crate::{ContainerRecord, Error, PodStore, Pods, SandboxPhase, SandboxRecord, leases};

/// A record, and what has to be done about it.
#[derive(Debug)]
struct Found<R> {
    record: R,
    /// Whether its row is missing or old.
    store: bool,
    /// Whether its copy is missing or old.
    copy: bool,
    /// Whether it has a row and a copy, whatever they say.
    both: bool,
}

impl<R: Record> Found<R> {
    fn of_row(record: R, both: bool) -> Self {
        Self { record, store: false, copy: true, both }
    }

    fn of_copy(record: R, both: bool) -> Self {
        Self { record, store: true, copy: false, both }
    }

    /// What gives it a name that another has as well: row and copy, or else its youth.
    fn claim(&self) -> (bool, i64) {
        (self.both, self.record.created_at())
    }
}

/// Changes of leases: addresses to take from whoever has them, and to give.
#[derive(Debug, Default)]
struct LeaseChanges {
    take: Vec<Ipv4Addr>,
    give: Vec<(Ipv4Addr, SandboxId)>,
}

impl PodStore {
    /// Brings rows, copies and leases in line; returns what is true from now on.
    pub(crate) fn reconcile(&self) -> Result<Pods, Error> {
        let Some(copies) = &self.copies else {
            return Ok(Pods { sandboxes: self.sandboxes()?, containers: self.containers()? });
        };
        let mut sandboxes = compare(copies, self.rows::<SandboxRecord>()?)?;
        let mut containers = compare(copies, self.rows::<ContainerRecord>()?)?;
        let name = |record: &SandboxRecord| record.spec.name.clone();
        let doubles = take_doubles(&mut sandboxes, name);
        let mut orphans = take_homeless(&sandboxes, &mut containers);
        let name = |record: &ContainerRecord| (record.sandbox.clone(), record.spec.name.clone());
        orphans.extend(take_doubles(&mut containers, name));
        let leases = self.lease_changes(&mut sandboxes)?;
        self.store((&sandboxes, &doubles), (&containers, &orphans), &leases)?;
        self.copy_again(copies, &sandboxes)?;
        self.copy_again(copies, &containers)?;
        for orphan in &orphans {
            copies.remove::<ContainerRecord>(orphan.key())?;
        }
        for double in &doubles {
            copies.remove::<SandboxRecord>(double.key())?;
        }
        Ok(Pods { sandboxes: records(sandboxes), containers: records(containers) })
    }

    /// All that was found missing or old, and what goes, in one commit.
    fn store(
        &self,
        (sandboxes, doubles): (&[Found<SandboxRecord>], &[SandboxRecord]),
        (containers, orphans): (&[Found<ContainerRecord>], &[ContainerRecord]),
        leases: &LeaseChanges,
    ) -> Result<(), Error> {
        let sandboxes = rows(sandboxes)?;
        let containers = rows(containers)?;
        let stored = !sandboxes.is_empty() || !containers.is_empty();
        let nothing = !stored && doubles.is_empty() && orphans.is_empty();
        if nothing && leases.take.is_empty() && leases.give.is_empty() {
            return Ok(());
        }
        self.database.write("store what the copies say", |sql| {
            for orphan in orphans {
                sql.execute("DELETE FROM containers WHERE id = ?1", [orphan.key()])?;
            }
            for double in doubles {
                sql.execute("DELETE FROM sandboxes WHERE id = ?1", [double.key()])?;
            }
            sandboxes.iter().try_for_each(|(record, row)| insert_sandbox(sql, record, row))?;
            containers.iter().try_for_each(|(record, row)| insert_container(sql, record, row))?;
            for address in &leases.take {
                sql.execute("DELETE FROM leases WHERE number = ?1", [u32::from(*address)])?;
            }
            leases
                .give
                .iter()
                .try_for_each(|(address, owner)| leases::insert(sql, u32::from(*address), owner))
        })
    }

    fn copy_again<R: Record>(&self, copies: &Copies, all: &[Found<R>]) -> Result<(), Error> {
        for found in all.iter().filter(|found| found.copy && found.record.is_copied()) {
            let key = found.record.key();
            if let Err(error) = copies.write::<R>(key, &encode(R::TABLE, key, &found.record)?) {
                tracing::warn!(error = &error as &dyn std::error::Error, "copy a record");
            }
        }
        Ok(())
    }

    /// Gives each sandbox the address that it has. Of two that claim the same, the one
    /// that is ready has it, or the younger; the other is said to have none.
    fn lease_changes(&self, sandboxes: &mut [Found<SandboxRecord>]) -> Result<LeaseChanges, Error> {
        let leased: HashMap<_, _> =
            self.leases()?.into_iter().map(|lease| (lease.address, lease.sandbox)).collect();
        let known: HashSet<_> = sandboxes.iter().map(|found| found.record.id.clone()).collect();
        let claim = |record: &SandboxRecord| {
            let ready = record.phase == SandboxPhase::Ready;
            let holds = |address| leased.get(&address) == Some(&record.id);
            let address = record.network.as_ref()?.address;
            Some((address, (ready, holds(address), record.created_at)))
        };
        let mut owners: HashMap<Ipv4Addr, _> = HashMap::new();
        for record in sandboxes.iter().map(|found| &found.record) {
            if let Some((address, strength)) = claim(record) {
                let best = owners.entry(address).or_insert((strength, record.id.clone()));
                if strength > best.0 {
                    *best = (strength, record.id.clone());
                }
            }
        }
        let mut changes = LeaseChanges::default();
        for found in sandboxes {
            let Some((address, (ready, ..))) = claim(&found.record) else { continue };
            let holder = leased.get(&address);
            let others = holder.is_some_and(|holder| {
                *holder != found.record.id && known.contains(holder) && !ready
            });
            if owners.get(&address).is_none_or(|best| best.1 != found.record.id) || others {
                tracing::error!(sandbox.id = %found.record.id, %address, "its address is another's");
                found.record.network = None;
                (found.store, found.copy) = (true, true);
            } else if holder != Some(&found.record.id) {
                tracing::warn!(sandbox.id = %found.record.id, %address, "its lease was lost");
                changes.take.extend(holder.map(|_| address));
                changes.give.push((address, found.record.id.clone()));
            }
        }
        Ok(changes)
    }
}

/// Rows and copies of one kind, oldest first.
fn compare<R: Record>(copies: &Copies, rows: Vec<StoredRow<R>>) -> Result<Vec<Found<R>>, Error> {
    let mut known = HashSet::new();
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        known.insert(row.record.key().to_owned());
        all.push(with_row(copies, row));
    }
    for key in copies.keys::<R>()?.into_iter().filter(|key| !known.contains(key)) {
        match copies.read::<R>(&key) {
            Ok(None) => {}
            Ok(Some(text)) => all.extend(without_row(copies, &key, &text)),
            Err(error) => not_rebuilt::<R>(&key, &error),
        }
    }
    all.sort_by_key(|found| found.record.created_at());
    Ok(all)
}

fn with_row<R: Record>(copies: &Copies, row: StoredRow<R>) -> Found<R> {
    let key = row.record.key();
    let copy = match copies.read::<R>(key) {
        Ok(Some(text)) if text == row.text => {
            return Found { copy: false, ..Found::of_row(row.record, true) };
        }
        Ok(Some(text)) => copies.decode::<R>(key, &text),
        Ok(None) => return Found::of_row(row.record, false),
        Err(error) => Err(error),
    };
    match copy {
        Ok(copy) if copy.rank() > row.record.rank() => {
            tracing::warn!(id = key, "{}: an old row is replaced by its copy", R::TABLE);
            Found::of_copy(copy, true)
        }
        Ok(_) => Found::of_row(row.record, true),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a copy is written anew");
            Found::of_row(row.record, true)
        }
    }
}

fn without_row<R: Record>(copies: &Copies, key: &str, text: &str) -> Option<Found<R>> {
    match copies.decode::<R>(key, text) {
        Ok(record) => {
            tracing::warn!(id = key, "{}: a lost row is made anew from its copy", R::TABLE);
            Some(Found::of_copy(record, false))
        }
        Err(error) => {
            not_rebuilt::<R>(key, &error);
            None
        }
    }
}

fn not_rebuilt<R: Record>(key: &str, error: &Error) {
    tracing::error!(
        id = key,
        error = error as &dyn std::error::Error,
        "{}: a lost row cannot be made anew; what it named is ended and removed",
        R::TABLE
    );
}

/// A name belongs to one sandbox, and to one container of a sandbox: takes out whatever has
/// the name of another; returns it.
fn take_doubles<R: Record, N: Eq + Hash>(
    all: &mut Vec<Found<R>>,
    name: impl Fn(&R) -> N,
) -> Vec<R> {
    let mut owners: HashMap<N, ((bool, i64), String)> = HashMap::new();
    for found in all.iter() {
        let claim = (found.claim(), found.record.key().to_owned());
        let best = owners.entry(name(&found.record)).or_insert_with(|| claim.clone());
        if claim.0 > best.0 {
            *best = claim;
        }
    }
    take_out(all, |found| {
        let owner = owners.get(&name(&found.record));
        let double = owner.is_some_and(|(_, owner)| owner != found.record.key());
        if double {
            tracing::error!(id = found.record.key(), "{}: another has its name", R::TABLE);
        }
        double
    })
}

/// Takes out the containers that have no sandbox; returns them.
fn take_homeless(
    sandboxes: &[Found<SandboxRecord>],
    containers: &mut Vec<Found<ContainerRecord>>,
) -> Vec<ContainerRecord> {
    let known: HashSet<_> = sandboxes.iter().map(|found| &found.record.id).collect();
    take_out(containers, |found| {
        let (id, sandbox) = (found.record.key(), &found.record.sandbox);
        let homeless = !known.contains(sandbox);
        if homeless {
            tracing::error!(id, %sandbox, "a container of no sandbox is forgotten");
        }
        homeless
    })
}

fn take_out<R: Record>(all: &mut Vec<Found<R>>, doomed: impl Fn(&Found<R>) -> bool) -> Vec<R> {
    let (out, kept) = std::mem::take(all).into_iter().partition(doomed);
    *all = kept;
    records(out)
}

fn rows<R: Record>(all: &[Found<R>]) -> Result<Vec<(&R, String)>, Error> {
    let stored = all.iter().map(|found| &found.record).zip(all).filter(|(_, found)| found.store);
    stored.map(|(record, _)| Ok((record, encode(R::TABLE, record.key(), record)?))).collect()
}

fn records<R>(all: Vec<Found<R>>) -> Vec<R> {
    all.into_iter().map(|found| found.record).collect()
}
