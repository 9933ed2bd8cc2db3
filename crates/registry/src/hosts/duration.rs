//! Durations as Go writes them: `300ms`, `1.5s`, `1m30s`.

use std::time::Duration;

/// Parses `text`; `None` if it is no duration, zero, or longer than an hour.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = number.parse::<f64>().ok()? * seconds;
        sum = sum.checked_add(Duration::try_from_secs_f64(part).ok()?)?;
        rest = next;
    }
    (!sum.is_zero() && sum <= Duration::from_hours(1)).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_add_up() {
        for (text, expected) in [
            ("300ms", Some(300)),
            ("1.5s", Some(1500)),
            ("1m30s", Some(90_000)),
            ("", None),
            ("0s", None),
            ("5", None),
            ("-1s", None),
            ("1.2.3s", None),
            ("1d", None),
            ("s", None),
            ("99999999999999999999999h", None),
        ] {
            assert_eq!(parse(text), expected.map(Duration::from_millis), "{text}");
        }
    }
}
