//! A program as a process: its verbs, its signals and its exit codes.

#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use outpost_tests::{
    frames::PREFACE,
    v1::{Answer, Ask, Deed, kinds_client::KindsClient},
    wait::{until, within},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

const KINDS: &str = env!("CARGO_BIN_EXE_kinds");

/// The program, away from the settings of whoever runs the tests.
fn command(arguments: &[&str]) -> Command {
    under(Command::new(KINDS), arguments)
}

fn under(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments).env_clear().current_dir(env!("CARGO_TARGET_TMPDIR"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs the program to its end.
async fn run(arguments: &[&str]) -> Output {
    within("the process to end", command(arguments).output()).await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const ANY_PORT: [&str; 6] =
    ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0"];

/// The program as a server.
struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    /// Ended, nobody reads the program's log any more.
    reading: JoinSet<()>,
}

impl Server {
    async fn start(settings: &[&str]) -> Self {
        Self::spawn(command(&[&ANY_PORT, settings].concat())).await
    }

    /// Starts the program, and waits until it serves.
    async fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut reading = JoinSet::new();
        let read = Arc::clone(&log);
        reading.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut log = read.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Self { child, address: String::new(), log, reading };
        let line = server.logs("serving").await;
        let address = line.split("ingress=").nth(1).unwrap_or_else(|| panic!("no address: {line}"));
        server.address = address.split_whitespace().next().unwrap().to_owned();
        server
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line with this in it.
    async fn logs(&self, part: &str) -> String {
        self.logs_times(part, 1).await
    }

    /// Waits for so many lines with this in them, and gives the last.
    async fn logs_times(&self, part: &str, times: usize) -> String {
        until(&format!("{times} lines with `{part}`"), async || {
            let log = self.log();
            let line = log.lines().filter(|line| line.contains(part)).nth(times - 1);
            line.map(str::to_owned).ok_or(log.clone())
        })
        .await
    }

    fn client(&self) -> KindsClient<Channel> {
        let endpoint = tonic::transport::Endpoint::try_from(format!("http://{}", self.address)).unwrap();
        KindsClient::new(endpoint.connect_lazy())
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
        assert!(sent.success(), "kill -s {name} {pid}");
    }

    async fn exit_code(&mut self) -> Option<i32> {
        let ended = within("the process to end", self.child.wait()).await.unwrap();
        ended.code()
    }
}

fn ask(deed: Deed) -> Ask {
    Ask { text: "hello".to_owned(), deed: deed.into(), ..Ask::default() }
}

/// A call that goes on until its sender is dropped, and gives an answer for each ask.
async fn open_call(client: &mut KindsClient<Channel>) -> (mpsc::Sender<Ask>, Streaming<Answer>) {
    let (tx, rx) = mpsc::channel(1);
    tx.send(ask(Deed::Unspecified)).await.unwrap();
    let mut answers = client.bidi(ReceiverStream::new(rx)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    (tx, answers)
}

// Signals

#[tokio::test]
async fn a_signal_ends_the_program_after_its_calls() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[]).await;
        let (tx, mut answers) = open_call(&mut server.client()).await;
        server.signal(signal).await;
        server.logs("stopping").await;
        tx.send(ask(Deed::Unspecified)).await.unwrap();
        assert_eq!(answers.message().await.expect("the call goes on").unwrap().text, "hello");
        assert_eq!(server.child.try_wait().unwrap(), None, "it waits for the call");
        drop(tx);
        assert_eq!(answers.message().await.expect("the call ends well"), None);
        assert_eq!(server.exit_code().await, Some(0), "{signal}: {}", server.log());
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_program_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("INT", "INT", 130), ("INT", "TERM", 143)] {
        let mut server = Server::start(&[]).await;
        let (_tx, mut answers) = open_call(&mut server.client()).await;
        server.signal(first).await;
        server.logs("stopping").await;
        server.signal(second).await;
        assert_eq!(server.exit_code().await, Some(code), "{first}, {second}: {}", server.log());
        answers.message().await.expect_err("the call was cut");
    }
}

#[tokio::test]
async fn calls_that_do_not_end_are_cut_at_the_timeout() {
    let mut server = Server::start(&["--set", "node.stop_timeout=200ms"]).await;
    let (_tx, _answers) = open_call(&mut server.client()).await;
    let _silent = TcpStream::connect(&server.address).await.unwrap();
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0), "{}", server.log());
    let line = server.logs("node.stop_timeout").await;
    assert!(line.contains("calls_cut=1"), "{line}");
}

// Starts that fail

#[tokio::test]
async fn what_is_wrong_with_the_settings_is_said_and_exits_with_2() {
    for (arguments, said) in [
        (&["--set", "ingress.listn=127.0.0.1:0"][..], &["ingress.listn", "did you mean `ingress.listen`?"][..]),
        (&["--listen", "somewhere"], &["flag --listen", "`ingress.listen", "127.0.0.1:7000"]),
        (&["--log", "shop=loud"], &["flag --log", "`log.filter"]),
        (&["--listen", "0.0.0.0:0"], &["flag --listen", "ingress.plaintext_beyond_loopback"]),
        (&["--config", "absent.toml"], &["absent.toml"]),
        (&["config", "--set", "modules.kinds.a=1"], &["`kinds` takes no configuration"]),
    ] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{arguments:?}");
        for line in err(&output).lines() {
            assert!(line.starts_with("kinds: error: "), "{line}");
        }
        for part in said {
            assert!(err(&output).contains(part), "{arguments:?}: `{part}` is not in: {}", err(&output));
        }
    }
    for arguments in [&["--nonsense"][..], &["nonsense"], &["--set", "nonsense"], &["modules", "-o", "nonsense"]] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(err(&output).contains("nonsense"), "{}", err(&output));
    }
}

#[tokio::test]
async fn an_address_that_is_taken_exits_with_3() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--admin-listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0", "--listen", &address]).await;
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    for part in [address.as_str(), "`ingress.listen`", "choose another port"] {
        assert!(err(&output).contains(part), "{}", err(&output));
    }
}

// What it prints

#[tokio::test]
async fn modules_are_listed() {
    let output = run(&["modules"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["MODULE", "SERVICES", "CALLS"]);
    assert!(rows.contains(&vec!["kinds", "kinds.v1.Kinds", "-"]), "{text}");
    assert!(rows.contains(&vec!["relay", "kinds.v1.Relay", "kinds"]), "{text}");

    let text = out(&run(&["modules", "-o", "json"]).await);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["modules"][1]["name"], "relay", "{json}");
    assert_eq!(json["modules"][1]["services"], serde_json::json!(["kinds.v1.Relay"]));
    assert_eq!(json["modules"][1]["dependencies"], serde_json::json!(["kinds"]));
    assert_eq!(json["cycles"], serde_json::json!([]));

    let text = out(&run(&["modules", "--output", "mermaid"]).await);
    assert!(text.starts_with("graph LR\n"), "{text}");
    assert!(text.contains("m_relay --> m_kinds"), "{text}");
}

#[tokio::test]
async fn settings_are_printed_with_their_origins() {
    let mut command = command(&["config", "--listen", "127.0.0.1:0", "--set", "node.stop_timeout=7s"]);
    command.env("OUTPOST_LOG__FILTER", "warn");
    let output = within("the process to end", command.output()).await.unwrap();
    let text = out(&output);
    let line = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap_or_else(|| panic!("{text}"));
        let (setting, origin) = line.split_once("  # ").unwrap();
        (setting.trim_end().to_owned(), origin.to_owned())
    };
    let told = |setting: &str, origin: &str| (setting.to_owned(), origin.to_owned());
    assert_eq!(line("ingress.listen"), told("ingress.listen = \"127.0.0.1:0\"", "flag --listen"));
    assert_eq!(line("node.stop_timeout"), told("node.stop_timeout = \"7s\"", "flag --set node.stop_timeout"));
    assert_eq!(line("log.filter"), told("log.filter = \"warn\"", "environment variable OUTPOST_LOG__FILTER"));
    assert_eq!(line("ingress.max_connections"), told("ingress.max_connections = 10000", "default"));

    // What is printed can be used as a file.
    let path = format!("{}/printed-{}.toml", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::write(&path, &text).unwrap();
    let again = run(&["config", "--config", &path, "-o", "json"]).await;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", err(&again));
    let json: serde_json::Value = serde_json::from_str(&out(&again)).unwrap();
    let entries = json.as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["key"] == "node.stop_timeout").unwrap();
    assert_eq!(entry["value"], "\"7s\"");
    let number = text.lines().position(|line| line.starts_with("node.stop_timeout")).unwrap() + 1;
    assert_eq!(entry["origin"], format!("{path}:{number}"));
}

#[tokio::test]
async fn help_shows_examples_that_can_be_copied() {
    let output = run(&["--help"]).await;
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    for part in ["Examples:", "kinds --listen 127.0.0.1:8000", "kinds modules -o mermaid", "Exit codes:", "--set"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(!text.contains("APP "), "{text}");
    assert_eq!(out(&run(&["--version"]).await).trim(), "kinds 1.0.0");
}

#[tokio::test]
async fn nobody_who_reads_on_is_no_failure() {
    for arguments in [&["modules"][..], &["config"], &["config", "-o", "json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(arguments);
        let output = within("the process to end", command.stdout(writer).output()).await.unwrap();
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
}

// Surroundings

#[tokio::test]
async fn variables_of_kubernetes_do_no_harm() {
    let mut command = command(&ANY_PORT);
    for (name, value) in [
        ("OUTPOST_SERVICE_HOST", "10.0.0.1"),
        ("OUTPOST_SERVICE_PORT", "7000"),
        ("OUTPOST_SERVICE_PORT_GRPC", "7000"),
        ("OUTPOST_PORT", "tcp://10.0.0.1:7000"),
        ("OUTPOST_PORT_7000_TCP", "tcp://10.0.0.1:7000"),
        ("OUTPOST_PORT_7000_TCP_PROTO", "tcp"),
        ("OUTPOST_PORT_7000_TCP_ADDR", "10.0.0.1"),
        ("OUTPOST_ADMIN_SERVICE_HOST", "10.0.0.1"),
        ("OUTPOST_ADMIN_PORT", "tcp://10.0.0.1:7001"),
    ] {
        command.env(name, value);
    }
    let mut server = Server::spawn(command).await;
    server.client().unary(ask(Deed::Unspecified)).await.unwrap();
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
}

#[tokio::test]
async fn variables_of_others_that_are_not_utf8_do_no_harm() {
    let mut command = command(&["config"]);
    command.env("LATIN1", OsStr::from_bytes(b"caf\xe9"));
    let output = within("the process to end", command.output()).await.unwrap();
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn the_text_of_a_panic_is_logged_and_not_told_to_clients() {
    let server = Server::start(&[]).await;
    let mut client = server.client();
    let status = client.unary(ask(Deed::Panic)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!format!("{status:?}").contains("secret"), "{status:?}");
    let mut answers = client.server_stream(ask(Deed::Panic)).await.unwrap().into_inner();
    let status = answers.message().await.unwrap_err();
    assert!(!format!("{status:?}").contains("secret"), "{status:?}");
    server.logs("a call panicked").await;
    assert!(server.log().contains("a secret that must not leave the process"), "{}", server.log());
    client.unary(ask(Deed::Unspecified)).await.expect("it serves on");
}

#[tokio::test]
async fn nobody_who_reads_the_log_on_ends_no_call() {
    let mut server = Server::start(&[]).await;
    server.reading.shutdown().await;
    let mut client = server.client();
    for _ in 0..3 {
        let status = client.unary(ask(Deed::Panic)).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status:?}");
        client.unary(ask(Deed::Unspecified)).await.expect("it serves on");
    }
}

#[tokio::test]
async fn nobody_who_reads_the_log_on_ends_no_listener() {
    let mut server = Server::start(&["--set", "ingress.max_connections=1"]).await;
    let mut client = server.client();
    client.unary(ask(Deed::Unspecified)).await.unwrap();
    server.reading.shutdown().await;
    // One connection too many, which is logged.
    let mut refused = TcpStream::connect(&server.address).await.unwrap();
    within("its end", refused.read_to_end(&mut Vec::new())).await.unwrap();
    client.unary(ask(Deed::Unspecified)).await.expect("the connection that was there stays");
    drop(client);
    until("another connection to be served", async || {
        let answer = server.client().unary(ask(Deed::Unspecified)).await;
        answer.map_err(|status| format!("{status:?}"))
    })
    .await;
}

#[tokio::test]
async fn nobody_who_reads_the_log_on_is_no_failure_to_stop() {
    let mut server = Server::start(&[]).await;
    server.reading.shutdown().await;
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
}

/// Seconds of processor time that a process has used.
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may have spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

#[tokio::test]
async fn without_file_descriptors_it_waits_and_then_serves_again() {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--nofile=64:64", KINDS]);
    let settings = ["--set", "ingress.preface_timeout=10m", "--set", "node.worker_threads=2"];
    let mut prlimit = under(prlimit, &[&ANY_PORT, &settings[..]].concat());
    prlimit.env("PATH", std::env::var_os("PATH").unwrap());
    let mut server = Server::spawn(prlimit).await;
    let mut before = server.client();
    before.unary(ask(Deed::Unspecified)).await.unwrap();

    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(&server.address).await.unwrap());
    }
    server.logs("can't accept a connection").await;
    let pid = server.child.id().unwrap();
    let used = processor_seconds(pid);
    // Its waits have grown to a second: it does not try without a pause.
    server.logs_times("retry_in_ms=1000", 2).await;
    let used = processor_seconds(pid) - used;
    assert!(used < 0.5, "{used} s of processor time while nothing could be done");
    let tries = server.log().matches("can't accept a connection").count();
    assert!(tries < 30, "{tries} tries: {}", server.log());
    before.unary(ask(Deed::Unspecified)).await.expect("a connection that was there is served");

    drop(held);
    let answer = within("a new connection to be served", server.client().unary(ask(Deed::Unspecified))).await;
    answer.expect("it serves again");
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0), "{}", server.log());
}

#[tokio::test]
async fn a_program_ends_before_it_has_started_if_told_to() {
    // The first signal may come before the program listens for it; that ends it as any process.
    let mut child = command(&ANY_PORT).spawn().unwrap();
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().await.unwrap().success());
    let ended = within("the process to end", child.wait()).await.unwrap();
    let killed = ended.code().is_none();
    assert!(killed || matches!(ended.code(), Some(0 | 143)), "{ended:?}");
}

#[tokio::test]
async fn nonsense_does_not_end_the_program() {
    let server = Server::start(&["--set", "ingress.preface_timeout=200ms"]).await;
    let after_preface = [PREFACE, &[255; 9]].concat();
    for nonsense in [&b"\x16\x03\x01\x02\x00"[..], b"GET", &after_preface, &[0; 4096]] {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        // Closed or reset, with or without words.
        let _ = within("its end", stream.read_to_end(&mut Vec::new())).await;
    }
    server.client().unary(ask(Deed::Unspecified)).await.unwrap();
    assert!(!server.log().contains("panic"), "{}", server.log());
}
