//! Kubernetes' API server, as far as discovery meets it: objects, lists, watches, and what goes wrong with them.
//!
//! Objects are kept as they are given: nothing is checked, filled in, or done about them. What it promises is the
//! contract in `tests/kubernetes.rs`, which a real server is held to as well.

use std::{collections::BTreeMap, convert::Infallible, io, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::authority::Authority;

/// The namespace of whoever uses [`ApiServer::kubeconfig`].
pub const NAMESPACE: &str = "shop";
const TOKEN: &str = "a-token-of-a-service-account";

/// See the module. Its connections end with it.
#[derive(Debug)]
pub struct ApiServer {
    store: watch::Sender<Store>,
    kubeconfig: PathBuf,
    _authority: Authority,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Store {
    /// Of the last change.
    version: u64,
    /// By the path of their collection, and their names.
    objects: BTreeMap<(String, String), Value>,
    history: Vec<Change>,
    /// What was before this version is forgotten.
    oldest: u64,
    forbidden: bool,
    /// How many requests were refused for that.
    refused: usize,
    /// How often all watches were cut.
    cuts: u64,
}

#[derive(Debug)]
struct Change {
    version: u64,
    collection: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl Store {
    fn put(&mut self, collection: &str, name: &str, object: Option<Value>) -> Option<Value> {
        self.version += 1;
        let key = (collection.to_owned(), name.to_owned());
        let versioned = |mut object: Value, version: u64| {
            object["metadata"]["resourceVersion"] = version.to_string().into();
            object
        };
        let after = object.map(|object| versioned(object, self.version));
        let before = match after.clone() {
            Some(after) => self.objects.insert(key, after),
            None => self.objects.remove(&key),
        };
        let last = before.map(|before| versioned(before, self.version));
        let collection = collection.to_owned();
        self.history.push(Change { version: self.version, collection, before: last.clone(), after: after.clone() });
        after.or(last)
    }
}

/// Labels that an object must have.
#[derive(Debug, Default)]
struct Selector(Vec<(String, String)>);

impl Selector {
    fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(key, value)| object["metadata"]["labels"][key] == **value)
    }
}

impl ApiServer {
    /// Starts one, on loopback, with TLS.
    ///
    /// # Panics
    /// When it can't.
    pub async fn start() -> Self {
        let authority = Authority::new();
        let files = authority.server_files();
        let chain = CertificateDer::from_pem_file(&files.certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(vec![chain], key))
            .expect("a certificate and its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("it listens").port();

        let ca = authority.write("ca.pem", authority.pem());
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {
                "server": format!("https://localhost:{port}"), "certificate-authority": ca,
            }}],
            "users": [{"name": "it", "user": {"token": TOKEN}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": NAMESPACE}}],
            "current-context": "it",
        });
        let kubeconfig = authority.write("kubeconfig", &kubeconfig.to_string());
        // Watches can begin at what a list of nothing says, too.
        let store = watch::Sender::new(Store { version: 1, ..Store::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, acceptor, store.clone()));
        Self { store, kubeconfig, _authority: authority, _tasks: tasks }
    }

    /// A file that tells clients how to reach it, and who they are.
    #[must_use]
    pub fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// Whether whoever asks may read nothing, for want of a Role.
    pub fn forbid(&self, forbidden: bool) {
        self.store.send_modify(|store| store.forbidden = forbidden);
    }

    /// Waits until so many requests were refused for that.
    pub async fn refused(&self, times: usize) {
        let mut store = self.store.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), store.wait_for(|store| store.refused >= times));
        assert!(waited.await.is_ok(), "waited for {times} refusals");
    }

    /// Cuts all watches in the middle.
    pub fn cut(&self) {
        self.store.send_modify(|store| store.cuts += 1);
    }

    /// Cuts all watches, and forgets what has changed so far: those that want to go on from there have to list anew.
    pub fn cut_and_compact(&self) {
        self.store.send_modify(|store| {
            store.cuts += 1;
            store.version += 1;
            store.oldest = store.version;
            store.history.clear();
        });
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, store: watch::Sender<Store>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, store) = (acceptor.clone(), store.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |request| {
                let store = store.clone();
                async move { Ok::<_, Infallible>(answer(&store, request).await) }
            });
            // Fails where a watch was cut, as it should.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

type Body = BoxBody<Bytes, io::Error>;

fn reply(code: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed();
    let response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    response.body(body).expect("good headers")
}

fn status(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": message,
    })
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    reply(code, &status(code, reason, message))
}

async fn answer(store: &watch::Sender<Store>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    if head.headers.get(header::AUTHORIZATION).is_none_or(|shown| shown != &format!("Bearer {TOKEN}")) {
        return failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
    }
    let path = head.uri.path().trim_end_matches('/');
    let (parent, last) = path.rsplit_once('/').unwrap_or_default();
    let (collection, name) = match last {
        "namespaces" | "services" | "endpointslices" => (path, None),
        name => (parent, Some(name)),
    };
    let resource = collection.rsplit('/').next().unwrap_or_default();
    let query: BTreeMap<String, String> = head
        .uri
        .query()
        .map(|query| url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
        .unwrap_or_default();

    if store.borrow().forbidden {
        store.send_modify(|store| store.refused += 1);
        let verb = if query.contains_key("watch") { "watch" } else { "list" };
        let message = format!(
            "{resource}.discovery.k8s.io is forbidden: User \"system:serviceaccount:{NAMESPACE}:default\" cannot {verb} \
             resource \"{resource}\" in API group \"discovery.k8s.io\" in the namespace \"{NAMESPACE}\""
        );
        return failure(StatusCode::FORBIDDEN, "Forbidden", &message);
    }
    let missing = |name: &str| failure(StatusCode::NOT_FOUND, "NotFound", &format!("{resource} \"{name}\" not found"));
    let known = |name: &str| store.borrow().objects.get(&(collection.to_owned(), name.to_owned())).cloned();
    match (head.method, name) {
        (Method::GET, None) => {
            let pairs = query
                .get("labelSelector")
                .map_or("", String::as_str)
                .split(',')
                .filter_map(|pair| pair.split_once('='));
            let selector = Selector(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
            if query.get("watch").is_some_and(|watch| watch == "true") {
                Watching::new(store, collection, selector, &query).into_response()
            } else {
                list(&store.borrow(), collection, &selector)
            }
        }
        (Method::GET, Some(name)) => known(name).map_or_else(|| missing(name), |object| reply(StatusCode::OK, &object)),
        (Method::DELETE, Some(name)) => {
            let mut gone = None;
            if known(name).is_some() {
                store.send_modify(|store| gone = store.put(collection, name, None));
            }
            gone.map_or_else(|| missing(name), |object| reply(StatusCode::OK, &object))
        }
        (method @ (Method::POST | Method::PUT), name) => {
            let Ok(body) = body.collect().await else {
                return failure(StatusCode::BAD_REQUEST, "BadRequest", "half a body");
            };
            let Ok(object) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
                return failure(StatusCode::BAD_REQUEST, "BadRequest", "no JSON");
            };
            let given = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match (name, known(&given)) {
                (None, Some(_)) => {
                    let message = format!("{resource} \"{given}\" already exists");
                    return failure(StatusCode::CONFLICT, "AlreadyExists", &message);
                }
                (Some(name), None) => return missing(name),
                _ => {}
            }
            let mut kept = None;
            store.send_modify(|store| kept = store.put(collection, &given, Some(object)));
            let code = if method == Method::POST { StatusCode::CREATED } else { StatusCode::OK };
            reply(code, &kept.unwrap_or_default())
        }
        (method, _) => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", method.as_str()),
    }
}

fn list(store: &Store, collection: &str, selector: &Selector) -> Response<Body> {
    let objects = store.objects.iter().filter(|((in_it, _), object)| in_it == collection && selector.matches(object));
    let items: Vec<&Value> = objects.map(|(_, object)| object).collect();
    let metadata = json!({"resourceVersion": store.version.to_string()});
    reply(StatusCode::OK, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

/// A watch, from its request to its end.
#[derive(Debug)]
struct Watching {
    news: watch::Receiver<Store>,
    collection: String,
    selector: Selector,
    /// What was up to this version has been told.
    told: u64,
    bookmarks: bool,
    until: Instant,
    cuts: u64,
    over: bool,
}

impl Watching {
    fn new(
        store: &watch::Sender<Store>,
        collection: &str,
        selector: Selector,
        query: &BTreeMap<String, String>,
    ) -> Self {
        let number = |key: &str| query.get(key).and_then(|value| value.parse::<u64>().ok());
        let news = store.subscribe();
        let (cuts, oldest) = (news.borrow().cuts, news.borrow().oldest);
        Self {
            news,
            collection: collection.to_owned(),
            selector,
            told: number("resourceVersion").unwrap_or(oldest),
            bookmarks: query.get("allowWatchBookmarks").is_some_and(|wanted| wanted == "true"),
            until: Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(1800)),
            cuts,
            over: false,
        }
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.over {
            if let Some(now) = self.now() {
                return Some(now);
            }
            if timeout_at(self.until, self.news.changed()).await.is_err() {
                break;
            }
        }
        None
    }

    /// What there is to tell at once.
    fn now(&mut self) -> Option<io::Result<Bytes>> {
        let store = self.news.borrow_and_update();
        if store.cuts != self.cuts {
            self.over = true;
            return Some(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let line = |kind: &str, object: &Value| format!("{}\n", json!({"type": kind, "object": object}));
        if self.told < store.oldest {
            self.over = true;
            let message = format!("too old resource version: {} ({})", self.told, store.oldest);
            return Some(Ok(line("ERROR", &status(StatusCode::GONE, "Expired", &message)).into()));
        }
        let changes = store.history.iter().filter(|it| it.version > self.told && it.collection == self.collection);
        // An object that loses the label is gone, as far as this watch is concerned.
        let seen = |object: &Option<Value>| object.clone().filter(|object| self.selector.matches(object));
        let mut lines: String = changes
            .filter_map(|change| match (seen(&change.before), seen(&change.after)) {
                (None, Some(after)) => Some(line("ADDED", &after)),
                (Some(_), Some(after)) => Some(line("MODIFIED", &after)),
                (Some(before), None) => Some(line("DELETED", &before)),
                (None, None) => None,
            })
            .collect();
        if lines.is_empty() && self.bookmarks && self.told < store.version {
            let metadata = json!({"resourceVersion": store.version.to_string()});
            let object = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata});
            lines = line("BOOKMARK", &object);
        }
        self.told = store.version;
        (!lines.is_empty()).then(|| Ok(lines.into()))
    }

    fn into_response(self) -> Response<Body> {
        let events = stream::unfold(self, async |mut watching| Some((watching.next().await?, watching)));
        let body = BodyExt::boxed(StreamBody::new(events.map(|event| event.map(Frame::data))));
        let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
        response.body(body).expect("good headers")
    }
}
