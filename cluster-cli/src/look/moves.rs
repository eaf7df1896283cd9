//! `moves`: those that are under way.

use std::io::{self, IsTerminal as _};

use futures_util::StreamExt as _;
use outpost_proto::admin::v1::{Cluster, Movement};
use serde_json::{Value, json};

use crate::{
    admin::Admin,
    args::{DataOutput, MovesArgs},
    error::CliError,
    output::{self, Output},
    text::{bytes, dash, table, time},
    wait::{phase, views},
};

pub(crate) async fn run(args: &MovesArgs, out: &mut Output) -> Result<(), CliError> {
    let admin = Admin::connect(&args.node).await?;
    let (first, rest) = admin.watch().await?;
    if !args.watch {
        return match args.output {
            DataOutput::Json => out.print_json(&json(&first)).await,
            DataOutput::Table => out.print_told(&text(&first)).await,
        };
    }
    let watched = async {
        let mut shown = show(args.output, &first);
        out.print(&shown).await?;
        let mut later = std::pin::pin!(views(admin.target().clone(), rest));
        while let Some(cluster) = later.next().await {
            let now = show(args.output, &cluster);
            if now != shown {
                out.print(&now).await?;
                shown = now;
            }
        }
        Ok(())
    };
    tokio::select! {
        watched = watched => watched,
        () = output::closed() => Err(CliError::StdoutClosed),
    }
}

/// One of many: JSON on one line, and a table in the place of the last where there is a screen.
fn show(output: DataOutput, cluster: &Cluster) -> String {
    match output {
        DataOutput::Json => json(cluster).to_string(),
        DataOutput::Table => {
            let text = crate::status::printable(&text(cluster));
            if io::stdout().is_terminal() { format!("\u{1b}[H\u{1b}[J{text}") } else { format!("{text}\n") }
        }
    }
}

fn moves(cluster: &Cluster) -> impl Iterator<Item = (&str, &Movement)> {
    cluster.modules.iter().filter_map(|module| Some((module.name.as_str(), module.movement.as_ref()?)))
}

fn json(cluster: &Cluster) -> Value {
    let moves = moves(cluster).map(|(module, movement)| {
        let mut value = json!(movement);
        value["module"] = json!(module);
        value
    });
    Value::Array(moves.collect())
}

fn text(cluster: &Cluster) -> String {
    let rows = moves(cluster).map(|(module, it)| {
        [
            module.to_owned(),
            it.id.to_string(),
            it.from.clone(),
            it.to.clone(),
            it.phase.clone(),
            since(it),
            if it.bytes == 0 { "-".to_owned() } else { bytes(it.bytes) },
            dash(&it.by),
        ]
    });
    let rows: Vec<[String; 8]> = rows.collect();
    match rows.is_empty() {
        true => "no move is under way\n".to_owned(),
        false => table(["MODULE", "ID", "FROM", "TO", "PHASE", "SINCE", "BYTES", "BY"], rows),
    }
}

/// Once a move is decided, the record does not tell any more when it began.
fn since(movement: &Movement) -> String {
    if movement.begun_ms == 0 { "-".to_owned() } else { time(movement.begun_ms) }
}

/// `101 from node-1 to node-2, since 2026-01-01T00:00:00Z (by ada@desk): copying 12.3 MiB`
pub(crate) fn line(movement: &Movement, epoch: u64) -> String {
    let since = if movement.begun_ms == 0 { String::new() } else { format!(", since {}", since(movement)) };
    let by = if movement.by.is_empty() { String::new() } else { format!(" (by {})", movement.by) };
    format!("{} from {} to {}{since}{by}: {}", movement.id, movement.from, movement.to, phase(movement, epoch))
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::ClusterModule;

    use super::*;

    #[test]
    fn a_move_is_a_line() {
        let movement = Movement {
            id: 101,
            from: "node-1".to_owned(),
            to: "node-2".to_owned(),
            phase: "copying".to_owned(),
            begun_ms: 1_700_000_000_000,
            bytes: 1536,
            by: "ada@desk".to_owned(),
        };
        let decided = Movement {
            id: 90,
            from: "node-3".to_owned(),
            to: "node-1".to_owned(),
            phase: "activating".to_owned(),
            ..Movement::default()
        };
        let module = |name: &str, movement| ClusterModule { name: name.to_owned(), movement, ..Default::default() };
        let cluster = Cluster {
            modules: vec![
                module("cart", Some(movement.clone())),
                module("catalog", None),
                module("orders", Some(decided.clone())),
            ],
            ..Cluster::default()
        };
        let shown = text(&cluster);
        let lines: Vec<&str> = shown.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                " cart    101  node-1  node-2  copying     2023-11-14T22:13:20Z  1.5 KiB  ada@desk",
                " orders  90   node-3  node-1  activating  -                     -        -",
            ]
        );
        assert_eq!(text(&Cluster::default()), "no move is under way\n");
        assert_eq!(json(&cluster)[0]["module"], "cart");
        assert_eq!(json(&Cluster::default()).to_string(), "[]");
        assert_eq!(
            line(&movement, 2),
            "101 from node-1 to node-2, since 2023-11-14T22:13:20Z (by ada@desk): copying 1.5 KiB"
        );
        assert_eq!(line(&decided, 3), "90 from node-3 to node-1: activating on node-1 (epoch 3)");
    }
}
