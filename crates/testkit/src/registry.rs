//! A real registry (Debian's `docker-registry`) on loopback.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::http;
use crate::image::{Blob, Image};
use crate::machine::Machine;
use crate::tls::Certificate;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: SocketAddr,
    storage: PathBuf,
}

impl Registry {
    /// Starts a registry inside `machine`, with its storage below `dir`.
    pub fn start(machine: &Machine, dir: &Path) -> Result<Self> {
        let storage = dir.join("registry");
        machine.run(move || Self::start_here(storage, Ipv4Addr::LOCALHOST.into(), None))
    }

    /// Starts a second registry with what the first one holds, under TLS.
    pub fn under_tls(
        &self,
        machine: &Machine,
        host: IpAddr,
        certificate: Certificate,
    ) -> Result<Self> {
        let storage = self.storage.clone();
        machine.run(move || Self::start_here(storage, host, Some(certificate)))
    }

    /// Starts a second registry with what the first one holds, at another of the
    /// machine's addresses.
    pub fn at(&self, machine: &Machine, host: IpAddr) -> Result<Self> {
        let storage = self.storage.clone();
        machine.run(move || Self::start_here(storage, host, None))
    }

    /// Starts a second registry with what this one holds, under the same name in another
    /// machine.
    pub fn within(&self, machine: &Machine) -> Result<Self> {
        let (storage, address) = (self.storage.clone(), self.address);
        machine.run(move || Self::serve(storage, address, None))
    }

    fn start_here(storage: PathBuf, host: IpAddr, tls: Option<Certificate>) -> Result<Self> {
        // The machine has no other users, so the port stays free until it is bound again.
        let address = TcpListener::bind((host, 0))
            .with_context(|| format!("find a port of {host}"))?
            .local_addr()?;
        Self::serve(storage, address, tls)
    }

    fn serve(storage: PathBuf, address: SocketAddr, tls: Option<Certificate>) -> Result<Self> {
        fs::create_dir_all(&storage)?;
        let config = storage.with_extension(format!("{}.yml", address.port()));
        fs::write(&config, configuration(address, &storage, tls.as_ref()))?;
        let log = fs::File::create(storage.with_extension(format!("{}.log", address.port())))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry (Debian package docker-registry)")?;
        let mut registry = Self { process, address, storage };
        registry.wait_until_ready()?;
        Ok(registry)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("docker-registry ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("docker-registry did not listen within {START_DEADLINE:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Where it listens, inside its namespace.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The directory that holds what was pushed, for tests that damage it.
    #[must_use]
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// `repository:tag` as a client in the same namespace names it.
    #[must_use]
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Pushes `image` under `repository:tag`, behind an index; returns its reference.
    pub fn push(
        &self,
        machine: &Machine,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> Result<String> {
        let (address, name, image) = (self.address, repository.to_owned(), image.clone());
        let tag_owned = tag.to_owned();
        machine.run(move || {
            for blob in &image.blobs {
                push_blob(address, &name, blob)?;
            }
            for (manifest, _) in &image.manifests {
                push_manifest(address, &name, &manifest.digest().to_string(), manifest)?;
            }
            push_manifest(address, &name, &tag_owned, &image.index)
        })?;
        Ok(self.reference(repository, tag))
    }

    /// Ends the registry; pulls then find nobody there.
    pub fn stop(&mut self) -> Result<()> {
        self.process.kill().context("kill docker-registry")?;
        self.process.wait().context("wait for docker-registry")?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Stopped already, or unkillable: nothing more to be done from here.
        self.stop().ok();
    }
}

fn configuration(address: SocketAddr, storage: &Path, tls: Option<&Certificate>) -> String {
    let tls = tls.map_or_else(String::new, |tls| {
        let (certificate, key) = (tls.certificate.display(), tls.key.display());
        format!("  tls:\n    certificate: {certificate}\n    key: {key}\n")
    });
    format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\nhttp:\n  addr: {address}\n  secret: tests\n{tls}",
        storage.display()
    )
}

fn push_blob(to: SocketAddr, name: &str, blob: &Blob) -> Result<()> {
    let begun = http::request(to, "POST", &format!("/v2/{name}/blobs/uploads/"), None)?;
    let location = begun.location.context("the registry named no upload location")?;
    let path = location.split_once("/v2/").map_or(location.as_str(), |(_, rest)| rest).to_owned();
    let joint = if path.contains('?') { '&' } else { '?' };
    let path = format!("/v2/{}{joint}digest={}", path.trim_start_matches("/v2/"), blob.digest());
    let content = Some(("application/octet-stream", blob.bytes.as_slice()));
    expect_created(&http::request(to, "PUT", &path, content)?, &path)
}

fn push_manifest(to: SocketAddr, name: &str, reference: &str, manifest: &Blob) -> Result<()> {
    let path = format!("/v2/{name}/manifests/{reference}");
    let content = Some((manifest.media_type, manifest.bytes.as_slice()));
    expect_created(&http::request(to, "PUT", &path, content)?, &path)
}

fn expect_created(response: &http::Response, path: &str) -> Result<()> {
    if response.status != 201 {
        bail!("the registry answered {} to PUT {path}", response.status);
    }
    Ok(())
}
