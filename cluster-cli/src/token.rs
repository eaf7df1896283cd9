//! What operators show where they have no certificate: `token`.

use std::{fs, io::ErrorKind, path::Path};

use outpost_proto::token::Token;
use serde_json::json;

use crate::{
    args::{DataOutput, TokenGenerateArgs, TokenVerb},
    error::CliError,
    files,
    output::Output,
};

/// The token of a file.
pub(crate) fn read(path: &Path) -> Result<Token, CliError> {
    let text = fs::read_to_string(path).map_err(|error| CliError::File { path: path.to_owned(), error })?;
    text.trim().parse().map_err(|error| CliError::Refusal(format!("{}: {error}", path.display())))
}

pub(crate) async fn run(verb: &TokenVerb, out: &mut Output) -> Result<(), CliError> {
    let TokenVerb::Generate(TokenGenerateArgs { out: file, output }) = verb;
    let token = Token::new(rand::random());
    let (secret, hash) = (token.secret(), token.hash().to_string());
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
        (DataOutput::Table, None) => out.print(&format!("{secret}\n{}", setting(&hash))).await,
        (DataOutput::Table, Some(_)) => out.print(&setting(&hash)).await,
        (DataOutput::Json, None) => out.print_json(&json!({ "token": secret, "token_sha256": hash })).await,
        (DataOutput::Json, Some(path)) => out.print_json(&json!({ "file": path, "token_sha256": hash })).await,
    }
}

/// A line for the file of `admin.operators`.
fn setting(hash: &str) -> String {
    format!("token_sha256 = [\"{hash}\"]")
}
