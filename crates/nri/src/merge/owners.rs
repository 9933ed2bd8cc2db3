//! Which plugin has set what.

use std::collections::BTreeMap;

use berth_api::nri::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};

use crate::Error;

/// Which plugin has set what, of which container.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    /// By container, field and entry; a field with one value has the empty entry. An owner
    /// with a leading `-` has removed what another set, and may set it anew.
    known: BTreeMap<(String, i32, String), String>,
}

impl Owners {
    /// As plugins that validate are told.
    pub(super) fn told(&self) -> OwningPlugins {
        let mut told = OwningPlugins::default();
        for ((container, field, entry), owner) in &self.known {
            let of: &mut FieldOwners = told.owners.entry(container.clone()).or_default();
            if entry.is_empty() {
                of.simple.insert(*field, owner.clone());
            } else {
                let compound: &mut CompoundFieldOwners = of.compound.entry(*field).or_default();
                compound.owners.insert(entry.clone(), owner.clone());
            }
        }
        told
    }
}

/// One plugin, as it sets parts of one container.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    owners: &'a mut Owners,
    container: &'a str,
    plugin: &'a str,
}

impl<'a> Claim<'a> {
    pub(super) fn new(owners: &'a mut Owners, container: &'a str, plugin: &'a str) -> Self {
        Self { owners, container, plugin }
    }

    /// A field that has one value is the plugin's, or another's already.
    pub(super) fn take(&mut self, field: Field) -> Result<(), Error> {
        self.take_entry(field, "")
    }

    /// As [`Self::take`], for one entry of a field.
    pub(super) fn take_entry(&mut self, field: Field, entry: &str) -> Result<(), Error> {
        let key = self.key(field, entry);
        if let Some(owner) = self.owners.known.get(&key) {
            let removed_by = owner.strip_prefix('-');
            if removed_by != Some(self.plugin) {
                let what = field.as_str_name().trim_start_matches("FIELD_").to_lowercase();
                let what = if entry.is_empty() { what } else { format!("{what} {entry:?}") };
                return Err(Error::Conflict {
                    first: removed_by.unwrap_or(owner).to_owned(),
                    second: self.plugin.to_owned(),
                    what: crate::error::bounded(&what),
                    container: self.container.to_owned(),
                });
            }
        }
        self.owners.known.insert(key, self.plugin.to_owned());
        Ok(())
    }

    /// What another set is removed: only this plugin may set it anew.
    pub(super) fn clear(&mut self, field: Field) {
        self.clear_entry(field, "");
    }

    /// As [`Self::clear`], for one entry of a field.
    pub(super) fn clear_entry(&mut self, field: Field, entry: &str) {
        let key = self.key(field, entry);
        if let Some(owner) = self.owners.known.get_mut(&key) {
            *owner = format!("-{}", self.plugin);
        }
    }

    /// A field that several may add to.
    pub(super) fn share(&mut self, field: Field) {
        let key = self.key(field, "");
        let owner = self.owners.known.entry(key).or_default();
        if owner.split(',').all(|known| known != self.plugin) {
            if !owner.is_empty() {
                owner.push(',');
            }
            owner.push_str(self.plugin);
        }
    }

    fn key(&self, field: Field, entry: &str) -> (String, i32, String) {
        (self.container.to_owned(), field.into(), entry.to_owned())
    }
}
