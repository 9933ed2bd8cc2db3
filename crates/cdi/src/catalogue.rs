//! All specifications of the node.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::document::{Document, Part};
use crate::{DeviceName, Edits, Error};

/// Largest file that is read, bytes: one of 1,000 devices has less than 1 MiB.
const MAX_FILE: u64 = 4 << 20;
/// Most files of one directory that are looked at.
const MAX_FILES: usize = 1024;

/// The specifications below some directories, read when they are asked for.
#[derive(Debug)]
pub struct Catalogue {
    /// Later ones count more.
    directories: Vec<PathBuf>,
    known: Mutex<BTreeMap<PathBuf, File>>,
}

/// A file as it was read last.
#[derive(Debug)]
struct File {
    stamp: Stamp,
    document: Result<Document, String>,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

/// What there is, as an operator sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Overview {
    /// Later ones count more.
    pub directories: Vec<PathBuf>,
    /// The names of the devices that files have.
    pub devices: BTreeSet<String>,
    /// Files and directories that cannot be read or understood, and why.
    pub broken: Vec<(PathBuf, String)>,
}

/// A device, the file that has it and what that file gives to all of its devices.
struct Found<'a> {
    path: &'a Path,
    /// Another file of the same directory that has it.
    conflict: Option<&'a Path>,
    /// How much the directory counts; 0 is most.
    rank: usize,
    common: &'a Part,
    own: &'a Part,
}

impl Catalogue {
    /// The specifications below `directories`, of which later ones count more. None of
    /// them need exist.
    #[must_use]
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories, known: Mutex::default() }
    }

    /// What a container gets that asks for these devices; a name that is there twice
    /// counts once. Reads what has changed since it was asked last. Blocks.
    ///
    /// # Errors
    /// Any [`Error`], for the first device that has one.
    pub fn resolve<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<Edits, Error> {
        let mut wanted: Vec<DeviceName> = Vec::new();
        let mut asked = HashSet::new();
        for name in names {
            let name = DeviceName::parse(name)?;
            if asked.insert(name.clone()) {
                wanted.push(name);
            }
        }
        if wanted.is_empty() {
            return Ok(Edits::default());
        }
        let mut known = self.lock();
        let order = self.refresh(&mut known);
        let mut all = Edits::default();
        let mut seen = HashSet::new();
        for (name, found) in wanted.iter().zip(locate(&order, &known, &wanted).0) {
            let found = found.ok_or_else(|| unknown(&known, name))?;
            if let Some(second) = found.conflict {
                return Err(Error::Conflict {
                    name: name.to_string(),
                    first: found.path.to_owned(),
                    second: second.to_owned(),
                });
            }
            if seen.insert(found.path) {
                add(&mut all, found.common, name)?;
            }
            add(&mut all, found.own, name)?;
        }
        Ok(all)
    }

    /// What there is, for operators. Reads what has changed. Blocks.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let mut known = self.lock();
        let order = self.refresh(&mut known);
        let mut overview =
            Overview { directories: self.directories.clone(), ..Overview::default() };
        for directory in &self.directories {
            match fs::read_dir(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    overview.broken.push((directory.clone(), error.to_string()));
                }
                _ => {}
            }
        }
        for (path, file) in order.iter().flatten().filter_map(|path| known.get_key_value(path)) {
            match &file.document {
                Err(why) => overview.broken.push((path.clone(), why.clone())),
                Ok(document) => {
                    let name = |device| format!("{}={device}", document.kind);
                    overview.devices.extend(document.devices.keys().map(name));
                }
            }
        }
        overview
    }

    /// Reads what is new or has changed, forgets what is gone, and says which files there
    /// are, by directory, that which counts most first.
    fn refresh(&self, known: &mut BTreeMap<PathBuf, File>) -> Vec<Vec<PathBuf>> {
        let order: Vec<Vec<PathBuf>> =
            self.directories.iter().rev().map(|directory| files(directory)).collect();
        let there: HashSet<&PathBuf> = order.iter().flatten().collect();
        known.retain(|path, _| there.contains(path));
        for path in order.iter().flatten() {
            let stamp = fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|m| stamp(&m));
            let Some(stamp) = stamp else {
                known.remove(path);
                continue;
            };
            if known.get(path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            let document = read(path).and_then(|bytes| Document::parse(path, &bytes));
            if let Err(why) = &document {
                tracing::warn!(path = %path.display(), why, "CDI specification is not understood");
            }
            known.insert(path.clone(), File { stamp, document });
        }
        order
    }

    /// A panic elsewhere leaves a file that is read again.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, File>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For each name the device in the directory that counts most of those that have it; and how
/// often a name was looked up: never more often than there are devices.
fn locate<'a>(
    order: &'a [Vec<PathBuf>],
    known: &'a BTreeMap<PathBuf, File>,
    wanted: &[DeviceName],
) -> (Vec<Option<Found<'a>>>, usize) {
    let mut of_kind: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
    for (place, name) in wanted.iter().enumerate() {
        of_kind.entry(&name.kind).or_default().insert(&name.device, place);
    }
    let mut all: Vec<Option<Found<'a>>> = wanted.iter().map(|_| None).collect();
    let mut lookups = 0;
    let files = order
        .iter()
        .enumerate()
        .flat_map(|(rank, files)| files.iter().map(move |path| (rank, path.as_path())));
    for (rank, path) in files {
        let Some(Ok(document)) = known.get(path).map(|file| &file.document) else { continue };
        let Some(names) = of_kind.get(document.kind.as_str()) else { continue };
        // The shorter list is gone through, and looked up in the longer one.
        let both: Vec<(usize, &Part)> = if names.len() < document.devices.len() {
            let part =
                |(name, place): (&&str, &usize)| Some((*place, document.devices.get(*name)?));
            lookups += names.len();
            names.iter().filter_map(part).collect()
        } else {
            lookups += document.devices.len();
            let place = |(name, own): (&String, _)| Some((*names.get(name.as_str())?, own));
            document.devices.iter().filter_map(place).collect()
        };
        for (place, own) in both {
            match &mut all[place] {
                Some(found) if found.rank == rank => found.conflict = found.conflict.or(Some(path)),
                Some(_) => {}
                none => {
                    let common = &document.common;
                    *none = Some(Found { path, conflict: None, rank, common, own });
                }
            }
        }
    }
    (all, lookups)
}

fn unknown(known: &BTreeMap<PathBuf, File>, name: &DeviceName) -> Error {
    let broken = |(path, file): (&PathBuf, &File)| {
        file.document.as_ref().err().map(|why| (path.clone(), why.clone()))
    };
    let broken = known.iter().filter_map(broken).collect();
    Error::Unknown { name: name.to_string(), broken }
}

fn add(all: &mut Edits, part: &Part, name: &DeviceName) -> Result<(), Error> {
    if let Some(what) = part.unsupported {
        return Err(Error::Unsupported { name: name.to_string(), what });
    }
    all.env.extend(part.edits.env.iter().cloned());
    all.nodes.extend(part.edits.nodes.iter().cloned());
    all.mounts.extend(part.edits.mounts.iter().cloned());
    all.groups.extend(&part.edits.groups);
    all.hooks.extend(part.edits.hooks.iter().cloned());
    Ok(())
}

/// Files whose names say that they are specifications, in the order of their names.
fn files(directory: &Path) -> Vec<PathBuf> {
    let is_specification = |path: &PathBuf| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        matches!(kind, Some("json" | "yaml" | "yml"))
    };
    // One that is not there has none; nor has one that cannot be read.
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut files: Vec<_> = paths.filter(is_specification).take(MAX_FILES).collect();
    files.sort();
    files
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    Stamp {
        inode: (metadata.dev(), metadata.ino()),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = read().map_err(|error| error.to_string())?;
    match u64::try_from(bytes.len()).is_ok_and(|size| size <= MAX_FILE) {
        true => Ok(bytes),
        false => Err(format!("it is larger than {MAX_FILE} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &str, device: &str, value: &str) -> String {
        format!(
            "cdiVersion: 0.5.0\nkind: {kind}\ncontainerEdits: {{env: ['ALL={value}']}}\n\
             devices:\n- name: {device}\n  containerEdits: {{env: ['ONE={value}']}}\n\
             - name: other\n"
        )
    }

    fn resolve(catalogue: &Catalogue, names: &[&str]) -> Result<Vec<String>, Error> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let edits = catalogue.resolve(&names)?;
        Ok(edits.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    fn catalogue() -> (tempfile::TempDir, PathBuf, PathBuf, Catalogue) {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("etc"), dir.path().join("run"));
        let catalogue = Catalogue::new(vec![first.clone(), second.clone()]);
        fs::create_dir(&first).unwrap();
        (dir, first, second, catalogue)
    }

    #[test]
    fn what_changes_is_seen_at_once() {
        let (_dir, etc, run, catalogue) = catalogue();
        assert!(matches!(resolve(&catalogue, &["v/c=d"]), Err(Error::Unknown { .. })));
        fs::write(etc.join("a.yaml"), text("v/c", "d", "1")).unwrap();
        assert_eq!(resolve(&catalogue, &["v/c=d"]).unwrap(), ["ALL=1", "ONE=1"]);
        fs::write(etc.join("a.yaml"), text("v/c", "d", "22")).unwrap();
        assert_eq!(resolve(&catalogue, &["v/c=d"]).unwrap(), ["ALL=22", "ONE=22"]);
        // A directory made later counts more.
        fs::create_dir(&run).unwrap();
        fs::write(run.join("b.yml"), text("v/c", "d", "3")).unwrap();
        assert_eq!(resolve(&catalogue, &["v/c=d"]).unwrap(), ["ALL=3", "ONE=3"]);
        fs::remove_file(run.join("b.yml")).unwrap();
        fs::remove_file(etc.join("a.yaml")).unwrap();
        assert!(resolve(&catalogue, &["v/c=d"]).is_err());
    }

    #[test]
    fn what_is_common_is_given_once() {
        let (_dir, etc, _run, catalogue) = catalogue();
        fs::write(etc.join("a.json"), "not read").unwrap();
        fs::write(etc.join("b.yaml"), text("v/c", "d", "1")).unwrap();
        let names = ["v/c=d", "v/c=other", "v/c=d"];
        assert_eq!(resolve(&catalogue, &names).unwrap(), ["ALL=1", "ONE=1"]);
        assert_eq!(resolve(&catalogue, &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn a_device_of_two_files_is_nobodys() {
        let (_dir, etc, run, catalogue) = catalogue();
        fs::write(etc.join("a.yaml"), text("v/c", "d", "1")).unwrap();
        fs::write(etc.join("b.yaml"), text("v/c", "d", "2")).unwrap();
        assert!(matches!(resolve(&catalogue, &["v/c=d"]), Err(Error::Conflict { .. })));
        // Another directory may decide it.
        fs::create_dir(&run).unwrap();
        fs::write(run.join("a.yaml"), text("v/c", "d", "3")).unwrap();
        assert_eq!(resolve(&catalogue, &["v/c=d"]).unwrap(), ["ALL=3", "ONE=3"]);
    }

    /// Drivers that write a file for each claim have many of one kind.
    ///
    /// teeth: crates/cdi/src/catalogue.rs: `if names.len() < document.devices.len() {` → `if true {`
    #[test]
    fn many_names_in_many_files_are_looked_up_once_for_each_device() {
        let (_dir, etc, _run, catalogue) = catalogue();
        let files: Vec<PathBuf> = (0..MAX_FILES).map(|n| etc.join(format!("{n}.yaml"))).collect();
        for (number, path) in files.iter().enumerate() {
            let text = text("v/c", &format!("d{number}"), "1").replace("- name: other\n", "");
            fs::write(path, text).unwrap();
        }
        let names: Vec<_> = (0..MAX_FILES).map(|n| format!("v/c=d{n}")).collect();
        let edits = catalogue.resolve(&names).unwrap();
        assert_eq!(edits.env.len(), 2 * MAX_FILES);
        let wanted: Vec<_> = names.iter().map(|name| DeviceName::parse(name).unwrap()).collect();
        let (order, known) = ([files], catalogue.lock());
        let (found, lookups) = locate(&order, &known, &wanted);
        assert!(found.iter().all(Option::is_some));
        assert!(lookups <= MAX_FILES, "{lookups}");
    }

    #[test]
    fn an_operator_sees_devices_and_what_is_wrong() {
        let (_dir, etc, run, catalogue) = catalogue();
        fs::write(etc.join("a.yaml"), text("v/c", "d", "1")).unwrap();
        fs::write(etc.join("b.yaml"), "kind: [").unwrap();
        fs::write(&run, "no directory").unwrap();
        let overview = catalogue.overview();
        assert_eq!(overview.directories, [etc.clone(), run.clone()]);
        assert_eq!(overview.devices.into_iter().collect::<Vec<_>>(), ["v/c=d", "v/c=other"]);
        let broken: Vec<_> = overview.broken.into_iter().map(|(path, _)| path).collect();
        assert_eq!(broken, [run, etc.join("b.yaml")]);
    }

    #[test]
    fn a_broken_file_costs_its_own_devices() {
        let (_dir, etc, _run, catalogue) = catalogue();
        fs::write(etc.join("a.yaml"), text("v/c", "d", "1")).unwrap();
        fs::write(etc.join("b.yaml"), "kind: [").unwrap();
        fs::write(etc.join("ignored.txt"), "kind: [").unwrap();
        fs::create_dir(etc.join("folder.yaml")).unwrap();
        assert!(resolve(&catalogue, &["v/c=d"]).is_ok());
        let error = resolve(&catalogue, &["v/c=e"]).unwrap_err().to_string();
        assert!(error.contains("v/c=e") && error.contains("b.yaml"), "{error}");
        let large = fs::File::create(etc.join("a.yaml")).unwrap();
        large.set_len(MAX_FILE + 1).unwrap();
        assert!(resolve(&catalogue, &["v/c=d"]).is_err());
    }
}
