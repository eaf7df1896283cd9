//! How long calls go on to a host that is gone, or that hangs.

use std::{collections::BTreeMap, time::Duration};

use outpost_tests::measure::{connect, median, quantile, runtime};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    Plan,
    clients::{Call, Clients, answers, failures, longest_ms, median_ms, shown},
    new::MANNER,
    nodes::Nodes,
    report::{Cell, Report, tenths, whole},
};

/// How long is waited for calls that fail.
const KILLED: Duration = Duration::from_secs(5);
const FROZEN: Duration = Duration::from_secs(20);

pub(crate) fn run(plan: &Plan, report: &mut Report) {
    report.part("crash", "one of three hosts of a module is killed, or stands still, under load");
    runtime(2).block_on(measure(plan, report));
}

/// What followed one crash.
#[derive(Debug)]
struct Aftermath {
    failed: BTreeMap<String, usize>,
    /// After the crash.
    last_failed_sent: Duration,
    last_failed: Duration,
    calls: usize,
}

async fn measure(plan: &Plan, report: &mut Report) {
    let mut nodes = Nodes::start(3, 0, &["cluster.prefer_local=false"]).await;
    nodes.host_everywhere().await;
    let clients = Clients::start(&[connect(nodes.node("node-1").ingress).await], MANNER);
    let (mut killed, mut frozen) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        is_called(&clients, nodes.node("node-3").number()).await;
        let victim = nodes.take("node-3");
        let at = Instant::now();
        victim.signal(Signal::KILL);
        killed.push(aftermath(&clients, at, KILLED).await);
        drop(victim);
        nodes.add("node-3", &[]).await;
        nodes.all_host().await;

        is_called(&clients, nodes.node("node-3").number()).await;
        let victim = nodes.node("node-3");
        let at = Instant::now();
        victim.signal(Signal::STOP);
        frozen.push(aftermath(&clients, at, FROZEN).await);
        victim.signal(Signal::CONT);
        nodes.all_host().await;
    }
    let rows = [("kill -9", &killed), ("SIGSTOP", &frozen)].map(|(name, rounds)| {
        let times = |part: fn(&Aftermath) -> Duration| rounds.iter().map(part).collect::<Vec<_>>();
        let (sent, ended) = (times(|round| round.last_failed_sent), times(|round| round.last_failed));
        let failed = || rounds.iter().map(|round| round.failed.values().sum::<usize>() as f64);
        let mut kinds = BTreeMap::new();
        for (kind, count) in rounds.iter().flat_map(|round| &round.failed) {
            *kinds.entry(kind.clone()).or_default() += count;
        }
        vec![
            Cell::from(name),
            tenths(median_ms(&sent)),
            tenths(longest_ms(&sent)),
            tenths(median_ms(&ended)),
            whole(median(failed())),
            whole(quantile(failed(), 1.0)),
            whole(median(rounds.iter().map(|round| round.calls as f64))),
            Cell::from(shown(&kinds)),
        ]
    });
    let columns = [
        "crash",
        "last call that failed was sent, median ms after",
        "the latest, ms",
        "and failed, median ms after",
        "calls failed, median",
        "most",
        "of calls",
        "kinds, all rounds",
    ];
    report.table(
        &format!("{} rounds each, {} clients, deadlines of 1 s", plan.rounds, MANNER.clients),
        &columns,
        rows.to_vec(),
    );
    report.say("A call that was sent to a host which stands still hangs until its deadline.");
}

/// Waits until a process answers.
async fn is_called(clients: &Clients, number: i64) {
    let (found, seen) = clients.first(Duration::from_secs(30), |call| call.answer == Ok(number)).await;
    assert!(found.is_some(), "process {number} was not called; answers by process: {:?}", answers(&seen));
}

/// What became of the calls that ended within some time after a crash.
async fn aftermath(clients: &Clients, at: Instant, time: Duration) -> Aftermath {
    sleep(time).await;
    let calls: Vec<Call> = clients.take().into_iter().filter(|call| call.ended >= at).collect();
    let failed: Vec<&Call> = calls.iter().filter(|call| call.answer.is_err()).collect();
    let last = |moment: fn(&Call) -> Instant| {
        failed.iter().map(|call| moment(call).saturating_duration_since(at)).max().unwrap_or_default()
    };
    Aftermath {
        last_failed_sent: last(|call| call.sent),
        last_failed: last(|call| call.ended),
        failed: failures(failed.iter().copied()),
        calls: calls.len(),
    }
}
