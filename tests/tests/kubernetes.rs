//! Nodes that find each other through Kubernetes' EndpointSlices; and what an API server must do for that, ours of the
//! tests and a real one.

#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use futures_util::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config, Error, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use outpost_proto::admin::v1::Cluster;
use outpost_tests::{
    kubernetes::{ApiServer, NAMESPACE},
    processes::{Fleet, START, all_served, node, ready_nodes},
    wait::within,
};
use serde_json::{Value, json};
use tokio::{net::UdpSocket, task::JoinSet};
use tokio_rustls::rustls::crypto::aws_lc_rs;

const FLEET: &str = env!("CARGO_BIN_EXE_fleet");
const SEEDS: &str = r#"cluster.seeds=["kubernetes://nodes:cluster"]"#;

/// As a pod's endpoint is while it starts, where its Service publishes pods before they are ready.
fn starting() -> Value {
    json!({"ready": true, "serving": false, "terminating": false})
}

fn serving() -> Value {
    json!({"ready": true, "serving": true, "terminating": false})
}

/// A slice of Service `service` with one endpoint.
fn slice(name: &str, service: &str, address: SocketAddr, conditions: Value) -> EndpointSlice {
    let slice = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address.ip()], "conditions": conditions}],
        "ports": [{"name": "cluster", "port": address.port(), "protocol": "TCP"}],
    });
    serde_json::from_value(slice).unwrap()
}

/// Makes a slice, or puts it in the place of the one of its name.
async fn put(slices: &Api<EndpointSlice>, mut slice: EndpointSlice) -> EndpointSlice {
    let name = slice.name_any();
    match slices.get_opt(&name).await.unwrap() {
        Some(known) => {
            slice.metadata.resource_version = known.metadata.resource_version;
            slices.replace(&name, &PostParams::default(), &slice).await.unwrap()
        }
        None => slices.create(&PostParams::default(), &slice).await.unwrap(),
    }
}

async fn client(kubeconfig: impl AsRef<Path>) -> Client {
    let _ = aws_lc_rs::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

// The contract

#[tokio::test]
async fn our_api_server_keeps_the_contract() {
    let server = ApiServer::start().await;
    contract(client(server.kubeconfig()).await).await;
}

#[tokio::test]
async fn a_real_api_server_keeps_the_contract() {
    // A variable of its own: a run of all tests must not write into whatever cluster `KUBECONFIG` names.
    let Some(kubeconfig) = std::env::var_os("OUTPOST_TEST_KUBECONFIG") else {
        eprintln!(
            "SKIPPED: a_real_api_server_keeps_the_contract needs OUTPOST_TEST_KUBECONFIG, which names the kubeconfig file of a \
             cluster in which it may make a namespace"
        );
        return;
    };
    contract(client(kubeconfig).await).await;
}

/// What discovery asks of an API server, in a namespace of its own.
async fn contract(client: Client) {
    let name = format!("outpost-contract-{:x}", rand::random::<u32>());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let services: Api<Service> = Api::namespaced(client.clone(), &name);
    let service = json!({
        "metadata": {"name": "nodes"},
        "spec": {"clusterIP": "None", "ports": [{"name": "cluster", "port": 7002}]},
    });
    services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();

    // In a task, so that the namespace goes away whatever comes of it.
    let mut task = JoinSet::new();
    let slices = Api::namespaced(client, &name);
    task.spawn(async move {
        objects_are_kept_as_given(&slices).await;
        changes_are_told_in_their_order(&slices).await;
    });
    let kept = task.join_next().await.unwrap();
    namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
    kept.unwrap();
}

async fn objects_are_kept_as_given(slices: &Api<EndpointSlice>) {
    let of_nodes = ListParams::default().labels("kubernetes.io/service-name=nodes");
    let list = slices.list(&of_nodes).await.unwrap();
    assert!(list.items.is_empty(), "{list:?}");
    assert!(list.metadata.resource_version.is_some_and(|version| !version.is_empty()), "a watch begins there");

    let address = "10.1.2.3:7002".parse().unwrap();
    let conditions = [
        json!({"ready": false, "serving": true, "terminating": true}),
        json!({"ready": true, "serving": false, "terminating": false}),
        json!({"ready": true}),
    ];
    for (at, conditions) in conditions.iter().enumerate() {
        put(slices, slice(&format!("kept-{at}"), "nodes", address, conditions.clone())).await;
    }
    put(slices, slice("of-others", "others", address, serving())).await;
    let listed = slices.list(&of_nodes).await.unwrap();
    let names: Vec<String> = listed.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["kept-0", "kept-1", "kept-2"], "those with the label");
    for (slice, given) in listed.items.iter().zip(&conditions) {
        // Nothing is filled in: what is not said is not `false`.
        assert_eq!(&serde_json::to_value(&slice.endpoints[0].conditions).unwrap(), given);
        assert_eq!(
            (slice.address_type.as_str(), &slice.endpoints[0].addresses[..]),
            ("IPv4", &["10.1.2.3".to_owned()][..])
        );
        let port = &slice.ports.as_ref().unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some("cluster"), Some(7002)));
    }

    let again = slices.create(&PostParams::default(), &slice("kept-0", "nodes", address, serving())).await;
    assert!(matches!(again, Err(Error::Api(status)) if status.is_already_exists()));
    let missing = slices.delete("nobody", &DeleteParams::default()).await;
    assert!(matches!(missing, Err(Error::Api(status)) if status.is_not_found()));
    for name in ["kept-0", "kept-1", "kept-2", "of-others"] {
        slices.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

async fn changes_are_told_in_their_order(slices: &Api<EndpointSlice>) {
    let selected = "kubernetes.io/service-name=nodes";
    let begin = slices.list(&ListParams::default().labels(selected)).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default().labels(selected).timeout(20);
    let mut early = slices.watch(&params, &begin).await.unwrap().boxed();

    let [first, second] = ["10.1.2.3:7002", "10.1.2.4:7003"].map(|address| address.parse().unwrap());
    put(slices, slice("a", "nodes", first, starting())).await;
    put(slices, slice("unseen", "others", first, serving())).await;
    put(slices, slice("a", "nodes", second, serving())).await;
    put(slices, slice("b", "nodes", first, serving())).await;
    // It is nobody's of this Service any more, and so gone.
    put(slices, slice("b", "others", first, serving())).await;
    slices.delete("a", &DeleteParams::default()).await.unwrap();

    // One that was there all the time, and one that comes later and begins at the same place.
    let mut late = slices.watch(&params, &begin).await.unwrap().boxed();
    for watch in [&mut early, &mut late] {
        let (mut told, mut versions) = (Vec::new(), Vec::new());
        while told.len() < 5 {
            let (kind, slice) = match within("a change", watch.next()).await.unwrap().unwrap() {
                WatchEvent::Added(slice) => ("added", slice),
                WatchEvent::Modified(slice) => ("modified", slice),
                WatchEvent::Deleted(slice) => ("deleted", slice),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => panic!("{status:?}"),
            };
            told.push(format!("{kind} {} {}", slice.name_any(), slice.endpoints[0].addresses[0]));
            versions.push(slice.resource_version().unwrap());
        }
        let expected =
            ["added a 10.1.2.3", "modified a 10.1.2.4", "added b 10.1.2.3", "deleted b 10.1.2.3", "deleted a 10.1.2.4"];
        assert_eq!(told, expected);
        assert_eq!(versions.iter().collect::<BTreeSet<_>>().len(), 5, "each has a version of its own: {versions:?}");
    }
    for name in ["b", "unseen"] {
        slices.delete(name, &DeleteParams::default()).await.unwrap();
    }
    // A watch ends by itself, and not as an error: its client begins another where it was.
    let end = slices.list(&ListParams::default().labels(selected)).await.unwrap().metadata.resource_version.unwrap();
    let brief = slices.watch(&WatchParams::default().labels(selected).timeout(1), &end).await.unwrap();
    let rest: Vec<_> = within("the end of a watch", brief.collect::<Vec<_>>()).await;
    assert!(rest.iter().all(|event| matches!(event, Ok(WatchEvent::Bookmark(_)))), "{rest:?}");
}

#[tokio::test]
async fn our_api_server_refuses_forgets_and_cuts_as_real_ones_do() {
    let server = ApiServer::start().await;
    let slices: Api<EndpointSlice> = Api::default_namespaced(client(server.kubeconfig()).await);
    let mut watch = slices.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    server.cut_and_compact();
    let cut = within("the watch to break", watch.next()).await;
    assert!(!matches!(cut, Some(Ok(_))), "{cut:?}");
    let mut watch = slices.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    match within("an event", watch.next()).await.unwrap().unwrap() {
        WatchEvent::Error(status) => assert_eq!((status.code, status.reason.as_str()), (410, "Expired")),
        other => panic!("{other:?}"),
    }
    server.forbid(true);
    let refused = slices.list(&ListParams::default()).await;
    assert!(matches!(refused, Err(Error::Api(status)) if status.is_forbidden()));
}

// Nodes

/// An API server, and nodes that are told of it.
struct Pods {
    server: ApiServer,
    slices: Api<EndpointSlice>,
    fleet: Fleet,
}

impl Pods {
    async fn of(count: usize) -> Self {
        let server = ApiServer::start().await;
        let slices = Api::default_namespaced(client(server.kubeconfig()).await);
        let mut fleet = Fleet::of(FLEET, count, &[SEEDS]);
        let kubeconfig = format!("KUBECONFIG={}", server.kubeconfig().display());
        for index in 0..count {
            fleet.node_mut(index).wrapper = vec!["env".to_owned(), kubeconfig.clone()];
        }
        Self { server, slices, fleet }
    }

    /// Says of a pod that it is where this node is.
    async fn publish(&self, pod: &str, index: usize, conditions: Value) {
        put(&self.slices, slice(pod, "nodes", self.fleet.node(index).cluster, conditions)).await;
    }
}

/// Something that is greeted, as a node is.
async fn somebody() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

async fn greeted(socket: &UdpSocket) {
    within("a greeting", socket.recv_from(&mut [0; 2048])).await.unwrap();
}

#[tokio::test]
async fn nodes_meet_through_slices_and_find_one_that_comes_back_elsewhere() {
    let mut pods = Pods::of(4).await;
    // As Kubernetes has it while a new cluster begins: nobody is ready, for that takes company.
    for (index, pod) in ["node-1", "node-2", "node-3"].iter().enumerate() {
        pods.publish(pod, index, starting()).await;
        pods.fleet.start(index);
    }
    for index in 0..3 {
        pods.fleet.settled(index, 3, START).await;
        pods.publish(&pods.fleet.node(index).name.clone(), index, serving()).await;
    }

    // It looks for nobody, so that the others have to find it; the fourth one's place is free.
    let elsewhere = pods.fleet.node(3).cluster;
    pods.fleet.kill(1).await;
    let node_2 = pods.fleet.node_mut(1);
    node_2.cluster = elsewhere;
    node_2.settings.push("cluster.seeds=[]".to_owned());
    pods.fleet.start(1);
    pods.publish("node-2", 1, serving()).await;
    for index in 0..3 {
        pods.fleet.settled(index, 3, START).await;
    }
    let line = pods.fleet.logs(0, &elsewhere.to_string(), START).await;
    assert!(line.contains("seeds resolved"), "{line}");
}

#[tokio::test]
async fn whoever_serves_is_greeted_ready_or_not() {
    let mut pods = Pods::of(1).await;
    let [(one, at), (other, nowhere)] = [somebody().await, somebody().await];
    put(&pods.slices, slice("a", "nodes", at, json!({"ready": false, "serving": true, "terminating": true}))).await;
    put(&pods.slices, slice("b", "nodes", nowhere, starting())).await;
    pods.fleet.start(0);
    for _ in 0..5 {
        greeted(&one).await;
    }
    assert!(other.try_recv_from(&mut [0; 2048]).is_err(), "it does not serve, and others do");
    // Until nobody else does.
    pods.slices.delete("a", &DeleteParams::default()).await.unwrap();
    greeted(&other).await;
}

#[tokio::test]
async fn a_watch_that_is_cut_and_forgotten_goes_on() {
    let mut pods = Pods::of(1).await;
    let [(one, at), (other, later)] = [somebody().await, somebody().await];
    put(&pods.slices, slice("a", "nodes", at, serving())).await;
    pods.fleet.start(0);
    greeted(&one).await;
    pods.server.cut_and_compact();
    put(&pods.slices, slice("b", "nodes", later, serving())).await;
    greeted(&other).await;
    pods.server.cut();
    pods.slices.delete("a", &DeleteParams::default()).await.unwrap();
    let line = pods.fleet.logs(0, &format!("seeds=[{later}]"), START).await;
    assert!(line.contains("seeds resolved"), "{line}");
}

#[tokio::test]
async fn a_role_that_is_missing_is_told_once_with_the_remedy() {
    let mut pods = Pods::of(1).await;
    let (one, at) = somebody().await;
    put(&pods.slices, slice("a", "nodes", at, serving())).await;
    pods.server.forbid(true);
    pods.fleet.start(0);
    pods.server.refused(3).await;
    let log = pods.fleet.node(0).log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("forbid")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    let remedy = format!("a Role in namespace `{NAMESPACE}` that allows `list` and `watch` on `endpointslices`");
    for part in ["kubernetes://nodes:cluster", "cannot list resource", &remedy, "RoleBinding"] {
        assert!(lines[0].contains(part), "`{part}` in {}", lines[0]);
    }
    // And the node is one without company, not one that has ended.
    pods.fleet.settled(0, 1, START).await;
    pods.server.forbid(false);
    greeted(&one).await;
}

#[tokio::test]
async fn a_node_without_a_way_to_kubernetes_says_what_is_missing() {
    let mut fleet = Fleet::of(FLEET, 1, &[SEEDS]);
    let nowhere = fleet.folder().join("nowhere");
    fleet.node_mut(0).wrapper = vec!["env".to_owned(), format!("HOME={}", nowhere.display())];
    fleet.start(0);
    let line = fleet.logs(0, "kubernetes://nodes:cluster", START).await;
    assert!(line.contains("`automountServiceAccountToken: true`") && line.contains("KUBECONFIG"), "{line}");
    fleet.settled(0, 1, START).await;
}

/// A pod is deleted by force while its machine can't be reached: Kubernetes makes another under its name, and then the
/// machine is back.
#[tokio::test]
async fn of_two_pods_under_one_name_the_newer_stays() {
    let mut pods = Pods::of(4).await;
    for index in 0..3 {
        pods.publish(&pods.fleet.node(index).name.clone(), index, serving()).await;
        pods.fleet.start(index);
    }
    for index in 0..3 {
        pods.fleet.settled(index, 3, START).await;
    }
    let generation = |view: &Cluster| node(view, "node-2").map_or(0, |node| node.generation);
    let before = generation(&pods.fleet.settled(0, 3, START).await);

    pods.fleet.freeze(1);
    pods.fleet.node_mut(3).settings.push("node.name=node-2".to_owned());
    pods.fleet.start(3);
    pods.publish("node-2", 3, serving()).await;
    let reason = "the newer process to be node-2, and all to be served";
    let taken = |view: &Cluster| generation(view) > before && ready_nodes(view).len() == 3 && all_served(view);
    pods.fleet.until(0, reason, START, taken).await;

    pods.fleet.thaw(1);
    assert_eq!(pods.fleet.ended(1, START).await.code(), Some(4), "{}", pods.fleet.node(1).log());
    for index in [0, 2, 3] {
        pods.fleet.until(index, reason, START, taken).await;
    }
    pods.fleet.one_leader_a_term();
}
