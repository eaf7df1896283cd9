//! Writes metrics in OpenMetrics' text format: prometheus-client does, this says what.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use crate::call::counts::{BOUNDS_US, Durations};

/// Names and values. The names are ours, and so are the values, or else a name of the program's or of a node.
pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// What a metric is called, and what it says.
pub(super) struct About(pub(super) &'static str, pub(super) &'static str);

/// Of one answer. A metric without a value is left out.
pub(super) struct Page<'a>(DescriptorEncoder<'a>);

impl<'a> Page<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// What only grows. The name gets the suffix `_total`.
    pub(super) fn counter<'v, const N: usize>(
        &mut self,
        about: About,
        values: impl IntoIterator<Item = (Labels<'v, N>, u64)>,
    ) -> fmt::Result {
        self.family(&about, None, MetricType::Counter, values, |mut encoder, value| {
            encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    pub(super) fn gauge<'v, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        about: About,
        values: impl IntoIterator<Item = (Labels<'v, N>, V)>,
    ) -> fmt::Result {
        self.family(&about, None, MetricType::Gauge, values, |mut encoder, value| encoder.encode_gauge(&value))
    }

    /// The same, in seconds or bytes, which the name gets as its suffix.
    pub(super) fn gauge_in<'v, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        unit: Unit,
        about: About,
        values: impl IntoIterator<Item = (Labels<'v, N>, V)>,
    ) -> fmt::Result {
        self.family(&about, Some(&unit), MetricType::Gauge, values, |mut encoder, value| encoder.encode_gauge(&value))
    }

    /// What does not change, as labels. The name gets the suffix `_info`.
    pub(super) fn info<'v, const N: usize>(
        &mut self,
        about: About,
        values: impl IntoIterator<Item = Labels<'v, N>>,
    ) -> fmt::Result {
        let values = values.into_iter().map(|labels| ([], labels));
        self.family(&about, None, MetricType::Info, values, |mut encoder, labels| encoder.encode_info(&labels))
    }

    /// How long something takes, in seconds.
    pub(super) fn durations<'v, const N: usize>(
        &mut self,
        about: About,
        values: impl IntoIterator<Item = (Labels<'v, N>, &'v Durations)>,
    ) -> fmt::Result {
        let (unit, kind) = (Unit::Seconds, MetricType::Histogram);
        self.family(&about, Some(&unit), kind, values, |mut encoder, durations| {
            let (counts, sum) = durations.counts();
            let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts).collect();
            encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), counts.iter().sum(), &buckets, None)
        })
    }

    fn family<'v, const N: usize, V>(
        &mut self,
        About(name, help): &About,
        unit: Option<&Unit>,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels<'v, N>, V)>,
        encode: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        values.try_for_each(|(labels, value)| encode(family.encode_family(&labels)?, value))
    }
}
