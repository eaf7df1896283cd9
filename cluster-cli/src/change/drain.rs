//! `drain`: a node gives away what can leave it.

use outpost_proto::admin::v1::{Changed, Cluster, DrainRequest};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Operation, by};
use crate::{
    admin::Admin,
    args::{DataOutput, DrainArgs},
    error::CliError,
    names,
    output::Output,
    text::count,
    wait::{Goal, Left, Outcome, Rest, Wait, rest},
};

pub(crate) async fn run(args: &DrainArgs, out: &mut Output) -> Result<(), CliError> {
    let mut operation = Operation::open(&args.change.node).await?;
    let name = &args.name;
    names::node(&operation.before, name)?;
    let request = DrainRequest { node: name.clone(), by: by(&args.change), why: args.reason.why.clone() };
    let changed = operation.admin.ask("the request to drain", operation.admin.client().drain(request)).await?;
    operation.catch_up(changed.index).await?;
    let Some(limit) = args.limit() else {
        return print(args, changed, &operation.before, out).await;
    };
    let wait = Wait {
        goal: Goal::Drained { node: name.clone() },
        index: changed.index,
        what: format!("the drain of {name}"),
        opening: (!changed.changed).then(|| format!("{name} is drained already, and what is left is waited for")),
        goes_on: format!("it goes on: `outpost drain {name}` waits again, and `outpost uncordon {name}` ends it"),
    };
    match operation.wait(&wait, Instant::now(), limit).await {
        Ok(Outcome::Done { cluster, .. }) => print(args, changed, &cluster, out).await,
        Ok(Outcome::Failed(why)) => Err(CliError::Failed(format!("{name} was not drained: {why}"))),
        Err(late @ CliError::WaitTimedOut { .. }) if args.change.output == DataOutput::Json => {
            let cluster = Admin::connect(&args.change.node).await?.cluster().await?;
            print(args, changed, &cluster, out).await?;
            Err(late)
        }
        Err(error) => Err(error),
    }
}

async fn print(args: &DrainArgs, changed: Changed, cluster: &Cluster, out: &mut Output) -> Result<(), CliError> {
    let rest = rest(cluster, &args.name);
    match args.change.output {
        DataOutput::Json => out.print_json(&object(&args.name, changed, &rest)).await,
        DataOutput::Table => out.print_told(&text(&args.name, &rest)).await,
    }
}

fn object(node: &str, changed: Changed, rest: &Rest) -> Value {
    let one = |left: &Left, fixed: bool| json!({"module": left.module, "standing": left.standing, "why": left.why, "fixed": fixed});
    let left = rest.leaving.iter().map(|left| one(left, false));
    let left: Vec<Value> = left.chain(rest.fixed.iter().map(|left| one(left, true))).collect();
    let mut value = json!(changed);
    value["node"] = json!(node);
    value["done"] = json!(rest.is_done());
    value["votes"] = json!(rest.vote.is_some());
    value["left"] = json!(left);
    value
}

fn text(node: &str, rest: &Rest) -> String {
    let mut text = match (rest.is_done(), rest.fixed.is_empty()) {
        (true, true) => format!("{node} is drained: it hosts nothing, and does not vote\n"),
        (true, false) => format!("{node} is drained, but for what can't leave it\n"),
        (false, _) => {
            let vote = if rest.vote.is_some() { " and its vote" } else { "" };
            format!("{node} is to give away {}{vote}\n", count(rest.leaving.len(), "module"))
        }
    };
    text.extend(rest.fixed.iter().map(|left| format!("  {} stays: {}\n", left.module, left.why)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(module: &str) -> Left {
        Left { module: module.to_owned(), standing: "serving".to_owned(), why: "its state can't travel".to_owned() }
    }

    #[test]
    fn a_drain_tells_what_is_left() {
        assert_eq!(text("node-1", &Rest::default()), "node-1 is drained: it hosts nothing, and does not vote\n");
        let fixed = Rest { fixed: vec![left("disk")], ..Rest::default() };
        assert_eq!(
            text("node-1", &fixed),
            "node-1 is drained, but for what can't leave it\n  disk stays: its state can't travel\n"
        );
        let begun = Rest { leaving: vec![left("cart")], vote: Some("it votes".to_owned()), ..Rest::default() };
        assert_eq!(text("node-1", &begun), "node-1 is to give away 1 module and its vote\n");
        let shown = object("node-1", Changed::default(), &fixed);
        assert_eq!((&shown["done"], &shown["left"][0]["fixed"]), (&json!(true), &json!(true)));
    }
}
