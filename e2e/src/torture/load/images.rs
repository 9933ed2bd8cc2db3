//! A client that pulls and removes images.

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::tar::Tar;
use berth_testkit::{Cri, Node, image};
use tokio::time::sleep;

use super::shared::{Shared, add};
use crate::random::Random;

/// Images of each client; every second one shares a layer with the one before.
const EACH: u64 = 3;

/// Pushes the images that `clients` pull.
pub(crate) fn push(node: &Node, clients: u64) -> Result<Vec<(String, String)>> {
    let mut pushed = Vec::new();
    for number in 0..clients * EACH {
        let shared = vec![u8::try_from(number / 2)?; 300_000];
        let own = format!("image {number}");
        let made = image::busybox_builder()?
            .layer(Tar::new().file("shared", 0o644, &shared))?
            .plain_layer(Tar::new().file("own", 0o644, own.as_bytes()))
            .build()?;
        pushed.push((node.push(&format!("own{number}"), "latest", &made)?, made.id.to_string()));
    }
    Ok(pushed)
}

/// Pulls and removes one image after the other until the end.
pub(crate) async fn lead(shared: &Shared, seed: u64, client: u64) -> Result<()> {
    let mut random = Random::new(seed, &format!("images {client}"));
    let (first, each) = (usize::try_from(client * EACH)?, usize::try_from(EACH)?);
    let own: Vec<_> = shared.images.iter().skip(first).take(each).cloned().collect();
    while !shared.ends() {
        let (reference, id) = random.pick(&own).context("no images")?.clone();
        pull(shared, &mut random, &reference, &id).await?;
        sleep(random.millis(100)).await;
        remove(shared, &mut random, &reference, &id).await?;
        sleep(random.millis(100)).await;
    }
    Ok(())
}

async fn pull(shared: &Shared, random: &mut Random, reference: &str, id: &str) -> Result<()> {
    let _under_way = shared.enter().await;
    let verb = async |mut cri: Cri| cri.pull(reference).await;
    shared.vanish(random, verb).await;
    let pulled = shared.verb("pull", verb).await?;
    ensure!(pulled == id, "{reference} is {id}, and was pulled as {pulled}");
    shared.ledger().images.insert(id.to_owned(), reference.to_owned());
    add(&shared.counts.pulls, 1);
    Ok(())
}

async fn remove(shared: &Shared, random: &mut Random, reference: &str, id: &str) -> Result<()> {
    let _under_way = shared.enter().await;
    let verb = async |mut cri: Cri| {
        let image = Some(v1::ImageSpec { image: reference.to_owned(), ..Default::default() });
        cri.image.remove_image(v1::RemoveImageRequest { image }).await.map(drop)
    };
    shared.vanish(random, verb).await;
    shared.verb("remove image", verb).await?;
    shared.ledger().images.remove(id);
    Ok(())
}
