//! What is done to a node: `cordon`, `uncordon`, `forget`.

use outpost_proto::admin::v1::{CordonRequest, ForgetRequest};

use super::{Operation, Printed, by};
use crate::{
    args::{CordonArgs, ForgetArgs},
    error::CliError,
    names,
    output::Output,
    text::count,
    wait::{Goal, Wait, goes_on},
};

pub(crate) async fn cordon(args: &CordonArgs, cordoned: bool, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    let name = &args.name;
    let node = names::node(&operation.before, name)?;
    let (modules, drained) = (count(node.modules.len(), "module"), node.drained);
    let request = CordonRequest { node: name.clone(), cordoned, by: by(&args.change) };
    let changed = operation.admin.ask("the request to cordon", operation.admin.client().cordon(request)).await?;
    let (done, already) = match cordoned {
        true => (
            format!("{name} is cordoned: it gets nothing new, and keeps its {modules}"),
            format!("{name} is cordoned already"),
        ),
        false if drained => {
            (format!("{name} is not drained any more, and may get modules again"), format!("{name} is not drained"))
        }
        false => (format!("{name} is not cordoned any more"), format!("{name} is not cordoned")),
    };
    Printed { output: args.change.output, done: &done, already: &already }.print(changed, "", out).await
}

pub(crate) async fn forget(args: &ForgetArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    let name = &args.name;
    names::node(&operation.before, name)?;
    let request = ForgetRequest { node: name.clone(), by: by(&args.change) };
    let changed = operation.admin.ask("the request to forget", operation.admin.client().forget(request)).await?;
    let wait = Wait {
        goal: Goal::Forgotten { node: name.clone() },
        index: changed.index,
        what: format!("that {name} is forgotten"),
        opening: None,
        goes_on: goes_on("outpost nodes"),
    };
    let (done, already) = (format!("{name} is forgotten"), format!("{name} is forgotten already"));
    let printed = Printed { output: args.change.output, done: &done, already: &already };
    operation.finish(changed, &wait, args.wait.limit(), printed, out).await
}
