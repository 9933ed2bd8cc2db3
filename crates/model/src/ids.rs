//! Ranges of user and group ids, and where they lie on the node (user_namespaces(7)).

use serde::{Deserialize, Serialize};

/// Most ranges of one kind that the kernel takes (user_namespaces(7)).
const MOST: usize = 340;
/// For messages.
const USER: &str = "user";
/// See [`USER`].
const GROUP: &str = "group";

/// A range of ids.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id, as the namespace or the file system numbers it.
    pub container: u32,
    /// First id on the node.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// How the ids of a user namespace, or of a mount, lie on the node.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct IdMappings {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

/// What makes mappings ones that the kernel refuses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadIds {
    /// Nothing is mapped.
    #[error("has no range of {0} ids")]
    None(&'static str),
    /// More ranges than the kernel takes.
    #[error("has more than {MOST} ranges of {0} ids")]
    Many(&'static str),
    /// A range of no ids, or one that ends beyond the last id.
    #[error("has a range of {kind} ids of length {length} that does not fit")]
    Length {
        /// `user` or `group`.
        kind: &'static str,
        /// How many ids it was to have.
        length: u32,
    },
    /// Two ranges have an id in common, inside or on the node.
    #[error("has ranges of {0} ids that overlap")]
    Overlap(&'static str),
}

impl BadIds {
    /// Whether it is about groups, and not users.
    #[must_use]
    pub fn is_of_groups(self) -> bool {
        let (Self::None(kind) | Self::Many(kind) | Self::Length { kind, .. } | Self::Overlap(kind)) =
            self;
        kind == GROUP
    }
}

impl IdRange {
    /// Where `id` lies on the node.
    fn host_id(self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.container).filter(|offset| *offset < self.length)?;
        self.host.checked_add(offset)
    }

    /// The last id of all is none: it means "unchanged" to the kernel (setresuid(2)).
    fn fits(self) -> bool {
        let last = |first: u32| first.checked_add(self.length).is_some();
        self.length > 0 && last(self.container) && last(self.host)
    }
}

impl IdMappings {
    /// Checks what the kernel would refuse only when the namespace is made.
    ///
    /// # Errors
    /// [`BadIds`] names the kind of id.
    pub fn check(&self) -> Result<(), BadIds> {
        for (kind, ranges) in [(USER, &self.uids), (GROUP, &self.gids)] {
            if ranges.is_empty() {
                return Err(BadIds::None(kind));
            }
            if ranges.len() > MOST {
                return Err(BadIds::Many(kind));
            }
            if let Some(range) = ranges.iter().find(|range| !range.fits()) {
                return Err(BadIds::Length { kind, length: range.length });
            }
            if overlap(ranges, |range| range.container) || overlap(ranges, |range| range.host) {
                return Err(BadIds::Overlap(kind));
            }
        }
        Ok(())
    }

    /// Where a user id lies on the node; `None` if nowhere.
    #[must_use]
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| range.host_id(uid))
    }

    /// Where a group id lies on the node; `None` if nowhere.
    #[must_use]
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        self.gids.iter().find_map(|range| range.host_id(gid))
    }
}

/// Whether two ranges that begin at `first` have an id in common.
fn overlap(ranges: &[IdRange], first: impl Fn(&IdRange) -> u32) -> bool {
    let mut sorted: Vec<_> = ranges.iter().map(|range| (first(range), range.length)).collect();
    sorted.sort_unstable();
    sorted.iter().zip(sorted.iter().skip(1)).any(|(one, next)| next.0 - one.0 < one.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container: u32, host: u32, length: u32) -> IdRange {
        IdRange { container, host, length }
    }

    fn both(ranges: &[IdRange]) -> IdMappings {
        IdMappings { uids: ranges.to_vec(), gids: ranges.to_vec() }
    }

    #[test]
    fn an_id_lies_where_its_range_says() {
        let ids = both(&[range(0, 1000, 10), range(100, 5000, 2)]);
        ids.check().unwrap();
        assert_eq!(ids.host_uid(0), Some(1000));
        assert_eq!(ids.host_uid(9), Some(1009));
        assert_eq!(ids.host_uid(10), None);
        assert_eq!(ids.host_gid(101), Some(5001));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        let check = |ranges: &[IdRange]| both(ranges).check();
        assert_eq!(check(&[]), Err(BadIds::None("user")));
        assert!(matches!(check(&[range(0, 1, 0)]), Err(BadIds::Length { .. })));
        assert!(check(&[range(0, u32::MAX - 9, 9)]).is_ok());
        assert!(matches!(check(&[range(0, u32::MAX - 9, 10)]), Err(BadIds::Length { .. })));
        assert!(matches!(check(&[range(2, 0, u32::MAX)]), Err(BadIds::Length { .. })));
        let overlapping = Err(BadIds::Overlap("user"));
        assert_eq!(check(&[range(0, 1000, 10), range(9, 5000, 1)]), overlapping);
        assert_eq!(check(&[range(0, 1000, 10), range(10, 1009, 1)]), overlapping);
        assert!(check(&[range(0, 1000, 10), range(10, 1010, 1)]).is_ok());
        assert_eq!(check(&vec![range(0, 0, 1); 341]), Err(BadIds::Many("user")));
    }
}
