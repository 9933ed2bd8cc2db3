//! The last steps, inside the container: from the caller's word to `execve`.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::exec::{StringVector, execve};
use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::process::{Rlimit, fchdir, getcwd, getrlimit, setrlimit};
use rustix::thread::set_no_new_privs;

use crate::error::{AnyErrno, Error};
use crate::init::credentials;
use crate::init::root::{Links, Root};
use crate::plan::{ProcessPlan, ResourceLimit};
use crate::wire;

/// Waits for the caller's word, then executes the program; the error says why it is still
/// here. `None` if the caller has gone away instead. What comes `before` runs with the word.
pub(crate) fn execute_when_told(
    plan: &ProcessPlan,
    socket: BorrowedFd<'_>,
    before: impl FnOnce() -> Result<(), Error>,
) -> Option<Error> {
    match wire::wait_for_go(socket) {
        Ok(true) => match before().and_then(|()| execute(plan)) {
            Ok(never) => match never {},
            Err(error) => Some(error),
        },
        Ok(false) => None,
        Err(errno) => Some(Error::setup("wait for the start")(errno)),
    }
}

/// Executes the program of `plan` as that asks for.
pub(crate) fn execute(plan: &ProcessPlan) -> Result<Infallible, Error> {
    // From here on it is a container's process, which ends when its cgroup is killed.
    rustix::process::set_parent_process_death_signal(None)
        .map_err(Error::setup("outlive the caller"))?;
    let mut environment = plan.environment.clone();
    if !environment.iter().any(|entry| entry.to_bytes().starts_with(b"HOME=")) {
        environment.push(home(plan.user.uid));
    }
    let arguments = StringVector::new(plan.arguments.clone());
    let environment = StringVector::new(environment);
    for limit in &plan.limits {
        set_limit(limit)?;
    }
    berth_sys::descriptor::close_on_exec_from(3)
        .map_err(Error::setup("mark descriptors close-on-exec"))?;
    rustix::process::umask(Mode::from_raw_mode(plan.user.umask));
    let entered = enter(&plan.cwd);
    // Without no_new_privs only a privileged process may load a filter, so the filter has to
    // admit the few calls that follow; with it the filter comes last.
    if plan.no_new_privs {
        set_no_new_privs(true).map_err(Error::setup("set no_new_privs"))?;
    } else {
        load_filter(plan)?;
    }
    credentials::assume(&plan.user, &plan.capabilities)?;
    if entered.is_err() {
        // A directory that root may not enter (on a network file system, say) the user may.
        enter(&plan.cwd)?;
    }
    if plan.no_new_privs {
        load_filter(plan)?;
    }
    Err(try_all(plan, &arguments, &environment))
}

/// Executes the first candidate that can be; the error is that of the most telling failure.
fn try_all(plan: &ProcessPlan, arguments: &StringVector, environment: &StringVector) -> Error {
    let mut telling = Errno::ENOENT;
    for candidate in &plan.candidates {
        let Err(errno) = execve(candidate, arguments, environment);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another directory may have one that can be executed (execvp(3)).
            Errno::EACCES => telling = errno,
            _ => {
                telling = errno;
                break;
            }
        }
    }
    Error::Exec { program: plan.program.clone(), errno: telling }
}

fn load_filter(plan: &ProcessPlan) -> Result<(), Error> {
    let Some(program) = &plan.seccomp else { return Ok(()) };
    berth_sys::seccomp::load_filter(program.instructions(), program.flags())
        .map_err(Error::setup("load the seccomp filter"))
}

/// Enters the working directory and proves that it is inside the root (CVE-2024-21626).
fn enter(path: &Path) -> Result<(), Error> {
    let failed = |errno: rustix::io::Errno| Error::Cwd {
        path: path.to_owned(),
        source: AnyErrno::from(errno).0,
    };
    let root = Root::own()?;
    let directory =
        root.open(path, OFlags::PATH | OFlags::DIRECTORY, Links::Inside).map_err(failed)?;
    fchdir(&directory).map_err(failed)?;
    // The kernel prefixes a path that does not lead to the root (getcwd(2)).
    let shown = getcwd(Vec::new()).map_err(failed)?;
    if shown.to_bytes().starts_with(b"/") { Ok(()) } else { Err(failed(rustix::io::Errno::XDEV)) }
}

/// Sets a limit. Where the host has left us no right to raise a hard limit, it stays.
fn set_limit(limit: &ResourceLimit) -> Result<(), Error> {
    let wanted = Rlimit { current: limit.soft, maximum: limit.hard };
    match setrlimit(limit.resource, wanted) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => {
            let hard = getrlimit(limit.resource).maximum;
            // `None` is no limit, so the smaller of two is not that of their options.
            let least = |one: Option<u64>, other: Option<u64>| match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (only, None) | (None, only) => only,
            };
            let clamped =
                Rlimit { current: least(limit.soft, hard), maximum: least(limit.hard, hard) };
            setrlimit(limit.resource, clamped).map_err(Error::setup("set a resource limit"))
        }
        Err(errno) => Err(Error::setup("set a resource limit")(errno)),
    }
}

/// `HOME=` and the user's home in the container's `/etc/passwd`, or `/`.
fn home(uid: u32) -> CString {
    let home = read_passwd().and_then(|passwd| home_of(&passwd, uid));
    let mut entry = b"HOME=".to_vec();
    entry.extend(home.unwrap_or_else(|| b"/".to_vec()));
    // A line of a file that has been split at line ends may still hold a NUL.
    CString::new(entry).unwrap_or_else(|_| c"HOME=/".to_owned())
}

/// The home of the first user with that id (passwd(5)).
fn home_of(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [_name, _password, id, _gid, _comment, home, ..] = fields.as_slice() else {
            return None;
        };
        let same = std::str::from_utf8(id).ok()?.parse::<u32>().ok()? == uid;
        (same && home.starts_with(b"/")).then(|| home.to_vec())
    })
}

/// The container's `/etc/passwd`, if it is a regular file of sane size.
fn read_passwd() -> Option<Vec<u8>> {
    use std::io::Read as _;
    const LIMIT: u64 = 1024 * 1024;
    // A FIFO must not block us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: OwnedFd =
        Root::own().ok()?.open(Path::new("/etc/passwd"), flags, Links::Inside).ok()?;
    let stat = fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_that_of_the_first_user_with_the_id() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbad\nx:y:1000x:1:c:/no:s\n\
            a:x:1000:1:c:/home/a:/bin/sh\nb:x:1000:1:c:/home/b:/bin/sh\nr:x:7:7:c:relative:s\n";
        assert_eq!(home_of(passwd, 0).as_deref(), Some(b"/root".as_slice()));
        assert_eq!(home_of(passwd, 1000).as_deref(), Some(b"/home/a".as_slice()));
        assert_eq!(home_of(passwd, 7), None);
        assert_eq!(home_of(passwd, 8), None);
    }
}
