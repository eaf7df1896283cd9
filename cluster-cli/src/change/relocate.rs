//! `move`.

use outpost_proto::admin::v1::{Changed, ClusterModule, EventsRequest, MoveRequest};
use serde_json::json;
use tokio::time::Instant;

use super::{Operation, by};
use crate::{
    admin::Admin,
    args::{DataOutput, MoveArgs},
    error::CliError,
    names,
    output::Output,
    status::printable,
    text::elapsed,
    wait::{Goal, Outcome, Wait, host_names},
};

pub(crate) async fn run(args: &MoveArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    let before = names::module(&operation.before, &args.module)?.clone();
    names::node(&operation.before, &args.to)?;
    let began = Instant::now();
    let request = MoveRequest {
        module: args.module.clone(),
        node: args.to.clone(),
        check_index: args.check_index,
        lose_state: args.lose_state,
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let changed = operation.admin.ask("the request to move", operation.admin.client().r#move(request)).await?;
    let (name, to) = (&args.module, &args.to);
    if !changed.changed && before.moving_to.is_empty() {
        let already = format!("{name} is on {to} already (epoch {})", before.epoch);
        return print(args, changed, before.epoch, &already, out).await;
    }
    let from = host_names(&before);
    let Some(limit) = args.wait.limit() else {
        return print(args, changed, before.epoch, &format!("{name} is on its way from {from} to {to}"), out).await;
    };
    let wait = Wait {
        goal: Goal::Moved { module: name.clone(), to: to.clone(), epoch: before.epoch },
        index: changed.index,
        what: format!("the move of {name} to {to}"),
        look: format!("outpost why {name}"),
    };
    let node = args.change.node.node.clone();
    match operation.wait(&wait, began, limit).await? {
        Outcome::Done { cluster, .. } => {
            let epoch = names::module(&cluster, name)?.epoch;
            let took = elapsed(began.elapsed());
            print(args, changed, epoch, &format!("{name} moved from {from} to {to} in {took} (epoch {epoch})"), out)
                .await
        }
        Outcome::Failed(why) => {
            // What happened says more than how it stands; but the answer is known without it.
            let last = match Admin::connect(&node).await {
                Ok(admin) => last_event(&admin, &before, changed.index).await.unwrap_or_default(),
                Err(_) => None,
            };
            let event = last.map(|text| format!("\n  last event: {}", printable(&text))).unwrap_or_default();
            Err(CliError::Failed(format!("{name} was not moved to {to}: {why}{event}")))
        }
    }
}

async fn last_event(admin: &Admin, module: &ClusterModule, after: u64) -> Result<Option<String>, CliError> {
    let request = EventsRequest { after, follow: false };
    let mut events = admin.ask("the question what happened", admin.client().events(request)).await?;
    let mut last = None;
    while let Some(event) = events.message().await.map_err(|status| admin.error(&status))? {
        if event.module == module.name {
            last = Some(event.text);
        }
    }
    Ok(last)
}

async fn print(args: &MoveArgs, changed: Changed, epoch: u64, text: &str, out: &mut Output) -> Result<(), CliError> {
    match args.change.output {
        DataOutput::Table => out.print(text).await,
        DataOutput::Json => {
            let mut value = json!(changed);
            value["epoch"] = json!(epoch);
            out.print_json(&value).await
        }
    }
}
