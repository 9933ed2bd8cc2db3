//! Phases on one time axis: what follows what, what overlaps, and what it costs at least.

use super::scale::{Scale, number, tick, width};
use super::svg::{Anchor, MARGIN, Svg, WIDTH};
use super::{head, real};

const ROW: f64 = 17.0;
const BAR: f64 = 10.0;

/// One phase.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    /// 0 is a whole; what is deeper is part of what stands above it.
    pub(crate) depth: usize,
    /// Milliseconds after the beginning of everything.
    pub(crate) begins: f64,
    /// Milliseconds.
    pub(crate) takes: f64,
    /// What it costs at least, milliseconds.
    pub(crate) floor: Option<f64>,
}

impl Bar {
    fn told(&self) -> String {
        let floor = self.floor.map(|floor| format!(", floor {}", number(floor)));
        let (label, floor) = (&self.label, floor.unwrap_or_default());
        format!("{label}: {} ms from {}{floor}", number(self.takes), number(self.begins))
    }
}

/// Draws `bars` from top to bottom.
pub(crate) fn draw(title: &str, about: &str, bars: &[Bar]) -> String {
    let told: Vec<_> = bars.iter().map(Bar::told).collect();
    let mut svg = Svg::new(title, &format!("{about} {}.", told.join("; ")));
    let top = head(&mut svg, title, about, &[]) + 10.0;
    let indent = |bar: &Bar| 12.0 * real(bar.depth);
    let labels = bars.iter().map(|bar| indent(bar) + width(&bar.label)).fold(0.0, f64::max);
    let (left, right) = (MARGIN + labels + 12.0, WIDTH - MARGIN - 74.0);
    let x = Scale::linear(bars.iter().map(|bar| bar.begins + bar.takes), left, right);
    let wholes = real(bars.iter().filter(|bar| bar.depth == 0).count());
    let bottom = top + ROW * real(bars.len()) + 6.0 * wholes;
    for value in &x.ticks {
        svg.line((x.at(*value), top), (x.at(*value), bottom), "grid");
        svg.text((x.at(*value), bottom + 16.0), Anchor::Middle, "quiet small", &tick(*value));
    }
    let mut y = top;
    for (bar, told) in bars.iter().zip(&told) {
        y += if bar.depth == 0 { 6.0 } else { 0.0 };
        let (from, to) = (x.at(bar.begins), x.at(bar.begins + bar.takes));
        let class = if bar.depth == 0 { "ink strong" } else { "ink" };
        svg.text((MARGIN + indent(bar), y + 11.0), Anchor::Start, class, &bar.label);
        let colour = format!("fill{}", bar.depth.min(3));
        svg.rect((from, y + 2.0), ((to - from).max(1.0), BAR), &colour, told);
        let mut numbers = number(bar.takes);
        if let Some(floor) = bar.floor {
            let at = x.at(bar.begins + floor);
            svg.line((at, y), (at, y + BAR + 4.0), "mark");
            numbers = format!("{numbers} / {}", number(floor));
        }
        svg.text((WIDTH - MARGIN, y + 11.0), Anchor::End, "ink small", &numbers);
        y += ROW;
    }
    svg.finish(bottom + 22.0 + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_drawn_and_told() {
        let bar = |label: &str, depth, begins, floor| Bar {
            label: label.to_owned(),
            depth,
            begins,
            takes: 2.0,
            floor,
        };
        let bars = [bar("run", 0, 0.0, None), bar("shim", 1, 0.5, Some(0.5))];
        let picture = draw("phases", "of a pod.", &bars);
        assert!(picture.contains("shim: 2.00 ms from 0.50, floor 0.50"), "{picture}");
        assert_eq!(picture.matches("class=\"mark\"").count(), 1);
    }
}
