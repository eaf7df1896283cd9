//! What Prometheus sees of a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use nom_openmetrics::{MetricDescriptor, MetricType, parser::openmetrics};
use outpost::Node;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::wait;

/// One answer to `GET /metrics`, parsed.
#[derive(Debug)]
pub struct Scrape {
    samples: Vec<Sample>,
    /// The metrics, as queries call them, and what each is.
    pub families: BTreeMap<String, &'static str>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// The metrics of a node.
///
/// # Panics
/// When there are none, or they are not in OpenMetrics' format.
pub async fn scrape(node: &Node) -> Scrape {
    let at = node.metrics_address().expect("`metrics.listen` is set");
    let (head, page) = get(at, "/metrics", "application/openmetrics-text;version=1.0.0").await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}\n{page}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    Scrape::parse(&page)
}

/// What is answered by plain HTTP: the head, and the text.
///
/// # Errors
/// When nobody does.
pub async fn get(at: SocketAddr, path: &str, accept: &str) -> std::io::Result<(String, String)> {
    let asking = async {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: node\r\naccept: {accept}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, text) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok((head.to_owned(), text.to_owned()))
    };
    timeout(Duration::from_secs(10), asking).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Waits until a metric of a node has a value.
///
/// # Panics
/// When it has another one for too long.
pub async fn until(node: &Node, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) {
    wait::until(name, async || match scrape(node).await.get(name, labels) {
        Some(value) if wanted(value) => Ok(()),
        other => Err(format!("{labels:?}: {other:?}")),
    })
    .await;
}

impl Scrape {
    fn parse(page: &str) -> Self {
        let (_, families) = openmetrics(page).unwrap_or_else(|error| panic!("{error}\n{page}"));
        let (mut samples, mut names) = (Vec::new(), BTreeMap::new());
        for family in families {
            let described = |is: fn(&MetricDescriptor<'_>) -> bool| family.descriptors.iter().find(|about| is(about));
            let of_type = described(|about| matches!(about, MetricDescriptor::Type { .. }));
            let Some(MetricDescriptor::Type { metric: name, r#type: kind }) = of_type else {
                panic!("no type: {family:?}")
            };
            let (suffix, kind) = match kind {
                MetricType::Counter => ("_total", "counter"),
                MetricType::Info => ("_info", "info"),
                MetricType::Gauge => ("", "gauge"),
                // The parser knows no word for it.
                MetricType::Histogram | MetricType::Unknown("histogram") => ("", "histogram"),
                other => panic!("{name} is a {other:?}"),
            };
            assert!(
                described(|about| matches!(about, MetricDescriptor::Help { help, .. } if help.ends_with('.')))
                    .is_some(),
                "{name} has no help, or no sentence"
            );
            assert!(name.starts_with("outpost_"), "{name} is not ours");
            assert_eq!(names.insert(format!("{name}{suffix}"), kind), None, "{name} is there twice");
            for sample in &family.samples {
                assert!(sample.name().starts_with(name), "{} in {name}", sample.name());
                let labels = sample.labels().iter().map(|label| (label.name.to_owned(), label.value.clone()));
                let sample =
                    Sample { name: sample.name().to_owned(), labels: labels.collect(), value: sample.number() };
                samples.push(sample);
            }
        }
        Self { samples, families: names }
    }

    /// The sum of the samples of this name that have these labels; none where there is none.
    #[must_use]
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample| {
            let known = |(key, value): &(&str, &str)| sample.labels.iter().any(|(k, v)| k == key && v == value);
            sample.name == name && labels.iter().all(known)
        };
        let found: Vec<f64> = self.samples.iter().filter(has).map(|sample| sample.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// The same; 0 where there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or(0.0)
    }

    /// What a label says, on all samples.
    #[must_use]
    pub fn labels(&self, label: &str) -> BTreeSet<&str> {
        let labels = self.samples.iter().flat_map(|sample| &sample.labels);
        labels.filter(|(key, _)| key == label).map(|(_, value)| value.as_str()).collect()
    }
}
