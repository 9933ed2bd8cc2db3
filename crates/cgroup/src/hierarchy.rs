//! Which hierarchies this host has.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::Directory;
use crate::{Cgroup, CgroupPath, Error, create, mountinfo};

/// How this host's controllers are arranged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// Every controller in its own hierarchy.
    V1,
    /// One hierarchy with every controller.
    V2,
    /// Controllers in v1 hierarchies, and a v2 hierarchy beside them.
    Hybrid,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
        })
    }
}

/// A controller that Berth sets limits with or reads.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// CPU accounting; on v2 part of every cgroup.
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory.
    Memory,
    /// Tasks.
    Pids,
    /// Huge pages.
    Hugetlb,
    /// Device access; on v2 a program attached to the cgroup.
    Devices,
    /// Freezing; on v2 part of every cgroup.
    Freezer,
    /// Block I/O (`blkio` on v1).
    Io,
}

impl Controller {
    const ALL: [Self; 9] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Hugetlb,
        Self::Devices,
        Self::Freezer,
        Self::Io,
    ];

    /// The controller that the kernel calls `name`, in either version.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name == "blkio" {
            return Some(Self::Io);
        }
        Self::ALL.into_iter().find(|controller| controller.name() == name)
    }

    /// What the kernel calls it on v2.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Hugetlb => "hugetlb",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Io => "io",
        }
    }

    /// Whether v2 has it without being asked.
    fn built_in(self) -> bool {
        matches!(self, Self::Cpuacct | Self::Devices | Self::Freezer)
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One mounted v1 hierarchy; one of controllers that Berth does not use has none of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Legacy {
    pub(crate) mount: PathBuf,
    pub(crate) controllers: BTreeSet<Controller>,
}

/// The mounted v2 hierarchy, and the controllers that are not bound to a v1 one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Unified {
    pub(crate) mount: PathBuf,
    pub(crate) controllers: BTreeSet<Controller>,
}

/// What is mounted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mounts {
    pub(crate) legacy: Vec<Legacy>,
    pub(crate) unified: Option<Unified>,
}

/// A controller's directory of a cgroup, and the version whose files are there.
#[derive(Debug)]
pub(crate) enum Place {
    V1(Directory),
    V2(Directory),
}

impl Mounts {
    /// Where every hierarchy is mounted.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Path> {
        let unified = self.unified.iter().map(|unified| unified.mount.as_path());
        self.legacy.iter().map(|legacy| legacy.mount.as_path()).chain(unified)
    }

    /// Where `controller` is for the cgroup at `path`.
    pub(crate) fn place(&self, controller: Controller, path: &CgroupPath) -> Option<Place> {
        let mut legacy = self.legacy.iter().enumerate();
        if let Some((number, legacy)) = legacy.find(|(_, it)| it.controllers.contains(&controller))
        {
            return Some(Place::V1(Directory::within(number, path.below(&legacy.mount))));
        }
        let unified = self.unified.as_ref()?;
        let there = controller.built_in() || unified.controllers.contains(&controller);
        self.unified(path).filter(|_| there).map(Place::V2)
    }

    /// The v2 directory of the cgroup at `path`.
    pub(crate) fn unified(&self, path: &CgroupPath) -> Option<Directory> {
        let unified = self.unified.as_ref()?;
        // The v1 hierarchies have the numbers before.
        Some(Directory::within(self.legacy.len(), path.below(&unified.mount)))
    }

    pub(crate) fn version(&self) -> Version {
        match (self.legacy.is_empty(), self.unified.is_some()) {
            (true, _) => Version::V2,
            (false, false) => Version::V1,
            (false, true) => Version::Hybrid,
        }
    }
}

/// The cgroup hierarchies of this host; found once, shared by all. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mounts: Arc<Mounts>,
}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`], [`Error::Read`].
    pub fn detect() -> Result<Self, Error> {
        Self::from_mounts(mountinfo::read()?)
    }

    pub(crate) fn from_mounts(mounts: Mounts) -> Result<Self, Error> {
        if mounts.legacy.is_empty() && mounts.unified.is_none() {
            return Err(Error::NoHierarchy);
        }
        Ok(Self { mounts: Arc::new(mounts) })
    }

    /// How the controllers are arranged.
    pub fn version(&self) -> Version {
        self.mounts.version()
    }

    /// The controllers that are there.
    pub fn controllers(&self) -> Vec<Controller> {
        Controller::ALL.into_iter().filter(|controller| self.has(*controller)).collect()
    }

    /// Whether `controller` is there.
    pub fn has(&self, controller: Controller) -> bool {
        let legacy = self.mounts.legacy.iter().any(|l| l.controllers.contains(&controller));
        let unified = self.mounts.unified.as_ref();
        legacy
            || unified.is_some_and(|u| controller.built_in() || u.controllers.contains(&controller))
    }

    /// Whether swap can be limited: the kernel may be built or started without it.
    pub fn has_swap_limit(&self) -> bool {
        let memory = |l: &&Legacy| l.controllers.contains(&Controller::Memory);
        if let Some(legacy) = self.mounts.legacy.iter().find(memory) {
            return legacy.mount.join("memory.memsw.limit_in_bytes").exists();
        }
        let Some(unified) = &self.mounts.unified else { return false };
        // The root has no limits; any cgroup below it with the controller shows the file.
        let below = std::fs::read_dir(&unified.mount).into_iter().flatten().flatten();
        below.map(|entry| entry.path().join("memory.swap.max")).any(|file| file.exists())
    }

    /// Makes the cgroup in every hierarchy, its ancestors too where they are missing; cpusets
    /// are filled from their parents. Existing directories are taken as they are. What was
    /// made is removed again when a step fails.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Write`], [`Error::Read`]; any of them within
    /// [`Error::LeftBehind`] when what was made could not be removed.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, Error> {
        create::create(&self.mounts, path)?;
        Ok(Cgroup::new(Arc::clone(&self.mounts), path.clone()))
    }

    /// The cgroup, if it exists in any hierarchy.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn open(&self, path: &CgroupPath) -> Result<Cgroup, Error> {
        let cgroup = self.at(path);
        if cgroup.exists() { Ok(cgroup) } else { Err(Error::NotFound(path.to_string())) }
    }

    /// The cgroup at `path`, whether it exists or not; for a sweep that removes what may be there.
    pub fn at(&self, path: &CgroupPath) -> Cgroup {
        Cgroup::new(Arc::clone(&self.mounts), path.clone())
    }
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.controllers().into_iter().map(Controller::name).collect();
        write!(f, "{} ({})", self.version(), names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(legacy: &[Controller], unified: Option<&[Controller]>) -> Mounts {
        let legacy = legacy
            .iter()
            .map(|controller| Legacy {
                mount: PathBuf::from(format!("/v1/{controller}")),
                controllers: BTreeSet::from([*controller]),
            })
            .collect();
        let unified = unified.map(|controllers| Unified {
            mount: PathBuf::from("/v2"),
            controllers: controllers.iter().copied().collect(),
        });
        Mounts { legacy, unified }
    }

    /// teeth: crates/cgroup/src/hierarchy.rs: `Directory::within(self.legacy.len(), ` → `Directory::within(0, `
    #[test]
    fn a_controller_is_found_where_it_is_bound() {
        use Controller::{Cpu, Devices, Freezer, Hugetlb, Memory};
        let path = CgroupPath::new("/a").unwrap();
        let mounts = mounts(&[Cpu, Devices], Some(&[Hugetlb]));
        assert_eq!(mounts.version(), Version::Hybrid);
        let place = |controller| mounts.place(controller, &path);
        assert!(matches!(place(Cpu), Some(Place::V1(d)) if d.path() == Path::new("/v1/cpu/a")));
        assert!(matches!(place(Devices), Some(Place::V1(_))));
        assert!(matches!(place(Hugetlb), Some(Place::V2(d)) if d.path() == Path::new("/v2/a")));
        assert!(matches!(place(Freezer), Some(Place::V2(_))));
        assert!(place(Memory).is_none());
        let unified = mounts.unified(&path);
        assert_eq!(unified, Some(Directory::within(2, "/v2/a".into())), "after those of v1");
    }

    #[test]
    fn a_host_without_hierarchies_is_refused() {
        let none = Hierarchy::from_mounts(Mounts::default());
        assert!(matches!(none, Err(Error::NoHierarchy)));
        let v2 = Hierarchy::from_mounts(mounts(&[], Some(&[Controller::Memory]))).unwrap();
        assert_eq!(v2.version(), Version::V2);
        assert!(v2.has(Controller::Devices) && !v2.has(Controller::Pids));
        let v1 = Hierarchy::from_mounts(mounts(&[Controller::Memory], None)).unwrap();
        assert_eq!(v1.version(), Version::V1);
        assert_eq!(v1.controllers(), [Controller::Memory]);
    }
}
