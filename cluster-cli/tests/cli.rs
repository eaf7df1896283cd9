//! The built tool against the example shop, as a shell sees it: stdout, stderr and the exit code.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "support/tool.rs"]
mod tool;

use std::{net::SocketAddr, path::Path, process::Stdio};

use outpost::{Node, Sources};
use outpost_proto::token::Token;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    process::Command,
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::TcpListenerStream;
use tool::{HANG, Ran, outpost, ran, send};

struct Shop {
    node: Node,
}

impl Shop {
    async fn start() -> Self {
        let sources = Sources::on_free_ports().set("modules.orders.step_ms", "1");
        Self { node: shop::app().start(&sources).await.unwrap() }
    }

    fn admin(&self) -> String {
        self.node.admin_address().unwrap().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = outpost(args);
        command.env("OUTPOST_NODE", self.admin());
        command
    }

    async fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args).spawn().unwrap()).await
    }

    /// Runs it until it says something. A node tells that it is ready a moment after it has begun to serve.
    async fn until(&self, args: &[&str], says: &str) {
        let end = Instant::now() + HANG;
        loop {
            let said = self.run(args).await.ok();
            if said.contains(says) {
                return;
            }
            assert!(Instant::now() < end, "no `{says}` in: {said}");
        }
    }

    async fn run_with_stdin(&self, args: &[&str], stdin: &str) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
        ran(child).await
    }
}

#[tokio::test]
async fn one_node_tells_what_it_runs() {
    let shop = Shop::start().await;
    let status = shop.run(&["status", "--local"]).await.ok();
    for fact in ["shop ", "serving", &shop.node.ingress_address().to_string(), &std::process::id().to_string()] {
        assert!(status.contains(fact), "{fact} in\n{status}");
    }
    let json = shop.run(&["status", "--local", "-o", "json"]).await.ok();
    assert!(json.contains("\"modules\": 10") && json.contains("\"panics\": 0"), "{json}");

    let modules = shop.run(&["modules", "--local"]).await.ok();
    assert!(modules.lines().any(|line| line.contains("shop.v1.Cart") && line.contains("running")), "{modules}");
    assert!(shop.run(&["modules", "--local", "-o", "json"]).await.ok().contains("\"cycles\": []"));
    assert!(shop.run(&["modules", "-o", "mermaid"]).await.ok().contains("m_cart --> m_catalog"));
}

#[tokio::test]
async fn a_call_with_one_answer_prints_it() {
    let shop = Shop::start().await;
    let pretty = shop.run(&["call", "shop.v1.Catalog/Get", r#"{"product_id": "kettle"}"#]).await.ok();
    assert!(pretty.contains("\n    \"id\": \"kettle\""), "{pretty}");
    let ingress = shop.node.ingress_address().to_string();
    let args = ["call", "Cart/Get", "-d", "-", "-o", "json", "--emit-defaults", "--address", &ingress];
    assert_eq!(shop.run_with_stdin(&args, r#"{"userId": "ada"}"#).await.ok(), "{\"lines\":[]}\n");
}

#[tokio::test]
async fn a_stream_of_answers_is_printed_one_a_line() {
    let shop = Shop::start().await;
    let order = r#"{"idempotency_key": "k", "user_id": "ada", "charge_id": "c", "tracking_id": "t"}"#;
    let created = shop.run(&["call", "Orders/Create", order, "-o", "json"]).await.ok();
    let id = created.split('"').find(|part| part.starts_with("ORDER-")).unwrap();
    let watched = shop.run(&["call", "Orders/Watch", &format!(r#"{{"order_id": "{id}"}}"#), "-o", "json"]).await.ok();
    assert!(watched.lines().all(|line| line.contains(id)), "{watched}");
    assert!(watched.lines().last().unwrap().contains("ORDER_STATUS_DELIVERED"), "{watched}");
}

#[tokio::test]
async fn a_stream_of_messages_is_sent_as_a_whole_or_not_at_all() {
    let shop = Shop::start().await;
    let review = |rating: &str| format!(r#"{{"review": {{"product_id": "mug", "user_id": "a", "rating": {rating}}}}}"#);
    let (good, bad) = (format!("{}{}", review("5"), review("4")), format!("{}\n{}", review("5"), review("\"x\"")));

    let broken = shop.run_with_stdin(&["call", "Reviews/Upload", "-d", "-"], &bad).await.failed(2);
    assert!(broken.contains("bad JSON at line 2") && broken.contains("field `review.rating`"), "{broken}");
    let list = ["call", "Reviews/List", r#"{"product_id": "mug"}"#, "-o", "json"];
    assert_eq!(shop.run(&list).await.ok(), "{\"summary\":{}}\n");

    let args = ["call", "Reviews/Upload", &good, "-o", "json"];
    assert_eq!(shop.run(&args).await.ok(), "{\"summary\":{\"count\":2,\"averageRating\":4.5}}\n");
}

#[tokio::test]
async fn a_chat_goes_back_and_forth() {
    let shop = Shop::start().await;
    let mut child =
        shop.command(&["call", "Support/Chat", "-d", "-", "-o", "json"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    // Each message is sent only when the last was answered, as by a person.
    for (text, answer) in [("hello", "Hello!"), ("can I return it?", "30 days"), ("thanks", "welcome")] {
        stdin.write_all(format!("{{\"user_id\": \"ada\", \"text\": \"{text}\"}}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(HANG, answers.next_line()).await.expect("no answer").unwrap().unwrap();
        assert!(line.contains(answer), "{line}");
    }
    drop(stdin);
    assert_eq!(ran(child).await.ok(), "");
}

#[tokio::test]
async fn without_a_method_calls_are_listed_and_explained() {
    let shop = Shop::start().await;
    let all = shop.run(&["call"]).await.ok();
    assert!(all.lines().any(|line| line.split_whitespace().eq([
        "shop.v1.Orders/Watch",
        "shop.v1.WatchRequest",
        "stream",
        "shop.v1.WatchResponse"
    ])));
    let orders = shop.run(&["call", "Orders"]).await.ok();
    assert!(orders.contains("  {\"order_id\": \"text\"}\n  one of: order_id, idempotency_key\n"), "{orders}");
}

#[tokio::test]
async fn errors_name_the_fault_and_have_their_exit_codes() {
    let shop = Shop::start().await;
    let ingress = shop.node.ingress_address().to_string();
    let admin = shop.admin();
    for (args, code, message) in [
        (&["call", "Catalog/Get", r#"{"product_id": "nope"}"#][..], 1, "error: NOT_FOUND: "),
        (&["call", "Health/Watch", "--timeout", "1ms"], 1, "DEADLINE_EXCEEDED"),
        (&["status", "--node", &ingress], 1, "has no admin API"),
        (&["call", "--address", &admin], 1, "has no server reflection"),
        (&["call", "Catlog/Get"], 2, "did you mean `shop.v1.Catalog`?"),
        (&["call", "Catalog/Gte"], 2, "did you mean `Get`?"),
        (&["call", "Catalog/Get", r#"{"id": 1}"#], 2, "fields of `shop.v1.CatalogGetRequest` are product_id"),
        (&["call", "Catalog/Get", r#"{"product_id": "#], 2, "bad JSON at line 1, column 15"),
        (&["call", "Catalog/Get", "{}{}"], 2, "takes one message, and the input has 2"),
        (&["call", "Catalog/Get", "-d", "@/no/such/file"], 2, "can't read /no/such/file: "),
        (&["call", "Reviews/Upload"], 2, "takes a stream of messages"),
        (&["call", "Catalog/Get", "-H", "no colon"], 2, "has no colon"),
        (&["status", "--node", "localhost"], 2, "has no port"),
        (&["stauts"], 2, "unrecognized subcommand"),
    ] {
        let err = shop.run(args).await.failed(code);
        assert!(err.contains(message), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn who_is_not_there_or_not_grpc_is_said_to_be_unreachable() {
    // Taken and given back, so that nothing listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let err = ran(outpost(&["status", "--node", &nobody]).spawn().unwrap()).await.failed(4);
    assert!(err.contains(&format!("can't reach {nobody}: connection refused; is the application running")), "{err}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let err = ran(outpost(&["call", "--address", &address]).spawn().unwrap()).await.failed(4);
    assert!(err.contains("does not answer as a gRPC server") && err.contains("--tls"), "{err}");
}

#[tokio::test]
async fn reflection_of_the_old_name_will_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()
        .unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(reflection).add_service(health);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let args = ["call", "Health/Check", "--address", &address.to_string()];
    let answer = ran(outpost(&args).spawn().unwrap()).await.ok();
    assert_eq!(answer, "{\n  \"status\": \"SERVING\"\n}\n");
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_a_call_at_once() {
    let shop = Shop::start().await;
    let mut child = shop.command(&["call", "Health/Watch", "-o", "json"]).spawn().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(HANG, answers.next_line()).await.expect("no answer").unwrap();
    assert_eq!(first.as_deref(), Some("{\"status\":\"SERVING\"}"));
    send("-INT", &child).await;
    assert_eq!(ran(child).await.failed(130), "");
}

#[tokio::test]
async fn a_reader_that_has_read_enough_is_no_failure() {
    let shop = Shop::start().await;
    // One fails to write, the other has nothing more to write and would wait for ever.
    for args in [&["modules", "--local", "-o", "json"][..], &["call", "Health/Watch", "-o", "json"]] {
        let mut child = shop.command(args).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(ran(child).await.ok(), "");
    }
}

/// The shop as it runs, its sources, and sources that were changed.
#[tokio::test]
async fn versions_are_compared_by_what_they_say_on_the_wire() {
    let shop = Shop::start().await;
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop/proto");
    let ingress = shop.node.ingress_address().to_string();
    let same = shop.run(&["check-compat", &ingress, sources]).await.ok();
    assert!(same.starts_with("compatible: "), "{same}");

    let changed = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-r", sources]).arg(changed.path()).status().await.unwrap();
    assert!(copied.success());
    let changed = changed.path().join("proto");
    let file = changed.join("shop/v1/cart.proto");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("string user_id = 1;"));
    std::fs::write(&file, text.replacen("string user_id = 1;", "int64 user_id = 1;", 1)).unwrap();
    let changed = changed.display().to_string();
    for old in [&*ingress, sources] {
        let apart = shop.run(&["check-compat", old, &changed]).await;
        assert!(apart.out.contains("user_id") && apart.out.contains("field-type"), "{apart:?}");
        assert_eq!(apart.failed(1), "error: one difference keeps the two versions apart\n");
    }
    let json = shop.run(&["check-compat", sources, &changed, "-o", "json"]).await;
    assert!(json.out.contains("\"compatible\": false") && json.out.contains("\"rule\": \"field-type\""), "{json:?}");
    json.failed(1);
}

#[tokio::test]
async fn what_is_no_version_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("bad.binpb"), b"\xff\xff").unwrap();
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::create_dir(path("broken")).unwrap();
    std::fs::write(path("broken/a.proto"), "syntax = \"proto3\";\nmessage {").unwrap();
    for (version, part) in [
        ("no such thing".to_owned(), "no folder of .proto files"),
        (path("bad.binpb"), "holds no descriptors"),
        (path("empty"), "has no .proto files"),
        (path("broken"), "a.proto:2"),
    ] {
        let error = ran(outpost(&["check-compat", &version, &version]).spawn().unwrap()).await.failed(2);
        assert!(error.contains(part), "{part} in {error}");
    }
}

/// A `kubectl` that forwards to ports that are there, and writes down what it was asked for and its process.
fn kubectl(folder: &std::path::Path, body: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("kubectl");
    let said = folder.join("said");
    let script = format!("#!/bin/sh\necho \"$$ $*\" >> {}\nfor last; do :; done\n{body}\n", said.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

#[tokio::test]
async fn a_context_may_lead_into_kubernetes() {
    let shop = Shop::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (admin, ingress) = (shop.node.admin_address().unwrap().port(), shop.node.ingress_address().port());
    let forward = format!(
        "case $last in :7001) port={admin};; :{ingress}) port={ingress};; *) exit 9;; esac\n\
         echo \"Forwarding from 127.0.0.1:$port -> ${{last#:}}\"\nexec sleep 600"
    );
    let path = kubectl(folder.path(), &forward);
    let contexts = folder.path().join("contexts.toml");
    let run = async |args: &[&str]| {
        let mut command = outpost(args);
        ran(command.env("PATH", &path).env("OUTPOST_CONTEXTS", &contexts).spawn().unwrap()).await
    };
    let set =
        ["context", "set", "k", "--kubernetes", "statefulset/shop", "--namespace", "shop", "--kube-context", "kind"];
    run(&set).await.ok();
    assert!(run(&["context", "list"]).await.ok().contains("statefulset/shop of namespace shop"));
    assert!(run(&["status", "--local"]).await.ok().contains("serving"));
    let called = run(&["call", "Catalog/Get", r#"{"product_id": "kettle"}"#, "-o", "json"]).await.ok();
    assert!(called.contains("kettle"), "{called}");

    let said = std::fs::read_to_string(folder.path().join("said")).unwrap();
    let asked: Vec<(&str, &str)> = said.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let expected = |port: u16| {
        format!("--context=kind --namespace=shop port-forward --address 127.0.0.1 statefulset/shop :{port}")
    };
    let arguments: Vec<&str> = asked.iter().map(|(_, arguments)| *arguments).collect();
    assert_eq!(arguments, [expected(7001), expected(7001), expected(ingress)]);
    // Nothing is left of it.
    for (process, _) in asked {
        let deadline = tokio::time::Instant::now() + HANG;
        while std::path::Path::new("/proc").join(process).exists() {
            assert!(tokio::time::Instant::now() < deadline, "kubectl {process} goes on");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn what_kubectl_says_is_handed_on() {
    let folder = tempfile::tempdir().unwrap();
    let contexts = folder.path().join("contexts.toml");
    std::fs::write(&contexts, "current = \"k\"\n[contexts.k]\nkubernetes = { target = \"statefulset/shop\" }\n")
        .unwrap();
    for (body, part) in [
        ("echo 'Error from server (NotFound): statefulsets.apps \"shop\" not found' >&2; exit 1", "\"shop\" not found"),
        ("echo hello", "said `hello`"),
    ] {
        let path = kubectl(folder.path(), body);
        let mut command = outpost(&["status"]);
        let failed = ran(command.env("PATH", path).env("OUTPOST_CONTEXTS", &contexts).spawn().unwrap()).await;
        let error = failed.failed(4);
        assert!(error.contains(part) && error.contains("statefulset/shop"), "{error}");
    }
    let mut command = outpost(&["status"]);
    let missing = ran(command.env("PATH", "/none").env("OUTPOST_CONTEXTS", &contexts).spawn().unwrap()).await;
    assert!(missing.failed(4).contains("can't run kubectl"));
}

#[tokio::test]
async fn a_token_is_made_and_its_hash_is_what_nodes_are_told() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let run = async |args: &[&str]| ran(outpost(args).current_dir(folder.path()).spawn().unwrap()).await;
    let printed = run(&["token", "generate"]).await.ok();
    let (secret, setting) = printed.trim_end().split_once('\n').unwrap();
    let hash = secret.parse::<Token>().unwrap().hash();
    assert_eq!(setting, format!("token_sha256 = [\"{hash}\"]"));

    let setting = run(&["token", "generate", "--out", "ci.token"]).await.ok();
    let path = folder.path().join("ci.token");
    let written = std::fs::read_to_string(&path).unwrap();
    let token: Token = written.trim().parse().unwrap();
    assert_eq!(setting, format!("token_sha256 = [\"{}\"]\n", token.hash()));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let taken = run(&["token", "generate", "--out", "ci.token"]).await.failed(2);
    assert!(taken.contains("ci.token") && taken.contains("name a new file"), "{taken}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written);

    let json = run(&["token", "generate", "-o", "json"]).await.ok();
    assert!(json.contains("\"token\": \"outpost_token_") && json.contains("\"token_sha256\""), "{json}");
    let limited = run(&["token", "generate", "--out", "limited.token", "--for", "90d"]).await.ok();
    let until = limited.split_once(" until ").unwrap().1.strip_suffix("Z\"]\n").unwrap();
    assert!(until.len() == "2027-01-31T00:00:00".len() && until.starts_with('2'), "{limited}");
    let endless = run(&["token", "generate", "--for", "9000years"]).await.failed(2);
    assert!(endless.contains("--for"), "{endless}");
    let json = run(&["token", "generate", "-o", "json", "--out", "other.token"]).await.ok();
    assert!(json.contains("\"other.token\"") && !json.contains("outpost_token_"), "{json}");
}

#[tokio::test]
async fn certificates_are_revoked_by_name_or_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |args: &[&str]| ran(outpost(args).current_dir(folder.path()).spawn().unwrap()).await;
    run(&["ca", "init"]).await.ok();
    run(&["ca", "issue", "node-1", "node-2", "--cluster", "shop"]).await.ok();
    let printed = run(&["ca", "revoke", "node-1"]).await.ok();
    let name = "spiffe://outpost.local/outpost/shop/node/node-1";
    assert!(printed.starts_with(&format!("trust/node-1.pem  {name}  revoked\n")), "{printed}");
    assert!(printed.contains("trust/revocations.pem  number 1, 1 revoked, to be renewed by 2"), "{printed}");
    let json = run(&["ca", "revoke", "trust/node-1.pem", "trust/node-2.pem", "--days", "30", "-o", "json"]).await.ok();
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&list["number"], &list["entries"], &list["list"]),
        (&2.into(), &2.into(), &"trust/revocations.pem".into())
    );
    let (first, second) = (&list["revoked"][0], &list["revoked"][1]);
    assert_eq!(
        (&first["name"], &first["was_revoked"], &second["was_revoked"]),
        (&name.into(), &true.into(), &false.into())
    );
    let serial = first["serial"].as_str().unwrap();
    assert!(!serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_hexdigit()), "{json}");
    let unknown = run(&["ca", "revoke", "node-3"]).await.failed(2);
    assert!(unknown.contains("there is no certificate for `node-3` in trust"), "{unknown}");
}

/// A shop whose operator `ci` shows a token, a file with that, and one with another that is none.
async fn with_token(folder: &Path, settings: &[(&str, &str)]) -> (Shop, String, String) {
    let token = Token::new([1; 32]);
    let write = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let operators = format!("[ci]\nscope = \"operate\"\ntoken_sha256 = [\"{}\"]", token.hash());
    let operators = write("operators.toml", &operators);
    let sources = Sources::on_free_ports().set("admin.operators", &operators);
    let sources = settings.iter().fold(sources, |sources, (key, value)| sources.set(key, value));
    let shop = Shop { node: shop::app().start(&sources).await.unwrap() };
    (shop, write("ci.token", &format!("{}\n", token.secret())), write("bad.token", &token.secret()[..70]))
}

#[tokio::test]
async fn a_token_lets_the_tool_in() {
    let folder = tempfile::tempdir().unwrap();
    let (shop, token, bad) = with_token(folder.path(), &[]).await;
    let nobody = shop.run(&["status"]).await.failed(1);
    assert!(nobody.contains("UNAUTHENTICATED") && nobody.contains("--token-file"), "{nobody}");
    shop.until(&["status", "--token-file", &token], "1 ready").await;
    let by_variable = shop.command(&["nodes"]).env("OUTPOST_TOKEN_FILE", &token).spawn().unwrap();
    assert!(ran(by_variable).await.ok().contains("ready"));
    // The token is for the node's admin API only; its ingress is another matter.
    let called = ["call", "Catalog/Get", r#"{"product_id": "kettle"}"#, "--token-file", &token];
    assert!(shop.run(&called).await.ok().contains("kettle"));
    let small = shop.run(&["voters", "set", "3", "--token-file", &token]).await.failed(1);
    assert!(small.contains("PERMISSION_DENIED") && small.contains("`ci`"), "{small}");

    let unreadable = shop.run(&["status", "--token-file", &bad]).await.failed(2);
    assert!(unreadable.contains("bad.token") && !unreadable.contains("0101"), "{unreadable}");
    for node in ["10.0.0.1:7001", "node.example:7001"] {
        let plain = shop.run(&["status", "--node", node, "--token-file", &token]).await.failed(2);
        assert!(plain.contains("the token is not sent to") && plain.contains("plain text"), "{plain}");
    }

    let contexts = folder.path().join("contexts.toml");
    let run = async |args: &[&str]| ran(outpost(args).env("OUTPOST_CONTEXTS", &contexts).spawn().unwrap()).await;
    run(&["context", "set", "here", "--node", &shop.admin(), "--token-file", &token]).await.ok();
    assert!(run(&["status"]).await.ok().contains("1 ready"));
    let listed = run(&["context", "list"]).await.ok();
    assert!(listed.contains("ci.token") && !listed.contains("outpost_token_"), "{listed}");
    assert!(!std::fs::read_to_string(&contexts).unwrap().contains("outpost_token_"));
}

#[tokio::test]
async fn a_token_goes_to_a_node_of_the_cluster_that_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join("trust").join(name).to_str().unwrap().to_owned();
    let contexts = folder.path().join("contexts.toml");
    let run = async |args: &[&str]| {
        let mut command = outpost(args);
        ran(command.current_dir(folder.path()).env("OUTPOST_CONTEXTS", &contexts).spawn().unwrap()).await
    };
    run(&["ca", "init"]).await.ok();
    run(&["ca", "issue", "node-1", "--cluster", "shop"]).await.ok();
    let (certificate, key, authorities) = (file("node-1.pem"), file("node-1.key"), file("ca.pem"));
    let trust = [("trust.certificate", &certificate), ("trust.key", &key), ("trust.authorities", &authorities)];
    let (shop, token, _) = with_token(folder.path(), &trust.map(|(key, value)| (key, value.as_str()))).await;
    let admin = shop.admin();

    for (name, cluster) in [("shop", "shop"), ("bank", "bank")] {
        let set = ["context", "set", name, "--node", &admin, "--authorities", &authorities, "--cluster", cluster];
        run(&[&set[..], &["--token-file", &token]].concat()).await.ok();
    }
    run(&["status"]).await.ok();
    let other = run(&["status", "--context", "bank"]).await.failed(4);
    assert!(other.contains("is there, which is not of cluster `bank`"), "{other}");
    let half = run(&["context", "set", "x", "--node", &admin, "--authorities", &authorities]).await.failed(2);
    assert!(half.contains("authorities and cluster"), "{half}");
}
