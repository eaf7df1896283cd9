//! What clients notice of a move.

use std::time::Duration;

use outpost_tests::measure::{connect, runtime};
use tokio::time::{Instant, sleep};

use crate::{
    clients::{Clients, Manner, failures, longest_gap, longest_ms, median_ms, shown},
    nodes::Nodes,
    report::{Cell, Report, hundredths, tenths, whole},
};

const MOVES: usize = 50;
const CLIENTS: usize = 16;
/// After a move, for what comes late to be seen; and the pause between moves.
const AFTER: Duration = Duration::from_millis(250);

pub(crate) fn run(report: &mut Report) {
    report.part("move", "a module moves while it is called");
    runtime(2).block_on(async {
        for (title, pause) in [
            ("clients that call without a pause, so that the machine is busy", Duration::ZERO),
            ("clients that pause for 2 ms between calls", Duration::from_millis(2)),
        ] {
            measure(title, pause, report).await;
        }
    });
}

async fn measure(title: &str, pause: Duration, report: &mut Report) {
    let nodes = Nodes::start(3, 3, &[]).await;
    let mut channels = Vec::new();
    for (_, node) in nodes.all() {
        channels.push(connect(node.ingress).await);
    }
    let first = nodes.node("node-1");
    let clients = Clients::start(&channels, Manner { clients: CLIENTS, pause, deadline: Duration::from_secs(10) });
    sleep(Duration::from_secs(1)).await;
    clients.take();
    let (mut took, mut moved, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    let mut calls = Vec::new();
    for number in 0..MOVES {
        let before = Instant::now();
        let time = first.move_to(&format!("node-{}", (number + 1) % 3 + 1)).await;
        took.push(time);
        sleep(AFTER).await;
        let (from, until) = (before, Instant::now());
        // As long a while without a move, for comparison.
        sleep(until - from).await;
        let end = Instant::now();
        moved.push((from, until));
        quiet.push((until, end));
        calls.append(&mut clients.take());
    }
    sleep(AFTER).await;
    calls.append(&mut clients.take());
    let gaps = |times: &[(Instant, Instant)]| -> Vec<Duration> {
        times.iter().map(|(from, to)| longest_gap(&calls, *from, *to)).collect()
    };
    let (moved, quiet) = (gaps(&moved), gaps(&quiet));
    let rows = [("a move", &moved), ("no move, as long", &quiet)].map(|(name, gaps)| {
        let ratio = median_ms(gaps) / median_ms(&quiet);
        vec![Cell::from(name), tenths(median_ms(gaps)), tenths(longest_ms(gaps)), hundredths(ratio)]
    });
    let columns = ["in this time", "longest gap of any client, median ms", "the longest, ms", "ratio of medians"];
    report.table(&format!("{MOVES} moves, {CLIENTS} {title}"), &columns, rows.to_vec());
    let failed = failures(&calls);
    let rows = vec![vec![
        whole(calls.len() as f64),
        Cell::from(shown(&failed)),
        tenths(median_ms(&took)),
        tenths(longest_ms(&took)),
    ]];
    let columns = ["calls", "failed", "request to serving there, median ms", "the longest, ms"];
    report.table("The same moves", &columns, rows);
}
