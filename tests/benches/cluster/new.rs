//! How soon a node that joins has its share of the calls.

use std::time::Duration;

use outpost_tests::measure::{connect, runtime};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::{
    Plan,
    clients::{Clients, Manner, answers, failures, longest_ms, median_ms, shown},
    nodes::Nodes,
    report::{Cell, Report, hundredths, tenths},
};

pub(crate) const MANNER: Manner =
    Manner { clients: 16, pause: Duration::from_millis(2), deadline: Duration::from_secs(1) };

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("new", "a fourth node starts under load");
    runtime(2).block_on(measure(plan, report));
}

async fn measure(plan: &Plan, report: &mut Report) {
    let nodes = Nodes::start(3, 0, &["cluster.prefer_local=false"]).await;
    nodes.host_everywhere().await;
    let clients = Clients::start(&[connect(nodes.node("node-1").ingress).await], MANNER);
    let (mut served, mut called) = (Vec::new(), Vec::new());
    let mut calls = Vec::new();
    for _ in 0..plan.rounds {
        let began = Instant::now();
        let node = nodes.begin("node-4", &[]).await;
        served.push(node.took);
        let number = node.number();
        let (first, mut seen) = clients.first(Duration::from_secs(30), |call| call.answer == Ok(number)).await;
        let first = first.unwrap_or_else(|| panic!("node-4 was not called; answers by process: {:?}", answers(&seen)));
        called.push(first.ended - began);
        calls.append(&mut seen);
        node.signal(Signal::TERM);
        let status = node.ended().await;
        assert!(status.success(), "node-4: {status}");
        nodes.all_host().await;
    }
    calls.append(&mut clients.take());
    let rows =
        [("it says that it serves", &served), ("the first call that it answers", &called)].map(|(name, times)| {
            let ratio = median_ms(times) / median_ms(&served);
            vec![Cell::from(name), tenths(median_ms(times)), tenths(longest_ms(times)), hundredths(ratio)]
        });
    report.table(
        &format!("From the start of the process, {} times", plan.rounds),
        &["until", "median ms", "the longest, ms", "ratio"],
        rows.to_vec(),
    );
    report.say(&format!(
        "{} calls meanwhile, through another node; failed, while node-4 came and was stopped again: {}.",
        calls.len(),
        shown(&failures(&calls))
    ));
}
