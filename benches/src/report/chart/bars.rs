//! One quantity, a bar for each target.

use super::scale::{Scale, number, width};
use super::svg::{Anchor, COLOURS, MARGIN, Svg, WIDTH};
use super::{Targets, better, captioned, head, real, sentence};
use crate::report::{Bench, Metric, Series};
use crate::stats::Summary;

/// Height of a bar with the space below it.
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;

/// More panels than that nobody reads; the table has everything.
const PANELS: usize = 10;

/// A small chart for each of `metrics`, each with a scale of its own. What is zero everywhere
/// has none, nor what says only what was taken off another quantity.
pub(super) fn draw(bench: &Bench, targets: &Targets, metrics: &[&Metric]) -> Option<String> {
    let some = |metric: &&&Metric| {
        let middles = metric.series.iter().filter_map(middles);
        let zero = middles.into_iter().all(|rounds| rounds.min == 0.0 && rounds.max == 0.0);
        !zero && !metric.name.ends_with("taken off")
    };
    let all: Vec<&Metric> = metrics.iter().filter(some).copied().collect();
    let metrics = &all[..all.len().min(PANELS)];
    if metrics.is_empty() {
        return None;
    }
    let title = format!("{}: side by side", bench.name);
    let mut svg = Svg::new(&title, &about(bench, metrics));
    let mut subtitle =
        format!("{} Bars: medians; lines: least to most of the rounds.", sentence(&bench.what));
    if all.len() > metrics.len() {
        subtitle += &format!(" The first {PANELS} of {} quantities.", all.len());
    }
    let mut y = head(&mut svg, &title, &subtitle, &[]);
    let names = targets.0.iter().map(|name| width(name)).fold(0.0, f64::max);
    let left = MARGIN + names.min(220.0) + 14.0;
    for metric in metrics {
        y = panel(&mut svg, targets, metric, (left, y + 26.0));
    }
    Some(svg.finish(y + MARGIN))
}

fn panel(svg: &mut Svg, targets: &Targets, metric: &Metric, (left, top): (f64, f64)) -> f64 {
    let right = WIDTH - MARGIN - 80.0;
    let caption = format!("{} ({})", captioned(metric), better(metric));
    svg.text((MARGIN, top), Anchor::Start, "ink strong", &caption);
    let rows: Vec<(&Series, Summary)> =
        metric.series.iter().filter_map(|series| Some((series, middles(series)?))).collect();
    let x =
        Scale::linear(rows.iter().flat_map(|(_, rounds)| [rounds.max, rounds.min]), left, right);
    let height = ROW * real(rows.len());
    svg.line((x.at(0.0), top + 8.0), (x.at(0.0), top + 8.0 + height), "axis");
    let mut y = top + 12.0;
    for (series, rounds) in rows {
        let index = targets.index(&series.target);
        let value = rounds.p50;
        let (from, to) = (x.at(value.min(0.0)), x.at(value.max(0.0)));
        let told = format!("{}: {} {}", series.target, number(value), metric.unit);
        svg.text((left - 8.0, y + BAR - 3.0), Anchor::End, "ink", &series.target);
        let size = ((to - from).max(1.0), BAR);
        if value != 0.0 {
            svg.rect((from, y), size, &format!("fill{}", index % COLOURS), &told);
        }
        let mut end = to;
        if rounds.min < rounds.max {
            let middle = y + BAR / 2.0;
            svg.line((x.at(rounds.min), middle), (x.at(rounds.max), middle), "axis");
            for value in [rounds.min, rounds.max] {
                svg.line((x.at(value), middle - 3.0), (x.at(value), middle + 3.0), "axis");
            }
            end = end.max(x.at(rounds.max));
        }
        svg.text((end + 8.0, y + BAR - 3.0), Anchor::Start, "ink", &number(value));
        y += ROW;
    }
    y
}

/// The medians of the rounds.
fn middles(series: &Series) -> Option<Summary> {
    let rounds = series.rounds.iter().filter_map(|round| Summary::of(round.iter().copied()));
    Summary::of(rounds.map(|round| round.p50))
}

/// The picture in words.
fn about(bench: &Bench, metrics: &[&Metric]) -> String {
    let mut words = vec![sentence(&bench.what)];
    for metric in metrics {
        for series in &metric.series {
            if let Some(rounds) = middles(series) {
                let (name, unit) = (&metric.name, &metric.unit);
                words.push(format!("{name}, {}: {} {unit}.", series.target, number(rounds.p50)));
            }
        }
    }
    words.join(" ")
}
