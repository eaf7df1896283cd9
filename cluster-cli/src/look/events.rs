//! `events`.

use outpost_proto::admin::v1::{Event, EventsRequest};
use serde_json::json;

use crate::{
    admin::Admin,
    args::{DataOutput, EventsArgs},
    error::CliError,
    output::{self, Output},
    text::time,
};

pub(crate) async fn run(args: &EventsArgs, out: &mut Output) -> Result<(), CliError> {
    let admin = Admin::connect(&args.node).await?;
    let request = EventsRequest { after: args.since, follow: args.follow };
    let mut events = admin.ask("the question what happened", admin.client().events(request)).await?;
    let printed = async {
        while let Some(event) = events.message().await.map_err(|status| admin.error(&status))? {
            match args.output {
                DataOutput::Json => out.print(&json!(event).to_string()).await?,
                DataOutput::Table => out.print_told(&line(&event)).await?,
            }
        }
        Ok(())
    };
    tokio::select! {
        printed = printed => printed,
        () = output::closed() => Err(CliError::StdoutClosed),
    }
}

/// One event; not a table, whose widths would have to be known before the last event.
pub(super) fn line(event: &Event) -> String {
    let subject =
        [&event.module, &event.node].into_iter().filter(|name| !name.is_empty() && !event.text.contains(*name));
    let subject: String = subject.map(|name| format!("{name}: ")).collect();
    let by = if event.by.is_empty() { String::new() } else { format!(" (by {})", event.by) };
    format!("{} {:>6}  {:15}  {subject}{}{by}", time(event.at_ms), event.index, event.kind, event.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            index: 12,
            at_ms: 1_700_000_000_000,
            kind: "moved".to_owned(),
            module: "cart".to_owned(),
            node: "node-2".to_owned(),
            by: "ada@desk".to_owned(),
            text: "moved from node-1 to node-2".to_owned(),
        };
        assert_eq!(
            line(&event),
            "2023-11-14T22:13:20Z     12  moved            cart: moved from node-1 to node-2 (by ada@desk)"
        );
    }
}
