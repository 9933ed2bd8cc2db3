//! Damage, or a disk that fails: SQLite's checks call a page that they could not read a
//! damaged one.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::Error;

/// The file of a database that is open. It is kept as long as the connection is: to close
/// any descriptor of the file would drop SQLite's locks on it (fcntl(2)), and the next
/// process to close the database would take the log away under us.
pub(crate) type Kept = Mutex<Option<File>>;

/// Does `work` with the database at `path`; damage that it finds is believed when every
/// byte can be read, and written over, and it is found again.
pub(crate) fn second_look<T>(
    path: &Path,
    kept: Option<&Kept>,
    work: impl Fn() -> Result<T, Error>,
) -> Result<T, Error> {
    match work() {
        Err(Error::Damaged { .. }) => {}
        other => return other,
    }
    for (file, kept) in [(path.to_owned(), kept), (log(path), None)] {
        match read(&file, kept.unwrap_or(&Kept::default())) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::File { action: "open and read", path: file, source });
            }
            _ => {}
        }
    }
    work()
}

fn log(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

/// Reads the file to its end, as SQLite does. A log that cannot be written to would be
/// called damaged as well.
fn read(path: &Path, kept: &Kept) -> io::Result<()> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let file = match &mut *kept {
        Some(file) => file,
        none => none.insert(File::options().read(true).write(true).open(path)?),
    };
    let (mut piece, mut at) = (vec![0; 64 << 10], 0);
    loop {
        match file.read_at(&mut piece, at)? {
            0 => return Ok(()),
            read => at += u64::try_from(read).expect("a length fits 64 bits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn damaged(path: &Path) -> Error {
        Error::Damaged { path: path.to_owned(), finding: "page 3".to_owned() }
    }

    #[test]
    fn damage_that_is_not_found_again_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, times) = (dir.path().join("store.db"), Cell::new(0));
        let open = |damaged_times: u32| {
            times.set(0);
            second_look(&path, None, || {
                times.set(times.get() + 1);
                if times.get() > damaged_times { Ok(()) } else { Err(damaged(&path)) }
            })
        };
        open(0).unwrap();
        assert_eq!(times.get(), 1);
        open(1).unwrap();
        assert!(matches!(open(2), Err(Error::Damaged { .. })));
    }

    #[test]
    fn what_cannot_be_read_is_not_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        // read(2) of a directory is EISDIR.
        let path = dir.path().join("store.db");
        std::fs::create_dir(&path).unwrap();
        let error = second_look::<()>(&path, None, || Err(damaged(&path))).unwrap_err();
        assert!(matches!(&error, Error::File { path: named, .. } if *named == path), "{error:?}");
    }
}
