//! From modules and settings to a node that serves, or an error that says why not.

#![allow(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use outpost::{
    App, BoxError, Config, Context, Module, ModuleName, Node, ProgramError, Secret, Sources, StartError, Stopped,
    config::{ConfigError, Span},
    services,
};
use outpost_tests::{
    Obedient, app,
    cluster::free_address,
    relay,
    v1::{
        Answer, Ask, KindsHandle, RelayHandle,
        kinds_client::KindsClient,
        kinds_server::{Kinds, KindsServer},
        relay_client::RelayClient,
        relay_server::{Relay, RelayServer},
    },
    wait::{until, within},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};
use tonic::{Request, Response, Status, Streaming, service::LayerExt as _, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

/// Answers with its text, and counts calls.
#[derive(Debug, Clone, Default)]
struct Teller {
    text: String,
    calls: Arc<AtomicU64>,
}

impl Teller {
    fn tell(&self) -> Result<Response<Answer>, Status> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) as i64 + 1;
        Ok(Response::new(Answer { text: self.text.clone(), number, ..Answer::default() }))
    }
}

#[tonic::async_trait]
impl Relay for Teller {
    async fn unary(&self, _: Request<Ask>) -> Result<Response<Answer>, Status> {
        self.tell()
    }
}

#[tonic::async_trait]
impl Kinds for Teller {
    async fn unary(&self, _: Request<Ask>) -> Result<Response<Answer>, Status> {
        self.tell()
    }

    type ServerStreamStream = tokio_stream::Empty<Result<Answer, Status>>;

    async fn server_stream(&self, _: Request<Ask>) -> Result<Response<Self::ServerStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn client_stream(&self, _: Request<Streaming<Ask>>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented(""))
    }

    type BidiStream = tokio_stream::Empty<Result<Answer, Status>>;

    async fn bidi(&self, _: Request<Streaming<Ask>>) -> Result<Response<Self::BidiStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

type Built<S> = Result<S, BoxError>;

async fn kinds() -> Built<KindsServer<impl Kinds>> {
    Ok(KindsServer::new(Teller::default()))
}

async fn told() -> Built<RelayServer<impl Relay>> {
    Ok(RelayServer::new(Teller::default()))
}

async fn health() -> Built<HealthServer<impl Health>> {
    Ok(tonic_health::server::health_reporter().1)
}

fn program() -> App {
    App::new("test", "1.0.0")
}

async fn start(app: App) -> Node {
    within("the start", app.start(&Sources::on_free_ports())).await.unwrap()
}

async fn start_error(app: App) -> StartError {
    start_error_with(app, Sources::on_free_ports()).await
}

async fn start_error_with(app: App, sources: Sources) -> StartError {
    within("the end of the start", app.start(&sources)).await.expect_err("it should not start")
}

fn names(modules: &[ModuleName]) -> Vec<&str> {
    modules.iter().map(ModuleName::as_str).collect()
}

// Modules that do not fit together

async fn program_errors(app: App) -> Vec<ProgramError> {
    match start_error(app).await {
        StartError::Program(errors) => errors,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_service_has_one_module() {
    let errors = program_errors(program().module("first", kinds).module("second", kinds)).await;
    let [ProgramError::SameService { service, first, second }] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((service.as_str(), first.as_str(), second.as_str()), ("kinds.v1.Kinds", "first", "second"));

    let twice = async || Ok::<_, BoxError>(services(KindsServer::new(Teller::default())).and(kinds().await?));
    let errors = program_errors(program().module("greedy", twice)).await;
    let [ProgramError::SameService { first, second, .. }] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("greedy", "greedy"));
}

#[tokio::test]
async fn a_dependency_is_registered() {
    let errors = program_errors(program().module("relay", relay)).await;
    let [ProgramError::NoService { module, service, known }] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((module.as_str(), service.as_str()), ("relay", "kinds.v1.Kinds"));
    assert_eq!(known, &["relay"]);

    let errors = program_errors(program().with(Module::new("kinds", kinds).depends_on("nobody"))).await;
    let [ProgramError::NoModule { module, dependency, .. }] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!((module.as_str(), dependency.as_str()), ("kinds", "nobody"));
}

#[tokio::test]
async fn a_name_is_one_modules() {
    let errors = program_errors(program().module("same", kinds).module("same", told)).await;
    let [ProgramError::SameName(name)] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!(name.as_str(), "same");
}

// Factories

#[tokio::test]
async fn a_factory_that_fails_is_named_with_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("can't open the store")]
    struct Store(#[source] std::io::Error);

    let factory = || async {
        let cause = std::io::Error::other("the disk is gone");
        if true { Err(BoxError::from(Store(cause))) } else { kinds().await }
    };
    let error = start_error(program().module("broken", factory).module("relay", relay)).await;
    let StartError::Factory { module, error } = error else { panic!("{error:?}") };
    assert_eq!((module.as_str(), error.as_str()), ("broken", "can't open the store: the disk is gone"));
}

#[tokio::test]
async fn a_factory_that_panics_is_named() {
    let at_once = || {
        assert!(!std::hint::black_box(true), "in its first lines");
        async { kinds().await }
    };
    let later = || async {
        tokio::task::yield_now().await;
        assert!(!std::hint::black_box(true), "after an await");
        kinds().await
    };
    for (app, text) in [
        (program().module("broken", at_once).module("relay", relay), "in its first lines"),
        (program().module("broken", later).module("relay", relay), "after an await"),
    ] {
        let error = start_error(app).await;
        let StartError::FactoryPanicked { module, message } = error else { panic!("{error:?}") };
        assert_eq!((module.as_str(), message.as_str()), ("broken", text));
    }
}

#[tokio::test]
async fn of_factories_that_do_not_end_the_one_that_hangs_is_named() {
    let waits = |kinds: KindsHandle| async move {
        kinds.unary(Ask::default()).await?;
        told().await
    };
    let hangs = || async {
        std::future::pending::<()>().await;
        kinds().await
    };
    for app in [
        program().module("waits", waits).module("hangs", hangs),
        program().module("hangs", hangs).module("waits", waits),
    ] {
        let error = start_error_with(app, Sources::on_free_ports().set("node.start_timeout", "200ms")).await;
        let StartError::FactoryTimeout { module, awaited_by, .. } = &error else { panic!("{error:?}") };
        assert_eq!((module.as_str(), names(awaited_by)), ("hangs", vec!["waits"]), "not who only waits for it");
        assert_says(&error.to_string(), &["`hangs`", "200ms", "node.start_timeout"]);
    }
}

#[tokio::test]
async fn factories_that_call_each_other_are_named() {
    async fn calls_relay(relay: RelayHandle) -> Built<KindsServer<impl Kinds>> {
        relay.unary(Ask::default()).await?;
        kinds().await
    }
    async fn calls_kinds(kinds: KindsHandle) -> Built<RelayServer<impl Relay>> {
        kinds.unary(Ask::default()).await?;
        told().await
    }
    async fn calls_kinds_by_channel(context: Context) -> Built<RelayServer<impl Relay>> {
        KindsClient::new(context.channel()).unary(Ask::default()).await?;
        told().await
    }
    async fn swallows_the_error(kinds: KindsHandle) -> Built<RelayServer<impl Relay>> {
        let _ = kinds.unary(Ask::default()).await;
        told().await
    }
    for app in [
        program().module("one", calls_relay).module("two", calls_kinds),
        program().module("one", calls_relay).with(Module::new("two", calls_kinds_by_channel).depends_on("one")),
        program().module("two", swallows_the_error).module("one", calls_relay),
    ] {
        let error = start_error(app).await;
        let StartError::FactoryCycle(circle) = &error else { panic!("{error:?}") };
        let circle = names(circle);
        assert!(circle == ["one", "two", "one"] || circle == ["two", "one", "two"], "{circle:?}");
        assert!(error.to_string().contains("one -> two") || error.to_string().contains("two -> one"), "{error}");
    }
}

#[tokio::test]
async fn three_factories_in_a_circle_are_named() {
    async fn first(relay: RelayHandle) -> Built<KindsServer<impl Kinds>> {
        relay.unary(Ask::default()).await?;
        kinds().await
    }
    async fn second(context: Context) -> Built<RelayServer<impl Relay>> {
        HealthClient::new(context.channel()).check(HealthCheckRequest::default()).await?;
        told().await
    }
    async fn third(kinds: KindsHandle) -> Built<HealthServer<impl Health>> {
        kinds.unary(Ask::default()).await?;
        health().await
    }
    let error =
        start_error(program().module("a", first).with(Module::new("b", second).depends_on("c")).module("c", third))
            .await;
    let StartError::FactoryCycle(circle) = &error else { panic!("{error:?}") };
    let mut circle = names(circle);
    assert_eq!((circle.len(), circle.first()), (4, circle.last()), "{circle:?}");
    circle.sort_unstable();
    circle.dedup();
    assert_eq!(circle, ["a", "b", "c"]);
}

/// The module that is called is up, but asks back before it answers.
#[tokio::test]
async fn a_factory_that_is_called_back_does_not_hang() {
    /// Asks whoever asks.
    struct AsksBack(RelayHandle);

    #[tonic::async_trait]
    impl Health for AsksBack {
        async fn check(
            &self,
            _: Request<HealthCheckRequest>,
        ) -> Result<Response<tonic_health::pb::HealthCheckResponse>, Status> {
            self.0.unary(Ask::default()).await?;
            Ok(Response::new(tonic_health::pb::HealthCheckResponse::default()))
        }

        type WatchStream = tokio_stream::Empty<Result<tonic_health::pb::HealthCheckResponse, Status>>;

        async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    async fn asked_back(relay: RelayHandle) -> Built<HealthServer<impl Health>> {
        Ok(HealthServer::new(AsksBack(relay)))
    }
    async fn asks(context: Context) -> Built<RelayServer<impl Relay>> {
        HealthClient::new(context.channel()).check(HealthCheckRequest::default()).await?;
        told().await
    }
    let error = start_error(
        program().module("asked-back", asked_back).with(Module::new("asks", asks).depends_on("asked-back")),
    )
    .await;
    let StartError::FactoryCycle(circle) = &error else { panic!("{error:?}") };
    assert!(names(circle).contains(&"asks"), "{circle:?}");
}

#[tokio::test]
async fn a_factory_may_call_a_module_that_starts_later() {
    async fn calls(kinds: KindsHandle) -> Built<RelayServer<impl Relay>> {
        let text = kinds.unary(Ask { text: "early".to_owned(), ..Ask::default() }).await?.into_inner().text;
        Ok(RelayServer::new(Teller { text, ..Teller::default() }))
    }
    async fn calls_by_channel(context: Context) -> Built<RelayServer<impl Relay>> {
        let ask = Ask { text: "early".to_owned(), ..Ask::default() };
        let text = KindsClient::new(context.channel()).unary(ask).await?.into_inner().text;
        Ok(RelayServer::new(Teller { text, ..Teller::default() }))
    }
    for module in [Module::new("calls", calls), Module::new("calls", calls_by_channel).depends_on("late")] {
        let late = || async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            Ok::<_, BoxError>(KindsServer::new(Obedient::default()))
        };
        let node = start(program().with(module).module("late", late)).await;
        let relay: RelayHandle = node.handle().unwrap();
        assert_eq!(relay.unary(Ask::default()).await.unwrap().get_ref().text, "early");
    }
}

#[tokio::test]
async fn modules_may_call_each_other_and_a_circle_is_told() {
    async fn knows_relay(_: RelayHandle) -> Built<KindsServer<impl Kinds>> {
        Ok(KindsServer::new(Obedient::default()))
    }
    let node = start(program().module("kinds", knows_relay).module("relay", relay)).await;
    let described = node.describe();
    assert_eq!(described.cycles.len(), 1, "{described:?}");
    assert_eq!(described.cycles[0].modules, ["kinds", "relay", "kinds"]);
    let relay: RelayHandle = node.handle().unwrap();
    relay.unary(Ask::default()).await.unwrap();
}

// What a module may be

#[tokio::test]
async fn a_service_of_others_is_a_module_unchanged() {
    async fn own_health() -> Built<HealthServer<impl Health>> {
        let (reporter, server) = tonic_health::server::health_reporter();
        reporter.set_service_status("of the module", tonic_health::ServingStatus::NotServing).await;
        Ok(server)
    }
    let module = Module::new("health", own_health).descriptors(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let node = start(program().with(module).module("kinds", kinds)).await;
    let channel = Endpoint::try_from(format!("http://{}", node.ingress_address())).unwrap().connect_lazy();
    let about = HealthCheckRequest { service: "of the module".to_owned() };
    let answer = HealthClient::new(channel).check(about.clone()).await.unwrap();
    assert_eq!(answer.get_ref().status(), ServingStatus::NotServing);
    let answer = HealthClient::new(node.channel()).check(about).await.unwrap();
    assert_eq!(answer.get_ref().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_layer_around_a_server_sees_every_call() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let factory = move || {
        let counted = Arc::clone(&counted);
        async move {
            let layer = tower::util::MapRequestLayer::new(move |request: http::Request<tonic::body::Body>| {
                counted.fetch_add(1, Ordering::SeqCst);
                request
            });
            Ok::<_, BoxError>(layer.named_layer(KindsServer::new(Teller::default())))
        }
    };
    let node = start(program().module("kinds", factory).module("relay", relay)).await;
    assert_eq!(node.describe().modules[0].services, ["kinds.v1.Kinds"]);
    let handle: KindsHandle = node.handle().unwrap();
    handle.unary(Ask::default()).await.unwrap();
    KindsClient::new(node.channel()).unary(Ask::default()).await.unwrap();
    let channel = Endpoint::try_from(format!("http://{}", node.ingress_address())).unwrap().connect_lazy();
    KindsClient::new(channel.clone()).unary(Ask::default()).await.unwrap();
    RelayClient::new(channel).unary(Ask::default()).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn two_services_of_a_module_share_its_state() {
    let both = || async {
        let shared = Arc::new(Teller::default());
        Ok::<_, BoxError>(services(KindsServer::from_arc(Arc::clone(&shared))).and(RelayServer::from_arc(shared)))
    };
    let node = start(program().module("both", both)).await;
    assert_eq!(node.describe().modules[0].services, ["kinds.v1.Kinds", "kinds.v1.Relay"]);
    let (kinds, relay): (KindsHandle, RelayHandle) = (node.handle().unwrap(), node.handle().unwrap());
    assert_eq!(kinds.unary(Ask::default()).await.unwrap().get_ref().number, 1);
    assert_eq!(relay.unary(Ask::default()).await.unwrap().get_ref().number, 2);
    assert_eq!(KindsClient::new(node.channel()).unary(Ask::default()).await.unwrap().get_ref().number, 3);
}

// Configuration

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Desk {
    greeting: String,
    seats: u8,
    patience: Span,
    password: Secret,
    vault: Vault,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Vault {
    token: Option<Secret>,
}

impl Default for Desk {
    fn default() -> Self {
        let (greeting, patience) = ("hello".to_owned(), Span::seconds(5));
        Self { greeting, seats: 4, patience, password: Secret::default(), vault: Vault::default() }
    }
}

async fn desk(config: Config<Desk>) -> Built<RelayServer<impl Relay>> {
    let text = format!("{} {} {}", config.greeting, config.seats, config.password.expose());
    Ok(RelayServer::new(Teller { text, ..Teller::default() }))
}

fn with_desk() -> App {
    program().module("front-desk", desk).module("kinds", kinds)
}

fn config_errors(sources: &Sources) -> Vec<ConfigError> {
    match with_desk().load(sources) {
        Err(StartError::Config(errors)) => errors,
        other => panic!("{other:?}"),
    }
}

fn config_error(sources: &Sources) -> String {
    let errors = config_errors(sources);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

fn flag(key: &str, value: &str) -> Sources {
    Sources::on_free_ports().set(key, value)
}

fn variable(name: &str, value: &str) -> Sources {
    Sources { environment: vec![(name.to_owned(), value.to_owned())], ..Sources::on_free_ports() }
}

/// A configuration file that goes with the value.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}-{}.toml", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn sources(&self) -> Sources {
        Sources { file: Some(self.0.clone()), ..Sources::on_free_ports() }
    }

    fn line(&self, line: usize) -> String {
        format!("{}:{line}:", self.0.display())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_key_that_was_meant() {
    let meant = "did you mean `modules.front-desk.greeting`?";
    let text = config_error(&flag("modules.front-desk.greting", "\"hi\""));
    assert_says(&text, &["flag --set modules.front-desk.greting", "`modules.front-desk.greting`", meant]);
    let text = config_error(&variable("OUTPOST_MODULES__FRONT_DESK__GRETING", "hi"));
    assert_says(&text, &["variable OUTPOST_MODULES__FRONT_DESK__GRETING", "`modules.front-desk.greting`", meant]);
    let file = File::new("[log]\nfilter = \"warn\"\n\n[modules.front-desk]\nseats = 2\ngreting = \"hi\"\n");
    let text = config_error(&file.sources());
    assert_says(&text, &[&file.line(6), "`modules.front-desk.greting`", meant]);

    let text = config_error(&variable("OUTPOST_INGRESS__LISTN", "127.0.0.1:0"));
    assert_says(&text, &["OUTPOST_INGRESS__LISTN", "`ingress.listn`", "did you mean `ingress.listen`?"]);
    let text = config_error(&variable("OUTPOST_NONSENSE", "1"));
    assert_says(&text, &["OUTPOST_NONSENSE", "`nonsense`"]);
}

#[test]
fn an_unknown_table_is_named_with_its_own_line() {
    let file = File::new("[ingres]\nlisten = \"127.0.0.1:0\"\nreflection = false\n");
    assert_says(&config_error(&file.sources()), &[&file.line(1), "`ingres`", "did you mean `ingress`?"]);
}

#[test]
fn a_value_that_does_not_fit_is_named_with_its_place() {
    let text = config_error(&flag("modules.front-desk.seats", "many"));
    assert_says(&text, &["flag --set modules.front-desk.seats", "`modules.front-desk.seats`", "u8"]);
    let text = config_error(&flag("modules.front-desk.seats", "300"));
    assert_says(&text, &["`modules.front-desk.seats`", "u8"]);
    let text = config_error(&variable("OUTPOST_MODULES__FRONT_DESK__PATIENCE", "soon"));
    assert_says(&text, &["OUTPOST_MODULES__FRONT_DESK__PATIENCE", "`modules.front-desk.patience`", "\"10s\""]);
    let file = File::new("[node]\nstart_timeout = 5\n");
    assert_says(&config_error(&file.sources()), &[&file.line(2), "`node.start_timeout = 5`", "\"10s\""]);
    let file = File::new("[ingress]\n\nmax_connections = -1\n");
    assert_says(&config_error(&file.sources()), &[&file.line(3), "`ingress.max_connections"]);
    let file = File::new("[node]\nstart_timeout = \"1s\n");
    assert_says(&config_error(&file.sources()), &[&file.line(2)]);
    let absent = Sources { file: Some("/nowhere/absent.toml".into()), ..Sources::on_free_ports() };
    assert_says(&config_error(&absent), &["/nowhere/absent.toml"]);
}

#[test]
fn settings_have_bounds() {
    for (key, value) in [
        ("node.start_timeout", "\"0s\""),
        ("ingress.keepalive_interval", "\"0s\""),
        ("ingress.preface_timeout", "\"0s\""),
        ("ingress.max_connections", "0"),
        ("ingress.max_concurrent_streams", "0"),
        ("ingress.max_message_size", "0"),
        ("ingress.max_header_list_size", "10"),
        ("ingress.grpc_web_origins", "[\"shop.example\"]"),
        ("ingress.grpc_web_origins", "[\"https://shop.example/\"]"),
        ("log.filter", "shop=loud"),
        ("log.format", "xml"),
    ] {
        let text = config_error(&flag(key, value));
        assert_says(&text, &[&format!("flag --set {key}"), &format!("`{key}")]);
    }
}

#[test]
fn every_fault_is_reported_at_once() {
    let sources =
        flag("modules.front-desk.seats", "many").set("node.start_timeout", "\"0s\"").set("modules.nobody.a", "1");
    let text: Vec<String> = config_errors(&sources).iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 3, "{text:?}");
    for key in ["modules.front-desk.seats", "node.start_timeout", "modules.nobody"] {
        assert!(text.iter().any(|text| text.contains(&format!("`{key}"))), "{key}: {text:?}");
    }
}

#[test]
fn only_a_module_that_takes_configuration_is_given_some() {
    let text = config_error(&flag("modules.kinds.greeting", "\"hi\""));
    assert_says(&text, &["--set modules.kinds.greeting", "`kinds` takes no configuration"]);
    let text = config_error(&flag("modules.front-dsk.greeting", "\"hi\""));
    assert_says(&text, &["--set modules.front-dsk.greeting", "did you mean `modules.front-desk`?"]);
    let text = config_error(&flag("modules", "5"));
    assert_says(&text, &["--set modules", "[modules.NAME]"]);
}

#[tokio::test]
async fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = File::new("[modules.front-desk]\ngreeting = \"file\"\nseats = 1\npatience = \"1s\"\n");
    let mut sources = file.sources().set("modules.front-desk.greeting", "flag");
    for (name, value) in [("GREETING", "environment"), ("SEATS", "2")] {
        sources.environment.push((format!("OUTPOST_MODULES__FRONT_DESK__{name}"), value.to_owned()));
    }
    let loaded = with_desk().load(&sources).unwrap();
    let entry = |key: &str| {
        let entry = loaded.entries().iter().find(|entry| entry.key == format!("modules.front-desk.{key}")).unwrap();
        (entry.value.clone(), entry.origin.clone())
    };
    let told = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(entry("greeting"), told("\"flag\"", "flag --set modules.front-desk.greeting"));
    assert_eq!(entry("seats"), told("2", "environment variable OUTPOST_MODULES__FRONT_DESK__SEATS"));
    assert_eq!(entry("patience"), told("\"1s\"", file.line(4).trim_end_matches(':')));
    assert_eq!(entry("password"), told("\"\"", "default"));

    let node = with_desk().start(&sources).await.unwrap();
    let relay: RelayHandle = node.handle().unwrap();
    assert_eq!(relay.unary(Ask::default()).await.unwrap().get_ref().text, "flag 2 ");
}

#[test]
fn a_value_that_was_set_with_its_whole_table_is_no_default() {
    let loaded = with_desk().load(&flag("modules.front-desk", "{ seats = 2 }")).unwrap();
    let seats = loaded.entries().iter().find(|entry| entry.key == "modules.front-desk.seats").unwrap();
    assert_eq!((seats.value.as_str(), seats.origin.as_str()), ("2", "flag --set modules.front-desk"));
    let loaded = with_desk().load(&variable("OUTPOST_LOG", "{ filter = \"warn\" }")).unwrap();
    let filter = loaded.entries().iter().find(|entry| entry.key == "log.filter").unwrap();
    assert_eq!((filter.value.as_str(), filter.origin.as_str()), ("\"warn\"", "environment variable OUTPOST_LOG"));
}

#[test]
fn a_secret_is_never_shown() {
    const PASSWORD: &str = "hunter2-correct-horse";
    let file = File::new(&format!("[modules.front-desk]\npassword = \"{PASSWORD}\"\nvault.token = \"{PASSWORD}\"\n"));
    for sources in [
        file.sources(),
        variable("OUTPOST_MODULES__FRONT_DESK__PASSWORD", PASSWORD),
        flag("modules.front-desk.password", PASSWORD),
    ] {
        let loaded = with_desk().load(&sources).unwrap();
        let shown = format!("{loaded:?} {}", serde_json::to_string(loaded.entries()).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        let entry = loaded.entries().iter().find(|entry| entry.key == "modules.front-desk.password").unwrap();
        assert_eq!(entry.value, "\"***\"", "that there is one is shown");
        assert!(
            !format!("{:?}", Config::new(Desk { password: Secret::new(PASSWORD), ..Desk::default() }))
                .contains("hunter2")
        );
    }
    for broken in [format!("password = {PASSWORD}"), format!("password = \"{PASSWORD}"), format!("\"{PASSWORD}\"")] {
        let file = File::new(&format!("[modules.front-desk]\n{broken}\n"));
        let shown = format!("{:?}", config_errors(&file.sources()));
        assert!(!shown.contains("hunter2"), "{broken}: {shown}");
    }
    // Every way to set it wrongly: none may put it into the error.
    for wrong in [
        format!("password = [\"{PASSWORD}\"]"),
        format!("password = {{ value = \"{PASSWORD}\" }}"),
        format!("password.value = \"{PASSWORD}\""),
        format!("pasword = \"{PASSWORD}\""),
        format!("seats = \"{PASSWORD}\""),
        format!("patience = \"{PASSWORD}\""),
        format!("vault = \"{PASSWORD}\""),
        format!("vault.token = [\"{PASSWORD}\"]"),
        format!("vault.tokn = \"{PASSWORD}\""),
    ] {
        let file = File::new(&format!("[modules.front-desk]\n{wrong}\n"));
        let mut by_flag = Sources::on_free_ports();
        let (key, value) = wrong.split_once(" = ").unwrap();
        by_flag = by_flag.set(&format!("modules.front-desk.{key}"), value);
        for sources in [file.sources(), by_flag] {
            // A flag's value may be taken as text where text belongs.
            let Err(error) = with_desk().load(&sources) else { continue };
            let shown = format!("{error:?} {error}");
            assert!(!shown.contains("hunter2"), "{wrong}: {shown}");
        }
        assert!(with_desk().load(&file.sources()).is_err(), "{wrong}");
    }
}

#[test]
fn a_secret_in_the_place_of_its_table_is_not_shown() {
    let shown = ["modules.front-desk", "modules.front-desk.vault"].map(|key| {
        let errors = config_errors(&flag(key, "hunter2-correct-horse"));
        format!("{errors:?} {}", StartError::Config(errors.clone()))
    });
    let shown: Vec<&String> = shown.iter().filter(|shown| shown.contains("hunter2")).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test]
async fn text_from_the_environment_is_taken_as_it_is_where_text_belongs() {
    for password in ["123456", "true", "1e5", "2026-01-01", "[x]"] {
        let sources = variable("OUTPOST_MODULES__FRONT_DESK__PASSWORD", password);
        let node = with_desk().start(&sources).await.unwrap_or_else(|error| panic!("{password}: {error}"));
        let relay: RelayHandle = node.handle().unwrap();
        let heard = relay.unary(Ask::default()).await.unwrap().into_inner().text;
        assert_eq!(heard, format!("hello 4 {password}"));
    }
}

// Addresses

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for wanted in ["ingress.listen", "admin.listen"] {
        let error = start_error_with(with_desk(), flag(wanted, &address)).await;
        assert_says(&error.to_string(), &[&address, wanted, "choose another port"]);
        let StartError::Listen { key, error, .. } = error else { panic!("{error:?}") };
        assert_eq!((key, error.kind()), (wanted, std::io::ErrorKind::AddrInUse));
    }
}

#[tokio::test]
async fn other_machines_are_not_served_without_tls_unless_asked_for() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let text = config_error(&flag("ingress.listen", address));
        assert_says(&text, &["`ingress.listen", "ingress.tls.certificate", "ingress.plaintext_beyond_loopback"]);
        let text = config_error(&flag("admin.listen", address));
        assert_says(&text, &["`admin.listen", "loopback"]);
    }
    let accepted = flag("ingress.listen", "0.0.0.0:0").set("ingress.plaintext_beyond_loopback", "true");
    let node = with_desk().start(&accepted).await.unwrap();
    assert!(node.ingress_address().ip().is_unspecified());
}

// Tasks of modules

/// Tells of its end.
struct AtEnd(Arc<AtomicUsize>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A module with a task; `heeds` says whether it ends when asked to.
fn with_task(heeds: bool, ended: &Arc<AtomicUsize>) -> App {
    let ended = Arc::clone(ended);
    let factory = move |context: Context| {
        let at_end = AtEnd(Arc::clone(&ended));
        async move {
            let stopping = context.clone();
            context.spawn("waits", async move {
                let _at_end = at_end;
                match heeds {
                    true => stopping.stopping().await,
                    false => std::future::pending().await,
                }
            });
            kinds().await
        }
    };
    program().module("kinds", factory)
}

#[tokio::test]
async fn a_stop_ends_the_tasks_of_modules() {
    for (heeds, tasks_cut) in [(true, 0), (false, 1)] {
        let ended = Arc::new(AtomicUsize::new(0));
        let sources = flag("node.stop_timeout", "200ms");
        let node = with_task(heeds, &ended).start(&sources).await.unwrap();
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        let stopped = within("the stop", node.stop()).await;
        assert_eq!(stopped, Stopped { calls_cut: 0, tasks_cut });
        assert_eq!(ended.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn dropping_a_node_ends_the_tasks_of_modules() {
    let ended = Arc::new(AtomicUsize::new(0));
    let node = start(with_task(false, &ended)).await;
    drop(node);
    until("the task's end", async || match ended.load(Ordering::SeqCst) {
        1 => Ok(()),
        count => Err(format!("{count} ended")),
    })
    .await;
}

#[tokio::test]
async fn a_start_that_fails_ends_the_tasks_of_modules() {
    let ended = Arc::new(AtomicUsize::new(0));
    let broken = || async { if true { Err(BoxError::from("broken")) } else { told().await } };
    // The failure waits for the task.
    let late = Arc::new(Notify::new());
    let after = Arc::clone(&late);
    let app = with_task(true, &ended).module("broken", move || {
        let after = Arc::clone(&after);
        async move {
            after.notified().await;
            broken().await
        }
    });
    late.notify_one();
    let error = start_error(app).await;
    assert!(matches!(error, StartError::Factory { .. }), "{error:?}");
    until("the task's end", async || match ended.load(Ordering::SeqCst) {
        1 => Ok(()),
        count => Err(format!("{count} ended")),
    })
    .await;
}

#[tokio::test]
async fn a_task_that_panics_ends_nothing_else() {
    let panicked = Arc::new(AtomicUsize::new(0));
    let at_end = Arc::clone(&panicked);
    let factory = move |context: Context| {
        let at_end = AtEnd(Arc::clone(&at_end));
        async move {
            context.spawn("panics", async move {
                let _at_end = at_end;
                panic!("a task's panic");
            });
            kinds().await
        }
    };
    let node = start(program().module("kinds", factory).module("relay", relay)).await;
    until("the panic", async || match panicked.load(Ordering::SeqCst) {
        1 => Ok(()),
        count => Err(format!("{count} panicked")),
    })
    .await;
    let relay: RelayHandle = node.handle().unwrap();
    relay.unary(Ask::default()).await.expect("the module serves on");
    assert_eq!(within("the stop", node.stop()).await, Stopped { calls_cut: 0, tasks_cut: 0 });
}

#[tokio::test]
async fn a_stopped_node_answers_its_handles() {
    let node = start(app(Obedient::default())).await;
    let handle: KindsHandle = node.handle().unwrap();
    let channel = node.channel();
    node.stop().await;
    for status in [
        handle.unary(Ask::default()).await.unwrap_err(),
        KindsClient::new(channel).unary(Ask::default()).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("`kinds`"), "{status:?}");
    }
}

/// What the node says by plain HTTP: the status, and the text.
async fn probe(at: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned()))
}

#[tokio::test]
async fn an_orchestrator_is_told_whether_a_node_is_alive_and_whether_it_serves() {
    let at = free_address();
    let waiting = Sources::on_free_ports().set("health.listen", &at.to_string());
    // Two of the three are never there.
    let waiting = waiting.set("cluster.initial_voters", "[\"node-1\", \"node-2\", \"node-3\"]");
    let node = app(Obedient::default());
    tokio::select! {
        started = node.start(&waiting) => panic!("it has no cluster: {started:?}"),
        () = async {
            let alive = async || match probe(at, "/livez").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            };
            until("the first answer", alive).await;
            let (status, text) = probe(at, "/readyz").await.unwrap();
            assert_eq!((status, &*text), (503, "it has not joined its cluster yet\n"));
        } => {}
    }

    let node =
        app(Obedient::default()).start(&Sources::on_free_ports().set("health.listen", "127.0.0.1:0")).await.unwrap();
    let at = node.health_address().unwrap();
    assert_eq!(probe(at, "/readyz").await.unwrap().0, 200);
    let mut client = KindsClient::connect(format!("http://{}", node.ingress_address())).await.unwrap();
    let (asks, requests) = tokio::sync::mpsc::channel(1);
    let open = client.bidi(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap();
    let unready = async || match probe(at, "/readyz").await {
        Ok((503, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let ask = async {
        until("it to stop", unready).await;
        assert_eq!(probe(at, "/livez").await.unwrap().0, 200, "a call is still under way");
        drop((asks, open));
    };
    let (stopped, ()) = within("the stop", async { tokio::join!(node.stop(), ask) }).await;
    assert_eq!(stopped, Stopped { calls_cut: 0, tasks_cut: 0 });
}
