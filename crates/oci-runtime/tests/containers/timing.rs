//! How long it takes, printed for people; nothing is asserted but that it works.

use std::time::{Duration, Instant};

use crate::fixture::{Fixture, PATIENCE, pipes, wait};

crate::tests![creating_and_starting_takes_this_long];

fn creating_and_starting_takes_this_long() {
    const ROUNDS: usize = 60;
    let fixture = Fixture::new(&["true"]);
    let mut rows: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let (stdio, out, err) = pipes();
        let began = Instant::now();
        let created = fixture.create(stdio).unwrap();
        let made = Instant::now();
        berth_oci_runtime::start(created.start, PATIENCE).unwrap();
        let executed = Instant::now();
        assert_eq!(wait(&created.pidfd), 0);
        let ended = Instant::now();
        drop((out, err));
        fixture.cgroup().remove().unwrap();
        for (row, span) in
            rows.iter_mut().zip([made - began, executed - made, executed - began, ended - executed])
        {
            row.push(span);
        }
    }
    for (name, mut row) in
        ["create", "start", "create + start", "true + exit"].into_iter().zip(rows)
    {
        row.sort();
        println!(
            "{name:>16}: least {:?} p10 {:?} median {:?} p90 {:?}",
            row[0],
            row[ROUNDS / 10],
            row[ROUNDS / 2],
            row[ROUNDS * 9 / 10]
        );
    }
    fixture.assert_undone();
}
