//! Spans of many pods to one table: which phase of a verb begins when, and takes how long.

use std::collections::BTreeMap;

use super::spans::Closed;
use crate::stats::Summary;

/// One phase of a verb, over all pods.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    /// Names from the verb's own span to itself; a phase that a verb passes twice has a
    /// number behind its name.
    pub(super) path: Vec<String>,
    /// In how many pods it was seen.
    pub(super) count: usize,
    /// After the beginning of the verb, median, ms.
    pub(super) begins: f64,
    /// How long it takes, ms.
    pub(super) takes: Summary,
    /// Of that, what no phase inside it accounts for, median, ms.
    pub(super) own: f64,
}

/// A verb once: its own span and those inside it.
type Instance = Vec<Closed>;

/// Phases of each verb by the name of its span, in the order in which they begin; and, under
/// an empty name, work that no verb waited for.
///
/// What a driver of a sandbox or container does by itself while a verb goes on, such as
/// recording the end of what was killed, is part of that verb: there is one client only.
pub(super) fn phases(spans: impl IntoIterator<Item = Closed>) -> BTreeMap<String, Vec<Phase>> {
    let mut open: BTreeMap<String, Instance> = BTreeMap::new();
    let mut instances: Vec<Instance> = Vec::new();
    let mut drivers: Vec<Closed> = Vec::new();
    let mut alone: Vec<Closed> = Vec::new();
    for span in spans {
        let Some(root) = span.path.first().cloned() else { continue };
        let ends = span.path.len() == 1;
        if root.starts_with("cri.") {
            open.entry(root.clone()).or_default().push(span);
            // Spans inside end first.
            if ends {
                instances.extend(open.remove(&root));
            }
        } else if !DRIVERS.contains(&root.as_str()) {
            alone.push(span);
        } else if !ends {
            drivers.push(span);
        }
    }
    for work in drivers {
        alone.extend(share(work, &mut instances));
    }
    let mut verbs: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
    for instance in instances {
        let Some(name) = instance.last().and_then(|verb| verb.path.first()) else { continue };
        verbs.entry(name.clone()).or_default().push(instance);
    }
    // Each such piece of work stands for itself.
    let alone = alone.into_iter().map(|work| vec![work]);
    verbs.entry(String::new()).or_default().extend(alone);
    verbs.into_iter().map(|(verb, instances)| (verb, gathered(&instances))).collect()
}

/// Gives to the verb during which `work` began what was done of it until the verb's end, and
/// returns the rest.
fn share(mut work: Closed, instances: &mut [Instance]) -> Option<Closed> {
    let during = |instance: &&mut Instance| {
        instance.last().is_some_and(|verb| work.began >= verb.began && work.began < verb.ended())
    };
    let Some(instance) = instances.iter_mut().find(during) else { return Some(work) };
    let verb = instance.pop()?;
    let mut part = work.clone();
    part.took = work.took.min(verb.ended() - work.began);
    if let (Some(name), Some(root)) = (part.path.first_mut(), verb.path.first()) {
        name.clone_from(root);
    }
    work.took -= part.took;
    work.began += part.took;
    instance.extend([part, verb]);
    (work.took > 0.0).then_some(work)
}

/// Spans that are open for as long as an object exists.
const DRIVERS: [&str; 2] = ["sandbox", "container"];

#[derive(Default)]
struct Seen {
    begins: Vec<f64>,
    takes: Vec<f64>,
    own: Vec<f64>,
}

fn gathered(instances: &[Instance]) -> Vec<Phase> {
    let mut seen: BTreeMap<Vec<String>, Seen> = BTreeMap::new();
    for instance in instances {
        let Some(verb) = instance.last() else { continue };
        for (path, span) in numbered(instance) {
            let phase = seen.entry(path).or_default();
            phase.begins.push(span.began - verb.began);
            phase.takes.push(span.took);
            phase.own.push(span.took - inside(span, instance));
        }
    }
    let mut phases: Vec<Phase> = seen
        .into_iter()
        .filter_map(|(path, seen)| {
            let middle = |values: Vec<f64>| Summary::of(values).map(|values| values.p50);
            Some(Phase {
                path,
                count: seen.takes.len(),
                begins: middle(seen.begins)?,
                takes: Summary::of(seen.takes)?,
                own: middle(seen.own)?,
            })
        })
        .collect();
    in_order(&mut phases);
    phases
}

/// Each span with its path, in which the second of the same name has a number.
fn numbered(instance: &Instance) -> Vec<(Vec<String>, &Closed)> {
    let mut spans: Vec<&Closed> = instance.iter().collect();
    spans.sort_by(|one, other| one.began.total_cmp(&other.began));
    let mut times: BTreeMap<&[String], usize> = BTreeMap::new();
    let mut numbered = Vec::new();
    for span in spans {
        let time = times.entry(&span.path).or_default();
        *time += 1;
        let mut path = span.path.clone();
        if let (2.., Some(name)) = (*time, path.last_mut()) {
            name.push_str(&format!(" {time}"));
        }
        numbered.push((path, span));
    }
    numbered
}

/// How long at least one of the phases directly inside `span` was open: they may overlap.
fn inside(span: &Closed, instance: &Instance) -> f64 {
    let child = |other: &&Closed| {
        other.path.len() == span.path.len() + 1
            && other.path.starts_with(&span.path)
            && other.ended() > span.began
            && other.began < span.ended()
    };
    let mut children: Vec<(f64, f64)> = instance
        .iter()
        .filter(child)
        .map(|child| (child.began.max(span.began), child.ended().min(span.ended())))
        .collect();
    children.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut covered, mut until) = (0.0, f64::NEG_INFINITY);
    for (began, ended) in children {
        covered += (ended - began.max(until)).max(0.0);
        until = until.max(ended);
    }
    covered
}

/// As a tree is read: each phase behind what it is part of, brothers by their beginning.
fn in_order(phases: &mut [Phase]) {
    let begins: BTreeMap<Vec<String>, f64> =
        phases.iter().map(|phase| (phase.path.clone(), phase.begins)).collect();
    phases.sort_by(|one, other| {
        let common = one.path.iter().zip(&other.path).take_while(|(a, b)| a == b).count();
        let ancestor = |phase: &Phase| phase.path.get(..=common).map(<[String]>::to_vec);
        match (ancestor(one), ancestor(other)) {
            (Some(a), Some(b)) => {
                let at = |path| begins.get(path).copied().unwrap_or_default();
                at(&a).total_cmp(&at(&b)).then_with(|| a.cmp(&b))
            }
            // The shorter path is what the longer one is part of.
            (one, other) => one.is_some().cmp(&other.is_some()),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(path: &str, began: f64, took: f64) -> Closed {
        Closed { path: path.split('/').map(str::to_owned).collect(), began, took }
    }

    fn told(phases: &[Phase]) -> Vec<(String, f64, f64, f64)> {
        let row = |phase: &Phase| (phase.path.join("/"), phase.begins, phase.takes.p50, phase.own);
        phases.iter().map(row).collect()
    }

    #[test]
    fn a_phase_is_told_under_what_it_is_part_of_and_overlap_counts_once() {
        let pod = |at: f64| {
            [
                span("cri.run/make/store", at + 1.0, 1.0),
                span("cri.run/make/net", at + 2.0, 4.0),
                span("cri.run/make/shim", at + 3.0, 5.0),
                span("cri.run/make/store", at + 8.0, 1.0),
                span("cri.run/make", at + 1.0, 9.0),
                span("cri.run", at, 11.0),
            ]
        };
        let phases = phases([pod(0.0), pod(100.0)].concat());
        let expected = [
            ("cri.run", 0.0, 11.0, 2.0),
            ("cri.run/make", 1.0, 9.0, 1.0),
            ("cri.run/make/store", 1.0, 1.0, 1.0),
            ("cri.run/make/net", 2.0, 4.0, 4.0),
            ("cri.run/make/shim", 3.0, 5.0, 5.0),
            ("cri.run/make/store 2", 8.0, 1.0, 1.0),
        ];
        let expected = expected.map(|(path, a, b, c)| (path.to_owned(), a, b, c));
        assert_eq!(told(&phases["cri.run"]), expected);
        assert!(phases["cri.run"].iter().all(|phase| phase.count == 2));
    }

    #[test]
    fn work_nobody_waits_for_is_kept_apart() {
        let phases = phases([
            span("discard", 5.0, 3.0),
            span("container/exited/store", 7.0, 0.5),
            span("cri.stop", 6.0, 3.0),
            span("container/exited/release", 9.5, 0.5),
            span("container/exited", 7.0, 4.0),
            span("container", 0.0, 900.0),
        ]);
        let names = |verb: &str| -> Vec<_> {
            phases[verb].iter().map(|phase| phase.path.join("/")).collect()
        };
        assert_eq!(names(""), ["container/exited", "container/exited/release", "discard"]);
        assert_eq!(names("cri.stop"), ["cri.stop", "cri.stop/exited", "cri.stop/exited/store"]);
        // Until 9 it is part of the verb, and until 11 it goes on by itself.
        assert_eq!((phases["cri.stop"][1].takes.p50, phases[""][0].takes.p50), (2.0, 2.0));
    }
}
