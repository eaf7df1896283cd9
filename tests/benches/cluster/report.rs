//! Tables, printed for people as they are made, and kept for machines.

use std::{fmt, path::Path};

use serde_json::{Map, Value, json};

/// What the benchmark found so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    part: String,
    found: Vec<Value>,
}

/// What a table says in one place.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    Text(String),
    /// And how many digits are shown after the point.
    Number(f64, usize),
    /// Does not apply.
    Nothing,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number, _) if number.is_nan() => f.write_str("-"),
            Self::Number(number, digits) => write!(f, "{number:.digits$}"),
            Self::Nothing => f.write_str("-"),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Option<Cell>> for Cell {
    fn from(cell: Option<Cell>) -> Self {
        cell.unwrap_or(Self::Nothing)
    }
}

/// A count, or anything without digits after the point.
pub(crate) fn whole(number: f64) -> Cell {
    Cell::Number(number, 0)
}

pub(crate) fn tenths(number: f64) -> Cell {
    Cell::Number(number, 1)
}

pub(crate) fn hundredths(number: f64) -> Cell {
    Cell::Number(number, 2)
}

impl Report {
    /// What follows is of this part.
    pub(crate) fn part(&mut self, part: &str, title: &str) {
        part.clone_into(&mut self.part);
        println!("\n## `{part}`: {title}");
    }

    pub(crate) fn table(&mut self, title: &str, columns: &[&str], rows: Vec<Vec<Cell>>) {
        println!("\n### {title}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
        for row in &rows {
            println!("| {} |", row.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "));
        }
        let rows = rows.into_iter().map(|row| {
            let cells = columns.iter().zip(row).map(|(column, cell)| ((*column).to_owned(), value(cell)));
            Value::Object(cells.collect::<Map<_, _>>())
        });
        let rows: Vec<Value> = rows.collect();
        self.found.push(json!({"part": self.part, "table": title, "rows": rows}));
    }

    /// A sentence beside the tables.
    pub(crate) fn say(&mut self, text: &str) {
        println!("\n{text}");
        self.found.push(json!({"part": self.part, "says": text}));
    }

    /// All of it.
    pub(crate) fn found(&self) -> &[Value] {
        &self.found
    }

    /// Keeps all of it.
    pub(crate) fn write(&self, path: &Path, facts: &[(String, String)]) {
        let machine: Map<String, Value> = facts.iter().map(|(key, fact)| (key.clone(), json!(fact))).collect();
        let text = serde_json::to_string_pretty(&json!({"machine": machine, "found": self.found}));
        let written = std::fs::write(path, text.expect("there is nothing in it that JSON lacks"));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn value(cell: Cell) -> Value {
    match cell {
        Cell::Text(text) => json!(text),
        Cell::Number(number, _) => json!(number), // NaN is null
        Cell::Nothing => Value::Null,
    }
}
