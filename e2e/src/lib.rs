//! End-to-end tests: the real daemon, shim and registry, driven by socket only.
//!
//! One file in `tests/` for each feature; each test starts a node of its own and ends by
//! proving that nothing of it is left. The program `berth-torture` beside this library kills
//! the daemon for as long as one likes. This library is empty on purpose.
