//! One node as a process.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{self, Command},
    sync::mpsc,
    task::JoinSet,
    time,
};

use super::{fleet::Stop, lines::Lines};

/// How long the last output of a node that has ended may take: a process that it started may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// Asks the node to colour its log although it writes to a pipe.
    pub(super) colours: bool,
}

#[derive(Debug)]
pub(super) enum News {
    Line { node: usize, line: String },
    Exited { node: usize, how: String },
}

/// A handle on a node that runs.
#[derive(Debug)]
pub(super) struct Child {
    signals: mpsc::Sender<Signal>,
}

impl Child {
    /// Starts a node, with a task that owns it. The node dies when the task does.
    pub(super) fn start(
        program: &Program,
        node: usize,
        news: mpsc::Sender<News>,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<Self> {
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // They are for the operator's tool, and an application would take them for settings.
        for name in ["OUTPOST_NODE", "OUTPOST_CONTEXT", "OUTPOST_CONTEXTS", "OUTPOST_TOKEN_FILE"] {
            command.env_remove(name);
        }
        if program.colours {
            command.env("CLICOLOR_FORCE", "1");
        }
        // A group of its own: Ctrl-C must reach the nodes once, and only through this tool.
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn()?;
        // More than anybody sends: a signal that does not fit has been sent already.
        let (signals, received) = mpsc::channel(8);
        tasks.spawn(own(child, node, received, news));
        Ok(Self { signals })
    }

    pub(super) fn signal(&self, stop: Stop) {
        let signal = match stop {
            Stop::Orderly => Signal::TERM,
            Stop::AtOnce => Signal::KILL,
        };
        let _ = self.signals.try_send(signal);
    }
}

/// Sends what the node writes, and then how it ended.
async fn own(mut child: process::Child, node: usize, mut signals: mpsc::Receiver<Signal>, news: mpsc::Sender<News>) {
    let outputs = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = outputs else { return };
    let read = async { tokio::join!(forward(stdout, node, &news), forward(stderr, node, &news)) };
    let mut read = std::pin::pin!(read);
    let mut reading = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(signal) = signals.recv() => {
                // Not yet waited for, so the number is still the node's.
                let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let Some(group) = group {
                    let _ = kill_process_group(group, signal);
                }
            }
            _ = &mut read, if reading => reading = false,
        }
    };
    if reading {
        let _ = time::timeout(LAST_WORDS, read).await;
    }
    let how = status.map_or_else(|error| format!("lost: {error}"), how);
    let _ = news.send(News::Exited { node, how }).await;
}

async fn forward(mut output: impl AsyncRead + Unpin, node: usize, news: &mpsc::Sender<News>) {
    let mut buffer = vec![0; 16 * 1024];
    let mut lines = Lines::default();
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        for line in lines.push(&buffer[..read]) {
            let _ = news.send(News::Line { node, line }).await;
        }
    }
    if let Some(line) = lines.finish() {
        let _ = news.send(News::Line { node, line }).await;
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed".to_owned(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
