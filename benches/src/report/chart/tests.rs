use super::*;
use crate::report::{Curve, Points, Series};

const TARGETS: [&str; 3] = ["berth", "containerd + runc", "containerd + crun"];

fn bench(name: &str) -> Bench {
    Bench::new(name, "One pod with one container at a time")
}

/// A quantity of which target 1 has `middles[0]` or thereabouts, and so on.
fn metric(name: &str, unit: &str, middles: &[f64], samples: usize) -> Metric {
    let series = |(target, middle): (&&str, &f64)| Series {
        target: (*target).to_owned(),
        rounds: (0..3)
            .map(|round| {
                let spread = |sample: usize| {
                    // Skewed to the right, as latencies are.
                    let part = real((sample * 37 + round * 11) % 100) / 100.0;
                    middle * (0.85 + 0.3 * part + 1.2 * part.powi(12))
                };
                (0..samples).map(spread).collect()
            })
            .collect(),
    };
    Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        better: Better::Lower,
        series: TARGETS.iter().zip(middles).map(series).collect(),
    }
}

fn start() -> Bench {
    let mut bench = bench("start");
    for (name, middles) in [
        ("up", [7.4, 165.2, 105.0]),
        ("RunPodSandbox", [4.1, 102.5, 75.8]),
        ("CreateContainer", [1.0, 6.9, 6.6]),
        ("StartContainer", [2.0, 54.6, 18.7]),
        ("first byte", [0.3, 0.9, 1.1]),
        ("down", [3.1, 149.2, 136.5]),
    ] {
        bench.metrics.push(metric(name, "ms", &middles, 25));
    }
    bench.metrics.push(metric("settled", "ms of CPU", &[15.0, 210.0, 130.0], 3));
    bench
}

fn density() -> Bench {
    let mut bench = bench("density");
    for (name, middles) in [
        ("PSS of monitors, per pod", [160.0, 4700.0, 4600.0]),
        ("PSS of pause, per pod", [0.0, 49.0, 49.0]),
        ("growth of the daemon's PSS, per pod", [30.0, 579.0, 492.0]),
        ("SUnreclaim, per pod", [520.0, 1022.0, 1022.0]),
        ("KernelStack, per pod", [31.0, 215.0, 215.0]),
        ("PageTables, per pod", [40.0, 219.0, 215.0]),
        ("Percpu, per pod", [-20.0, 9.0, 9.0]),
        ("PSS of the workload, per pod", [75.0, 77.0, 73.0]),
    ] {
        bench.metrics.push(metric(name, "KiB", &middles, 1));
    }
    let points = |factor: f64| (1..=10).map(|n| (real(n * 100), real(n * 100) * factor)).collect();
    bench.curves.push(Curve {
        name: "memory that pods take".to_owned(),
        x: "pods".to_owned(),
        y: "drop of MemAvailable, MiB".to_owned(),
        series: TARGETS
            .iter()
            .zip([0.8, 6.3, 6.25])
            .map(|(target, factor)| Points { target: (*target).to_owned(), points: points(factor) })
            .collect(),
    });
    bench
}

fn boundless() -> Bench {
    let mut bench = bench("boundless");
    bench.metrics.push(metric("up", "ms", &[f64::INFINITY, f64::NAN, 1.0], 20));
    bench.metrics.push(metric("rate", "1/s", &[f64::INFINITY, f64::NAN, 1.0], 1));
    let points = |last: f64| vec![(0.0, 1.0), (1.0, last)];
    let series = |(target, last): (&&str, f64)| Points {
        target: (*target).to_owned(),
        points: points(last),
    };
    let ends = [f64::INFINITY, f64::NAN, 1.0];
    bench.curves.push(Curve {
        name: "curve".to_owned(),
        x: "pods".to_owned(),
        y: "ms".to_owned(),
        series: TARGETS.iter().zip(ends).map(series).collect(),
    });
    bench
}

fn churn() -> Bench {
    let mut bench = bench("churn");
    let mut up = metric("up", "pods/s", &[118.0, 10.3, 16.5], 1);
    up.better = Better::Higher;
    bench.metrics.extend([up, metric("failed verbs", "verbs", &[0.0, 0.0, 0.0], 1)]);
    bench
}

fn names(bench: &Bench) -> Vec<String> {
    pictures(bench).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn each_benchmark_gets_the_pictures_that_suit_it() {
    assert_eq!(names(&start()), ["distribution", "latency", "bars"]);
    assert_eq!(names(&density()), ["memory", "curve-1"]);
    assert_eq!(names(&churn()), ["bars"]);
    let mut nothing_failed = churn();
    nothing_failed.metrics.remove(0);
    assert_eq!(names(&nothing_failed), [""; 0]);
    assert_eq!(names(&bench("empty")), [""; 0]);
}

#[test]
fn one_target_alone_and_rounds_without_samples_are_drawn() {
    let mut alone = start();
    for metric in &mut alone.metrics {
        metric.series.truncate(1);
        metric.series[0].rounds.push(Vec::new());
    }
    assert_eq!(names(&alone), ["distribution", "latency", "bars"]);
    let mut nothing = start();
    for metric in &mut nothing.metrics {
        metric.series.iter_mut().for_each(|series| series.rounds.clear());
    }
    assert_eq!(names(&nothing), [""; 0]);
}

#[test]
fn a_picture_says_in_words_what_it_shows_and_is_whole() {
    for bench in [start(), density(), churn(), boundless()] {
        for (name, picture) in pictures(&bench) {
            let about = picture.split_once("<desc").unwrap().1.split_once("</desc>").unwrap().0;
            for target in TARGETS {
                assert!(about.contains(target), "{name}: {about}");
            }
            for nowhere in ["NaN", "\"inf", ",inf", " inf"] {
                assert!(!picture.contains(nowhere), "{name}: {picture}");
            }
            for element in ["text", "rect", "title", "style"] {
                let opened = picture.matches(&format!("<{element} ")).count()
                    + picture.matches(&format!("<{element}>")).count();
                // Only the surface is closed at once.
                let at_once = usize::from(element == "rect");
                let closed = picture.matches(&format!("</{element}>")).count() + at_once;
                assert_eq!(opened, closed, "{element} of {name}");
            }
        }
    }
}

#[test]
fn files_are_named_after_the_benchmark() {
    let dir = tempfile::tempdir().unwrap();
    let files = draw(&density(), &dir.path().join("charts")).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap()).collect();
    assert_eq!(names, ["density-memory.svg", "density-curve-1.svg"]);
    assert!(files.iter().all(|file| fs::read_to_string(file).unwrap().ends_with("</svg>\n")));
}

#[test]
fn a_long_subtitle_is_wrapped_and_loses_no_word() {
    let text = "word ".repeat(60);
    let lines = wrapped(&text, 200.0);
    assert!(lines.len() > 5 && lines.iter().all(|line| scale::width(line) <= 200.0), "{lines:?}");
    assert_eq!(lines.join(" "), text.trim_end());
    assert_eq!(wrapped("a b\u{a0}c", 30.0), ["a", "b\u{a0}c"]);
}
