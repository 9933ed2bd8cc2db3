//! Kernel parameters of the calling thread's network namespace, by their files.

use std::fs;
use std::io;

use crate::error::Error;

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// Sets a parameter.
pub(crate) fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = path(name);
    fs::write(&path, value).map_err(|source| Error::Sysctl { operation: "set", path, source })
}

/// Sets a parameter if this kernel has it (one without IPv6 lacks those of IPv6).
pub(crate) fn set_if_present(name: &str, value: &str) -> Result<(), Error> {
    match set(name, value) {
        Err(Error::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads a parameter, without its final newline.
pub(crate) fn get(name: &str) -> Result<String, Error> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(source) => Err(Error::Sysctl { operation: "read", path, source }),
    }
}
