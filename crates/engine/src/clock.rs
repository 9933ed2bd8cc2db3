//! Wall-clock time and random ids.

use std::fs::File;
use std::io::Read as _;

use berth_model::container::Timestamp;

use crate::Error;

/// Nanoseconds since the Unix epoch; only for records, never for deadlines.
pub(crate) fn now() -> Timestamp {
    berth_failpoint::now().into()
}

/// The present, as a time later than all `earlier` ones: kubelet takes the order of these
/// times for the order of a pod's sandboxes and of a container's attempts, and the clock may
/// have been set back.
pub(crate) fn now_after(earlier: impl IntoIterator<Item = Timestamp>) -> Timestamp {
    later(now(), earlier)
}

fn later(now: Timestamp, earlier: impl IntoIterator<Item = Timestamp>) -> Timestamp {
    let next = earlier.into_iter().max().map(|Timestamp(last)| Timestamp(last.saturating_add(1)));
    next.map_or(now, |next| now.max(next))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_later_whatever_the_clock_says() {
        let later =
            |now, earlier: &[i64]| later(Timestamp(now), earlier.iter().copied().map(Timestamp)).0;
        assert_eq!(later(10, &[]), 10);
        assert_eq!(later(10, &[3, 9]), 10);
        assert_eq!(later(10, &[3, 10]), 11);
        assert_eq!(later(10, &[500, 3]), 501);
        assert_eq!(later(10, &[i64::MAX]), i64::MAX);
    }
}
