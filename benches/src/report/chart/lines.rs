//! What grows with the number of pods, or with time.

use super::scale::{Scale, number, tick, width};
use super::svg::{Anchor, COLOURS, MARGIN, Svg, WIDTH};
use super::{Targets, head};
use crate::report::{Bench, Curve, Points};

const HEIGHT: f64 = 260.0;
/// More points than that are a line without markers.
const MARKERS: usize = 24;

/// A line with markers for each target; its last value is written at its end.
pub(super) fn draw(bench: &Bench, targets: &Targets, curve: &Curve) -> Option<String> {
    let all: Vec<(f64, f64)> = curve.series.iter().flat_map(|one| &one.points).copied().collect();
    if all.is_empty() {
        return None;
    }
    let title = format!("{}: {}", bench.name, curve.name);
    let mut svg = Svg::new(&title, &about(curve));
    let legend: Vec<_> =
        curve.series.iter().map(|one| (targets.index(&one.target), one.target.clone())).collect();
    let subtitle = format!("Vertical: {}. Horizontal: {}.", curve.y, curve.x);
    let top = head(&mut svg, &title, &subtitle, &legend) + 12.0;
    let bottom = top + HEIGHT;
    let y = Scale::linear(all.iter().map(|(_, y)| *y), bottom, top);
    let labels = y.ticks.iter().map(|value| width(&tick(*value))).fold(0.0, f64::max);
    let (left, right) = (MARGIN + labels + 8.0, WIDTH - MARGIN - 64.0);
    let x = Scale::linear(all.iter().map(|(x, _)| *x), left, right);
    for value in &y.ticks {
        svg.line((left, y.at(*value)), (right, y.at(*value)), "grid");
        svg.text((left - 8.0, y.at(*value) + 4.0), Anchor::End, "quiet small", &tick(*value));
    }
    for value in &x.ticks {
        svg.line((x.at(*value), bottom), (x.at(*value), bottom + 4.0), "axis");
        svg.text((x.at(*value), bottom + 17.0), Anchor::Middle, "quiet small", &tick(*value));
    }
    svg.text((f64::midpoint(left, right), bottom + 36.0), Anchor::Middle, "quiet", &curve.x);
    let mut ends = Vec::new();
    for series in &curve.series {
        let index = targets.index(&series.target);
        let line = in_order(series);
        let path: Vec<_> = line.iter().map(|point| (x.at(point.0), y.at(point.1))).collect();
        svg.polyline(&path, &format!("line{}", index % COLOURS));
        // Among many points each marker would hide the next.
        let marked = if line.len() > MARKERS { line.len() - 1 } else { 0 };
        for (point, at) in line.iter().zip(&path).skip(marked) {
            let told = format!("{}: {} at {}", series.target, number(point.1), tick(point.0));
            svg.marker(*at, index, &told);
        }
        if let (Some(point), Some(at)) = (line.last(), path.last()) {
            ends.push((*at, number(point.1)));
        }
    }
    for ((at, label), height) in ends.iter().zip(apart(&ends)) {
        svg.text((at.0 + 10.0, height + 4.0), Anchor::Start, "ink", label);
    }
    Some(svg.finish(bottom + 40.0 + MARGIN))
}

/// The points from left to right.
fn in_order(series: &Points) -> Vec<(f64, f64)> {
    let mut points = series.points.clone();
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    points
}

/// Heights for the labels at the ends of lines, so that none lies upon another.
fn apart(ends: &[((f64, f64), String)]) -> Vec<f64> {
    const LEAST: f64 = 14.0;
    let mut order: Vec<usize> = (0..ends.len()).collect();
    order.sort_by(|one, other| ends[*one].0.1.total_cmp(&ends[*other].0.1));
    let mut heights = vec![0.0; ends.len()];
    let mut last = f64::NEG_INFINITY;
    for index in order {
        last = ends[index].0.1.max(last + LEAST);
        heights[index] = last;
    }
    heights
}

/// The picture in words.
fn about(curve: &Curve) -> String {
    let mut words = vec![format!("{} over {}.", curve.y, curve.x)];
    for series in &curve.series {
        let points = in_order(series);
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            words.push(format!(
                "{}: from {} at {} to {} at {}.",
                series.target,
                number(first.1),
                tick(first.0),
                number(last.1),
                tick(last.0)
            ));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_lines_that_end_together_do_not_overlap() {
        let end = |y: f64| ((0.0, y), String::new());
        assert_eq!(apart(&[end(100.0), end(98.0), end(10.0)]), [112.0, 98.0, 10.0]);
    }
}
