//! What a wait shows while it lasts: on stderr, so that stdout has only the outcome.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use crate::text::elapsed;

/// One line that is written over and over on a terminal; elsewhere, a line each time that there is news.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    last: String,
    last_after: Duration,
}

/// How often a line of more about a phase comes where lines stay.
const MORE: Duration = Duration::from_secs(1);

impl Screen {
    pub(crate) fn stderr() -> Self {
        Self { terminal: io::stderr().is_terminal(), last: String::new(), last_after: Duration::ZERO }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A phase that was reached, and that stays on the screen.
    pub(crate) fn step(&mut self, after: Duration, text: &str) {
        if self.last != text {
            let _ = writeln!(io::stderr(), "{}{:>9}  {text}", self.clear(), elapsed(after));
            text.clone_into(&mut self.last);
            self.last_after = after;
        }
    }

    /// How the phase that was reached last stands now. It may change all the time, and where lines stay, few do.
    pub(crate) fn more(&mut self, after: Duration, text: &str) {
        if self.terminal || after.saturating_sub(self.last_after) >= MORE {
            self.now(after, text);
        }
    }

    /// How it stands now; the next such line takes its place.
    pub(crate) fn now(&mut self, after: Duration, text: &str) {
        let shown = format!("{:>9}  {text}", elapsed(after));
        if self.terminal {
            // A line that wraps could not be taken back.
            let shown: String = shown.chars().take(usize::from(width())).collect();
            let _ = write!(io::stderr(), "{}{shown}", self.clear());
        } else if self.last != text {
            let _ = writeln!(io::stderr(), "{shown}");
        }
        text.clone_into(&mut self.last);
        self.last_after = after;
    }

    fn clear(&self) -> &'static str {
        if self.terminal { "\r\u{1b}[2K" } else { "" }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "{}", self.clear());
    }
}

fn width() -> u16 {
    // Some terminals do not know, and say 0.
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    if columns == 0 { 79 } else { columns.saturating_sub(1) }
}
