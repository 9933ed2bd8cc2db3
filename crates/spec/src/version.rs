//! Which version of the runtime specification a configuration needs.

use oci_spec::runtime::Spec;

/// Understood by every runtime in use.
const OLDEST: &str = "1.0.2";
/// Has recursive mount attributes, `unified`, and errno values in seccomp rules.
const SECOND: &str = "1.1.0";

/// The lowest version that knows every field in use, so that older shims take it.
pub(crate) fn lowest(spec: &Spec) -> &'static str {
    let recursive =
        spec.mounts().iter().flatten().flat_map(|mount| mount.options().iter().flatten());
    let linux = spec.linux().as_ref();
    let unified = linux
        .and_then(|linux| linux.resources().as_ref())
        .is_some_and(|all| all.unified().is_some());
    let seccomp = linux.and_then(|linux| linux.seccomp().as_ref()).is_some_and(|profile| {
        profile.default_errno_ret().is_some()
            || profile.flags().is_some()
            || profile.listener_path().is_some()
            || profile.syscalls().iter().flatten().any(|rule| rule.errno_ret().is_some())
    });
    let mapped = spec.mounts().iter().flatten().any(|mount| mount.uid_mappings().is_some());
    if unified || mapped || seccomp || recursive.into_iter().any(|option| option == "rro") {
        return SECOND;
    }
    OLDEST
}
