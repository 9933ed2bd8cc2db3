//! Many sandboxes: a hundred up and down, ten at a time.

use std::time::Instant;

use anyhow::Result;
use berth_testkit::{Cri, Node, container_config, sandbox_config};

const PODS: usize = 100;
const CLIENTS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_sandboxes_go_up_and_down_ten_at_a_time() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let started = Instant::now();
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (cri, image, logs) = (node.cri.clone(), image.clone(), node.dir().join("logs"));
        clients.push(tokio::spawn(async move {
            let mut up = Vec::new();
            for number in (client..PODS).step_by(CLIENTS) {
                let name = format!("pod-{number}");
                up.push(run(cri.clone(), &name, &image, &logs.join(&name)).await?);
            }
            anyhow::Ok((cri, up))
        }));
    }
    let mut pods = Vec::new();
    for client in clients {
        pods.push(client.await??);
    }
    assert_eq!(node.cri.sandboxes().await?.len(), PODS);
    let mut downs = Vec::new();
    for (mut cri, up) in pods {
        downs.push(tokio::spawn(async move {
            for sandbox in up {
                cri.remove_sandbox(&sandbox).await?;
            }
            anyhow::Ok(())
        }));
    }
    for down in downs {
        down.await??;
    }
    println!("{PODS} pods up and down in {:.1} s", started.elapsed().as_secs_f64());
    node.assert_clean().await
}

async fn run(mut cri: Cri, name: &str, image: &str, logs: &std::path::Path) -> Result<String> {
    let pod = sandbox_config(name, logs);
    let sandbox = cri.run_sandbox(&pod).await?;
    let config = container_config("main", image, &["sleep", "1000"]);
    let container = cri.create_container(&sandbox, &pod, &config).await?;
    cri.start_container(&container).await?;
    Ok(sandbox)
}
