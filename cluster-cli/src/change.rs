//! Verbs that change the cluster: each asks, and then waits until the cluster is there.

pub(crate) mod document;
pub(crate) mod drain;
pub(crate) mod node;
pub(crate) mod relocate;
pub(crate) mod rule;
pub(crate) mod voters;

use std::{env, time::Duration};

use outpost_proto::admin::v1::{Changed, Cluster};
use serde_json::json;
use tokio::time::Instant;
use tonic::Streaming;

use crate::{
    admin::Admin,
    args::{ChangeArgs, DataOutput, NodeArgs},
    error::CliError,
    output::Output,
    wait::{Outcome, Wait, follow},
};

/// A change in the making: who makes it, and the cluster before and after it.
struct Operation {
    admin: Admin,
    before: Cluster,
    // Opened before the change, so that no phase is missed.
    after: Streaming<Cluster>,
}

impl Operation {
    async fn open(node: &NodeArgs) -> Result<Self, CliError> {
        let admin = Admin::connect(node).await?;
        let (before, after) = admin.watch().await?;
        Ok(Self { admin, before, after })
    }

    /// Reads on until the node has heard of this entry of the log.
    async fn catch_up(&mut self, index: u64) -> Result<(), CliError> {
        while self.before.index < index {
            self.before = self.admin.next(&mut self.after).await?;
        }
        Ok(())
    }

    async fn wait(self, wait: &Wait, began: Instant, limit: Duration) -> Result<Outcome, CliError> {
        follow(self.admin.target(), self.before, self.after, wait, (began, limit)).await
    }

    /// Waits, if that is wanted, and prints what was done.
    async fn finish(
        self,
        changed: Changed,
        wait: &Wait,
        limit: Option<Duration>,
        printed: Printed<'_>,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let missing = match limit {
            None => None,
            Some(limit) => match self.wait(wait, Instant::now(), limit).await? {
                Outcome::Done { missing, .. } => missing,
                Outcome::Failed(why) => return Err(CliError::Failed(format!("{} failed: {why}", wait.what))),
            },
        };
        let missing = missing.map(|missing| format!("; it came out otherwise than planned: {missing}"));
        printed.print(changed, &missing.unwrap_or_default(), out).await
    }
}

/// How the outcome of a change is printed.
struct Printed<'a> {
    output: DataOutput,
    /// What was done, and what to say if it was so already.
    done: &'a str,
    already: &'a str,
}

impl Printed<'_> {
    async fn print(&self, changed: Changed, more: &str, out: &mut Output) -> Result<(), CliError> {
        match (self.output, changed.changed) {
            (DataOutput::Json, _) => out.print_json(&json!(changed)).await,
            (DataOutput::Table, true) => out.print(&format!("{}{more}", self.done)).await,
            (DataOutput::Table, false) => out.print(&format!("{}{more}", self.already)).await,
        }
    }
}

/// Who asks.
fn by(args: &ChangeArgs) -> String {
    asker(args.by.as_deref())
}

/// The name that was given, or that of the user.
fn asker(by: Option<&str>) -> String {
    by.map(str::to_owned).unwrap_or_else(|| {
        let user = ["USER", "LOGNAME"].into_iter().find_map(|name| env::var(name).ok().filter(|it| !it.is_empty()));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{}@{host}", user.as_deref().unwrap_or("unknown"))
    })
}
