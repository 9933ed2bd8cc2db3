//! Parts that add up to a whole, stacked: memory per pod by kind.

use super::scale::{Scale, number, tick, width};
use super::svg::{Anchor, COLOURS, MARGIN, Svg, WIDTH};
use super::{Targets, head, sentence, wrapped};
use crate::report::{Bench, Metric};

const BAR: f64 = 18.0;

/// What adds up: the whole, and for each part the metric and what it is called there. No byte
/// is in two parts, so their sum is what `density` can account for; `AnonPages`, which are
/// mostly those of processes, are in none.
const WHOLES: [(&str, &[(&str, &str)]); 1] = [(
    "memory per pod that is accounted for",
    &[
        ("PSS of monitors, per pod", "monitors"),
        ("PSS of pause, per pod", "pause"),
        ("growth of the daemon's PSS, per pod", "daemon's growth"),
        ("PSS of the workload, per pod", "workload"),
        ("SUnreclaim, per pod", "kernel objects"),
        ("SReclaimable, per pod", "kernel caches"),
        ("KernelStack, per pod", "kernel stacks"),
        ("PageTables, per pod", "page tables"),
        ("Percpu, per pod", "counters per CPU"),
    ],
)];

/// Whether it is part of a whole.
pub(super) fn is_part(metric: &Metric) -> bool {
    WHOLES.iter().any(|(_, parts)| parts.iter().any(|(name, _)| *name == metric.name))
}

/// A whole and its parts.
struct Whole<'a> {
    name: &'a str,
    unit: &'a str,
    parts: Vec<(&'a str, &'a Metric)>,
}

impl Whole<'_> {
    /// Medians of a target's parts; a part that was not measured counts for nothing.
    fn of(&self, target: &str) -> Vec<f64> {
        let median = |metric: &Metric| {
            let series = metric.series.iter().find(|series| series.target == target)?;
            Some(series.summary()?.p50)
        };
        self.parts.iter().map(|(_, metric)| median(metric).unwrap_or_default()).collect()
    }
}

/// A panel for each whole, in it a bar for each target. Each part is told in numbers below its
/// bar: a thin one could not be read otherwise.
pub(super) fn draw(bench: &Bench, targets: &Targets, parts: &[&Metric]) -> Option<String> {
    let wholes = wholes(parts);
    if wholes.is_empty() {
        return None;
    }
    let title = format!("{}: memory by kind", bench.name);
    let mut svg = Svg::new(&title, &about(bench, targets, &wholes));
    let subtitle = format!("{} Medians; less is better.", sentence(&bench.what));
    let mut y = head(&mut svg, &title, &subtitle, &[]);
    let names = targets.0.iter().map(|name| width(name)).fold(0.0, f64::max);
    let left = MARGIN + names.min(220.0) + 14.0;
    for whole in &wholes {
        y = panel(&mut svg, targets, whole, (left, y + 28.0));
    }
    Some(svg.finish(y + MARGIN))
}

fn wholes<'a>(metrics: &[&'a Metric]) -> Vec<Whole<'a>> {
    let whole = |(name, parts): &(&'static str, &'static [(&'static str, &'static str)])| {
        let metric = |part: &(&str, &'static str)| {
            let found = metrics.iter().find(|metric| metric.name == part.0)?;
            Some((part.1, *found))
        };
        let parts: Vec<_> = parts.iter().filter_map(metric).collect();
        let unit = &parts.first()?.1.unit;
        Some(Whole { name, unit, parts })
    };
    WHOLES.iter().filter_map(whole).collect()
}

fn panel(svg: &mut Svg, targets: &Targets, whole: &Whole<'_>, (left, top): (f64, f64)) -> f64 {
    let right = WIDTH - MARGIN - 80.0;
    let caption = format!("{}, {}", whole.name, whole.unit);
    svg.text((MARGIN, top), Anchor::Start, "ink strong", &caption);
    let (mut x, mut y) = (MARGIN, top + 20.0);
    for (index, (part, _)) in whole.parts.iter().enumerate() {
        let wide = 30.0 + width(part);
        if x + wide > WIDTH - MARGIN && x > MARGIN {
            (x, y) = (MARGIN, y + 18.0);
        }
        svg.rect((x, y - 9.0), (10.0, 10.0), &format!("fill{}", index % COLOURS), part);
        svg.text((x + 15.0, y), Anchor::Start, "ink", part);
        x += wide;
    }
    y += 14.0;
    // What a measurement puts below zero is drawn to the left of it, and added as it is.
    let sums = targets.0.iter().flat_map(|target| {
        let parts = whole.of(target);
        let side = |keep: fn(&f64) -> bool| parts.iter().copied().filter(keep).sum::<f64>();
        [side(|part| *part > 0.0), side(|part| *part < 0.0)]
    });
    let scale = Scale::linear(sums.collect::<Vec<_>>(), left, right);
    for target in &targets.0 {
        y = bar(svg, whole, target, &scale, (left, y + 4.0));
    }
    for value in &scale.ticks {
        svg.line((scale.at(*value), y), (scale.at(*value), y + 4.0), "axis");
        svg.text((scale.at(*value), y + 16.0), Anchor::Middle, "quiet small", &tick(*value));
    }
    y + 18.0
}

fn bar(
    svg: &mut Svg,
    whole: &Whole<'_>,
    target: &str,
    scale: &Scale,
    (left, top): (f64, f64),
) -> f64 {
    let parts = whole.of(target);
    svg.text((left - 8.0, top + BAR - 5.0), Anchor::End, "ink", target);
    let (mut above, mut below) = (0.0, 0.0);
    let mut told = Vec::new();
    for (index, ((name, _), value)) in whole.parts.iter().zip(&parts).enumerate() {
        let base = if *value < 0.0 { &mut below } else { &mut above };
        let (from, to) = (scale.at(*base), scale.at(*base + value));
        *base += value;
        let words = format!("{name} {}", number(*value));
        let class = format!("fill{} seam", index % COLOURS);
        svg.rect((from.min(to), top), ((to - from).abs(), BAR), &class, &words);
        told.push(words.replace(' ', "\u{a0}"));
    }
    svg.line((scale.at(0.0), top - 3.0), (scale.at(0.0), top + BAR + 3.0), "axis");
    let sum = number(parts.iter().sum());
    svg.text((scale.at(above) + 8.0, top + BAR - 5.0), Anchor::Start, "ink strong", &sum);
    let mut y = top + BAR + 2.0;
    for line in wrapped(&told.join(" · "), WIDTH - MARGIN - left) {
        y += 14.0;
        svg.text((left, y), Anchor::Start, "quiet small", &line);
    }
    y + 8.0
}

/// The picture in words.
fn about(bench: &Bench, targets: &Targets, wholes: &[Whole<'_>]) -> String {
    let mut words = vec![sentence(&bench.what)];
    for whole in wholes {
        for target in &targets.0 {
            let parts = whole.of(target);
            let told: Vec<_> = whole
                .parts
                .iter()
                .zip(&parts)
                .map(|((name, _), value)| format!("{name} {}", number(*value)))
                .collect();
            let sum = number(parts.iter().sum());
            let (name, unit) = (whole.name, whole.unit);
            words.push(format!("{name} of {target}: {sum} {unit} ({}).", told.join(", ")));
        }
    }
    words.join(" ")
}
