//! The paths: each prepares what it works on, and returns what is counted.

use std::hint::black_box;

use anyhow::{Context as _, Result};
use berth_metadata::PodStore;
use berth_model::{ContainerId, Reference};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;

use crate::fixture::{self, Fixture};

/// What is counted; it can be done again and again.
pub(crate) type Path = Box<dyn FnMut() -> Result<()>>;

/// Prepares what a path works on.
pub(crate) type Prepare = fn() -> Result<Path>;

/// Each path by its name in the budgets.
pub(crate) const PATHS: &[(&str, Prepare)] = &[
    ("reference_parse", reference_parse),
    ("image_config_parse", image_config_parse),
    ("spec_build", spec_build),
    ("spec_write", spec_write),
    ("spec_read", spec_read),
    ("seccomp_compile", seccomp_compile),
    ("seccomp_known", seccomp_known),
    ("record_write", record_write),
    ("records_read", records_read),
];

/// The name of an image, as a request has it.
fn reference_parse() -> Result<Path> {
    let name = "registry.example:5000/team/project/web:1.2.3-alpine";
    Ok(Box::new(move || {
        black_box(black_box(name).parse::<Reference>()?);
        Ok(())
    }))
}

/// The configuration of an image with 12 layers: once in each start.
fn image_config_parse() -> Result<Path> {
    let text = fixture::image_config()?;
    Ok(Box::new(move || {
        black_box(serde_json::from_slice::<ImageConfiguration>(black_box(&text))?);
        Ok(())
    }))
}

/// Request and image to runtime specification, the default seccomp profile included.
fn spec_build() -> Result<Path> {
    let fixture = Fixture::new()?;
    Ok(Box::new(move || {
        black_box(berth_spec::build(black_box(&fixture.wanted()))?);
        Ok(())
    }))
}

/// `config.json`, as the daemon writes it.
fn spec_write() -> Result<Path> {
    let spec = berth_spec::build(&Fixture::new()?.wanted())?;
    Ok(Box::new(move || {
        black_box(serde_json::to_vec(black_box(&spec))?);
        Ok(())
    }))
}

/// `config.json`, as the shim reads it.
fn spec_read() -> Result<Path> {
    let text = serde_json::to_vec(&berth_spec::build(&Fixture::new()?.wanted())?)?;
    Ok(Box::new(move || {
        black_box(serde_json::from_slice::<Spec>(black_box(&text))?);
        Ok(())
    }))
}

/// A seccomp profile that was not seen before, to a BPF program: the default one, which
/// another error number makes another one each time.
fn seccomp_compile() -> Result<Path> {
    let spec = berth_spec::build(&Fixture::new()?.wanted())?;
    let linux = spec.linux().clone().context("the specification has no linux")?;
    let mut profile = linux.seccomp().clone().context("the specification has no profile")?;
    let mut number = 1;
    Ok(Box::new(move || {
        number += 1;
        profile.set_default_errno_ret(Some(number));
        black_box(berth_seccomp::compile(black_box(&profile))?);
        Ok(())
    }))
}

/// The same of a profile that was: every further container of a shim.
fn seccomp_known() -> Result<Path> {
    let spec = berth_spec::build(&Fixture::new()?.wanted())?;
    let linux = spec.linux().clone().context("the specification has no linux")?;
    let profile = linux.seccomp().clone().context("the specification has no profile")?;
    Ok(Box::new(move || {
        black_box(berth_seccomp::compile(black_box(&profile))?);
        Ok(())
    }))
}

/// A container's record to the store, SQLite included.
fn record_write() -> Result<Path> {
    let dir = tempfile::tempdir()?;
    let fixture = Fixture::new()?;
    let store = PodStore::open(&dir.path().join("pods.db"))?;
    store.put_sandbox(&fixture.sandbox_record())?;
    let record = fixture.container_record(None);
    Ok(Box::new(move || {
        // The directory lives as long as the store.
        black_box(&dir);
        Ok(store.put_container(black_box(&record))?)
    }))
}

/// 50 records from the store: what a daemon does with each when it starts.
fn records_read() -> Result<Path> {
    let dir = tempfile::tempdir()?;
    let fixture = Fixture::new()?;
    let store = PodStore::open(&dir.path().join("pods.db"))?;
    store.put_sandbox(&fixture.sandbox_record())?;
    for number in 0..50 {
        let id = ContainerId::new(format!("{number:064}")).context("a container id")?;
        store.put_container(&fixture.container_record(Some(id)))?;
    }
    Ok(Box::new(move || {
        black_box((&dir, store.containers()?));
        Ok(())
    }))
}
