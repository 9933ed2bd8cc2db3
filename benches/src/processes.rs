//! Processes by what they were started with.

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

/// Those that name `path`, or what lies in it, on their command line.
pub(crate) fn naming(path: &Path) -> Vec<Pid> {
    let path = path.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // Processes come and go while the folder is read.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if names(&command, path) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// Whether an argument has `path` as a whole, and not as the beginning of a longer name.
fn names(command: &[u8], path: &[u8]) -> bool {
    let ends = |next: Option<&u8>| next.is_none_or(|next| matches!(next, 0 | b'/'));
    let at = |(at, window): (usize, &[u8])| window == path && ends(command.get(at + path.len()));
    !path.is_empty() && command.windows(path.len()).enumerate().any(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_as_a_whole_or_by_what_lies_in_it() {
        let told = |command: &str| names(command.as_bytes(), b"/tmp/run-1.a");
        assert!(told("runtime\0--config\0/tmp/run-1.a/config.toml\0"));
        assert!(told("runtime\0--root=/tmp/run-1.a\0") && told("x\0/tmp/run-1.a"));
        assert!(!told("runtime\0/tmp/run-1.ab/config.toml\0") && !told("") && !told("/tmp/run-1"));
    }
}
