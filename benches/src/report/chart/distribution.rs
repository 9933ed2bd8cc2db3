//! How latencies are spread: shares of samples, and ranges.

use super::scale::{Scale, number, tick, width};
use super::svg::{Anchor, COLOURS, MARGIN, Svg, WIDTH};
use super::{Targets, captioned, head, real, sentence};
use crate::report::{Bench, Metric, Series};
use crate::stats::{Summary, quantile};

/// Left of a panel, for the numbers of its vertical axis.
const LEFT: f64 = 62.0;
const RIGHT: f64 = WIDTH - MARGIN - 10.0;
const PANEL: f64 = 150.0;

/// One panel for each metric that matters most: the share of samples that took at most so
/// long. The steeper, the steadier; where a line lies further left, a runtime is faster.
pub(super) fn shares(bench: &Bench, targets: &Targets, metrics: &[&Metric]) -> Option<String> {
    let chosen = principal(metrics);
    let unit = &chosen.first()?.unit;
    let title = format!("{}: how latencies are spread", bench.name);
    let mut svg = Svg::new(&title, &about(bench, &chosen));
    let subtitle = format!(
        "Share of samples that took at most so long, {unit}, logarithmic; further left is better. {}",
        sentence(&bench.what)
    );
    let legend: Vec<_> = targets.0.iter().cloned().enumerate().collect();
    let mut y = head(&mut svg, &title, &subtitle, &legend);
    for metric in chosen {
        y = panel(&mut svg, targets, metric, y + 24.0);
    }
    Some(svg.finish(y + MARGIN))
}

/// The totals `up` and `down` where there are any, otherwise what is named first.
fn principal<'a>(metrics: &[&'a Metric]) -> Vec<&'a Metric> {
    let total = |metric: &&&Metric| {
        let first = metric.name.split([' ', ',', ':']).next().unwrap_or_default();
        ["up", "down"].contains(&first)
    };
    let totals: Vec<_> = metrics.iter().filter(total).copied().collect();
    if totals.is_empty() { metrics.iter().take(1).copied().collect() } else { totals }
}

fn panel(svg: &mut Svg, targets: &Targets, metric: &Metric, top: f64) -> f64 {
    let (upper, lower) = (top + 12.0, top + 12.0 + PANEL);
    let all: Vec<f64> =
        metric.series.iter().flat_map(|one| one.rounds.iter().flatten()).copied().collect();
    let x = Scale::logarithmic(all, LEFT, RIGHT);
    let y = Scale::linear([100.0], lower, upper);
    svg.text((MARGIN, top), Anchor::Start, "ink strong", &captioned(metric));
    for share in [0.0, 25.0, 50.0, 75.0, 100.0] {
        svg.line((LEFT, y.at(share)), (RIGHT, y.at(share)), "grid");
        let label = format!("{share} %");
        svg.text((LEFT - 8.0, y.at(share) + 4.0), Anchor::End, "quiet small", &label);
    }
    for value in &x.ticks {
        svg.line((x.at(*value), upper), (x.at(*value), lower), "grid");
        svg.text((x.at(*value), lower + 17.0), Anchor::Middle, "quiet small", &tick(*value));
    }
    // From right to left, beside the panel's name.
    let mut right = RIGHT;
    for series in metric.series.iter().rev() {
        let Some(summary) = series.summary() else { continue };
        let index = targets.index(&series.target);
        svg.polyline(&steps(series, &x, &y), &format!("line{}", index % COLOURS));
        let told = told(&series.target, &summary, &metric.unit);
        svg.marker((x.at(summary.p50), y.at(50.0)), index, &told);
        let numbers = format!("p50 {} · p99 {}", number(summary.p50), number(summary.p99));
        svg.text((right, top), Anchor::End, "ink small", &numbers);
        right -= width(&numbers) + 6.0;
        svg.marker((right, top - 4.0), index, &told);
        right -= 22.0;
    }
    lower + 24.0
}

/// The share of samples as a staircase.
fn steps(series: &Series, x: &Scale, y: &Scale) -> Vec<(f64, f64)> {
    let sorted = sorted(series);
    let mut points = Vec::with_capacity(sorted.len() * 2);
    for (index, value) in sorted.iter().enumerate() {
        let share = |count: usize| y.at(100.0 * real(count) / real(sorted.len()));
        points.push((x.at(*value), share(index)));
        points.push((x.at(*value), share(index + 1)));
    }
    points
}

fn sorted(series: &Series) -> Vec<f64> {
    let mut sorted: Vec<f64> = series.rounds.iter().flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Everything that was timed, a row for each target: a thin line from the least to the most,
/// a thick one from p10 to p90, the median as a marker and in numbers with p99.
pub(super) fn ranges(bench: &Bench, targets: &Targets, metrics: &[&Metric]) -> Option<String> {
    let unit = &metrics.first()?.unit;
    let same: Vec<_> = metrics.iter().filter(|metric| metric.unit == *unit).copied().collect();
    let title = format!("{}: every step", bench.name);
    let mut svg = Svg::new(&title, &about(bench, &same));
    let subtitle = format!(
        "{unit}, logarithmic; less is better. Marker: median; thick: p10 to p90; thin: least to most. Numbers: p50 / p99."
    );
    let legend: Vec<_> = targets.0.iter().cloned().enumerate().collect();
    let top = head(&mut svg, &title, &subtitle, &legend) + 16.0;
    let names = same.iter().map(|metric| width(&metric.name)).fold(0.0, f64::max);
    let left = MARGIN + names.min(250.0) + 16.0;
    let right = WIDTH - MARGIN - 100.0;
    let all = same.iter().flat_map(|metric| &metric.series);
    let all: Vec<f64> = all.flat_map(|one| one.rounds.iter().flatten()).copied().collect();
    let x = Scale::logarithmic(all, left, right);
    let rows = |metric: &Metric| metric.series.iter().filter(|one| one.summary().is_some()).count();
    let height: f64 = same.iter().map(|metric| 16.0 * real(rows(metric)) + 12.0).sum();
    for value in &x.ticks {
        svg.line((x.at(*value), top), (x.at(*value), top + height), "grid");
        svg.text((x.at(*value), top + height + 16.0), Anchor::Middle, "quiet small", &tick(*value));
    }
    let mut y = top + 14.0;
    for metric in same {
        svg.text((MARGIN, y + 4.0), Anchor::Start, "ink", &metric.name);
        for series in &metric.series {
            let Some(summary) = series.summary() else { continue };
            let p90 = quantile(&sorted(series), 90).unwrap_or(summary.p99);
            let index = targets.index(&series.target);
            let class = format!("line{} solid", index % COLOURS);
            let told = told(&series.target, &summary, &metric.unit);
            svg.line((x.at(summary.min), y), (x.at(summary.max), y), &format!("{class} thin"));
            let (from, to) = (x.at(summary.p10), x.at(p90));
            let size = ((to - from).max(2.0), 6.0);
            svg.rect((from, y - 3.0), size, &format!("fill{}", index % COLOURS), &told);
            svg.marker((x.at(summary.p50), y), index, &told);
            let numbers = format!("{} / {}", number(summary.p50), number(summary.p99));
            svg.text((WIDTH - MARGIN, y + 4.0), Anchor::End, "ink small", &numbers);
            y += 16.0;
        }
        y += 12.0;
    }
    Some(svg.finish(top + height + 16.0 + MARGIN))
}

fn told(target: &str, summary: &Summary, unit: &str) -> String {
    format!(
        "{target}: p50 {}, p99 {}, {} to {} {unit}, {} samples",
        number(summary.p50),
        number(summary.p99),
        number(summary.min),
        number(summary.max),
        summary.count
    )
}

/// The picture in words.
fn about(bench: &Bench, metrics: &[&Metric]) -> String {
    let mut words = vec![sentence(&bench.what)];
    for metric in metrics {
        for series in &metric.series {
            if let Some(summary) = series.summary() {
                words.push(format!(
                    "{}: {}.",
                    metric.name,
                    told(&series.target, &summary, &metric.unit)
                ));
            }
        }
    }
    words.join(" ")
}
