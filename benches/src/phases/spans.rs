//! Spans that ended, read back from a daemon's JSON log.

use serde::Deserialize;

/// One span that ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Closed {
    /// Names from the outermost span to itself.
    pub(super) path: Vec<String>,
    /// When it began, ms since 1970.
    pub(super) began: f64,
    /// How long it was open, ms.
    pub(super) took: f64,
}

impl Closed {
    pub(super) fn ended(&self) -> f64 {
        self.began + self.took
    }
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    #[serde(rename = "time.busy")]
    busy: Option<String>,
    #[serde(rename = "time.idle")]
    idle: Option<String>,
    span: Option<Name>,
    #[serde(default)]
    spans: Vec<Name>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// The span whose end `line` tells; `None` when it tells something else.
pub(super) fn closed(line: &str) -> Option<Closed> {
    let line: Line = serde_json::from_str(line).ok()?;
    if line.message != "close" {
        return None;
    }
    let took = milliseconds(&line.busy?)? + milliseconds(&line.idle?)?;
    // The last of the spans around the event is the one that ends.
    let mut path: Vec<String> = line.spans.into_iter().map(|span| span.name).collect();
    let own = line.span?.name;
    if path.last() != Some(&own) {
        path.push(own);
    }
    Some(Closed { path, began: since_1970(&line.timestamp)? - took, took })
}

/// The parts of making a process that `line` of a shim's log tells, as phases of `path`:
/// `TIME DEBUG shim[7]: made a process: plan 0.4ms, worker 1.2ms, init 2.1ms`.
pub(super) fn made(line: &str, path: &[&str]) -> Vec<Closed> {
    let Some((head, parts)) = line.split_once(": made a process: ") else { return Vec::new() };
    let time = head.split(' ').next().and_then(since_1970);
    let part = |part: &str| {
        let (name, took) = part.trim().split_once(' ')?;
        Some((name.to_owned(), milliseconds(took)?))
    };
    let parts: Option<Vec<_>> = parts.split(',').map(part).collect();
    let (Some(ended), Some(parts)) = (time, parts) else { return Vec::new() };
    let mut began = ended - parts.iter().map(|(_, took)| took).sum::<f64>();
    let mut spans = Vec::new();
    for (name, took) in parts {
        let path = path.iter().map(|part| (*part).to_owned()).chain([name]).collect();
        spans.push(Closed { path, began, took });
        began += took;
    }
    spans
}

/// `1.23ms`, `45.6µs`, `789ns`, `1.2s`.
fn milliseconds(text: &str) -> Option<f64> {
    let unit = text.find(|letter: char| letter.is_alphabetic())?;
    let (value, unit) = text.split_at(unit);
    let value: f64 = value.parse().ok()?;
    Some(
        value
            * match unit {
                "s" => 1e3,
                "ms" => 1.0,
                "µs" | "us" => 1e-3,
                "ns" => 1e-6,
                _ => return None,
            },
    )
}

/// Milliseconds since 1970 of `2026-11-21T10:50:00.123456Z`.
fn since_1970(text: &str) -> Option<f64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.splitn(3, ':');
    let hours: f64 = time.next()?.parse().ok()?;
    let minutes: f64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    let days = u32::try_from(days(year, month, day)).ok()?;
    Some((f64::from(days) * 86_400.0 + hours * 3_600.0 + minutes * 60.0 + seconds) * 1e3)
}

/// Days since 1970 in the calendar of Gregory. A year begins in March here, so that the day
/// that is sometimes there is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap = year / 4 - year / 100 + year / 400;
    year * 365 + leap + (month * 153 + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(busy: &str, idle: &str) -> String {
        format!(
            r#"{{"timestamp":"1970-01-02T00:00:01.500000Z","level":"DEBUG","message":"close",
            "time.busy":"{busy}","time.idle":"{idle}","target":"x","span":{{"name":"store"}},
            "spans":[{{"name":"cri.run_pod_sandbox","sandbox.id":"1"}},{{"name":"store"}}]}}"#
        )
    }

    #[test]
    fn a_span_has_the_time_it_was_open_and_its_parents() {
        let span = closed(&line("1.25ms", "250µs")).unwrap();
        assert_eq!(span.path, ["cri.run_pod_sandbox", "store"]);
        assert_eq!((span.took, span.ended()), (1.5, 86_401_500.0));
    }

    #[test]
    fn units_are_told_apart_and_what_is_no_end_of_a_span_is_none() {
        assert_eq!(milliseconds("2.5s"), Some(2500.0));
        assert_eq!(milliseconds("500ns"), Some(0.0005));
        assert_eq!(milliseconds("5 parsecs"), None);
        assert_eq!(closed("berthd: not JSON"), None);
        assert_eq!(closed(&line("1ms", "1ms").replace("close", "opened")), None);
        assert_eq!(closed(&line("soon", "1ms")), None);
    }

    #[test]
    fn the_parts_of_making_a_process_follow_each_other() {
        let line = "1970-01-01T00:00:01.000000000Z DEBUG shim[7]: made a process: \
                    plan 500µs, worker 1ms, init 2ms";
        let spans = made(line, &["cri.start_container", "task_create"]);
        let told: Vec<_> = spans.iter().map(|span| (span.path[2].as_str(), span.began)).collect();
        assert_eq!(told, [("plan", 996.5), ("worker", 997.0), ("init", 998.0)]);
        assert!(made("1970-01-01T00:00:01Z WARN shim[7]: something", &[]).is_empty());
        assert!(made(&line.replace("1ms", "soon"), &[]).is_empty());
    }

    #[test]
    fn days_are_counted_over_leap_years() {
        assert_eq!((days(1970, 1, 1), days(1970, 3, 1)), (0, 59));
        assert_eq!(days(2000, 3, 1) - days(2000, 2, 28), 2);
        assert_eq!(days(2100, 3, 1) - days(2100, 2, 28), 1);
        assert_eq!(days(2026, 11, 21), 20_778);
    }
}
