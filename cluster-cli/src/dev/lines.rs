//! The output of nodes, a line at a time, each with the name of who wrote it.

use super::flags;
use crate::text::{Colour, paint};

/// Longer lines are cut in pieces: they must not fill the memory.
const LONGEST: usize = 64 * 1024;
const COLOURS: [Colour; 5] = [Colour::Cyan, Colour::Green, Colour::Magenta, Colour::Blue, Colour::Yellow];

/// Cuts bytes into lines as they come.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that these bytes complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() >= LONGEST {
                lines.extend(self.finish());
            }
        }
        lines
    }

    /// What came after the last newline.
    pub(super) fn finish(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.rest);
        let text = String::from_utf8_lossy(&line);
        (!line.is_empty()).then(|| text.trim_end_matches(['\n', '\r']).to_owned())
    }
}

#[derive(Debug)]
pub(super) struct Prefix {
    /// How many nodes there are, for the width.
    pub(super) nodes: usize,
    pub(super) colours: bool,
}

impl Prefix {
    /// `node-2 | `; without a node, the tool speaks.
    pub(super) fn of(&self, node: Option<usize>) -> String {
        let width = flags::name(self.nodes.saturating_sub(1)).len();
        match node {
            Some(node) => {
                let name = format!("{:width$} |", flags::name(node));
                format!("{} ", paint(&name, COLOURS[node % COLOURS.len()], self.colours))
            }
            None => format!("{:width$} | ", "dev"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_were_sent() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\n\nthree"), ["two", ""]);
        assert_eq!(lines.finish(), Some("three".to_owned()));
        assert_eq!(lines.finish(), None);
        assert_eq!(lines.push(&vec![b'x'; LONGEST]).len(), 1, "no line is longer");
        assert_eq!(lines.push(b"\xff\n"), ["\u{fffd}"]);
    }

    #[test]
    fn names_are_as_wide_as_the_widest() {
        let prefix = Prefix { nodes: 10, colours: false };
        assert_eq!(prefix.of(Some(1)), "node-2  | ");
        assert_eq!(prefix.of(Some(9)), "node-10 | ");
        assert_eq!(prefix.of(None), "dev     | ");
        let coloured = Prefix { nodes: 3, colours: true };
        assert_eq!(coloured.of(Some(0)), "\u{1b}[36mnode-1 |\u{1b}[0m ");
    }
}
