//! Changes of one rule of the placement: `scale`, `pin`, `unpin`.

use outpost_proto::admin::v1::{PinRequest, ScaleRequest, UnpinRequest};

use super::{Operation, Printed, by};
use crate::{
    args::{PinArgs, ScaleArgs, UnpinArgs},
    error::CliError,
    names,
    output::Output,
    wait::{Goal, Hosts, Target, Wait, goes_on},
};

pub(crate) async fn scale(args: &ScaleArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    names::module(&operation.before, &args.module)?;
    let request = ScaleRequest {
        module: args.module.clone(),
        replicas: args.count.0,
        check_index: args.check.check_index,
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let changed = operation.admin.ask("the request to scale", operation.admin.client().scale(request)).await?;
    let nodes = match args.count.0 {
        0 => "every node".to_owned(),
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    let (done, already) =
        (format!("{} runs on {nodes}", args.module), format!("{} runs on {nodes} already", args.module));
    let begun = format!("{} will run on {nodes}", args.module);
    let limit = args.wait.limit();
    let done = if limit.is_some() { done } else { begun };
    let wait = wait_for(&args.module, Hosts::Count(args.count.0), changed.index);
    let printed = Printed { output: args.change.output, done: &done, already: &already };
    operation.finish(changed, &wait, limit, printed, out).await
}

pub(crate) async fn pin(args: &PinArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    names::module(&operation.before, &args.module)?;
    names::node(&operation.before, &args.to)?;
    let request = PinRequest {
        module: args.module.clone(),
        node: args.to.clone(),
        reason: args.reason.clone(),
        ttl_seconds: args.ttl.map_or(0, |ttl| ttl.as_secs()),
        check_index: args.check.check_index,
        by: by(&args.change),
    };
    let changed = operation.admin.ask("the request to pin", operation.admin.client().pin(request)).await?;
    let until = args.ttl.map(|ttl| format!(" for {}", humantime::format_duration(ttl))).unwrap_or_default();
    let done = format!("{} is pinned to {}{until}", args.module, args.to);
    let already = format!("{} is pinned to {} already", args.module, args.to);
    let wait = wait_for(&args.module, Hosts::Nodes(vec![args.to.clone()]), changed.index);
    let printed = Printed { output: args.change.output, done: &done, already: &already };
    operation.finish(changed, &wait, args.wait.limit(), printed, out).await
}

pub(crate) async fn unpin(args: &UnpinArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    names::module(&operation.before, &args.module)?;
    let request = UnpinRequest {
        module: args.module.clone(),
        check_index: args.check.check_index,
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let changed = operation.admin.ask("the request to unpin", operation.admin.client().unpin(request)).await?;
    let done = format!("{} is not pinned any more; it stays where it is until something else moves it", args.module);
    let already = format!("{} is not pinned", args.module);
    Printed { output: args.change.output, done: &done, already: &already }.print(changed, "", out).await
}

fn wait_for(module: &str, hosts: Hosts, index: u64) -> Wait {
    Wait {
        goal: Goal::Settled { targets: vec![Target { module: module.to_owned(), hosts }], firm: true },
        index,
        what: format!("the new placement of {module}"),
        opening: None,
        goes_on: goes_on(&format!("outpost why {module}")),
    }
}
