//! The table for people.

use std::fmt::Write as _;

use super::{Bench, Metric, Series};
use crate::quiet::Noise;
use crate::stats::Summary;

/// What a cell says where nothing was measured.
const NOTHING: &str = "–";

/// One benchmark as text: a row for each quantity, for each target its median, its p99 and
/// the range of the medians of its rounds, then the ratios of the first target to others.
pub(crate) fn table(bench: &Bench) -> String {
    let mut text = format!("{}: {}\n", bench.name, bench.what);
    let settings: Vec<_> =
        bench.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
    if !settings.is_empty() {
        text += &format!("({})\n", settings.join(", "));
    }
    text += &lay_out(&rows(&bench.metrics));
    for note in &bench.notes {
        text += &format!("note: {note}\n");
    }
    if let Some(noise) = &bench.noise {
        text += &format!("noise: {}\n", said(noise));
    }
    text
}

fn rows(metrics: &[Metric]) -> Vec<Vec<String>> {
    let Some(first) = metrics.first() else { return Vec::new() };
    let mut head = vec![String::new(), String::new()];
    for series in &first.series {
        head.extend([format!("{} p50", series.target), "p99".into(), "rounds".into()]);
    }
    let others = first.series.iter().skip(1);
    head.extend(others.map(|other| format!("of {} (range)", other.target)));
    std::iter::once(head).chain(metrics.iter().map(row)).collect()
}

fn row(metric: &Metric) -> Vec<String> {
    let mut cells = vec![metric.name.clone(), metric.unit.clone()];
    cells.extend(metric.series.iter().flat_map(of_target));
    let ratio =
        |other| metric.ratio(other).map_or(NOTHING.to_owned(), |ratio| format!("× {ratio}"));
    cells.extend(metric.series.iter().skip(1).map(ratio));
    cells
}

/// Median, p99, and the range of the medians of the rounds.
fn of_target(series: &Series) -> [String; 3] {
    let Some(all) = series.summary() else { return [NOTHING; 3].map(str::to_owned) };
    let middles = series.rounds.iter().filter_map(|round| Summary::of(round.iter().copied()));
    let middles = Summary::of(middles.map(|round| round.p50));
    let range = middles.map_or(NOTHING.to_owned(), |middles| {
        format!("{}–{}", number(middles.min), number(middles.max))
    });
    let each_round_has_one = series.rounds.iter().all(|round| round.len() <= 1);
    let p99 = if each_round_has_one { NOTHING.to_owned() } else { number(all.p99) };
    [number(all.p50), p99, range]
}

/// Three digits that mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// How noisy the machine was, in words.
pub(crate) fn said(noise: &Noise) -> String {
    let mut text = format!("{} turns", noise.turns);
    let mut say = |name: &str, unit: &str, of: Option<Summary>| {
        if let Some(of) = of {
            let (middle, max) = (number(of.p50), number(of.max));
            write!(text, ", {name} {middle} {unit} (at most {max})").ok();
        }
    };
    say("before them others used", "% of a processor", noise.busy_before);
    say("during them the host took", "% of all", noise.stolen);
    say("something waited for a processor in", "% of the time", noise.pressure);
    if noise.noisy > 0 {
        write!(text, "; {} OF THEM BEGAN ON A MACHINE THAT WAS NOT QUIET", noise.noisy).ok();
    }
    write!(text, "; waited {} s for quiet", number(noise.waited)).ok();
    if let (Some(before), Some(after)) = noise.load {
        write!(text, "; load {before} before, {after} after").ok();
    }
    text
}

/// Pads columns: the first two to the left, numbers to the right.
fn lay_out(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Better;

    fn series(target: &str, rounds: &[&[f64]]) -> Series {
        let rounds = rounds.iter().map(|round| round.to_vec()).collect();
        Series { target: target.to_owned(), rounds }
    }

    #[test]
    fn a_row_says_medians_their_range_and_the_ratio() {
        let metric = Metric {
            name: "up".to_owned(),
            unit: "ms".to_owned(),
            better: Better::Lower,
            series: vec![
                series("ours", &[&[1.0, 2.0, 3.0], &[3.0, 4.0, 5.0]]),
                series("theirs", &[&[4.0], &[8.0]]),
                series("absent", &[]),
            ],
        };
        assert_eq!(
            row(&metric),
            [
                "up",
                "ms",
                "3.00",
                "5.00",
                "2.00–4.00",
                "6.00",
                "–",
                "4.00–8.00",
                "–",
                "–",
                "–",
                "× 0.500 (0.500–0.500)",
                "–",
            ]
        );
    }

    #[test]
    fn numbers_have_three_digits_that_mean_something() {
        let said = [0.0, 0.01234, 1.234, 12.34, 1234.4].map(number);
        assert_eq!(said, ["0", "0.012", "1.23", "12.3", "1234"]);
    }

    #[test]
    fn a_machine_that_was_not_quiet_is_told_loudly() {
        let noise = |noisy| Noise { turns: 4, noisy, ..Noise::default() };
        let mut bench = Bench::new("start", "one pod");
        bench.noise = Some(noise(0));
        assert!(!table(&bench).contains("NOT QUIET"));
        bench.noise = Some(noise(3));
        assert!(table(&bench).contains("4 turns; 3 OF THEM"), "{}", table(&bench));
    }

    #[test]
    fn columns_stand_under_each_other() {
        let rows = [
            vec!["a".into(), "ms".into(), "1".into()],
            vec!["bcd".into(), "s".into(), "–20".into()],
        ];
        assert_eq!(lay_out(&rows), "a    ms    1\nbcd  s   –20\n");
    }
}
