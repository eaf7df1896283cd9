//! `outpost dev` with a shell script for an application: what nodes are started with, and that none is left behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "support/tool.rs"]
mod tool;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use tool::{HANG, line_with, outpost, ran, send};

/// Prints its arguments and number; ends in an orderly way when asked to.
const APPLICATION: &str = "#!/bin/sh
trap 'echo bye; exit 0' TERM
echo \"args $*\"
echo \"pid $$\"
while :; do sleep 0.05; done
";

/// Does not end when asked to.
const STUBBORN: &str = "#!/bin/sh
trap 'echo no' TERM
echo \"pid $$\"
while :; do sleep 0.05; done
";

struct Dev {
    /// Removed with this.
    dir: Arc<TempDir>,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Dev {
    fn start(application: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = write_program(dir.path(), application);
        let data = dir.path().join("data").to_str().unwrap().to_owned();
        let base = free_base().to_string();
        let args =
            [&["dev", "--dir", &data, "--base-port", &base], args, &["--", &program, "--config", "x.toml"]].concat();
        let contexts = dir.path().join("contexts.toml");
        let mut child = outpost(&args)
            .env("OUTPOST_NODE", "127.0.0.1:1")
            .env("OUTPOST_CONTEXTS", contexts)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let dir = Arc::new(dir);
        Self { dir, stdin: child.stdin.take().unwrap(), child, lines }
    }

    /// What the tool would find in another terminal.
    fn contexts(&self) -> String {
        fs::read_to_string(self.dir.path().join("contexts.toml")).unwrap()
    }

    async fn types(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn line(&mut self, text: &str) -> String {
        line_with(&mut self.lines, text).await
    }

    /// The process of a node that has just started.
    async fn pid(&mut self, node: &str) -> String {
        let line = self.line(&format!("{node} | pid ")).await;
        line.rsplit(' ').next().unwrap().to_owned()
    }

    async fn code(mut self) -> Option<i32> {
        // Until it ends, it must be able to write.
        let rest = async { while let Ok(Some(_)) = self.lines.next_line().await {} };
        tokio::time::timeout(HANG, rest).await.expect("it hangs");
        self.child.wait().await.unwrap().code()
    }
}

fn write_program(dir: &Path, text: &str) -> String {
    let path = dir.join("application");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Below the ports that the system gives out, and elsewhere for each test.
fn free_base() -> u16 {
    static TESTS: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % 60).unwrap();
    20_000 + process * 200 + TESTS.fetch_add(1, Ordering::Relaxed) * 40
}

async fn is_alive(pid: &str) -> bool {
    Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status().await.unwrap().success()
}

#[tokio::test]
async fn nodes_are_started_as_a_cluster_and_stopped_in_order() {
    let mut dev = Dev::start(APPLICATION, &["--set", "log.filter=debug"]);
    let header = dev.line("3 nodes of ").await;
    assert!(header.starts_with("dev    | ") && header.contains("(new)"), "{header}");
    let mut pids = Vec::new();
    let mut seen = String::new();
    while pids.len() < 3 {
        let line = dev.lines.next_line().await.unwrap().unwrap();
        if let Some((_, pid)) = line.split_once(" | pid ") {
            pids.push(pid.to_owned());
        }
        seen += &format!("{line}\n");
    }
    for part in [
        "node-2 | args --listen 127.0.0.1:",
        "--set node.name=node-3 ",
        "--set cluster.initial_voters=[\"node-1\",\"node-2\",\"node-3\"] --set cluster.name=\"dev\" --set trust.certificate=",
        "data/trust/node-2.pem\" ",
        "data/trust/gossip.keys\" --set log.filter=debug --config x.toml\n",
        "data/node-1\"",
    ] {
        assert!(seen.contains(part), "{part} in\n{seen}");
    }
    let contexts = dev.contexts();
    assert!(contexts.contains("current = \"dev\"") && contexts.contains("data/trust/dev.pem"), "{contexts}");
    send("-TERM", &dev.child).await;
    dev.line("| bye").await;
    let dir = Arc::clone(&dev.dir);
    assert_eq!(dev.code().await, Some(0));
    assert!(!fs::read_to_string(dir.path().join("contexts.toml")).unwrap().contains("dev"), "the context went with it");
    for pid in pids {
        assert!(!is_alive(&pid).await, "{pid} was left behind");
    }
}

#[tokio::test]
async fn nodes_are_restarted_killed_started_and_added_by_hand() {
    let mut dev = Dev::start(APPLICATION, &["--nodes", "2"]);
    // In whichever order they come.
    dev.line("| pid ").await;
    dev.line("| pid ").await;
    dev.types("r 2").await;
    dev.line("node-2 | bye").await;
    dev.line("node-2 has stopped: exit code 0").await;
    let second = dev.pid("node-2").await;
    dev.types("kill node-2").await;
    dev.line("node-2 is down: killed; `s 2` starts it again").await;
    assert!(!is_alive(&second).await);
    dev.types("what").await;
    dev.line("`what` is not a command").await;
    dev.types("s 2").await;
    let second = dev.pid("node-2").await;
    dev.types("add").await;
    let third = dev.line("node-3 | args ").await;
    assert!(
        third.contains("initial_voters=[\"node-1\"]"),
        "the cluster is there already, and this of no effect: {third}"
    );
    assert_eq!(third.matches("2\"").count(), 2, "it knows the other two: {third}");
    dev.pid("node-3").await;
    dev.types("q").await;
    assert_eq!(dev.code().await, Some(0));
    assert!(!is_alive(&second).await);
}

#[tokio::test]
async fn a_node_that_ends_by_itself_is_reported() {
    let mut dev = Dev::start("#!/bin/sh\necho bad settings >&2\nexit 2\n", &["--nodes", "1"]);
    dev.line("node-1 | bad settings").await;
    dev.line("node-1 ended by itself: exit code 2").await;
    drop(std::mem::replace(&mut dev.stdin, placeholder_stdin()));
    assert_eq!(dev.code().await, Some(1), "nobody is left, and nobody can type");
}

/// A stdin of something else, so that the tool's own can be closed.
fn placeholder_stdin() -> ChildStdin {
    Command::new("true").stdin(Stdio::piped()).spawn().unwrap().stdin.take().unwrap()
}

#[tokio::test]
async fn a_second_ctrl_c_kills_and_a_deadline_too() {
    let mut dev = Dev::start(STUBBORN, &["--nodes", "1"]);
    let pid = dev.pid("node-1").await;
    send("-INT", &dev.child).await;
    dev.line("node-1 | no").await;
    assert!(is_alive(&pid).await, "it may take its time");
    // Until it counts as another wish.
    while dev.child.try_wait().unwrap().is_none() {
        send("-INT", &dev.child).await;
    }
    assert_eq!(dev.code().await, Some(130));
    assert!(!is_alive(&pid).await);

    let mut dev = Dev::start(STUBBORN, &["--nodes", "1", "--stop-timeout", "100ms"]);
    let pid = dev.pid("node-1").await;
    send("-INT", &dev.child).await;
    dev.line("node-1 did not stop in time, and is killed").await;
    assert_eq!(dev.code().await, Some(0));
    assert!(!is_alive(&pid).await);
}

#[tokio::test]
async fn ports_in_use_are_passed_over_and_data_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let program = write_program(dir.path(), APPLICATION);
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("node-1")).unwrap();
    fs::create_dir_all(data.join("node-4")).unwrap();
    let base = free_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + 1)).unwrap();
    let args =
        ["dev", "--plain", "--nodes", "1", "--dir", data.to_str().unwrap(), "--base-port", &base.to_string(), &program];
    // Nobody types, from the start.
    let mut child = outpost(&args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let range = format!("node-1 has {}-{}, because of ports in use at {base}-{}", base + 10, base + 12, base + 2);
    line_with(&mut lines, &range).await;
    line_with(&mut lines, "from an earlier run").await;
    line_with(&mut lines, "note: node-4 took part earlier").await;
    line_with(&mut lines, &format!("export OUTPOST_CONTEXT=none OUTPOST_NODE=127.0.0.1:{}", base + 11)).await;
    let started = line_with(&mut lines, "node-1 | args ").await;
    assert!(started.contains("initial_voters=[\"node-1\"]"), "{started}");
    send("-TERM", &child).await;
    line_with(&mut lines, "node-1 has stopped").await;
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said_at_once() {
    let err = ran(outpost(&["dev", "--", "target/release/no-shop"]).spawn().unwrap()).await.failed(2);
    assert!(err.contains("there is no program target/release/no-shop; build it: cargo build --release -p no-shop"));
}
