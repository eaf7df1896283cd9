//! Pieces of text that several verbs print.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, UNIX_EPOCH},
};

use comfy_table::{Table, presets};

/// A table without lines, as other tools can read it too.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// `a, b`, or a dash: an empty column looks like a fault of the table.
pub(crate) fn list<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    dash(&items.join(", "))
}

pub(crate) fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `1 node`, `2 nodes`
pub(crate) fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Milliseconds since 1970 as UTC.
pub(crate) fn time(at_ms: u64) -> String {
    // Beyond the year 9999 the format has no way to say it.
    match UNIX_EPOCH.checked_add(Duration::from_millis(at_ms)) {
        Some(at) if at_ms < 253_402_300_800_000 => humantime::format_rfc3339_seconds(at).to_string(),
        _ => format!("{at_ms} ms since 1970"),
    }
}

/// `34 ms`, `12.3 s`: as exact as anybody wants to know.
pub(crate) fn elapsed(elapsed: Duration) -> String {
    match elapsed.as_millis() {
        milliseconds @ 0..10_000 => format!("{milliseconds} ms"),
        _ => format!("{:.1} s", elapsed.as_secs_f64()),
    }
}

/// `512 B`, `12.3 MiB`
pub(crate) fn bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Magenta = 35,
    Cyan = 36,
}

/// Colours a text, if colours are wanted.
pub(crate) fn paint(text: &str, colour: Colour, colours: bool) -> String {
    if colours { format!("\u{1b}[{}m{text}\u{1b}[0m", colour as u8) } else { text.to_owned() }
}

/// Whether stdout is a terminal whose user wants colours (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_empty_cells_or_trailing_blanks() {
        let text =
            table(["NAME", "LABELS"], [["a".to_owned(), list::<&str>(&[])], ["bc".to_owned(), list(&["x", "y"])]]);
        assert_eq!(text, " NAME  LABELS\n a     -\n bc    x, y\n");
    }

    #[test]
    fn times_are_for_people() {
        assert_eq!(time(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(u64::MAX), "18446744073709551615 ms since 1970");
        assert_eq!(elapsed(Duration::from_micros(34_900)), "34 ms");
        assert_eq!(elapsed(Duration::from_millis(12_340)), "12.3 s");
    }

    #[test]
    fn sizes_are_in_powers_of_two() {
        let (kib, mib) = (1024, 1024 * 1024);
        let shown = [0, 512, 3 * kib / 2, 64 * mib, 123 * mib / 10].map(bytes);
        assert_eq!(shown, ["0 B", "512 B", "1.5 KiB", "64.0 MiB", "12.3 MiB"]);
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(paint("+", Colour::Green, true), "\u{1b}[32m+\u{1b}[0m");
        assert_eq!(paint("+", Colour::Green, false), "+");
    }
}
