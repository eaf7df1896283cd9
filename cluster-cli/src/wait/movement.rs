//! A move: how it stands, and how it ended. Pure.

use outpost_proto::admin::v1::{Cluster, Event, Movement};

use super::{Progress, faults};
use crate::{status::printable, text::bytes};

/// How the move `id` stands. [`Progress::Done`] is its end in whichever way; [`ending`] tells in which.
pub(super) fn on_cluster(cluster: &Cluster, module: &str, to: &str, id: u64) -> Progress {
    let Some(module) = cluster.modules.iter().find(|it| it.name == module) else {
        return Progress::Failed(format!("{module} is not in the cluster any more"));
    };
    // The record names the target as the host as soon as it is the owner.
    let owner = module.hosts.iter().find(|host| host.node == to);
    match (&module.movement, owner) {
        (Some(movement), _) if movement.id != id => Progress::Done,
        (_, Some(owner)) if owner.state == "failed" => {
            Progress::Failed(format!("it failed on {to} after the handover{}", faults(module)))
        }
        (Some(movement), _) => Progress::Step { phase: movement.phase.clone(), text: phase(movement, module.epoch) },
        // Where no state has to be taken, the move is over with the handover; but it does not serve yet.
        (None, Some(owner)) if owner.state != "serving" => {
            let movement = Movement { phase: "activating".to_owned(), to: to.to_owned(), ..Movement::default() };
            Progress::Step { text: phase(&movement, module.epoch), phase: movement.phase }
        }
        (None, _) => Progress::Done,
    }
}

/// `copying 12.3 MiB`, `activating on node-2 (epoch 3)`
pub(crate) fn phase(movement: &Movement, epoch: u64) -> String {
    let taken = movement.bytes > 0;
    let size = bytes(movement.bytes);
    let text = match movement.phase.as_str() {
        "starting" => format!("starting on {}", movement.to),
        "copying" if taken => format!("copying {size}"),
        "draining" => format!("draining on {}", movement.from),
        "sealed" if taken => format!("sealed: callers wait; {size} of state"),
        "sealed" => "sealed: callers wait".to_owned(),
        "activating" => format!("activating on {} (epoch {epoch})", movement.to),
        other => other.to_owned(),
    };
    printable(&text)
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Moved(Moved),
    /// Something else came before its end.
    Otherwise {
        /// "aborted", "taken-over" or "replicated".
        outcome: &'static str,
        reason: String,
    },
    /// The events do not tell; a node keeps only the last ones.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moved {
    /// What the event of the handover says.
    pub(crate) text: String,
    /// From its beginning until the target served, in milliseconds, by the clocks of those who said so; nothing while it
    /// does not serve yet, or when the beginning is not among the events any more.
    pub(crate) took_ms: Option<u64>,
}

impl Moved {
    /// For how long callers waited until the handover.
    pub(crate) fn waited(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once("calls wait for ")?;
        rest.split_once(" so far").map(|(waited, _)| waited)
    }

    /// How much state went along.
    pub(crate) fn state(&self) -> Option<&str> {
        let (before, _) = self.text.split_once(" of state")?;
        before.rsplit_once(", with ").map(|(_, size)| size)
    }
}

/// How the move `id` of a module ended, by what happened since.
pub(crate) fn ending(events: &[Event], module: &str, id: u64) -> Ending {
    let otherwise = |outcome, event: &Event| {
        let by = if event.by.is_empty() { String::new() } else { format!(" (by {})", event.by) };
        Ending::Otherwise { outcome, reason: format!("{}{by}", event.text) }
    };
    let mut begun_ms: Option<u64> = None;
    let mut handover: Option<&Event> = None;
    for event in events.iter().filter(|event| event.module == module && event.index >= id) {
        match (event.kind.as_str(), handover) {
            ("move-begun", _) if event.index == id => begun_ms = Some(event.at_ms),
            ("move-aborted", None) => return otherwise("aborted", event),
            ("moved", None) => handover = Some(event),
            ("activated", Some(moved)) => {
                let took_ms = begun_ms.map(|begun_ms| event.at_ms.saturating_sub(begun_ms));
                return Ending::Moved(Moved { text: moved.text.clone(), took_ms });
            }
            ("assigned", _) => return otherwise("taken-over", event),
            ("replicated", _) => return otherwise("replicated", event),
            // Another one: the end of this one is not among the events any more.
            ("move-begun", None) => return Ending::Unknown,
            _ => {}
        }
    }
    match handover {
        Some(moved) => Ending::Moved(Moved { text: moved.text.clone(), took_ms: None }),
        None => Ending::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ClusterModule, ModuleHost};

    use super::*;

    fn view(movement: Option<(u64, &str, u64)>, epoch: u64, host: (&str, &str)) -> Cluster {
        let movement = movement.map(|(id, phase, bytes)| Movement {
            id,
            phase: phase.to_owned(),
            bytes,
            from: "node-1".to_owned(),
            to: "node-2".to_owned(),
            ..Movement::default()
        });
        let host = ModuleHost { node: host.0.to_owned(), state: host.1.to_owned(), error: "no database".to_owned() };
        let cart =
            ClusterModule { name: "cart".to_owned(), epoch, movement, hosts: vec![host], ..ClusterModule::default() };
        Cluster { modules: vec![cart], ..Cluster::default() }
    }

    fn progress(cluster: &Cluster) -> Progress {
        on_cluster(cluster, "cart", "node-2", 7)
    }

    #[test]
    fn a_move_goes_through_its_phases() {
        let mib = 1024 * 1024;
        for (phase, size, epoch, host, text) in [
            ("starting", 0, 2, ("node-1", "serving"), "starting on node-2"),
            ("copying", 0, 2, ("node-1", "serving"), "copying"),
            ("copying", 123 * mib / 10, 2, ("node-1", "serving"), "copying 12.3 MiB"),
            ("draining", 64 * mib, 2, ("node-1", "serving"), "draining on node-1"),
            ("sealed", 64 * mib, 2, ("node-1", "draining"), "sealed: callers wait; 64.0 MiB of state"),
            ("activating", 64 * mib, 3, ("node-2", "starting"), "activating on node-2 (epoch 3)"),
            ("a later release's", 0, 2, ("node-1", "serving"), "a later release's"),
        ] {
            let step = Progress::Step { phase: phase.to_owned(), text: text.to_owned() };
            assert_eq!(progress(&view(Some((7, phase, size)), epoch, host)), step);
        }
        assert_eq!(progress(&view(None, 3, ("node-2", "serving"))), Progress::Done);
    }

    #[test]
    fn without_state_it_is_under_way_until_the_target_serves() {
        let text = "activating on node-2 (epoch 3)".to_owned();
        let step = Progress::Step { phase: "activating".to_owned(), text };
        assert_eq!(progress(&view(None, 3, ("node-2", "unknown"))), step);
    }

    #[test]
    fn a_move_is_at_its_end_when_another_is_under_way_or_none() {
        assert_eq!(progress(&view(Some((9, "starting", 0)), 2, ("node-1", "serving"))), Progress::Done);
        assert_eq!(progress(&view(None, 2, ("node-1", "serving"))), Progress::Done);
        assert!(matches!(progress(&Cluster::default()), Progress::Failed(_)));
        let failed = Progress::Failed("it failed on node-2 after the handover: node-2: no database".to_owned());
        assert_eq!(progress(&view(None, 3, ("node-2", "failed"))), failed);
        assert_eq!(progress(&view(Some((7, "activating", 1)), 3, ("node-2", "failed"))), failed);
    }

    fn event(index: u64, kind: &str, text: &str) -> Event {
        Event {
            index,
            at_ms: 1000 * index,
            kind: kind.to_owned(),
            module: "cart".to_owned(),
            by: "node-3".to_owned(),
            text: text.to_owned(),
            ..Event::default()
        }
    }

    #[test]
    fn the_events_tell_how_it_ended() {
        let begun = event(7, "move-begun", "cart moves from node-1 to node-2");
        let prepared = event(8, "move-prepared", "cart is ready on node-2");
        let moved = event(
            9,
            "moved",
            "cart is node-2's from now on, at epoch 3, with 64.0 MiB of state; calls wait for 12.3ms so far: because",
        );
        let other = Event { module: "orders".to_owned(), ..event(10, "move-aborted", "orders stays on node-1") };
        let active = event(11, "activated", "node-2 serves cart");
        let Ending::Moved(whole) = ending(&[begun.clone(), prepared.clone(), moved.clone(), other, active], "cart", 7)
        else {
            panic!("it was moved")
        };
        assert_eq!((whole.waited(), whole.state(), whole.took_ms), (Some("12.3ms"), Some("64.0 MiB"), Some(4000)));

        let plain = Event { text: "cart is node-2's from now on, at epoch 3".to_owned(), ..moved.clone() };
        let Ending::Moved(plain) = ending(&[plain], "cart", 7) else { panic!("it was moved") };
        assert_eq!((plain.waited(), plain.state(), plain.took_ms), (None, None, None));

        let aborted = event(9, "move-aborted", "cart stays on node-1: no database");
        let reason = "cart stays on node-1: no database (by node-3)".to_owned();
        let given_up = Ending::Otherwise { outcome: "aborted", reason };
        assert_eq!(ending(&[begun.clone(), prepared, aborted.clone()], "cart", 7), given_up);
        let assigned = event(10, "assigned", "cart is for node-1 to serve");
        assert!(matches!(
            ending(&[begun.clone(), moved, assigned], "cart", 7),
            Ending::Otherwise { outcome: "taken-over", .. }
        ));

        let next = event(12, "move-begun", "cart moves from node-1 to node-3");
        assert_eq!(ending(std::slice::from_ref(&begun), "cart", 7), Ending::Unknown);
        assert_eq!(ending(&[next, event(13, "moved", "cart is node-3's")], "cart", 7), Ending::Unknown);
        assert_eq!(ending(&[aborted, begun], "cart", 10), Ending::Unknown, "what was before it is not its end");
    }
}
