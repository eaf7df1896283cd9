//! What operators show where they have no certificate: `token`.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    time::{Duration, SystemTime},
};

use outpost_proto::token::Token;
use serde_json::json;

use crate::{
    args::{DataOutput, TokenGenerateArgs, TokenVerb},
    error::CliError,
    files,
    output::Output,
};

/// Times are written with four digits for a year.
const YEAR_9999: Duration = Duration::from_secs(253_370_764_800);

/// The token of a file.
pub(crate) fn read(path: &Path) -> Result<Token, CliError> {
    let text = fs::read_to_string(path).map_err(|error| CliError::File { path: path.to_owned(), error })?;
    text.trim().parse().map_err(|error| CliError::Refusal(format!("{}: {error}", path.display())))
}

pub(crate) async fn run(verb: &TokenVerb, out: &mut Output) -> Result<(), CliError> {
    let TokenVerb::Generate(TokenGenerateArgs { out: file, good_for, output }) = verb;
    let until = good_for.map(until).transpose()?;
    let token = Token::new(rand::random());
    // What a node is told.
    let known = until.map_or(token.hash().to_string(), |until| format!("{} until {until}", token.hash()));
    let secret = token.secret();
    if let Some(path) = file {
        // Not in the place of another: of that, nobody may have a copy.
        files::create(path, format!("{secret}\n").as_bytes()).map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::AlreadyExists => "; a token never takes the place of another: name a new file",
                _ => "",
            };
            CliError::Refusal(format!("can't make {}: {error}{remedy}", path.display()))
        })?;
    }
    match (output, file) {
        (DataOutput::Table, None) => out.print(&format!("{secret}\n{}", setting(&known))).await,
        (DataOutput::Table, Some(_)) => out.print(&setting(&known)).await,
        (DataOutput::Json, None) => out.print_json(&json!({ "token": secret, "token_sha256": known })).await,
        (DataOutput::Json, Some(path)) => out.print_json(&json!({ "file": path, "token_sha256": known })).await,
    }
}

/// A line for the file of `admin.operators`.
fn setting(known: &str) -> String {
    format!("token_sha256 = [\"{known}\"]")
}

/// When a token is to be good no more: a full second, in UTC.
fn until(good_for: Duration) -> Result<String, CliError> {
    #[expect(clippy::disallowed_methods, reason = "it is for the wall clock of nodes")]
    let now = SystemTime::now();
    let at =
        now.checked_add(good_for).filter(|at| at.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|at| at < YEAR_9999));
    let at = at.ok_or_else(|| CliError::Refusal("--for ends after the year 9999; leave it out".to_owned()))?;
    Ok(humantime::format_rfc3339_seconds(at).to_string())
}
