//! What to do with the nodes when something happens: a pure state machine.

use super::{command::Command, flags::name};
use crate::error::exit;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Typed(Command),
    /// Nobody can type any more.
    StdinClosed,
    /// A node has ended, or could not be started.
    Exited {
        node: usize,
        how: String,
    },
    /// Ctrl-C, or what else asks a program to end.
    Interrupt,
    /// The node had so long to stop.
    DeadlinePassed {
        node: usize,
        run: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Start(usize),
    Signal(usize, Stop),
    /// Sends `DeadlinePassed` when the node has had its time to stop.
    Deadline(usize, u64),
    Say(String),
    /// Ends the tool with this code.
    End(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Orderly,
    AtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Up,
    /// It was told to end, and is started again after that or not.
    Stopping {
        again: bool,
    },
    Down,
}

#[derive(Debug)]
struct Node {
    phase: Phase,
    /// How often it was started: a deadline of an earlier run is none.
    run: u64,
}

#[derive(Debug)]
pub(super) struct Fleet {
    nodes: Vec<Node>,
    /// The code to end with, once all are down.
    ending: Option<u8>,
    can_type: bool,
}

impl Fleet {
    /// Of so many nodes that are being started.
    pub(super) fn new(nodes: usize) -> Self {
        let nodes = (0..nodes).map(|_| Node { phase: Phase::Up, run: 1 }).collect();
        Self { nodes, ending: None, can_type: true }
    }

    pub(super) fn on_event(&mut self, event: Event) -> Vec<Action> {
        let mut actions = match event {
            Event::Typed(command) => self.typed(command),
            Event::Interrupt => self.end(),
            Event::StdinClosed => {
                self.can_type = false;
                Vec::new()
            }
            Event::Exited { node, how } => self.exited(node, &how),
            Event::DeadlinePassed { node, run } => match self.nodes.get(node) {
                Some(Node { phase: Phase::Stopping { .. }, run: current }) if *current == run => vec![
                    Action::Say(format!("{} did not stop in time, and is killed", name(node))),
                    Action::Signal(node, Stop::AtOnce),
                ],
                _ => Vec::new(),
            },
        };
        if self.nodes.iter().all(|node| node.phase == Phase::Down) {
            match self.ending {
                Some(code) => actions.push(Action::End(code)),
                None if !self.can_type => actions.push(Action::End(exit::ANSWERED)),
                None => {}
            }
        }
        actions
    }

    fn typed(&mut self, command: Command) -> Vec<Action> {
        if self.ending.is_some() {
            return vec![Action::Say("all nodes are stopping; Ctrl-C kills them".to_owned())];
        }
        match command {
            Command::Quit => self.end(),
            Command::Add => {
                self.nodes.push(Node { phase: Phase::Down, run: 0 });
                self.start(self.nodes.len() - 1)
            }
            Command::Restart(node) | Command::Kill(node) | Command::Stop(node) | Command::Start(node) => {
                match self.nodes.get(node).map(|node| node.phase) {
                    None => {
                        let last = name(self.nodes.len().saturating_sub(1));
                        vec![Action::Say(format!("there is no {}; the last is {last}", name(node)))]
                    }
                    Some(phase) => self.typed_of(command, node, phase),
                }
            }
        }
    }

    fn typed_of(&mut self, command: Command, node: usize, phase: Phase) -> Vec<Action> {
        let name = name(node);
        match (command, phase) {
            (Command::Restart(_), Phase::Up) => self.stop(node, true),
            (Command::Stop(_), Phase::Up) => self.stop(node, false),
            (Command::Kill(_), Phase::Up | Phase::Stopping { .. }) => {
                self.nodes[node].phase = Phase::Stopping { again: false };
                vec![Action::Signal(node, Stop::AtOnce)]
            }
            (Command::Restart(_) | Command::Start(_), Phase::Stopping { .. }) => {
                self.nodes[node].phase = Phase::Stopping { again: true };
                vec![Action::Say(format!("{name} starts again when it has stopped"))]
            }
            (Command::Restart(_) | Command::Start(_), Phase::Down) => self.start(node),
            (Command::Start(_), Phase::Up) => vec![Action::Say(format!("{name} runs already"))],
            (Command::Stop(_), Phase::Stopping { .. }) => {
                self.nodes[node].phase = Phase::Stopping { again: false };
                vec![Action::Say(format!("{name} is stopping already"))]
            }
            (Command::Stop(_) | Command::Kill(_), Phase::Down) => vec![Action::Say(format!("{name} is down already"))],
            // Not of one node.
            (Command::Add | Command::Quit, _) => Vec::new(),
        }
    }

    fn start(&mut self, node: usize) -> Vec<Action> {
        let state = &mut self.nodes[node];
        state.phase = Phase::Up;
        state.run += 1;
        vec![Action::Say(format!("starting {}", name(node))), Action::Start(node)]
    }

    fn stop(&mut self, node: usize, again: bool) -> Vec<Action> {
        let state = &mut self.nodes[node];
        state.phase = Phase::Stopping { again };
        vec![
            Action::Say(format!("stopping {}", name(node))),
            Action::Signal(node, Stop::Orderly),
            Action::Deadline(node, state.run),
        ]
    }

    /// Stops all; the second time, kills them.
    fn end(&mut self) -> Vec<Action> {
        let again = self.ending.is_some();
        self.ending = Some(if again { exit::INTERRUPTED } else { exit::OK });
        let mut actions = match again {
            false => vec![Action::Say("stopping all; Ctrl-C kills them".to_owned())],
            true => Vec::new(),
        };
        for node in 0..self.nodes.len() {
            match self.nodes[node].phase {
                Phase::Down => {}
                Phase::Up | Phase::Stopping { .. } if again => actions.push(Action::Signal(node, Stop::AtOnce)),
                Phase::Up => actions.extend(self.stop(node, false)),
                Phase::Stopping { .. } => self.nodes[node].phase = Phase::Stopping { again: false },
            }
        }
        actions
    }

    fn exited(&mut self, node: usize, how: &str) -> Vec<Action> {
        let phase = std::mem::replace(&mut self.nodes[node].phase, Phase::Down);
        let (name, number) = (name(node), node + 1);
        match phase {
            Phase::Stopping { again: true } => {
                let mut actions = vec![Action::Say(format!("{name} has stopped: {how}"))];
                actions.extend(self.start(node));
                actions
            }
            Phase::Stopping { again: false } if self.ending.is_none() => {
                vec![Action::Say(format!("{name} is down: {how}; `s {number}` starts it again"))]
            }
            Phase::Stopping { again: false } => vec![Action::Say(format!("{name} has stopped: {how}"))],
            Phase::Up => vec![Action::Say(format!("{name} ended by itself: {how}; `s {number}` starts it again"))],
            Phase::Down => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(node: usize) -> Event {
        Event::Exited { node, how: "exit code 0".to_owned() }
    }

    fn without_words(actions: Vec<Action>) -> Vec<Action> {
        actions.into_iter().filter(|action| !matches!(action, Action::Say(_))).collect()
    }

    #[test]
    fn a_restart_stops_waits_and_starts() {
        let mut fleet = Fleet::new(2);
        let actions = without_words(fleet.on_event(Event::Typed(Command::Restart(1))));
        assert_eq!(actions, [Action::Signal(1, Stop::Orderly), Action::Deadline(1, 1)]);
        assert_eq!(without_words(fleet.on_event(exited(1))), [Action::Start(1)]);
        let late = fleet.on_event(Event::DeadlinePassed { node: 1, run: 1 });
        assert_eq!(late, [], "a deadline of the run before");
    }

    #[test]
    fn who_does_not_stop_in_time_is_killed() {
        let mut fleet = Fleet::new(1);
        fleet.on_event(Event::Typed(Command::Stop(0)));
        let actions = without_words(fleet.on_event(Event::DeadlinePassed { node: 0, run: 1 }));
        assert_eq!(actions, [Action::Signal(0, Stop::AtOnce)]);
    }

    #[test]
    fn who_is_killed_stays_down_until_started() {
        let mut fleet = Fleet::new(2);
        assert_eq!(fleet.on_event(Event::Typed(Command::Kill(0))), [Action::Signal(0, Stop::AtOnce)]);
        assert_eq!(without_words(fleet.on_event(exited(0))), []);
        assert_eq!(without_words(fleet.on_event(Event::Typed(Command::Start(0)))), [Action::Start(0)]);
    }

    #[test]
    fn who_ends_by_itself_is_reported_and_left() {
        let mut fleet = Fleet::new(2);
        let event = Event::Exited { node: 1, how: "exit code 3".to_owned() };
        let said = "node-2 ended by itself: exit code 3; `s 2` starts it again".to_owned();
        assert_eq!(fleet.on_event(event), [Action::Say(said)]);
    }

    #[test]
    fn one_more_joins() {
        let mut fleet = Fleet::new(2);
        assert_eq!(without_words(fleet.on_event(Event::Typed(Command::Add))), [Action::Start(2)]);
        let unknown = fleet.on_event(Event::Typed(Command::Kill(3)));
        assert_eq!(unknown, [Action::Say("there is no node-4; the last is node-3".to_owned())]);
    }

    #[test]
    fn the_first_interrupt_stops_and_the_second_kills() {
        let mut fleet = Fleet::new(2);
        fleet.on_event(Event::Typed(Command::Restart(0)));
        let actions = without_words(fleet.on_event(Event::Interrupt));
        assert_eq!(actions, [Action::Signal(1, Stop::Orderly), Action::Deadline(1, 1)]);
        assert_eq!(without_words(fleet.on_event(exited(0))), [], "it is not started again");
        assert_eq!(fleet.on_event(Event::Interrupt), [Action::Signal(1, Stop::AtOnce)]);
        assert_eq!(without_words(fleet.on_event(exited(1))), [Action::End(exit::INTERRUPTED)]);
    }

    #[test]
    fn all_down_is_the_end_where_nobody_can_type() {
        let mut fleet = Fleet::new(1);
        assert_eq!(without_words(fleet.on_event(exited(0))), []);
        assert_eq!(fleet.on_event(Event::StdinClosed), [Action::End(exit::ANSWERED)]);
        let mut fleet = Fleet::new(1);
        fleet.on_event(Event::StdinClosed);
        assert_eq!(without_words(fleet.on_event(Event::Typed(Command::Quit))).len(), 2);
        assert_eq!(without_words(fleet.on_event(exited(0))), [Action::End(exit::OK)]);
    }
}
