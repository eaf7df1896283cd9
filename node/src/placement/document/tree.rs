//! What TOML and JSON have in common: keys and values, and the lines that they are on.

use toml::de::{DeTable, DeValue};

/// A value, and the line that it begins on, or that its key is on.
#[derive(Debug, PartialEq)]
pub(super) struct Item {
    /// From 1.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    List(Vec<Item>),
    /// In the order of the text for JSON, where a key may be there twice.
    Table(Vec<(String, Item)>),
    /// Something that a placement has no use for, and what it is.
    Other(&'static str),
}

impl Value {
    /// What it is, for people.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Number(_) => "a number",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }
}

/// Lines at which a text could not be understood, and why.
pub(super) type Broken = Vec<(usize, String)>;

/// Where lines begin, so that the line of a byte is found without counting each time.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn at(&self, byte: usize) -> usize {
        self.0.partition_point(|end| *end < byte) + 1
    }
}

/// How deep tables may be in one another. What means something has four levels; what holds them is taken apart by
/// recursion. The parser has a limit for brackets and one for dotted names, but each bracket may hold such a name.
const DEEPEST: usize = 64;

/// The line on which tables are too deep in one another, if there is one.
fn too_deep(text: &str) -> Option<usize> {
    // Of each open bracket, how many dots stand before it in its name.
    let mut open: Vec<usize> = Vec::new();
    let (mut depth, mut dots, mut line) = (0_usize, 0, 1);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '.' => {
                dots += 1;
                depth += 1;
            }
            '[' | '{' => {
                open.push(dots);
                dots = 0;
                depth += 1;
            }
            ']' | '}' => {
                let before = open.pop().unwrap_or_default();
                depth = depth.saturating_sub(dots + 1);
                dots = before;
            }
            ',' | '\n' => {
                depth = depth.saturating_sub(dots);
                dots = 0;
            }
            '"' | '\'' => taken = string(rest, c),
            '#' => taken = rest.find('\n').unwrap_or(rest.len()),
            _ => {}
        }
        if depth > DEEPEST {
            return Some(line);
        }
        line += rest[..taken].matches('\n').count();
        rest = &rest[taken..];
    }
    None
}

/// The length of the string that a text begins with.
fn string(text: &str, quote: char) -> usize {
    let long = [quote; 3].iter().collect::<String>();
    let (end, start) = if text.starts_with(&long) { (long.as_str(), 3) } else { (&long[..1], 1) };
    let mut at = start;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '\\' if quote == '"' => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
            '\n' if start == 1 => return at,
            _ if text[at..].starts_with(end) => return at + end.len(),
            c => at += c.len_utf8(),
        }
    }
    text.len()
}

pub(super) fn from_toml(text: &str) -> Result<Item, Broken> {
    if let Some(line) = too_deep(text) {
        return Err(vec![(line, "tables too deep in one another; a placement has four levels".to_owned())]);
    }
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut broken: Broken = Vec::new();
    for error in errors {
        let line = lines.at(error.span().map_or(0, |span| span.start));
        // One mistake can confuse the rest of its line.
        if broken.iter().all(|(known, _)| *known != line) {
            broken.push((line, error.message().replace('\n', ", ")));
        }
    }
    broken.sort_unstable();
    if broken.is_empty() { Ok(Item { line: 1, value: table_of(table.get_ref(), &lines) }) } else { Err(broken) }
}

fn table_of(table: &DeTable<'_>, lines: &Lines) -> Value {
    let entry = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
        let item = Item { line: lines.at(key.span().start), value: value_of(value.get_ref(), lines) };
        (key.get_ref().to_string(), item)
    };
    Value::Table(table.iter().map(entry).collect())
}

fn value_of(value: &DeValue<'_>, lines: &Lines) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number out of range"), Value::Number),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Boolean(_) => Value::Other("true or false"),
        // A time may be written without quotes.
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| Item {
                line: lines.at(item.span().start),
                value: value_of(item.get_ref(), lines),
            };
            Value::List(items.iter().map(item).collect())
        }
        DeValue::Table(table) => table_of(table, lines),
    }
}

pub(super) fn from_json(text: &str) -> Result<Item, Broken> {
    // This knows what JSON is, and how deep it may be; what comes after it only has to find the lines.
    if let Err(error) = serde_json::from_str::<serde_json::Value>(text) {
        return Err(vec![(error.line().max(1), format!("not JSON at column {}: {error}", error.column()))]);
    }
    let mut scan = Scan { text, at: 0, line: 1 };
    scan.item().ok_or_else(|| vec![(scan.line, "not JSON".to_owned())])
}

/// Reads what is known to be JSON. `None` where it is not.
struct Scan<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Scan<'_> {
    /// The next byte that is not space.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' => {}
                _ => return Some(byte),
            }
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn item(&mut self) -> Option<Item> {
        let first = self.peek()?;
        let line = self.line;
        let value = match first {
            b'{' => Value::Table(self.entries(b'}', |scan| {
                scan.peek()?;
                let line = scan.line;
                let key = scan.string()?;
                scan.take(b':')?;
                let value = scan.item()?.value;
                Some((key, Item { line, value }))
            })?),
            b'[' => Value::List(self.entries(b']', Self::item)?),
            b'"' => Value::Text(self.string()?),
            b't' | b'f' => self.word("true or false"),
            b'n' => self.word("null"),
            _ => self.number(),
        };
        Some(Item { line, value })
    }

    /// What stands between brackets, with commas in between.
    fn entries<T>(&mut self, end: u8, entry: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        self.at += 1;
        let mut entries = Vec::new();
        while self.peek()? != end {
            if !entries.is_empty() {
                self.take(b',')?;
            }
            entries.push(entry(self)?);
        }
        self.take(end)?;
        Some(entries)
    }

    fn string(&mut self) -> Option<String> {
        let rest = self.text.get(self.at..)?;
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        let quoted = rest.get(..end + 2)?;
        self.at += quoted.len();
        serde_json::from_str(quoted).ok()
    }

    fn bare(&mut self) -> &str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn word(&mut self, what: &'static str) -> Value {
        self.bare();
        Value::Other(what)
    }

    fn number(&mut self) -> Value {
        let text = self.bare();
        match text.parse() {
            Ok(number) => Value::Number(number),
            Err(_) if text.contains(['.', 'e', 'E']) => Value::Other("a number with a fraction"),
            Err(_) => Value::Other("a number out of range"),
        }
    }
}
