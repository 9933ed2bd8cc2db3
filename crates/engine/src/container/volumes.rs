//! Images that a container has as volumes (KEP-4639).
//!
//! Their layers are held while the container is made, and named by its record from then
//! on: like those of its root they stay until the container is removed, whatever becomes
//! of the image. They are mounted by the runtime, in the container's own mount namespace,
//! so there is nothing on the node to be undone or swept.

use std::collections::BTreeMap;
use std::path::Path;

use berth_image::Hold;
use berth_model::Digest;
use berth_model::mount::{BindMount, ImageMount, ImageVolume, Mount};
use berth_snapshot::Snapshots;

use crate::Error;
use crate::core::Core;
use crate::sandbox::Sandbox;

/// The protocol of the shim that brought them (`proto/berth/shim/v1/shim.proto`).
const PROTOCOL: u32 = 3;

/// Finds the image of each mount that names one, and keeps it whole.
pub(super) async fn hold(
    core: &Core,
    mounts: &[BindMount],
) -> Result<BTreeMap<String, Hold>, Error> {
    let mut held = BTreeMap::new();
    for image in mounts.iter().filter_map(|mount| mount.image.as_ref()) {
        if !held.contains_key(&image.name) {
            let hold = core.images.hold(&image.name).await;
            let hold = hold.map_err(Error::image("find image", &image.name));
            held.insert(image.name.clone(), hold.map_err(failed(image))?);
        }
    }
    Ok(held)
}

/// Refuses a shim of an earlier release, which would take an image for a file system.
pub(super) async fn check_shim(sandbox: &Sandbox, mounts: &[BindMount]) -> Result<(), Error> {
    let Some(image) = mounts.iter().find_map(|mount| mount.image.as_ref()) else { return Ok(()) };
    let Some(shim) = sandbox.shim.get() else { return Ok(()) };
    let able = shim.needs(PROTOCOL, "mount an image as a volume").await;
    let id = sandbox.id.to_string();
    let refused = |source| Error::Shim { action: "make container in sandbox", id, source };
    able.map_err(refused).map_err(failed(image))
}

/// What a record says of images that are held.
pub(super) fn found(held: &BTreeMap<String, Hold>) -> BTreeMap<String, ImageVolume> {
    let volume = |(name, hold): (&String, &Hold)| {
        let volume = ImageVolume { image: hold.image.id, chain: hold.image.chain.clone() };
        (name.clone(), volume)
    };
    held.iter().map(volume).collect()
}

/// What a status says of them.
pub(super) fn ids(volumes: &BTreeMap<String, ImageVolume>) -> BTreeMap<String, Digest> {
    volumes.iter().map(|(name, volume)| (name.clone(), volume.image)).collect()
}

/// How each is mounted. A directory that the image does not have is refused here, while
/// somebody waits who can be told.
pub(super) fn mounts(
    snapshots: &Snapshots,
    mounts: &[BindMount],
    volumes: &BTreeMap<String, ImageVolume>,
) -> Result<BTreeMap<String, Mount>, Error> {
    let mut all = BTreeMap::new();
    for mount in mounts {
        if let Some(image) = &mount.image
            && let Some(volume) = volumes.get(&image.name)
        {
            check(mount, image).map_err(failed(image))?;
            check_directory(snapshots, image, volume).map_err(failed(image))?;
            let layers = snapshots.mount_readonly(&volume.chain);
            let layers = layers.map_err(snapshot_error("mount layers of image", volume));
            all.insert(image.name.clone(), layers.map_err(failed(image))?);
        }
    }
    Ok(all)
}

fn check(mount: &BindMount, image: &ImageMount) -> Result<(), Error> {
    if !mount.readonly || !mount.host_path.as_os_str().is_empty() || image.name.is_empty() {
        let problem = "must name an image and no host path, and be read-only";
        return Err(Error::invalid("mount of an image", problem));
    }
    Ok(())
}

fn check_directory(
    snapshots: &Snapshots,
    image: &ImageMount,
    volume: &ImageVolume,
) -> Result<(), Error> {
    if image.sub_path.is_empty() {
        return Ok(());
    }
    let view = snapshots.view(&volume.chain).map_err(snapshot_error("look into image", volume))?;
    let found = view.resolve(Path::new(&image.sub_path));
    let found = found.map_err(snapshot_error("look into image", volume))?;
    if found.is_some_and(|found| found.is_directory()) {
        return Ok(());
    }
    let problem = format!("{:?} is not a directory of the image", image.sub_path);
    Err(Error::invalid("image_sub_path", problem))
}

fn snapshot_error(
    action: &'static str,
    volume: &ImageVolume,
) -> impl FnOnce(berth_snapshot::Error) -> Error + use<> {
    let key = volume.image.to_string();
    move |source| Error::Snapshot { action, key, source }
}

fn failed(image: &ImageMount) -> impl FnOnce(Error) -> Error {
    let image = image.name.clone();
    move |source| Error::ImageVolume { image, source: Box::new(source) }
}
