//! Values of one pod or container, as they are collected.

use berth_api::v1;
use berth_model::container::Timestamp;

use super::names::{BASE, Metric};

/// Values of one pod or container.
#[derive(Debug)]
pub(super) struct Values<'a> {
    /// Values of the labels that all have.
    base: [&'a str; BASE.len()],
    /// When that was measured which is added next.
    pub(super) at: Timestamp,
    /// What was added.
    pub(super) told: Vec<v1::Metric>,
}

impl<'a> Values<'a> {
    pub(super) fn new(base: [&'a str; BASE.len()]) -> Self {
        Self { base, at: Timestamp::default(), told: Vec::with_capacity(64) }
    }

    pub(super) fn add<const LABELS: usize>(
        &mut self,
        metric: &Metric<LABELS>,
        labels: [&str; LABELS],
        value: u64,
    ) {
        self.told.push(v1::Metric {
            name: metric.name.to_owned(),
            timestamp: self.at.0,
            metric_type: metric.kind.into(),
            label_values: self.base.iter().chain(&labels).map(|it| (*it).to_owned()).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    /// What is not known is not told.
    pub(super) fn add_known<const LABELS: usize>(
        &mut self,
        metric: &Metric<LABELS>,
        labels: [&str; LABELS],
        value: Option<u64>,
    ) {
        if let Some(value) = value {
            self.add(metric, labels, value);
        }
    }
}

pub(super) fn seconds_since_1970(at: Timestamp) -> u64 {
    u64::try_from(at.0).unwrap_or(0) / 1_000_000_000
}
