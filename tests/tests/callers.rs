//! Which clients, and which modules, may call what; and what a module learns of who has begun a call.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{path::Path, sync::Arc};

use outpost::{App, BoxError, Context, Module, Node, Sources};
use outpost_tests::{
    Obedient, app,
    authority::{Authority, Kind, replace},
    cluster::{self, Setup, TestCluster, nodes},
    deliveries::{
        self, Ledger,
        v1::{Work, deliveries_client::DeliveriesClient},
    },
    tokens::{AUDIENCE, Bearer, ISSUER, TokenIssuer, key_set},
    v1::{
        Answer, Ask, Deed, KindsHandle,
        kinds_client::KindsClient,
        kinds_server::KindsServer,
        relay_client::RelayClient,
        relay_server::{Relay, RelayServer},
    },
    wait::until,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

fn ask() -> Ask {
    Ask { deed: Deed::TellClient.into(), ..Ask::default() }
}

fn text(answer: Result<Response<Answer>, Status>) -> Result<String, Status> {
    answer.map(|answer| answer.into_inner().text)
}

/// The code of an error, and its reason.
fn told(status: &Status) -> (Code, String) {
    let reason = status.metadata().get("outpost-reason").map(|reason| reason.to_str().unwrap().to_owned());
    (status.code(), reason.unwrap_or_default())
}

/// Whether nobody has answered: the connection ended before.
fn is_of_no_use(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    told(&answer.unwrap_err())
}

fn bearing(channel: Channel, token: &str) -> InterceptedService<Channel, Bearer> {
    InterceptedService::new(channel, Bearer::new(token))
}

/// A folder with a policy and the keys of an issuer, and the settings that name them.
struct Files {
    folder: tempfile::TempDir,
    issuer: TokenIssuer,
}

impl Files {
    fn new(policy: &str) -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap(), issuer: TokenIssuer::new("first") };
        this.put("policy.toml", policy);
        this.put("keys.json", &key_set(&[&this.issuer]));
        this
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn put(&self, name: &str, content: &str) {
        replace(Path::new(&self.path(name)), content);
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("callers.policy", self.path("policy.toml")),
            ("callers.tokens.keys", self.path("keys.json")),
            ("callers.tokens.issuer", ISSUER.to_owned()),
            ("callers.tokens.audiences", format!("[\"{AUDIENCE}\"]")),
        ]
    }

    fn cluster(&self, count: usize) -> Setup {
        self.settings().iter().fold(nodes(count), |setup, (key, value)| setup.with(key, value))
    }

    /// Two nodes, with `kinds` on one and `relay` on the other.
    async fn apart(&self) -> TestCluster {
        let cluster = self.cluster(2).start(|_| app(Obedient::default())).await;
        cluster.move_module("relay", &cluster.node_without("kinds").await).await;
        cluster
    }

    async fn node(&self, app: App) -> Node {
        let settings = self.settings();
        let sources = settings.iter().fold(Sources::on_free_ports(), |sources, (key, value)| sources.set(key, value));
        app.start(&sources).await.unwrap()
    }
}

fn plain(node: &Node) -> Channel {
    cluster::connection(node.ingress_address())
}

/// `kinds` on one node and `relay` on another one, and a client that is known at both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_begun_a_call_is_known_wherever_it_goes() {
    let files = Files::new("");
    let cluster = files.apart().await;
    let token = files.issuer.token("alice", "orders refunds", 600);
    for name in cluster.names() {
        let known = || bearing(cluster.client(&name), &token);
        let alice = "token alice (orders refunds)";
        assert_eq!(text(KindsClient::new(known()).unary(ask()).await).unwrap(), alice);
        let relayed = text(RelayClient::new(known()).unary(ask()).await).unwrap();
        assert_eq!(relayed, format!("{alice}, through relay"));
        // The kinds that do not share a stream between nodes.
        let mut stream = KindsClient::new(known()).server_stream(ask()).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().text, alice);
        let asks = || tokio_stream::iter([ask()]);
        assert_eq!(text(KindsClient::new(known()).client_stream(asks()).await).unwrap(), alice);
        let mut stream = KindsClient::new(known()).bidi(asks()).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().text, alice);
        // A message that is too large to share a stream.
        let large = Ask { payload: vec![0; 100_000], ..ask() };
        assert_eq!(text(KindsClient::new(known()).unary(large.clone()).await).unwrap(), alice);
        assert_eq!(text(RelayClient::new(known()).unary(large).await).unwrap(), relayed);

        // Somebody who is not known, and the program itself.
        let nobody = cluster.client(&name);
        assert_eq!(text(KindsClient::new(nobody.clone()).unary(ask()).await).unwrap(), "nobody");
        assert_eq!(text(RelayClient::new(nobody).unary(ask()).await).unwrap(), "through relay");
        let handle: KindsHandle = cluster.handle(&name);
        assert_eq!(text(handle.unary(ask()).await).unwrap(), "nobody");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_of_itself_is_not_believed() {
    let files = Files::new("");
    let cluster = files.cluster(2).start(|_| app(Obedient::default())).await;
    let forged = |metadata: &mut MetadataMap| {
        let value = tonic::metadata::MetadataValue::from_bytes(b"\n\x05admin");
        metadata.insert_bin("outpost-client-bin", value);
        metadata.insert("outpost-hops", "1".parse().unwrap());
        metadata.insert("outpost-chain", "ffffffffffffffffffffffffffffffff".parse().unwrap());
    };
    for name in cluster.names() {
        let mut request = Request::new(ask());
        forged(request.metadata_mut());
        assert_eq!(text(KindsClient::new(cluster.client(&name)).unary(request).await).unwrap(), "nobody");
        let mut request = Request::new(ask());
        forged(request.metadata_mut());
        assert_eq!(text(RelayClient::new(cluster.client(&name)).unary(request).await).unwrap(), "through relay");
        let handle: KindsHandle = cluster.handle(&name);
        let mut request = Request::new(ask());
        forged(request.metadata_mut());
        assert_eq!(text(handle.unary(request).await).unwrap(), "nobody");
    }
}

#[tokio::test]
async fn a_policy_says_which_clients_may_call_a_method() {
    let policy = r#"
        [kinds]
        clients = ["token"]
        [kinds.methods."kinds.v1.Kinds/ServerStream"]
        clients = ["scope:streams"]
        [relay]
        clients = ["anyone"]
    "#;
    let files = Files::new(policy);
    let node = files.node(app(Obedient::default())).await;
    let nobody = || KindsClient::new(plain(&node));
    let known = |subject, scopes| KindsClient::new(bearing(plain(&node), &files.issuer.token(subject, scopes, 600)));
    let unauthenticated = (Code::Unauthenticated, "unauthenticated".to_owned());
    assert_eq!(refused(nobody().unary(ask()).await), unauthenticated);
    assert_eq!(refused(nobody().server_stream(ask()).await), unauthenticated);
    assert!(known("alice", "").unary(ask()).await.is_ok());
    let denied = (Code::PermissionDenied, "not-for-clients".to_owned());
    assert_eq!(refused(known("alice", "other").server_stream(ask()).await), denied);
    assert!(known("alice", "other streams").server_stream(ask()).await.is_ok());
    // What a client may not call, a module that it may call may call for it.
    assert_eq!(text(RelayClient::new(plain(&node)).unary(ask()).await).unwrap(), "through relay");
    // A token that is not good is worse than none.
    for token in [
        files.issuer.token("alice", "streams", -60),
        TokenIssuer::new("first").token("alice", "streams", 600),
        "nonsense".to_owned(),
    ] {
        let bad = RelayClient::new(bearing(plain(&node), &token)).unary(ask()).await;
        assert_eq!(refused(bad), (Code::Unauthenticated, "bad-token".to_owned()));
    }
}

#[tokio::test]
async fn keys_and_policy_change_while_calls_go_on() {
    let files = Files::new("[kinds]\nclients = [\"token\"]");
    let node = files.node(app(Obedient::default())).await;
    let second = TokenIssuer::new("second");
    let call = async |token: &str| {
        let answer = KindsClient::new(bearing(plain(&node), token)).unary(ask()).await;
        answer.map(drop).map_err(|status| told(&status))
    };
    let (old, new) = (files.issuer.token("alice", "", 600), second.token("alice", "", 600));
    assert_eq!(call(&old).await, Ok(()));
    assert_eq!(call(&new).await, Err((Code::Unauthenticated, "bad-token".to_owned())));
    files.put("keys.json", &key_set(&[&files.issuer, &second]));
    until("the new key", async || call(&new).await.map_err(|told| format!("{told:?}"))).await;
    assert_eq!(call(&old).await, Ok(()), "both are believed");
    files.put("keys.json", &key_set(&[&second]));
    let gone = async || match call(&old).await {
        Err((Code::Unauthenticated, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until("the end of the old key", gone).await;
    assert_eq!(call(&new).await, Ok(()));
    // Keys that are of no use are not put in force.
    files.put("keys.json", "{}");
    files.put("policy.toml", "[kinds]\nclients = [\"token:bob\"]");
    let denied = async || match call(&new).await {
        Err((Code::PermissionDenied, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until("the new policy", denied).await;
    assert_eq!(call(&second.token("bob", "", 600)).await, Ok(()), "the keys that were good stay in force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_says_which_modules_may_call_a_method() {
    let policy = r#"
        [kinds.methods."kinds.v1.Kinds/Unary"]
        modules = []
    "#;
    let files = Files::new(policy);
    let cluster = files.cluster(2).start(|_| app(Obedient::default())).await;
    for apart in [false, true] {
        if apart {
            cluster.move_module("relay", &cluster.node_without("relay").await).await;
        }
        for name in cluster.names() {
            let answer = RelayClient::new(cluster.client(&name)).unary(ask()).await;
            assert_eq!(refused(answer), (Code::PermissionDenied, String::new()), "as `relay` hands it on");
            assert!(KindsClient::new(cluster.client(&name)).unary(ask()).await.is_ok(), "clients are not spoken of");
            let handle: KindsHandle = cluster.handle(&name);
            assert!(handle.unary(ask()).await.is_ok(), "the program itself");
        }
    }
}

/// Like `relay`, but by a stock client on the node's channel.
struct ByChannel(KindsClient<outpost::Channel>);

#[tonic::async_trait]
impl Relay for ByChannel {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        let answer = self.0.clone().unary(request.into_inner()).await;
        answer.map_err(|status| Status::new(status.code(), status.message()))
    }
}

/// `relay` calls `kinds` by the channel, and may declare so.
fn by_channel(declares: bool) -> App {
    let kinds = || async { Ok::<_, BoxError>(KindsServer::new(Obedient::default())) };
    let relay = |context: Context| async move {
        Ok::<_, BoxError>(RelayServer::new(ByChannel(KindsClient::new(context.channel()))))
    };
    let relay = Module::new("relay", relay);
    let relay = if declares { relay.depends_on("kinds") } else { relay };
    App::new("kinds", "1.0.0").module("kinds", kinds).with(relay)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_calls_what_it_declares_and_nothing_else() {
    for (declares, mode, served) in [(true, "enforce", true), (false, "enforce", false), (false, "audit", true)] {
        let cluster = nodes(2).with("callers.mode", mode).start(move |_| by_channel(declares)).await;
        for apart in [false, true] {
            if apart {
                cluster.move_module("relay", &cluster.node_without("relay").await).await;
            }
            let answer = RelayClient::new(cluster.client("n1")).unary(ask()).await;
            match answer {
                Ok(_) => assert!(served, "{declares} {mode}"),
                Err(status) => {
                    assert!(!served && status.code() == Code::PermissionDenied, "{declares} {mode} {status:?}");
                    let text = status.message();
                    assert!(text.contains("`relay`") && text.contains(".depends_on(\"kinds\")"), "{text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let authority = Authority::new();
    let server = authority.server_files();
    let authorities = authority.write("clients.pem", authority.pem());
    let files = Files::new("[kinds]\nclients = [\"certificate:spiffe://example.org/web/*\"]");
    let tls = [
        ("ingress.tls.certificate", server.certificate.display().to_string()),
        ("ingress.tls.key", server.key.display().to_string()),
        ("ingress.tls.client_authorities", authorities.display().to_string()),
    ];
    let stranger = Authority::new();
    let (web, other) = ("spiffe://example.org/web/7", "spiffe://example.org/batch");
    for required in [false, true] {
        let settings = files.settings().into_iter().chain(tls.clone());
        let sources = settings.fold(Sources::on_free_ports(), |sources, (key, value)| sources.set(key, &value));
        let sources = sources.set("ingress.tls.client_certificates", if required { "required" } else { "optional" });
        let node = app(Obedient::default()).start(&sources).await.unwrap();
        let connect = |shown: Option<(String, String)>| {
            let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
            let config = match shown {
                Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
                None => config,
            };
            let at = format!("https://localhost:{}", node.ingress_address().port());
            Endpoint::try_from(at).unwrap().tls_config(config).unwrap().connect_lazy()
        };
        let call = async |channel: Channel| text(KindsClient::new(channel).unary(ask()).await);
        let good = connect(Some(authority.issue(web, Kind::Good)));
        assert_eq!(call(good.clone()).await.unwrap(), format!("certificate {web}"));
        let both = KindsClient::new(bearing(good, &files.issuer.token("alice", "a", 600))).unary(ask()).await;
        assert_eq!(text(both).unwrap(), format!("certificate {web}, token alice (a)"));
        let denied = (Code::PermissionDenied, "not-for-clients".to_owned());
        assert_eq!(refused(call(connect(Some(authority.issue(other, Kind::Good)))).await), denied);
        let nobody = call(connect(None)).await.unwrap_err();
        match required {
            true => assert!(is_of_no_use(&nobody), "{nobody:?}"),
            false => assert_eq!(told(&nobody), (Code::Unauthenticated, "unauthenticated".to_owned())),
        }
        for (of, kind) in [(&stranger, Kind::Good), (&authority, Kind::Expired), (&authority, Kind::Early)] {
            let refused = call(connect(Some(of.issue(web, kind)))).await.unwrap_err();
            assert!(is_of_no_use(&refused), "{kind:?}: {refused:?}");
        }
        drop(node);
    }
}

/// Two clients choose the same id for a call whose answer is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_answer_is_for_the_client_that_asked() {
    let files = Files::new("");
    let ledger = Arc::new(Ledger::default());
    let written = Arc::clone(&ledger);
    let cluster = files.cluster(2).start(move |node| deliveries::app(node, &written)).await;
    let ask = async |subject: &str, scopes: &str, node: &str| {
        let token = files.issuer.token(subject, scopes, 600);
        let mut request = Request::new(Work { text: "pay".to_owned(), ..Work::default() });
        request.metadata_mut().insert("outpost-call-id", "order-1".parse().unwrap());
        let answer = DeliveriesClient::new(bearing(cluster.client(node), &token)).dedupe(request).await;
        answer.unwrap().into_inner().run
    };
    let home = cluster.home("deliveries").await;
    let other = cluster.node_without("deliveries").await;
    for node in [&home, &other] {
        assert_eq!(ask("alice", "", node).await, 1);
        assert_eq!(ask("bob", "", node).await, 2, "a run of its own");
        assert_eq!(ask("alice", "more", node).await, 1, "by her next token");
    }
    cluster.move_module("deliveries", &other).await;
    assert_eq!((ask("alice", "", &home).await, ask("bob", "", &home).await), (1, 2), "answers move with their module");
}

/// Many calls of two clients share a connection, and a stream between nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_share_a_connection_are_told_apart() {
    let files = Files::new("");
    let cluster = files.apart().await;
    for name in cluster.names() {
        let shared = cluster.client(&name);
        let calls = (0..400).map(|number| {
            let subject = format!("client-{}", number % 7);
            let token = files.issuer.token(&subject, "", 600);
            let known = bearing(shared.clone(), &token);
            async move {
                let answer = match number % 2 {
                    0 => text(KindsClient::new(known).unary(ask()).await),
                    _ => text(RelayClient::new(known).unary(ask()).await),
                };
                let through = if number % 2 == 0 { "" } else { ", through relay" };
                assert_eq!(answer.unwrap(), format!("token {subject} (){through}"));
            }
        });
        futures_util::future::join_all(calls).await;
    }
}

#[tokio::test]
async fn a_certificate_that_expires_is_good_for_no_further_call() {
    let authority = Authority::new();
    let server = authority.server_files();
    let authorities = authority.write("clients.pem", authority.pem());
    let sources = Sources::on_free_ports()
        .set("ingress.tls.certificate", &server.certificate.display().to_string())
        .set("ingress.tls.key", &server.key.display().to_string())
        .set("ingress.tls.client_authorities", &authorities.display().to_string());
    let node = app(Obedient::default()).start(&sources).await.unwrap();
    let (certificate, key) = authority.issue("spiffe://example.org/web", Kind::Brief);
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let config = config.identity(Identity::from_pem(certificate, key));
    let at = format!("https://localhost:{}", node.ingress_address().port());
    let channel = Endpoint::try_from(at).unwrap().tls_config(config).unwrap().connect().await.unwrap();
    let mut client = KindsClient::new(channel);
    // What has begun may end.
    let (asks, requests) = tokio::sync::mpsc::channel(1);
    let open = client.bidi(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap();
    let mut answers = open.into_inner();
    assert_eq!(text(client.unary(ask()).await).unwrap(), "certificate spiffe://example.org/web");
    let over = async || match text(client.clone().unary(ask()).await) {
        Ok(_) => Err("it is served".to_owned()),
        // It is told so, or has connected again and is not let in.
        Err(status) if told(&status).1 == "expired-certificate" || is_of_no_use(&status) => Ok(()),
        Err(status) => panic!("{status:?}"),
    };
    until("the end of the certificate", over).await;
    asks.send(ask()).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().text, "certificate spiffe://example.org/web");
}

/// New connections of it are refused, and one that is open takes no more calls.
#[tokio::test]
async fn a_client_that_is_revoked_is_shut_out() {
    let authority = Authority::new();
    let server = authority.server_files();
    let authorities = authority.write("clients.pem", authority.pem());
    let lists = authority.write("revocations.pem", &authority.revocations(&[]));
    let sources = Sources::on_free_ports()
        .set("ingress.tls.certificate", &server.certificate.display().to_string())
        .set("ingress.tls.key", &server.key.display().to_string())
        .set("ingress.tls.client_authorities", &authorities.display().to_string())
        .set("ingress.tls.client_revocations", &lists.display().to_string());
    let node = app(Obedient::default()).start(&sources).await.unwrap();
    let connect = |(certificate, key): (String, String)| {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
        let config = config.identity(Identity::from_pem(certificate, key));
        let at = format!("https://localhost:{}", node.ingress_address().port());
        KindsClient::new(Endpoint::try_from(at).unwrap().tls_config(config).unwrap().connect_lazy())
    };
    let (web, batch) = ("spiffe://example.org/web".to_owned(), "spiffe://example.org/batch".to_owned());
    let [mut of_web, mut of_batch] = [&web, &batch].map(|uri| connect(authority.issue(uri, Kind::Good)));
    assert_eq!(text(of_web.unary(ask()).await).unwrap(), format!("certificate {web}"));
    assert_eq!(text(of_batch.unary(ask()).await).unwrap(), format!("certificate {batch}"));
    authority.write("revocations.pem", &authority.revocations(&[web]));
    until("the client to be shut out", async || match text(of_web.clone().unary(ask()).await) {
        Ok(_) => Err("it is served".to_owned()),
        // It has connected again.
        Err(status) if is_of_no_use(&status) => Ok(()),
        Err(status) => Err(format!("{status:?}")),
    })
    .await;
    assert_eq!(text(of_batch.unary(ask()).await).unwrap(), format!("certificate {batch}"));
    let again = connect(authority.issue(&batch, Kind::Good)).unary(ask()).await;
    assert_eq!(text(again).unwrap(), format!("certificate {batch}"));
}

#[tokio::test]
async fn settings_that_let_nobody_in_are_refused() {
    let certified = Authority::new().server_files();
    let tls = [
        ("ingress.tls.certificate", certified.certificate.display().to_string()),
        ("ingress.tls.key", certified.key.display().to_string()),
        ("ingress.tls.client_certificates", "required".to_owned()),
    ];
    let files = Files::new("");
    let changed = |key: &'static str, value: &str| {
        files
            .settings()
            .into_iter()
            .map(|(known, old)| (known, if known == key { value.to_owned() } else { old }))
            .collect()
    };
    for (settings, part) in [
        (tls.to_vec(), "`ingress.tls.client_authorities`"),
        (changed("callers.tokens.issuer", ""), "`callers.tokens.issuer"),
        (changed("callers.tokens.audiences", "[]"), "`callers.tokens.audiences"),
        (changed("callers.tokens.keys", "/dev/null"), "JWK Set"),
        (changed("callers.policy", "/none"), "`callers.policy`"),
    ] {
        let sources = settings.iter().fold(Sources::on_free_ports(), |sources, (key, value)| sources.set(key, value));
        let error = app(Obedient::default()).start(&sources).await.unwrap_err().to_string();
        assert!(error.contains(part), "{part} in {error}");
    }
}
