//! Lists and maps whose entries are set, and removed, one by one.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::nri::Field;

use super::owners::Claim;
use crate::Error;

/// The key of what an entry removes, if it does that.
pub(super) fn removed(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// How entries of a list are told apart, and how a plugin sees them in the container.
pub(super) struct Lists<K, R, S, V> {
    pub(super) key: K,
    /// The entry that removes; its key begins with `-`.
    pub(super) removal: R,
    pub(super) seen_key: S,
    pub(super) see: V,
}

/// Takes in what a plugin wants of a list.
pub(super) fn merge_list<T, U>(
    claim: &mut Claim<'_>,
    field: Field,
    lists: &Lists<
        impl Fn(&T) -> String,
        impl Fn(String) -> T,
        impl Fn(&U) -> String,
        impl Fn(&T) -> U,
    >,
    wanted: Vec<T>,
    collected: &mut Vec<T>,
    seen: &mut Vec<U>,
) -> Result<(), Error> {
    let mut gone = BTreeSet::new();
    let mut added = Vec::new();
    for entry in wanted {
        let key = (lists.key)(&entry);
        match removed(&key) {
            Some(key) => {
                gone.insert(key.to_owned());
            }
            None => added.push((key, entry)),
        }
    }
    let is_added = |key: &str| added.iter().any(|(known, _)| known == key);
    collected.retain(|entry| {
        let key = (lists.key)(entry);
        let cleared = gone.contains(&key);
        if cleared {
            claim.clear_entry(field, &key);
        }
        !cleared
    });
    seen.retain(|entry| {
        let key = (lists.seen_key)(entry);
        !gone.contains(&key) && !is_added(&key)
    });
    // What only is removed is removed from the request too.
    for key in gone.iter().filter(|key| !is_added(key)) {
        collected.push((lists.removal)(format!("-{key}")));
    }
    for (key, entry) in added {
        claim.take_entry(field, &key)?;
        seen.push((lists.see)(&entry));
        collected.push(entry);
    }
    Ok(())
}

/// Takes in what a plugin wants of a map.
pub(super) fn merge_map<T: Clone + Default>(
    claim: &mut Claim<'_>,
    field: Field,
    wanted: BTreeMap<String, T>,
    collected: &mut BTreeMap<String, T>,
    seen: &mut BTreeMap<String, T>,
) -> Result<(), Error> {
    let gone: Vec<&str> = wanted.keys().filter_map(|key| removed(key)).collect();
    for key in gone {
        claim.clear_entry(field, key);
        collected.remove(key);
        seen.remove(key);
        collected.insert(format!("-{key}"), T::default());
    }
    for (key, value) in &wanted {
        if removed(key).is_none() {
            claim.take_entry(field, key)?;
            collected.insert(key.clone(), value.clone());
            seen.insert(key.clone(), value.clone());
        }
    }
    Ok(())
}
