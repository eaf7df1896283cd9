//! What was asked for goes to stdout, and only from here.

use std::io;

use tokio::io::{AsyncWriteExt as _, Stdout};

use crate::{error::CliError, status::printable};

pub(crate) struct Output {
    // Not the one of `std`: while a reader is slow, Ctrl-C must still end the tool.
    stdout: Stdout,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self { stdout: tokio::io::stdout() }
    }

    /// Writes the text, with a newline at its end, at once: an answer of a stream is seen when it comes.
    pub(crate) async fn print(&mut self, text: &str) -> Result<(), CliError> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let written = async {
            self.stdout.write_all(text.as_bytes()).await?;
            self.stdout.write_all(end.as_bytes()).await?;
            self.stdout.flush().await
        };
        written.await.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::StdoutClosed,
            _ => CliError::Stdout(error),
        })
    }

    /// The same for what a cluster tells: it may quote a stranger.
    pub(crate) async fn print_told(&mut self, text: &str) -> Result<(), CliError> {
        self.print(&printable(text)).await
    }

    /// Writes a value as indented JSON.
    pub(crate) async fn print_json(&mut self, value: &serde_json::Value) -> Result<(), CliError> {
        self.print(&format!("{value:#}")).await
    }
}

/// Waits until nobody reads stdout any more: `outpost call Orders/Watch ... | head -1` should end with `head`, and not
/// with the next answer, which may never come.
pub(crate) async fn closed() {
    use std::os::fd::AsFd as _;

    use tokio::{io::Interest, net::unix::pipe};

    // Unchecked, because the checked one would make stdout non-blocking, for whoever shares it too.
    let watched = io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
    // A file can't be watched, and nobody has to read it.
    let Ok(stdout) = watched else { return std::future::pending().await };
    if stdout.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}
