//! Seeds that Kubernetes tells: the addresses in a Service's EndpointSlices, watched through its API.
//!
//! ```text
//! API server ─▶ watcher (kube): lists, then watches; lists anew where it lost track ─▶ Slices ─▶ found
//! ```
//!
//! **Who counts.** Nodes meet through a Service that publishes pods before they are ready, so `ready` is true of all of
//! its endpoints, a machine's that is cut off among them. `serving` is whether the pod itself is ready, and those are
//! greeted. But nodes become ready only by meeting: where no other serves, those that are starting are greeted too, or
//! a new cluster would never begin.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt, mem,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Config, ResourceExt as _,
    core::Status,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tracing::{Dispatch, instrument::WithSubscriber as _};

use super::{AGAIN, Found, SOON};

/// An API server that does not accept a connection is told before [`AGAIN`] has passed.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// What the API server answers to who asks for changes since long ago.
const GONE: u16 = 410;

/// A Service of Kubernetes, and the port of its pods: `SERVICE.NAMESPACE:PORT`, in the order of DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    name: String,
    /// Without, that of this node's service account.
    namespace: Option<String>,
    port: Port,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Number(u16),
    /// As the Service calls it.
    Name(String),
}

impl Service {
    /// Reads what comes after `kubernetes://`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a Service, its namespace and a port, such as `kubernetes://shop-nodes.shop:7002`, \
                                or `kubernetes://shop-nodes:cluster` for a port's name and the pod's own namespace";
        let (service, port) = text.split_once(':').ok_or(EXPECTED)?;
        let (name, namespace) = service.split_once('.').map_or((service, None), |(name, rest)| (name, Some(rest)));
        let port = match port.parse() {
            Ok(0) => return Err(EXPECTED),
            Ok(number) => Port::Number(number),
            // A name has a letter; a number too large has none.
            Err(_) if is_label(port) && port.bytes().any(|b| b.is_ascii_lowercase()) => Port::Name(port.to_owned()),
            Err(_) => return Err(EXPECTED),
        };
        if !is_label(name) || !namespace.is_none_or(is_label) {
            return Err(EXPECTED);
        }
        Ok(Self { name: name.to_owned(), namespace: namespace.map(str::to_owned), port })
    }
}

/// What Kubernetes calls a DNS label.
fn is_label(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') && !text.ends_with('-')
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubernetes://{}", self.name)?;
        if let Some(namespace) = &self.namespace {
            write!(f, ".{namespace}")?;
        }
        match &self.port {
            Port::Number(number) => write!(f, ":{number}"),
            Port::Name(name) => write!(f, ":{name}"),
        }
    }
}

/// Keeps `tell` current for as long as it is not dropped. `own` are this node's addresses.
pub(super) async fn watch(service: Service, own: &[SocketAddr], tell: impl Fn(Found)) {
    let problem = |text: String| Found { problems: BTreeSet::from([text]), ..Found::default() };
    let client = loop {
        match connect().await {
            Ok(client) => break client,
            Err(error) => tell(problem(format!("can't watch seed `{service}`: {error}; it is tried again"))),
        }
        sleep(AGAIN).await;
    };
    let namespace = service.namespace.as_deref().unwrap_or(client.default_namespace()).to_owned();
    let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let wanted = watcher::Config::default().labels(&format!("kubernetes.io/service-name={}", service.name));
    let mut events = pin!(watcher(api, wanted));
    let mut slices = Slices::default();
    let mut trouble = None;
    let mut pause = SOON;
    // kube would complain of what is forbidden at each attempt; it is told once, by who looks at `problems`.
    loop {
        let event = match timeout(AGAIN, events.next()).with_subscriber(Dispatch::none()).await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            // A watch that broke was begun again, and nobody says so: what can't be reached is an error before this.
            Err(_quiet) => {
                if trouble.take().is_some() {
                    pause = SOON;
                    tell(slices.found(&service, own));
                }
                continue;
            }
        };
        let failed = event.is_err();
        match event {
            Ok(event) => {
                // An attempt to list succeeds later, if it does. So kube's own backoff would begin anew with each.
                if !matches!(event, Event::Init) {
                    (trouble, pause) = (None, SOON);
                }
                slices.apply(event);
            }
            // Its place in the history is forgotten there: it lists anew.
            Err(watcher::Error::WatchError(status)) if status.code == GONE => {}
            Err(error) => {
                let error = describe(&error, &namespace);
                trouble = Some(format!("can't watch seed `{service}`: {error}; it is tried again"));
            }
        }
        // What was found stays while the API can't be asked: nodes are where they were, most likely.
        let mut found = slices.found(&service, own);
        found.problems.extend(trouble.clone());
        tell(found);
        if failed {
            // Not all nodes at once: they have lost the same server.
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(AGAIN);
        }
    }
}

/// As other clients do: by `KUBECONFIG`, by `~/.kube/config`, or as the pod's service account.
async fn connect() -> Result<Client, String> {
    // kube asks for the process's provider. Where none was chosen, and crates have brought several, rustls can't either.
    let _ = aws_lc_rs::default_provider().install_default();
    let mut config = Config::infer().await.map_err(|error| {
        format!(
            "there is no way to Kubernetes' API: in a pod, have the token of its service account mounted \
             (`automountServiceAccountToken: true`); elsewhere, let KUBECONFIG name a file ({error})"
        )
    })?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    Client::try_from(config).map_err(|error| innermost(&error))
}

/// An error in words that do not change from one attempt to the next.
fn describe(error: &watcher::Error, namespace: &str) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchError(status) => refusal(status, namespace),
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => innermost(error),
        NoResourceVersion => error.to_string(),
    }
}

fn refusal(Status { code, message, .. }: &Status, namespace: &str) -> String {
    match code {
        401 => format!(
            "Kubernetes' API does not know who asks ({message}): the pod needs the token of its service account \
             (`automountServiceAccountToken: true`)"
        ),
        403 => format!(
            "Kubernetes' API forbids it ({message}): the pod's service account needs a RoleBinding to a Role in namespace \
             `{namespace}` that allows `list` and `watch` on `endpointslices` of `discovery.k8s.io`"
        ),
        _ => format!("Kubernetes' API answers {code} ({message})"),
    }
}

/// The cause that began it: those around it say in which layer it was met.
fn innermost(error: &kube::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The EndpointSlices of a Service, by name.
#[derive(Debug, Default)]
struct Slices {
    /// None until they were listed once.
    known: Option<BTreeMap<String, EndpointSlice>>,
    /// Of a list that has not ended.
    listing: BTreeMap<String, EndpointSlice>,
}

impl Slices {
    fn apply(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(slice) => drop(self.listing.insert(slice.name_any(), slice)),
            Event::InitDone => self.known = Some(mem::take(&mut self.listing)),
            Event::Apply(slice) => drop(self.known.get_or_insert_default().insert(slice.name_any(), slice)),
            Event::Delete(slice) => drop(self.known.get_or_insert_default().remove(&slice.name_any())),
        }
    }

    fn found(&self, service: &Service, own: &[SocketAddr]) -> Found {
        let Some(known) = &self.known else { return Found::default() };
        let mut problems = BTreeSet::new();
        if known.is_empty() {
            problems
                .insert(format!("seed `{service}` has no EndpointSlices: is there such a Service? It is watched on"));
        }
        let (mut serving, mut starting) = (BTreeSet::new(), BTreeSet::new());
        for (name, slice) in known {
            if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
                let kind = &slice.address_type;
                problems.insert(format!(
                    "EndpointSlice `{name}` of seed `{service}` is passed over: it has addresses of type {kind}, and a node \
                     is at an IPv4 or IPv6 address"
                ));
                continue;
            }
            // A slice without endpoints has no ports either.
            if slice.endpoints.is_empty() {
                continue;
            }
            let Some(port) = service.port.of(slice) else {
                let names: Vec<&str> = slice.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
                problems.insert(format!(
                    "EndpointSlice `{name}` of seed `{service}` is passed over: it has no such port, but {names:?}"
                ));
                continue;
            };
            for endpoint in &slice.endpoints {
                let conditions = endpoint.conditions.as_ref();
                // What is not said is true of `serving`, and false of `terminating`.
                let serves = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
                let ends = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
                let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                let addresses = addresses.map(|ip| SocketAddr::new(ip, port)).filter(|address| !own.contains(address));
                match (serves, ends) {
                    (true, _) => serving.extend(addresses),
                    (false, false) => starting.extend(addresses),
                    (false, true) => {}
                }
            }
        }
        Found { addresses: if serving.is_empty() { starting } else { serving }, problems }
    }
}

impl Port {
    fn of(&self, slice: &EndpointSlice) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => {
                let port = slice.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name))?;
                port.port.and_then(|number| u16::try_from(number).ok())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn service(text: &str) -> Service {
        Service::parse(text).unwrap()
    }

    fn slice(name: &str, kind: &str, endpoints: Value) -> EndpointSlice {
        let ports = json!([{"name": "cluster", "port": 7002}, {"name": "gossip", "port": 7002, "protocol": "UDP"}]);
        let slice = json!({"metadata": {"name": name}, "addressType": kind, "endpoints": endpoints, "ports": ports});
        serde_json::from_value(slice).unwrap()
    }

    fn listed(slices: impl IntoIterator<Item = EndpointSlice>) -> Slices {
        let mut listed = Slices::default();
        listed.apply(Event::Init);
        for slice in slices {
            listed.apply(Event::InitApply(slice));
        }
        listed.apply(Event::InitDone);
        listed
    }

    fn addresses(slices: &Slices, seed: &str, own: &[&str]) -> Vec<String> {
        let own: Vec<SocketAddr> = own.iter().map(|own| own.parse().unwrap()).collect();
        slices.found(&service(seed), &own).addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_service_is_written_as_in_dns() {
        for good in ["shop-nodes.shop:7002", "shop-nodes:7002", "shop-nodes.shop:cluster", "a.1:x-1", "7:65535"] {
            assert_eq!(service(good).to_string(), format!("kubernetes://{good}"));
        }
        for bad in
            ["", ":", "a", "a:", "a:0", "a:65536", ".a:1", "a.:1", "a.b.svc:1", "A:1", "a:B", "a/b:1", "-a:1", "a:b:1"]
        {
            assert!(Service::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "[a-z0-9.:-]{0,16}") {
            if let Ok(service) = Service::parse(&text) {
                let written = service.to_string();
                prop_assert_eq!(Service::parse(written.strip_prefix("kubernetes://").unwrap()), Ok(service));
            }
        }
    }

    #[test]
    fn serving_counts_and_ready_does_not() {
        let slices = listed([slice(
            "a",
            "IPv4",
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": false, "terminating": false}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.4"]},
            ]),
        )]);
        let expected = ["10.0.0.2:7002", "10.0.0.3:7002", "10.0.0.4:7002"];
        assert_eq!(addresses(&slices, "nodes:cluster", &[]), expected);
        assert_eq!(addresses(&slices, "nodes:7002", &[]), expected);
    }

    #[test]
    fn where_no_other_serves_those_that_start_count() {
        let slices = listed([slice(
            "a",
            "IPv4",
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true, "serving": false}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "serving": false, "terminating": true}},
            ]),
        )]);
        assert_eq!(addresses(&slices, "nodes:7002", &["10.0.0.1:7002"]), ["10.0.0.2:7002"]);
        assert_eq!(addresses(&slices, "nodes:7002", &["10.0.0.2:7002"]), ["10.0.0.1:7002"]);
    }

    #[test]
    fn both_families_are_found_and_names_are_refused() {
        let slices = listed([
            slice("four", "IPv4", json!([{"addresses": ["10.0.0.1"]}])),
            slice("six", "IPv6", json!([{"addresses": ["fd00::1"]}])),
            slice("names", "FQDN", json!([{"addresses": ["node-1.example.org"]}])),
        ]);
        assert_eq!(addresses(&slices, "nodes:cluster", &[]), ["10.0.0.1:7002", "[fd00::1]:7002"]);
        let problems = slices.found(&service("nodes:cluster"), &[]).problems;
        assert_eq!(problems.len(), 1);
        assert!(problems.iter().any(|problem| problem.contains("`names`") && problem.contains("FQDN")), "{problems:?}");
        let problems = slices.found(&service("nodes:http"), &[]).problems;
        assert!(problems.iter().any(|problem| problem.contains(r#"["cluster", "gossip"]"#)), "{problems:?}");
    }

    #[test]
    fn changes_are_followed_and_a_list_replaces_what_was_known() {
        let at = |name: &str, ip: &str| slice(name, "IPv4", json!([{"addresses": [ip]}]));
        let mut slices = Slices::default();
        assert_eq!(slices.found(&service("nodes:1"), &[]), Found::default(), "nothing is known yet");
        slices = listed([]);
        assert!(!slices.found(&service("nodes:1"), &[]).problems.is_empty(), "nobody made such a Service");
        slices.apply(Event::Apply(at("a", "10.0.0.1")));
        slices.apply(Event::Apply(at("b", "10.0.0.2")));
        slices.apply(Event::Apply(at("a", "10.0.0.3")));
        assert_eq!(addresses(&slices, "nodes:1", &[]), ["10.0.0.2:1", "10.0.0.3:1"]);
        slices.apply(Event::Delete(at("b", "10.0.0.2")));
        assert_eq!(addresses(&slices, "nodes:1", &[]), ["10.0.0.3:1"]);
        slices.apply(Event::Init);
        slices.apply(Event::InitApply(at("c", "10.0.0.4")));
        assert_eq!(addresses(&slices, "nodes:1", &[]), ["10.0.0.3:1"], "half a list is none");
        slices.apply(Event::Init);
        slices.apply(Event::InitApply(at("d", "10.0.0.5")));
        slices.apply(Event::InitDone);
        assert_eq!(addresses(&slices, "nodes:1", &[]), ["10.0.0.5:1"]);
    }
}
