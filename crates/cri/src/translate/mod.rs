//! Between the CRI's messages and our own types, both ways. Pure functions.

mod answer;
mod container;
mod fields;
mod labels;
mod mounts;
mod resources;
mod sandbox;
mod security;
mod signal;

#[cfg(test)]
pub(crate) use answer::tests as samples;
pub(crate) use answer::{
    container_item, container_state, container_status, encoded_container, encoded_sandbox, image,
    sandbox_item, sandbox_state, sandbox_status,
};
pub(crate) use container::container_spec;
pub(crate) use fields::refuse_windows;
pub(crate) use resources::{noted, wanted};
pub(crate) use sandbox::sandbox_spec;
