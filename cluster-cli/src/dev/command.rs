//! What is typed while the nodes run.

/// What can be typed, on one line.
pub(super) const HELP: &str =
    "r 2 restarts node-2, k 2 kills it, stop 2 stops it, s 2 starts it; add adds a node; q or Ctrl-C stops all";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// These are of one node, by its index.
    Restart(usize),
    Kill(usize),
    Stop(usize),
    Start(usize),
    Add,
    Quit,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadCommand {
    #[error("`{0}` is not a command: {HELP}")]
    Unknown(String),
    #[error("which node? write `{0} 2` or `{0} node-2`")]
    NoNode(String),
    #[error("`{0}` is not a node; write 2 or node-2")]
    NotANode(String),
}

/// Nothing for an empty line.
pub(super) fn parse(line: &str) -> Result<Option<Command>, BadCommand> {
    let mut words = line.split_whitespace();
    let Some(verb) = words.next() else { return Ok(None) };
    let (node, rest) = (words.next(), words.next());
    let of_node: fn(usize) -> Command = match (verb, node) {
        ("add", None) => return Ok(Some(Command::Add)),
        ("q" | "quit" | "exit", None) => return Ok(Some(Command::Quit)),
        ("r" | "restart", _) => Command::Restart,
        ("k" | "kill", _) => Command::Kill,
        ("stop", _) => Command::Stop,
        ("s" | "start", _) => Command::Start,
        _ => return Err(BadCommand::Unknown(line.trim().to_owned())),
    };
    let Some(node) = node else { return Err(BadCommand::NoNode(verb.to_owned())) };
    if rest.is_some() {
        return Err(BadCommand::Unknown(line.trim().to_owned()));
    }
    match node.strip_prefix("node-").unwrap_or(node).parse::<usize>() {
        Ok(number @ 1..) => Ok(Some(of_node(number - 1))),
        _ => Err(BadCommand::NotANode(node.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_word_or_a_letter_and_a_node() {
        for (line, command) in [
            ("r 2", Some(Command::Restart(1))),
            (" restart  node-2 ", Some(Command::Restart(1))),
            ("k 1", Some(Command::Kill(0))),
            ("stop node-3", Some(Command::Stop(2))),
            ("s 3", Some(Command::Start(2))),
            ("add", Some(Command::Add)),
            ("q", Some(Command::Quit)),
            ("", None),
        ] {
            assert_eq!(parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_not_a_command_says_what_is() {
        assert_eq!(parse("r"), Err(BadCommand::NoNode("r".to_owned())));
        for node in ["0", "node-0", "two", "-1"] {
            assert_eq!(parse(&format!("k {node}")), Err(BadCommand::NotANode(node.to_owned())));
        }
        for line in ["x", "r 1 2", "q 1", "add 1"] {
            assert_eq!(parse(line), Err(BadCommand::Unknown(line.to_owned())));
        }
    }
}
