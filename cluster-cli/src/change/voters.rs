//! `voters`: who decides on placement, and how many do.

use outpost_proto::admin::v1::{Cluster, SetVotersRequest};
use serde_json::json;
use tokio::time::Instant;

use super::{Operation, asker};
use crate::{
    admin::Admin,
    args::{DataOutput, VotersArgs, VotersVerb},
    error::CliError,
    output::Output,
    text::{count, table},
    wait::{Goal, Outcome, Wait, goes_on},
};

pub(crate) async fn run(args: &VotersArgs, out: &mut Output) -> Result<(), CliError> {
    let cluster = match &args.verb {
        None => Admin::connect(&args.node).await?.cluster().await?,
        Some(VotersVerb::Set { count, by, wait }) => {
            let operation = Operation::open(&args.node).await?;
            let request = SetVotersRequest { count: count.0, by: asker(by.as_deref()) };
            let mut client = operation.admin.client();
            let asked = client.set_voters(request);
            let changed = operation.admin.ask("the request to set the voters", asked).await?;
            let Some(limit) = wait.limit() else { return Ok(()) };
            let wait = Wait {
                goal: Goal::Voters { count: count.0 },
                index: changed.index,
                what: "the change of voters".to_owned(),
                opening: None,
                goes_on: goes_on("outpost voters"),
            };
            match operation.wait(&wait, Instant::now(), limit).await? {
                Outcome::Done { cluster, .. } => *cluster,
                Outcome::Failed(why) => return Err(CliError::Failed(why)),
            }
        }
    };
    match args.output {
        DataOutput::Json => out.print_json(&json!({"set": cluster.voters_set, "voters": cluster.voters})).await,
        DataOutput::Table => out.print(&text(&cluster)).await,
    }
}

fn text(cluster: &Cluster) -> String {
    let rows = cluster.voters.iter().map(|voter| [voter.node.clone(), voter.state.clone(), voter.raft_id.to_string()]);
    let set = match cluster.voters_set {
        0 => "how many vote is left to the cluster".to_owned(),
        set => format!("set to {}", count(usize::try_from(set).unwrap_or(usize::MAX), "voter")),
    };
    let note = note(cluster).map(|note| format!("note: {note}\n")).unwrap_or_default();
    format!("{}\n{set}\n{note}", table(["NODE", "STATE", "ID"], rows))
}

/// What few voters mean.
pub(crate) fn note(cluster: &Cluster) -> Option<String> {
    let end = "3 nodes with a data_dir get 3 voters";
    match cluster.voters.len() {
        0 => Some("the node knows of no voters; it has not joined a cluster".to_owned()),
        1 => Some(format!("one voter: the placement log is on one disk only; {end}")),
        2 => Some(format!("two voters: without either, nothing can be changed; {end}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::Voter;

    use super::*;

    #[test]
    fn voters_are_listed_with_what_they_mean() {
        let voter = |node: &str, state: &str| Voter { node: node.to_owned(), raft_id: 1, state: state.to_owned() };
        let one = Cluster { voters: vec![voter("node-1", "leader")], ..Cluster::default() };
        let shown = text(&one);
        assert!(shown.contains(" node-1  leader  1\n"), "{shown}");
        assert!(shown.contains("left to the cluster\nnote: one voter: "), "{shown}");
        let three = Cluster { voters: vec![voter("a", "leader"); 3], voters_set: 3, ..Cluster::default() };
        assert!(text(&three).ends_with("\nset to 3 voters\n"));
    }
}
