//! Samples and points as they come, and what they become.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::plan;
use crate::report::{Better, Curve, Points, Sheet};
use crate::stats::Summary;
use crate::target::Target;

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A count as a sample.
pub(crate) fn counted(count: usize) -> f64 {
    number(u64::try_from(count).unwrap_or(u64::MAX))
}

/// A count as a sample; endless if it is beyond reason.
pub(crate) fn number(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// A quantity: its name, unit, and which way is better.
pub(crate) type Quantity<'a> = (&'a str, &'a str, Better);

/// What one turn of one target gives, as it comes; see [`Sheet`], which wants the samples
/// of a turn together.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(String, String, Better, Vec<f64>)>);

impl Samples {
    /// Adds a sample.
    pub(crate) fn add(&mut self, (name, unit, better): Quantity<'_>, value: f64) {
        match self.0.iter_mut().find(|(known, ..)| known == name) {
            Some((.., values)) => values.push(value),
            None => self.0.push((name.to_owned(), unit.to_owned(), better, vec![value])),
        }
    }

    /// Writes down that `turn` gave this.
    pub(crate) fn tell(self, turn: plan::Turn, sheet: &mut Sheet) {
        for (name, unit, better, values) in self.0 {
            sheet.add(turn, (&name, &unit, better), values);
        }
    }
}

/// Points of several curves of several targets; what is seen again at the same place is
/// summed up by its median.
#[derive(Debug)]
pub(crate) struct Plots {
    targets: Vec<String>,
    x: &'static str,
    plots: Vec<Plot>,
}

#[derive(Debug)]
struct Plot {
    name: String,
    y: String,
    /// Values of each target by what is on the horizontal axis.
    values: Vec<BTreeMap<u32, Vec<f64>>>,
}

impl Plots {
    /// Over `x`.
    pub(crate) fn new(targets: &[Target], x: &'static str) -> Self {
        let targets = targets.iter().map(|target| target.name.clone()).collect();
        Self { targets, x, plots: Vec::new() }
    }

    /// Adds a point to the curve `name`, whose vertical axis is `y`.
    pub(crate) fn add(&mut self, target: usize, (name, y): (&str, &str), at: usize, value: f64) {
        let known = self.plots.iter().position(|plot| plot.name == name);
        let index = known.unwrap_or_else(|| {
            let values = vec![BTreeMap::new(); self.targets.len()];
            self.plots.push(Plot { name: name.into(), y: y.into(), values });
            self.plots.len() - 1
        });
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        self.plots[index].values[target].entry(at).or_default().push(value);
    }

    /// What the points have become.
    pub(crate) fn curves(self) -> Vec<Curve> {
        let Self { targets, x, plots } = self;
        let points = |target: &String, values: BTreeMap<u32, Vec<f64>>| {
            let middle = |(at, values)| Some((f64::from(at), Summary::of(values)?.p50));
            let points = values.into_iter().filter_map(middle).collect();
            Points { target: target.clone(), points }
        };
        let curve = |plot: Plot| {
            let series = targets.iter().zip(plot.values);
            let series = series.map(|(target, values)| points(target, values)).collect();
            Curve { name: plot.name, x: x.to_owned(), y: plot.y, series }
        };
        plots.into_iter().map(curve).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_quantity_stay_together_in_the_order_of_the_first() {
        let mut samples = Samples::default();
        let (up, down) = (("up", "ms", Better::Lower), ("down", "ms", Better::Lower));
        for (what, value) in [(up, 3.0), (down, 4.0), (up, 1.0)] {
            samples.add(what, value);
        }
        let told: Vec<_> =
            samples.0.iter().map(|(name, .., values)| (&**name, &**values)).collect();
        assert_eq!(told, [("up", &[3.0, 1.0][..]), ("down", &[4.0])]);
    }

    #[test]
    fn a_curve_has_the_median_of_its_rounds_in_the_order_of_its_axis() {
        let targets = vec!["ours".to_owned(), "theirs".to_owned()];
        let mut plots = Plots { targets, x: "pods", plots: Vec::new() };
        for (at, value) in [(10, 5.0), (2, 1.0), (10, 7.0), (10, 6.0)] {
            plots.add(0, ("memory", "MiB"), at, value);
        }
        let curves = plots.curves();
        assert_eq!(curves[0].series[0].points, [(2.0, 1.0), (10.0, 6.0)]);
        assert_eq!(curves[0].series[1].points, []);
    }
}
