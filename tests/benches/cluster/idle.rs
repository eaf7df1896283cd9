//! What nodes cost that have nothing to do.

use std::time::Duration;

use outpost_tests::measure::{quantile, runtime};
use tokio::time::{Instant, sleep};

use crate::{
    nodes::{Nodes, ready},
    report::{Cell, Report, hundredths, tenths, whole},
};

const NODES: usize = 10;
const VOTERS: usize = 3;
const TIME: Duration = Duration::from_secs(20);

pub(crate) fn run(report: &mut Report) {
    report.part("idle", "nodes that have nothing to do");
    runtime(1).block_on(measure(report));
}

async fn measure(report: &mut Report) {
    let nodes = Nodes::start(NODES, VOTERS, &[]).await;
    let first = nodes.node("node-1");
    let view =
        first.until("all nodes, and those that vote", |view| ready(view) == NODES && view.voters.len() == VOTERS).await;
    // What a start leaves to be done.
    sleep(Duration::from_secs(2)).await;
    let cpu = || nodes.all().map(|(_, node)| node.process.cpu()).collect::<Vec<_>>();
    let (before, began) = (cpu(), Instant::now());
    sleep(TIME).await;
    let (after, elapsed) = (cpu(), began.elapsed());
    let used = after.iter().zip(&before).map(|(after, before)| 100.0 * (*after - *before).div_duration_f64(elapsed));
    let costs: Vec<(String, f64, f64)> = nodes
        .all()
        .zip(used)
        .map(|((name, node), cpu)| {
            let role = view.nodes.iter().find(|seen| seen.name == name).map(|node| node.role.clone());
            (role.unwrap_or_default(), cpu, node.process.resident_kib() as f64 / 1024.0)
        })
        .collect();
    let rows = ["leader", "voter", "watcher"].into_iter().filter_map(|role| {
        let of: Vec<&(String, f64, f64)> = costs.iter().filter(|(of, ..)| of == role).collect();
        let cpu = |part| quantile(of.iter().map(|(_, cpu, _)| *cpu), part);
        let memory = |part| quantile(of.iter().map(|(.., memory)| *memory), part);
        (!of.is_empty()).then(|| {
            let mut row = vec![Cell::from(role), whole(of.len() as f64)];
            row.extend([0.0, 0.5, 1.0].map(|part| hundredths(cpu(part))));
            row.extend([0.0, 0.5, 1.0].map(|part| tenths(memory(part))));
            row
        })
    });
    let columns =
        ["role", "nodes", "CPU, % of a core, least", "median", "most", "resident MiB, least", "median MiB", "most MiB"];
    report.table(&format!("{NODES} processes, {} s", TIME.as_secs()), &columns, rows.collect());
}
