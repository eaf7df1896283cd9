//! The built tool, as a shell runs it.

#![allow(dead_code, clippy::allow_attributes, reason = "not every test file needs all of it")]

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, BufReader, Lines},
    process::{Child, Command},
};

/// Far beyond what anything here takes: only a hang gets there.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) fn outpost(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outpost"));
    command.args(args).env("USER", "ada").kill_on_drop(true);
    command.env_remove("OUTPOST_NODE").env_remove("OUTPOST_CONTEXT").env_remove("OUTPOST_TOKEN_FILE");
    // Not those of whoever runs the tests; nobody can write there.
    command.env("OUTPOST_CONTEXTS", "/proc/none/contexts.toml");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: Option<i32>,
}

impl Ran {
    /// Its stdout, if all went well.
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self.out
    }

    /// Its stderr, if it failed with this code.
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.err
    }
}

pub(crate) async fn ran(child: Child) -> Ran {
    let output = tokio::time::timeout(HANG, child.wait_with_output()).await.expect("the tool hangs").unwrap();
    Ran {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code(),
    }
}

/// Reads on until a line contains the text, and returns that line.
pub(crate) async fn line_with<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>, text: &str) -> String {
    let mut seen = Vec::new();
    let found = async {
        loop {
            match lines.next_line().await.unwrap() {
                Some(line) if line.contains(text) => return line,
                Some(line) => seen.push(line),
                None => panic!("`{text}` never came in\n{}", seen.join("\n")),
            }
        }
    };
    tokio::time::timeout(HANG, found).await.unwrap_or_else(|_| panic!("`{text}` did not come"))
}

pub(crate) async fn send(signal: &str, child: &Child) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
}
