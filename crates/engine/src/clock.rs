//! Wall-clock time and random ids.

use std::fs::File;
use std::io::Read as _;
use std::time::UNIX_EPOCH;

use berth_model::container::Timestamp;

use crate::Error;

/// Nanoseconds since the Unix epoch; only for records, never for deadlines.
pub(crate) fn now() -> Timestamp {
    let since = berth_failpoint::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// 32 bytes nobody can guess.
pub(crate) fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("read", "/dev/urandom"))?;
    Ok(bytes)
}

/// Names the present boot; what was made in another one is gone.
pub(crate) fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = crate::files::read_bounded(path.as_ref(), 128)?;
    Ok(String::from_utf8_lossy(&id).trim().to_owned())
}
