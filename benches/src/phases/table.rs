//! The phases for people: a table.

use std::fmt::Write as _;

use super::tree::Phase;
use super::{Found, VERBS, floor};
use crate::report::chart::waterfall::{self, Bar};
use crate::stats::Summary;

/// Verbs that bring a pod up, and the command in it; the rest ends it.
const UP: usize = 3;
const EXEC: usize = 4;

/// The whole table.
pub(super) fn table(found: &Found) -> String {
    let mut text = String::new();
    let pods = found.first_byte.len();
    put(&mut text, &format!("{pods} pods, one after another; ms, medians unless said.\n"));
    put(
        &mut text,
        &format!(
            "{:<46} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}   {}",
            "", "begins", "p10", "p50", "p99", "own", "floor", "what the floor does"
        ),
    );
    for (index, (verb, span)) in VERBS.iter().enumerate() {
        let Some(client) = found.client(index) else { continue };
        put(&mut text, &row(verb, None, &client, None, None, "as the client sees it"));
        for phase in found.phases.get(*span).into_iter().flatten() {
            put(&mut text, &phase_row(phase, pods));
        }
    }
    if let Some(after) = found.phases.get("") {
        put(&mut text, "\nno verb waits for this:");
        for phase in after {
            put(&mut text, &phase_row(phase, pods));
        }
    }
    put(&mut text, "");
    totals(&mut text, found);
    put(&mut text, "\nown: not accounted for by a phase inside it; phases may overlap.");
    put(
        &mut text,
        "plan, worker, init: as the shim told; one that was busy saw the last two at once.",
    );
    put(&mut text, "floor: hand-written C program doing only the necessary syscalls (p10).");
    text
}

fn totals(text: &mut String, found: &Found) {
    let sums = |from: usize, to: usize, extra: Option<&Vec<f64>>| {
        let pods = found.first_byte.len();
        let sum = |pod: usize| {
            let verbs = found.client.get(from..to).unwrap_or_default().iter().chain(extra);
            verbs.filter_map(|samples| samples.get(pod)).sum::<f64>()
        };
        Summary::of((0..pods).map(sum))
    };
    let up_floor = if found.options.pause < 100 { floor::UP } else { floor::UP_AFTER_IDLE };
    if let Some(up) = sums(0, UP, Some(&found.first_byte)) {
        let what = "pod and container until the program was executed";
        put(
            text,
            &row("up, with the first byte in the log", None, &up, None, Some(up_floor.0), what),
        );
    }
    if let Some(exec) = sums(UP, EXEC, None) {
        put(text, &row("exec", None, &exec, None, None, ""));
    }
    if let Some(down) = sums(EXEC, VERBS.len(), None) {
        let what = "cgroups removed, descriptors closed; the kernel does the rest later";
        put(text, &row("down", None, &down, None, Some(floor::DOWN.0), what));
    }
}

fn phase_row(phase: &Phase, pods: usize) -> String {
    let name = phase.path.last().map(String::as_str).unwrap_or_default();
    let mut name = format!("{:indent$}{name}", "", indent = 2 * phase.path.len());
    if phase.count != pods {
        write!(name, " ({} times)", phase.count).ok();
    }
    let floor = floor::of(&phase.path);
    let what = floor.map(|floor| floor.what).unwrap_or_default();
    let least = floor.map(|floor| floor.least);
    row(&name, Some(phase.begins), &phase.takes, Some(phase.own), least, what)
}

fn row(
    name: &str,
    begins: Option<f64>,
    takes: &Summary,
    own: Option<f64>,
    floor: Option<f64>,
    what: &str,
) -> String {
    let cell = |value: Option<f64>| value.map(|value| format!("{value:.2}")).unwrap_or_default();
    let (begins, own, floor) = (cell(begins), cell(own), cell(floor));
    let (p10, p50, p99) = (takes.p10, takes.p50, takes.p99);
    let row = format!(
        "{name:<46} {begins:>7} {p10:>7.2} {p50:>7.2} {p99:>7.2} {own:>7} {floor:>7}   {what}"
    );
    row.trim_end().to_owned()
}

fn put(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The same as a picture: bars on one time axis, verb behind verb.
pub(super) fn picture(found: &Found) -> String {
    let mut bars = Vec::new();
    let mut at = 0.0;
    for (index, (verb, span)) in VERBS.iter().enumerate() {
        let Some(client) = found.client(index) else { continue };
        let whole =
            Bar { label: (*verb).to_owned(), depth: 0, begins: at, takes: client.p50, floor: None };
        bars.push(whole);
        // The request is on its way for half of what the client sees beyond the daemon's span.
        let phases = found.phases.get(*span).map(Vec::as_slice).unwrap_or_default();
        let inside = phases.first().map_or(client.p50, |phase| phase.takes.p50);
        let way = (client.p50 - inside).max(0.0) / 2.0;
        for phase in phases.iter().skip(1) {
            bars.push(Bar {
                label: phase.path.last().cloned().unwrap_or_default(),
                depth: phase.path.len() - 1,
                begins: at + way + phase.begins,
                takes: phase.takes.p50,
                floor: floor::of(&phase.path).map(|floor| floor.least),
            });
        }
        at += client.p50;
    }
    let about = format!(
        "One pod, a command in it, and its end, verb behind verb; ms, medians of {} pods. \
         Numbers: takes / floor; the floor, drawn as a tick, is what a hand-written C program \
         takes that does only the necessary syscalls.",
        found.first_byte.len()
    );
    waterfall::draw("phases: where each millisecond goes", &about, &bars)
}
