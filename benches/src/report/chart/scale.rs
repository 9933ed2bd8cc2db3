//! Numbers to pixels, ticks, and numbers to text. Pure functions.

/// An axis: what it spans, and where that lies in the picture.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    logarithmic: bool,
    /// Where it has ticks, ascending.
    pub(super) ticks: Vec<f64>,
}

impl Scale {
    /// From zero, or from the smallest value if that is below it, to a round number that is
    /// not below any of `values`.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut least, mut most) = (0.0_f64, 0.0_f64);
        for value in values.into_iter().filter(|value| value.is_finite()) {
            (least, most) = (least.min(value), most.max(value));
        }
        if least == most {
            most = least + 1.0;
        }
        let step = step((most - least) / 5.0);
        let (first, last) = ((least / step).ceil(), (most / step).ceil());
        let mut ticks = Vec::new();
        let mut tick = first;
        while tick <= last {
            ticks.push(tick * step);
            tick += 1.0;
        }
        Self { low: least, high: last * step, from, to, logarithmic: false, ticks }
    }

    /// From a round number that is not above any of the positive `values` to one that is not
    /// below any; what is not positive has no place on it and is drawn at its start.
    pub(super) fn logarithmic(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        if most == 0.0 {
            (least, most) = (1.0, 10.0);
        }
        let mut marks = Vec::new();
        let mut decade = 10_f64.powf(least.log10().floor());
        while decade <= most * 10.0 {
            marks.extend([decade, decade * 2.0, decade * 5.0]);
            decade *= 10.0;
        }
        // A hair's breadth: 0.1 * 10 is not exactly 1.
        let low = marks.iter().copied().rfind(|mark| *mark <= least * 1.000_001);
        let high = marks.iter().copied().find(|mark| *mark >= most * 0.999_999);
        let (low, mut high) = (low.unwrap_or(least), high.unwrap_or(most));
        if high <= low * 1.000_001 {
            high = low * 10.0;
        }
        let inside = |mark: &f64| *mark >= low * 0.999_999 && *mark <= high * 1.000_001;
        let mut ticks: Vec<f64> = marks.into_iter().filter(inside).collect();
        if (high / low).log10() > 3.0 {
            ticks.retain(|tick| (tick.log10() - tick.log10().round()).abs() < 1e-6);
        }
        Self { low, high, from, to, logarithmic: true, ticks }
    }

    /// Where `value` lies.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }
}

/// 1, 2 or 5 times a power of ten, not smaller than `least`.
fn step(least: f64) -> f64 {
    let decade = 10_f64.powf(least.log10().floor());
    let fits = |factor: &f64| decade * factor >= least * 0.999_999;
    decade * [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0)
}

/// Three digits that count, thousands apart: `0.57`, `9.81`, `36.8`, `165`, `24,789`.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    let digits = match size {
        _ if size >= 99.95 || size == 0.0 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.0995 => 2,
        _ if size >= 0.000_95 => 3,
        _ => 5,
    };
    grouped(&format!("{value:.digits$}"))
}

/// A tick is a round number: no digit more than it needs.
pub(super) fn tick(value: f64) -> String {
    let text = format!("{value:.6}");
    grouped(text.trim_end_matches('0').trim_end_matches('.'))
}

fn grouped(text: &str) -> String {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |text| ("-", text));
    let (whole, rest) = text.find('.').map_or((text, ""), |dot| text.split_at(dot));
    let mut apart = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            apart.push(',');
        }
        apart.push(digit);
    }
    let zero = apart.chars().all(|digit| digit == '0') && rest.chars().all(|c| ".0".contains(c));
    format!("{}{apart}{rest}", if zero { "" } else { sign })
}

/// Width of `text` at 12 pixels: an estimate, on the large side.
pub(super) fn width(text: &str) -> f64 {
    text.chars()
        .map(|letter| match letter {
            'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | '|' | '\'' | '·' => 3.8,
            ' ' | '\u{a0}' | 't' | 'f' | 'r' | '(' | ')' | '-' | '/' => 5.0,
            'm' | 'w' | 'M' | 'W' | '%' | '—' => 11.0,
            letter if letter.is_uppercase() => 8.6,
            _ => 7.3,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_starts_at_zero_and_ends_at_a_round_number() {
        let scale = Scale::linear([3.0, 97.0], 0.0, 100.0);
        assert_eq!(scale.ticks, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!((scale.at(0.0), scale.at(50.0), scale.at(100.0)), (0.0, 50.0, 100.0));
        let fallen = Scale::linear([-30.0, 60.0], 0.0, 100.0);
        assert_eq!((fallen.at(-30.0), fallen.at(60.0)), (0.0, 100.0));
        assert_eq!(fallen.ticks.first(), Some(&-20.0));
    }

    #[test]
    fn a_logarithmic_axis_spans_all_that_is_positive() {
        let scale = Scale::logarithmic([1.0, 100.0, 0.0], 0.0, 300.0);
        assert_eq!(scale.ticks, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!((scale.at(10.0) - 150.0).abs() < 1e-9);
        assert_eq!(scale.at(0.0), 0.0);
        let wide = Scale::logarithmic([0.02, 900.0], 0.0, 300.0);
        let rounded: Vec<_> = wide.ticks.iter().map(|value| tick(*value)).collect();
        assert_eq!(rounded, ["0.1", "1", "10", "100", "1,000"]);
    }

    #[test]
    fn an_axis_of_one_value_or_none_still_has_length() {
        for scale in [
            Scale::linear([], 0.0, 10.0),
            Scale::linear([0.0], 0.0, 10.0),
            Scale::logarithmic([], 0.0, 10.0),
            Scale::logarithmic([5.0], 0.0, 10.0),
            Scale::logarithmic([f64::NAN, 3.0], 0.0, 10.0),
        ] {
            assert!(scale.at(3.0).is_finite() && scale.ticks.len() > 1, "{scale:?}");
        }
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let told: Vec<_> =
            [0.0, 0.00042, 0.0573, 0.571, 9.814, 9.996, 36.84, 99.96, 165.2, 24789.0, -1234.0]
                .into_iter()
                .map(number)
                .collect();
        let expected = [
            "0", "0.00042", "0.057", "0.57", "9.81", "10.0", "36.8", "100", "165", "24,789",
            "-1,234",
        ];
        assert_eq!(told, expected);
        assert_eq!(
            (tick(0.5), tick(2000.0), tick(-0.0)),
            ("0.5".into(), "2,000".into(), "0".into())
        );
    }
}
