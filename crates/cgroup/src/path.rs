//! Names of cgroups.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;

/// Longest path taken, bytes; the kernel's `PATH_MAX` less room for mount point and file name.
const MAX_LENGTH: usize = 3072;
/// Longest component, bytes (`NAME_MAX`).
const MAX_COMPONENT: usize = 255;

/// An absolute path in the cgroup file system (`/kubepods/pod1/container`), the same in every
/// hierarchy. Never the root; no empty, `.` or `..` component, no control characters. Copies
/// share the text: it is long, and the key of much that is looked up for every list.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CgroupPath(Arc<str>);

impl CgroupPath {
    /// Checks `path`; repeated and trailing slashes are dropped.
    ///
    /// # Errors
    /// [`Error::InvalidPath`].
    pub fn new(path: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidPath(path.to_owned());
        if !path.starts_with('/') || path.len() > MAX_LENGTH {
            return Err(invalid());
        }
        let mut clean = String::with_capacity(path.len());
        for component in path.split('/').filter(|component| !component.is_empty()) {
            let dots = component == "." || component == "..";
            if dots || component.len() > MAX_COMPONENT || component.chars().any(char::is_control) {
                return Err(invalid());
            }
            clean.push('/');
            clean.push_str(component);
        }
        if clean.is_empty() { Err(invalid()) } else { Ok(Self(clean.into())) }
    }

    /// The cgroup `name` directly below this one.
    ///
    /// # Errors
    /// [`Error::InvalidPath`], also when `name` has a slash.
    pub fn child(&self, name: &str) -> Result<Self, Error> {
        if name.is_empty() || name.contains('/') {
            return Err(Error::InvalidPath(name.to_owned()));
        }
        Self::new(&format!("{}/{name}", self.0))
    }

    /// The cgroup above this one; `None` when that is the root.
    pub fn parent(&self) -> Option<Self> {
        match self.0.rfind('/') {
            None | Some(0) => None,
            Some(end) => Some(Self(self.0[..end].into())),
        }
    }

    /// The path, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where this cgroup is in the hierarchy mounted at `mount`.
    pub(crate) fn below(&self, mount: &Path) -> PathBuf {
        mount.join(&self.0[1..])
    }

    /// This cgroup's ancestors, the topmost first, and itself last.
    pub(crate) fn lineage(&self) -> Vec<Self> {
        let mut all: Vec<Self> = std::iter::successors(Some(self.clone()), Self::parent).collect();
        all.reverse();
        all
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_are_made_single() {
        assert_eq!(CgroupPath::new("//a///b/").unwrap().as_str(), "/a/b");
    }

    #[test]
    fn a_path_that_could_leave_its_root_is_refused() {
        let long = format!("/{}", "a".repeat(256));
        let longer = "/a".repeat(2000);
        for bad in ["", "/", "a", "/a/../b", "/./a", "/a\n", "/a\0b", &long, &longer] {
            assert!(matches!(CgroupPath::new(bad), Err(Error::InvalidPath(_))), "{bad:?}");
        }
        assert!(CgroupPath::new("/a").unwrap().child("b/c").is_err());
        assert!(CgroupPath::new("/a").unwrap().child("..").is_err());
    }

    #[test]
    fn the_lineage_starts_at_the_top() {
        let path = CgroupPath::new("/a/b/c").unwrap();
        let names: Vec<String> = path.lineage().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(path.below(Path::new("/m")), Path::new("/m/a/b/c"));
    }
}
