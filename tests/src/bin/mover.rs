//! Moves modules again and again, by the operator's API of a node:
//! `mover ADMIN_ADDRESS MOVES MODULE...`. Each goes from node to node; the longest move is printed.

#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use outpost_proto::admin::v1::Cluster;
use outpost_tests::processes::{move_module, owner, ready_nodes, seen};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let moved = match arguments.as_slice() {
        [admin, moves, modules @ ..] if !modules.is_empty() => run(admin, moves, modules).await,
        _ => Err("write: mover ADMIN_ADDRESS MOVES MODULE...".to_owned()),
    };
    match moved {
        Ok(longest) => {
            println!("{} moves, the longest took {longest:.1?}", arguments[1]);
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("mover: error: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(admin: &str, moves: &str, modules: &[String]) -> Result<Duration, String> {
    let admin: SocketAddr = admin.parse().map_err(|_| format!("`{admin}` is no address"))?;
    let moves: usize = moves.parse().map_err(|_| format!("`{moves}` is no number"))?;
    let mut longest = Duration::ZERO;
    for module in modules.iter().cycle().take(moves) {
        let target = next(admin, module).await?;
        let began = Instant::now();
        move_module(admin, module, &target, LIMIT).await?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

/// The node after the one that serves a module, in the order of their names, once there is one.
async fn next(admin: SocketAddr, module: &str) -> Result<String, String> {
    let could = |view: &Cluster| owner(view, module).is_some() && ready_nodes(view).len() > 1;
    let waited = seen(admin, LIMIT, could).await;
    let view = waited.map_err(|last| format!("{module} can't be moved; last seen: {last}"))?;
    let (owner, nodes) = (owner(&view, module).unwrap_or_default(), ready_nodes(&view));
    let next = nodes.iter().find(|node| **node > owner).or(nodes.first());
    Ok(next.map(ToString::to_string).unwrap_or_default())
}
