//! `move`: begins a move, follows one that is under way, or gives it up.
//!
//! ```text
//! --to ────▶ Move ──┐
//! --wait ───────────┼──▶ Course ─▶ wait ─▶ events ─▶ Ending ─▶ report
//! --id ─────────────┘    which move        what became of it
//! --abort ─▶ AbortMove
//! ```
//!
//! A move needs no tool to go on. Who has lost sight of it asks again: by the same command, or by the move's id.

mod report;

use outpost_proto::admin::v1::{AbortMoveRequest, Changed, ClusterModule, ModuleHost, MoveRequest, Movement};
use tokio::time::Instant;

use self::report::{Course, Ended};
use super::{Operation, by};
use crate::{
    admin::Admin,
    args::MoveArgs,
    error::CliError,
    look::moves,
    names,
    output::Output,
    text::time,
    wait::{Ending, Goal, Outcome, Wait, ending, faults, host_names},
};

pub(crate) async fn run(args: &MoveArgs, out: &mut Output) -> Result<(), CliError> {
    let operation = Operation::open(&args.change.node).await?;
    let module = names::module(&operation.before, &args.module)?.clone();
    match &args.to {
        Some(to) => begin(args, to, operation, module, out).await,
        None if args.abort => abort(args, operation, &module, out).await,
        None => attach(args, operation, module, out).await,
    }
}

async fn begin(
    args: &MoveArgs,
    to: &str,
    mut operation: Operation,
    before: ClusterModule,
    out: &mut Output,
) -> Result<(), CliError> {
    names::node(&operation.before, to)?;
    let began = Instant::now();
    let request = MoveRequest {
        module: before.name.clone(),
        node: to.to_owned(),
        check_index: args.check_index,
        lose_state: args.lose_state,
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let asked = operation.admin.ask("the request to move", operation.admin.client().r#move(request)).await;
    let changed = asked.map_err(|error| with_remedy(error, &before))?;
    if changed.changed {
        let opening = format!("begun, as move {}", changed.index);
        let course = Course::new(&before, &host_names(&before), to, changed).begun_at(began);
        return follow(args, operation, course, opening, out).await;
    }
    // It is there, or on its way there already; who has begun that may be somebody else, and after the first look.
    operation.catch_up(changed.index).await?;
    let now = names::module(&operation.before, &args.module)?.clone();
    match &now.movement {
        Some(movement) if movement.to == to => follow_movement(args, operation, &now, movement, changed, out).await,
        _ if now.hosts.iter().any(|host| host.node == to) => {
            let course = Course::new(&now, "", to, changed);
            course.is_there(args.change.output, now.epoch, out).await
        }
        // It has ended since.
        _ => {
            let course = Course::new(&now, &host_names(&before), to, changed);
            follow(args, operation, course, format!("move {} was under way", changed.index), out).await
        }
    }
}

/// What is in the way of a move may be another one.
fn with_remedy(error: CliError, module: &ClusterModule) -> CliError {
    match (&error, &module.movement) {
        (CliError::Answered(answer), Some(movement)) => CliError::Failed(format!(
            "{answer}\n  move {}\n  `outpost move {module} --wait` follows it, and `outpost move {module} --abort` gives \
             it up",
            moves::line(movement, module.epoch),
            module = module.name
        )),
        _ => error,
    }
}

/// Follows a move that somebody has begun.
async fn attach(
    args: &MoveArgs,
    operation: Operation,
    module: ClusterModule,
    out: &mut Output,
) -> Result<(), CliError> {
    let name = &module.name;
    let placement = operation.before.placement;
    let found = |id| Changed { index: id, placement, changed: false };
    match (&module.movement, args.id) {
        (Some(movement), wanted) if wanted.is_none_or(|id| id == movement.id) => {
            follow_movement(args, operation, &module, movement, found(movement.id), out).await
        }
        (Some(movement), Some(id)) => Err(CliError::Failed(format!(
            "move {id} of {name} is not under way, but another one: {}; `outpost move {name} --wait` follows that",
            moves::line(movement, module.epoch)
        ))),
        (None, Some(id)) => {
            let events = operation.admin.events_of(name, id).await?;
            let begun = events.iter().find(|event| event.index == id && event.kind == "move-begun");
            let Some(begun) = begun else {
                return Err(CliError::Failed(format!(
                    "no move {id} of {name} is under way, and no event is kept that tells of one; {name} is on {}, and \
                     `outpost moves` lists what is under way",
                    host_names(&module)
                )));
            };
            let course = Course::new(&module, "", &begun.node, found(id));
            follow(args, operation, course, format!("move {id}: {}", begun.text), out).await
        }
        (None, None) | (Some(_), None) => Err(CliError::Failed(format!(
            "no move of {name} is under way: it is on {} (epoch {}); begin one with `outpost move {name} --to NODE`",
            host_names(&module),
            module.epoch
        ))),
    }
}

async fn follow_movement(
    args: &MoveArgs,
    operation: Operation,
    module: &ClusterModule,
    movement: &Movement,
    changed: Changed,
    out: &mut Output,
) -> Result<(), CliError> {
    let changed = Changed { index: movement.id, ..changed };
    let course = Course::new(module, &movement.from, &movement.to, changed);
    let since = if movement.begun_ms == 0 { String::new() } else { format!(" since {}", time(movement.begun_ms)) };
    let by = if movement.by.is_empty() { String::new() } else { format!(" (by {})", movement.by) };
    follow(args, operation, course, format!("move {} is under way{since}{by}", movement.id), out).await
}

/// Follows a move to its end, if that is wanted, and says how it came out.
async fn follow(
    args: &MoveArgs,
    operation: Operation,
    course: Course,
    opening: String,
    out: &mut Output,
) -> Result<(), CliError> {
    let output = args.change.output;
    let Some(limit) = args.wait.limit() else { return course.is_under_way(output, out).await };
    let (module, to, id) = (course.module.clone(), course.to.clone(), course.id());
    let again = format!("`outpost move {module} --id {id}` follows it again");
    let wait = Wait {
        what: format!("the move of {module} to {to}"),
        goal: Goal::Moved { module: module.clone(), to: to.clone(), id },
        index: id,
        opening: Some(opening),
        goes_on: format!("it goes on: {again}, and `outpost move {module} --abort` gives it up"),
    };
    let outcome = operation.wait(&wait, course.began().unwrap_or_else(Instant::now), limit).await?;
    // Before anything else is asked.
    let elapsed = course.began().map(|began| began.elapsed());
    let ended = match Admin::connect(&args.change.node).await {
        Ok(admin) => admin.events_of(&module, id).await.map(|events| ending(&events, &module, id)),
        Err(error) => Err(error),
    };
    // How it stands is known without the events; they say more.
    let ended = ended.unwrap_or(Ending::Unknown);
    match (outcome, ended) {
        (_, Ending::Otherwise { outcome, reason }) => course.has_failed(output, outcome, &reason, out).await,
        (Outcome::Failed(why), _) => course.has_failed(output, "failed", &why, out).await,
        (Outcome::Done { cluster, movement, .. }, ending) => {
            let now = names::module(&cluster, &module)?;
            let moved = match ending {
                Ending::Moved(moved) => Some(moved),
                Ending::Unknown if serves(now, &to) => None,
                _ => {
                    let why =
                        format!("it is on {}, and no event is kept that tells why{}", host_names(now), faults(now));
                    return course.has_failed(output, "unknown", &why, out).await;
                }
            };
            course.has_moved(output, Ended { epoch: now.epoch, elapsed, movement, moved }, out).await
        }
    }
}

fn serves(module: &ClusterModule, node: &str) -> bool {
    module.hosts.iter().any(|ModuleHost { node: host, state, .. }| host == node && state == "serving")
}

async fn abort(
    args: &MoveArgs,
    operation: Operation,
    module: &ClusterModule,
    out: &mut Output,
) -> Result<(), CliError> {
    let name = &module.name;
    let wanted = |movement: &&Movement| args.id.is_none_or(|id| id == movement.id);
    if let Some(movement) = module.movement.as_ref().filter(wanted)
        && movement.phase == "activating"
    {
        return Err(CliError::Failed(format!(
            "move {} of {name} can't be given up any more: {} is the owner since epoch {}; follow it with `outpost move \
             {name} --wait`, then move it back with `outpost move {name} --to {}`",
            movement.id, movement.to, module.epoch, movement.from
        )));
    }
    let request = AbortMoveRequest {
        module: name.clone(),
        move_id: args.id.unwrap_or_default(),
        by: by(&args.change),
        why: args.reason.why.clone(),
    };
    let mut client = operation.admin.client();
    let asked = operation.admin.ask("the request to give the move up", client.abort_move(request)).await;
    let changed = asked.map_err(|error| match error {
        CliError::Answered(answer) => {
            CliError::Failed(format!("{answer}\n  `outpost moves` lists what is under way; nothing was given up"))
        }
        other => other,
    })?;
    report::given_up(args.change.output, module, changed, out).await
}
