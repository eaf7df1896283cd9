//! What is said of a move: a line, or an object with the same facts.

use std::time::Duration;

use outpost_proto::admin::v1::{Changed, ClusterModule, Movement};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    args::DataOutput,
    error::CliError,
    output::Output,
    status::printable,
    text::{bytes, elapsed},
    wait::{Moved, host_names},
};

/// Which move it is about.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) module: String,
    /// Empty where that is not known.
    from: String,
    pub(super) to: String,
    /// When it was asked for, if this command did.
    began: Option<Instant>,
    epoch: u64,
    changed: Changed,
}

/// How it came out.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) epoch: u64,
    pub(super) elapsed: Option<Duration>,
    /// As it was seen last while it was under way.
    pub(super) movement: Option<Movement>,
    /// What the events tell of it.
    pub(super) moved: Option<Moved>,
}

impl Course {
    pub(super) fn new(module: &ClusterModule, from: &str, to: &str, changed: Changed) -> Self {
        let (module, epoch) = (module.name.clone(), module.epoch);
        Self { module, from: from.to_owned(), to: to.to_owned(), began: None, epoch, changed }
    }

    /// This command has asked for it, at that instant.
    pub(super) fn begun_at(self, began: Instant) -> Self {
        Self { began: Some(began), ..self }
    }

    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    /// The move's id is the entry of the log that began it.
    pub(super) fn id(&self) -> u64 {
        self.changed.index
    }

    fn json(&self, outcome: &str, epoch: u64, more: Value) -> Value {
        let mut value = json!(self.changed);
        value["module"] = json!(self.module);
        value["from"] = if self.from.is_empty() { Value::Null } else { json!(self.from) };
        value["to"] = json!(self.to);
        value["outcome"] = json!(outcome);
        value["epoch"] = json!(epoch);
        if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
            value.extend(more);
        }
        value
    }

    fn from(&self) -> String {
        if self.from.is_empty() { String::new() } else { format!(" from {}", self.from) }
    }

    pub(super) async fn is_there(&self, output: DataOutput, epoch: u64, out: &mut Output) -> Result<(), CliError> {
        match output {
            DataOutput::Json => out.print_json(&self.json("already", epoch, json!({}))).await,
            DataOutput::Table => out.print(&format!("{} is on {} already (epoch {epoch})", self.module, self.to)).await,
        }
    }

    pub(super) async fn is_under_way(&self, output: DataOutput, out: &mut Output) -> Result<(), CliError> {
        let (module, to, id) = (&self.module, &self.to, self.id());
        match output {
            DataOutput::Json => out.print_json(&self.json("under-way", self.epoch, json!({"id": id}))).await,
            DataOutput::Table => out.print(&format!("{module} is on its way{} to {to} (move {id})", self.from())).await,
        }
    }

    pub(super) async fn has_moved(&self, output: DataOutput, ended: Ended, out: &mut Output) -> Result<(), CliError> {
        let Ended { epoch, movement, moved, .. } = &ended;
        let waited = moved.as_ref().and_then(Moved::waited);
        // Of a move that others began, only the log knows the beginning.
        let took = ended.elapsed.or_else(|| moved.as_ref()?.took_ms.map(Duration::from_millis));
        let size = movement.as_ref().map(|movement| movement.bytes).filter(|bytes| *bytes > 0);
        match output {
            DataOutput::Json => {
                let more = json!({
                    "id": self.id(),
                    "elapsed_ms": took.map(|took| took.as_millis()),
                    "bytes": size,
                    "waited": waited,
                    "event": moved.as_ref().map(|moved| &moved.text),
                });
                out.print_json(&self.json("moved", *epoch, more)).await
            }
            DataOutput::Table => {
                let took = took.map(|took| format!(" in {}", elapsed(took))).unwrap_or_default();
                let state = moved.as_ref().and_then(Moved::state).map(str::to_owned).or(size.map(bytes));
                let state = state.map(|size| format!(", {size} of state")).unwrap_or_default();
                let waited =
                    waited.map(|waited| format!(", callers waited {waited} for the handover")).unwrap_or_default();
                let text =
                    format!("{} moved{} to {}{took}{state}{waited} (epoch {epoch})", self.module, self.from(), self.to);
                out.print_told(&text).await
            }
        }
    }

    /// Prints it where a program reads it, and is an error in any case.
    pub(super) async fn has_failed(
        &self,
        output: DataOutput,
        outcome: &str,
        reason: &str,
        out: &mut Output,
    ) -> Result<(), CliError> {
        if output == DataOutput::Json {
            let more = json!({"id": self.id(), "reason": reason});
            out.print_json(&self.json(outcome, self.epoch, more)).await?;
        }
        let how = match outcome {
            "aborted" => "the move was given up: ",
            "taken-over" => "the module was taken over: ",
            "replicated" => "the module has several hosts now: ",
            _ => "",
        };
        let text = format!("{} was not moved to {}: {how}{reason}", self.module, self.to);
        Err(CliError::Failed(printable(&text)))
    }
}

pub(super) async fn given_up(
    output: DataOutput,
    module: &ClusterModule,
    changed: Changed,
    out: &mut Output,
) -> Result<(), CliError> {
    let movement = module.movement.as_ref();
    match output {
        DataOutput::Json => {
            let mut value = json!(changed);
            value["module"] = json!(module.name);
            value["outcome"] = json!("aborted");
            value["move"] = json!(movement);
            out.print_json(&value).await
        }
        DataOutput::Table => {
            let which = movement.map(|it| format!(": its move {} to {} is given up", it.id, it.to));
            out.print(&format!("{} stays on {}{}", module.name, host_names(module), which.unwrap_or_default())).await
        }
    }
}
