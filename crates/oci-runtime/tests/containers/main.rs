//! Real containers, as root, of a root file system that is one static busybox.
//!
//! The runtime forks, so its caller may have one thread: this binary is its own harness and
//! runs its tests one after the other on the main thread. Arguments that do not start with a
//! dash select tests by a part of their name. Each test ends by proving that nothing is left:
//! no child, descriptor, host mount or cgroup.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test harness of its own")]

mod environment;
mod fixture;
mod timing;

mod console;
mod failures;
mod files;
mod hooks;
mod identity;
mod mounts;
mod processes;
mod users;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test: its name is a sentence, its body panics when the sentence is not true.
type Test = (&'static str, fn());

/// Lists functions as tests under their own names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::Test] = &[$((stringify!($name), $name as fn())),*];
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return ExitCode::SUCCESS;
    }
    // Whatever a test mounts "on the host" is in a mount namespace of this binary alone.
    environment::leave_machine_mounts();
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let all = [
        processes::TESTS,
        identity::TESTS,
        files::TESTS,
        mounts::TESTS,
        console::TESTS,
        failures::TESTS,
        hooks::TESTS,
        users::TESTS,
        timing::TESTS,
    ];
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in all.into_iter().flatten() {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if catch_unwind(AssertUnwindSafe(test)).is_ok() {
            println!("test {name} ... ok");
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed.push(*name);
        }
    }
    println!("\ntest result: {passed} passed; {} failed {failed:?}\n", failed.len());
    fixture::remove_parent_cgroup();
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
