//! What attaching costs. Run it alone, in a release build, for numbers to quote:
//! `cargo test --release -p berth-network attaching_is_cheap -- --nocapture`.

use super::*;

const ROUNDS: usize = 100;

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    eprintln!("{what}: p10 {:?}, median {:?}, p99 {:?}", at(10), at(50), at(99));
    at(50)
}

#[test]
fn attaching_is_cheap() {
    on_default_node(|node| {
        let mut pods = Vec::with_capacity(ROUNDS);
        let mut attach = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            let (id, netns) = (id(&format!("pod{round}")), Netns::new());
            let ports = [tcp(u16::try_from(round).unwrap() + 2000, 80)];
            let ports = if round % 2 == 0 { &[][..] } else { &ports };
            let begun = Instant::now();
            let attachment = node.network.attach(&id, netns.fd(), ports).unwrap();
            attach.push((ports.len(), begun.elapsed()));
            pods.push(Pod { id, netns, attachment });
        }
        let of = |count| attach.iter().filter(move |of| of.0 == count).map(|of| of.1).collect();
        let median = report("attach", of(0));
        report("attach with a port", of(1));
        assert!(median < Duration::from_millis(50), "{median:?}");
        let mut detach = Vec::with_capacity(ROUNDS);
        for pod in pods {
            let begun = Instant::now();
            node.remove(pod);
            detach.push(begun.elapsed());
        }
        report("detach and drop of the namespace", detach);
        let begun = Instant::now();
        assert!(node.network.wait_drained(LIMIT));
        eprintln!("all links gone and leases released after {:?}", begun.elapsed());
    });
}

#[test]
fn attaching_prepared_is_cheap() {
    on_default_node(|node| {
        let mut pods = Vec::with_capacity(ROUNDS);
        let (mut prepare, mut attach) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (netns, inside, took) = std::thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let begun = Instant::now();
                let inside = Inside::here().unwrap();
                (Netns::own(), inside, begun.elapsed())
            })
            .join()
            .unwrap();
            prepare.push(took);
            let begun = Instant::now();
            let id = id(&format!("pod{round}"));
            node.network.attach_prepared(&id, netns.fd(), inside, &[]).unwrap();
            attach.push(begun.elapsed());
            pods.push(netns);
        }
        report("prepare inside", prepare);
        let median = report("attach prepared", attach);
        assert!(median < Duration::from_millis(50), "{median:?}");
    });
}
