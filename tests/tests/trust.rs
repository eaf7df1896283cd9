//! Who may be a node, and who an operator: what strangers get, and that keys and certificates change while all goes on.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use outpost::{Sources, StartError};
use outpost_proto::{
    admin::v1::{
        ApplyRequest, AuditRequest, AuditResponse, Cluster, CordonRequest, DescribeRequest, DrainRequest,
        ForgetRequest, MoveRequest, admin_client::AdminClient,
    },
    audit,
    cluster::v1::{
        CarriedCall, CarryRequest, ConsensusRequest, ElectRequest, HelloRequest, ProposeRequest, RenewRequest,
        TransferBegin, TransferRequest, Voter, carry_request, carry_response, consensus_client::ConsensusClient,
        handoff_client::HandoffClient, link_client::LinkClient, placement_client::PlacementClient, transfer_request,
    },
    mutual::Credentials,
    token::Token,
};
use outpost_tests::{
    authority::{Authority, Kind, connection, gossip_key, gossip_keys, nameless, node, operator, replace, wall},
    cluster::{self, TestCluster, nodes},
    load::Load,
    v1::{Ask, kinds_client::KindsClient},
    wait::{until, within},
    witness::{self, Book},
};
use prost::Message as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status, transport::Channel};

async fn secured(count: usize, authority: &Arc<Authority>) -> (TestCluster, Arc<Book>) {
    let book = Arc::new(Book::default());
    let written = Arc::clone(&book);
    let cluster = nodes(count).secured(authority).start(move |node| witness::app(node, &written)).await;
    (cluster, book)
}

/// What the listener for nodes says to who asks whether it is there.
async fn hello(channel: Channel) -> Result<String, Status> {
    let request = HelloRequest { cluster_name: "test".to_owned(), node: "stranger".to_owned() };
    let answer = within("an answer or a refusal", PlacementClient::new(channel).hello(request)).await?;
    Ok(answer.into_inner().node)
}

/// Whether nobody has answered: the connection ended before.
fn is_of_no_use(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Credentials that their owner believes, and nobody else has to.
fn shown(authority: &Authority, uri: &str, kind: Kind) -> Credentials {
    let (certificate, key) = authority.issue(uri, kind);
    let at = match kind {
        // When it was good.
        Kind::Expired => wall() - Duration::from_secs(36 * 60 * 60),
        Kind::Early => wall() + Duration::from_secs(36 * 60 * 60),
        Kind::Good | Kind::Lasting | Kind::OneSided | Kind::Brief => wall(),
    };
    Credentials::from_pem(certificate.as_bytes(), key.as_bytes(), authority.pem().as_bytes(), at).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_certificates_works_as_one_without() {
    let authority = Arc::new(Authority::new());
    let (cluster, book) = secured(3, &authority).await;
    let load = Load::start(&cluster, &cluster.names());
    load.more(200).await;
    let home = cluster.home("kinds").await;
    let target = cluster.names().into_iter().find(|name| *name != home).unwrap();
    cluster.move_module("kinds", &target).await;
    load.more(200).await;
    let report = load.stop().await;
    report.assert_all_answered();
    assert_eq!(book.executed_twice(), Vec::<String>::new());
    let view = cluster.view_at("n1").await;
    for seen in &view.nodes {
        assert!(u128::from(seen.certificate_expires_ms) > wall().as_millis(), "{seen:?}");
        assert_eq!(seen.gossip_keys, [gossip_key(7).id().to_string()]);
    }
    assert_eq!(view.problems, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_a_nodes_certificate_talks_to_nodes() {
    let authority = Arc::new(Authority::new());
    let (cluster, _) = secured(1, &authority).await;
    let at = cluster.node("n1").cluster_address();
    assert_eq!(hello(connection(at, &authority.credentials(&node("n2")))).await.unwrap(), "n1");

    let stranger = Authority::new();
    let elsewhere = "spiffe://example.org/outpost/bank/node/n2";
    let other_realm = "spiffe://example.com/outpost/test/node/n2";
    for (what, authority, uri, kind) in [
        ("of another authority", &stranger, node("n2"), Kind::Good),
        ("that has expired", &*authority, node("n2"), Kind::Expired),
        ("that is not good yet", &*authority, node("n2"), Kind::Early),
        ("of another cluster", &*authority, elsewhere.to_owned(), Kind::Good),
        ("of another realm", &*authority, other_realm.to_owned(), Kind::Good),
        ("of an operator", &*authority, operator("alice"), Kind::Good),
    ] {
        let credentials = shown(authority, &uri, kind);
        let refused = hello(connection(at, &credentials)).await.map(|node| panic!("{node} answers {what}"));
        assert!(is_of_no_use(&refused.unwrap_err()), "{what}");
    }
    // Who does not even speak TLS.
    let plain = hello(cluster::connection(at)).await.unwrap_err();
    assert!(is_of_no_use(&plain), "{plain:?}");
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the end of the connection", stream.read_to_end(&mut answer)).await;
    assert!(!answer.windows(4).any(|part| part == b"HTTP"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_itself_only() {
    let authority = Arc::new(Authority::new());
    let (cluster, _) = secured(2, &authority).await;
    let view = cluster.view_at("n1").await;
    let leader = view.leader.clone();
    let at = cluster.node(&leader).cluster_address();
    let generation = view.nodes.iter().find(|node| node.name == "n2").unwrap().generation;
    let renew = async |shown: &str| {
        let request = RenewRequest { cluster: view.id.clone(), node: "n2".to_owned(), generation, applied: 0 };
        PlacementClient::new(connection(at, &authority.credentials(&node(shown)))).renew(request).await
    };
    renew("n2").await.unwrap();
    let refused = renew("n3").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("node/n3") && refused.message().contains("`n2`"), "{refused:?}");

    let channel = |shown: &str| connection(at, &authority.credentials(&node(shown)));
    let is_refused = |answer: Result<(), Status>, what: &str| match answer {
        Err(status) if status.code() == Code::PermissionDenied => {}
        other => panic!("{what}: {other:?}"),
    };
    // What a node would say of another to the log, and what it would have operators have said.
    let leave = json!({"at": 1, "by": "n2", "command": {"leave": {"node": "n2", "generation": generation}}});
    let forged = json!({
        "at": 1, "by": "alice", "asked": {"node": "n2", "from": "10.0.0.1:5", "kind": "drain", "text": "n2"},
        "command": {"drain": {"node": "n2", "why": ""}},
    });
    let unasked = json!({"at": 1, "by": "alice", "command": {"drain": {"node": "n2", "why": ""}}});
    for proposal in [leave, forged, unasked] {
        let request = ProposeRequest { cluster: view.id.clone(), proposal: proposal.to_string().into_bytes() };
        let answer = PlacementClient::new(channel("n3")).propose(request).await;
        is_refused(answer.map(drop), &proposal.to_string());
    }
    let voters = vec![Voter { node: "n2".to_owned(), raft_id: 7 }];
    let request = ElectRequest { cluster_name: "test".to_owned(), voters, cluster: "made-up".to_owned() };
    is_refused(PlacementClient::new(channel("n3")).elect(request).await.map(drop), "an election");

    // A member of the log's consensus, and one that nobody knows.
    let leads = view.voters.iter().find(|voter| voter.node == leader).unwrap().raft_id;
    let vote = |leader: u64| json!({"leader_id": {"term": 99, "node_id": leader}, "committed": true});
    let append = |leader: u64| json!({"vote": vote(leader), "prev_log_id": null, "entries": [], "leader_commit": null});
    let consensus = async |shown: &str, from: u64, body: serde_json::Value| {
        let body = body.to_string().into_bytes();
        let request = ConsensusRequest { cluster: view.id.clone(), from, to: leads, body };
        ConsensusClient::new(channel(shown)).append(request).await.map(drop)
    };
    let second = view.nodes.iter().find(|node| node.name != leader).unwrap().name.clone();
    is_refused(consensus("n3", leads, append(leads)).await, "in the leader's place");
    let unknown = consensus("n3", 0xdead, append(leads)).await.unwrap_err();
    assert!(matches!(unknown.code(), Code::Unavailable | Code::PermissionDenied), "{unknown:?}");
    is_refused(consensus(&leader, leads, append(leads + 1)).await, "for another leader than itself");
    let begin =
        transfer_request::Step::Begin(TransferBegin { cluster: view.id.clone(), node: second, ..Default::default() });
    let mut handoff = HandoffClient::new(channel("n3"));
    let transfer = handoff.transfer(tokio_stream::once(TransferRequest { step: Some(begin) }));
    is_refused(transfer.await.map(drop), "a state that is for another");
    // A carried call can't say who is at the other end.
    let path = "/outpost.cluster.v1.Placement/Renew".into();
    let call = CarriedCall { id: 1, path, body: vec![0; 5].into(), ..Default::default() };
    let frame = CarryRequest { frame: Some(carry_request::Frame::Call(call)) };
    let frames = tokio_stream::once(frame).chain(tokio_stream::pending());
    let mut answers = LinkClient::new(channel("n3")).carry(frames).await.unwrap().into_inner();
    match within("an answer", answers.message()).await.unwrap().unwrap().frame.unwrap() {
        carry_response::Frame::Answer(answer) => {
            let text = format!("{:?}", String::from_utf8_lossy(&answer.encode_to_vec()));
            assert!(text.contains("12") && text.contains("by%20way%20of%20a%20link"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

async fn described(at: SocketAddr, channel: Channel) -> Result<String, Status> {
    let answer = within("an answer or a refusal", AdminClient::new(channel).describe(DescribeRequest {})).await?;
    Ok(answer.into_inner().node.map(|node| node.name).unwrap_or_else(|| at.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_an_operators_certificate_asks_the_admin_api() {
    let authority = Arc::new(Authority::new());
    let (cluster, _) = secured(1, &authority).await;
    let at = cluster.node("n1").admin_address().unwrap();
    assert_eq!(described(at, connection(at, &authority.credentials(&operator("alice")))).await.unwrap(), "n1");
    let stranger = Authority::new();
    for (what, channel) in [
        ("a node", connection(at, &authority.credentials(&node("n2")))),
        ("a stranger", connection(at, &shown(&stranger, &operator("alice"), Kind::Good))),
        ("an operator who was one", connection(at, &shown(&authority, &operator("bob"), Kind::Expired))),
        ("somebody without TLS", cluster::connection(at)),
    ] {
        let refused = described(at, channel).await.map(|node| panic!("{node} answers {what}")).unwrap_err();
        assert!(is_of_no_use(&refused), "{what}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_with_what_others_would_refuse() {
    let authority = Arc::new(Authority::new());
    let (mut cluster, _) = secured(1, &authority).await;
    let folder = cluster.trust_of("n2");
    fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, content: &str| replace(&folder.join(name), content);
    let good = authority.issue(&node("n2"), Kind::Good);
    let put = |(certificate, key): &(String, String)| {
        file("n2.pem", certificate);
        file("n2.key", key);
        file("authorities.pem", authority.pem());
        file("gossip.keys", &gossip_keys(&[7]));
    };
    let starts = async |cluster: &mut TestCluster| match cluster.try_add("n2").await {
        Err(StartError::Trust(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    for (pair, part) in [
        (authority.issue(&node("n3"), Kind::Good), "node/n3"),
        (authority.issue("spiffe://example.org/outpost/bank/node/n2", Kind::Good), "bank"),
        (authority.issue(&node("n2"), Kind::Expired), "expired"),
        (authority.issue(&node("n2"), Kind::Early), "not valid yet"),
        (authority.issue(&node("n2"), Kind::OneSided), "both ends"),
        (authority.issue("https://example.org/", Kind::Good), "is not spiffe://"),
        (Authority::new().issue(&node("n2"), Kind::Good), "none of the authorities"),
        ((good.0.clone(), authority.issue(&node("n2"), Kind::Good).1), "does not go with"),
        (("nothing".to_owned(), good.1.clone()), "n2.pem"),
        ((good.0.clone(), "nothing".to_owned()), "n2.key"),
    ] {
        put(&pair);
        let error = starts(&mut cluster).await;
        assert!(error.contains(part) && error.contains("trust."), "{part} in {error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
    }
    put(&good);
    file("gossip.keys", "0123");
    let error = starts(&mut cluster).await;
    assert!(error.contains("line 1") && !error.contains("0123"), "{error}");
    put(&good);
    cluster.add("n2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_gossip_has_no_key_of_the_cluster_is_not_heard() {
    let authority = Arc::new(Authority::new());
    let (mut cluster, book) = secured(1, &authority).await;
    let folder = cluster.trust_of("n2");
    fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = authority.issue(&node("n2"), Kind::Good);
    replace(&folder.join("n2.pem"), &certificate);
    replace(&folder.join("n2.key"), &key);
    replace(&folder.join("authorities.pem"), authority.pem());
    // The certificate is good, the key is one that was removed.
    replace(&folder.join("gossip.keys"), &gossip_keys(&[6]));
    let (app, sources) = (witness::app("n2", &book), cluster.sources("n2"));
    let stranger = async {
        let _stays = app.start(&sources).await;
        std::future::pending::<()>().await;
    };
    let seen = |view: &Cluster| {
        let heard = view.nodes.iter().filter(|node| !node.address.is_empty()).map(|node| node.name.as_str());
        let heard: Vec<&str> = heard.collect();
        assert!(!heard.contains(&"n2"), "{heard:?}");
        heard.contains(&"n3").then_some(()).ok_or_else(|| format!("{heard:?}"))
    };
    // Who came later, and has the key, is there by then.
    let heard = async {
        cluster.add("n3").await;
        cluster.wait_until_at("n1", "n3 to be heard of", seen).await;
    };
    tokio::select! {
        () = stranger => {}
        () = heard => {}
    }
}

fn all_ready(view: &Cluster, count: usize) -> Result<(), String> {
    match view.nodes.iter().filter(|node| node.state == "ready").count() {
        ready if ready == count => Ok(()),
        ready => Err(format!("{ready} nodes are ready")),
    }
}

fn sees_keys(view: &Cluster, wanted: &[u8], count: usize) -> Result<(), String> {
    let wanted: Vec<String> = wanted.iter().map(|byte| gossip_key(*byte).id().to_string()).collect();
    let found: Vec<_> = view.nodes.iter().map(|node| (node.name.clone(), node.gossip_keys.clone())).collect();
    match found.iter().filter(|(_, keys)| *keys == wanted).count() == count {
        true => Ok(()),
        false => Err(format!("{found:?}, not {wanted:?}")),
    }
}

/// Keys of gossip, certificates and the authority itself are replaced while clients call; none of their calls fails, and no
/// node is lost from sight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_certificates_change_while_all_goes_on() {
    let authority = Arc::new(Authority::new());
    let (cluster, book) = secured(3, &authority).await;
    let names = cluster.names();
    let load = Load::start(&cluster, &names);
    load.more(100).await;
    let everywhere = async |what: &str, look: &dyn Fn(&Cluster) -> Result<(), String>| {
        for name in &names {
            cluster.wait_until_at(name, what, look).await;
        }
    };

    for keys in [&[7, 8][..], &[8, 7], &[8]] {
        for name in &names {
            replace(&cluster.trust_of(name).join("gossip.keys"), &gossip_keys(keys));
        }
        everywhere("every node to have the new keys", &|view| sees_keys(view, keys, 3)).await;
        everywhere("all nodes to be seen", &|view| all_ready(view, 3)).await;
    }

    // Both authorities are believed, then each node shows a certificate of the new one, then the old one is not any more.
    let next = Authority::new();
    let both = format!("{}{}", authority.pem(), next.pem());
    for name in &names {
        replace(&cluster.trust_of(name).join("authorities.pem"), &both);
    }
    // A node tells when it has taken up the next file, and it takes up all of them together.
    let expires = |view: &Cluster| view.nodes.iter().map(|node| node.certificate_expires_ms).collect::<Vec<_>>();
    for name in &names {
        let folder = cluster.trust_of(name);
        let before = expires(&cluster.view_at(name).await);
        // Two files can't change at one moment: what does not fit together is not put in force.
        let (certificate, key) = next.issue(&node(name), Kind::Good);
        replace(&folder.join(format!("{name}.key")), &key);
        replace(&folder.join(format!("{name}.pem")), &certificate);
        everywhere("the new certificate", &|view| match expires(view) != before {
            true => Ok(()),
            false => Err("the old one".to_owned()),
        })
        .await;
        load.more(50).await;
    }
    for name in &names {
        replace(&cluster.trust_of(name).join("authorities.pem"), next.pem());
    }
    let at = cluster.node("n1").cluster_address();
    until("the old authority to be believed no more", async || {
        match hello(connection(at, &shown(&authority, &node("n2"), Kind::Good))).await {
            Err(_) => Ok(()),
            Ok(node) => Err(format!("{node} answers")),
        }
    })
    .await;
    // New connections are made with what is in force now.
    let home = cluster.home("kinds").await;
    let target = names.iter().find(|name| **name != home).unwrap();
    cluster.move_module("kinds", target).await;
    load.more(100).await;
    let report = load.stop().await;
    report.assert_all_answered();
    assert_eq!(book.executed_twice(), Vec::<String>::new());
}

/// Nobody takes its calls or calls it, and calls that have nothing to do with it go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_revoked_is_shut_out_and_the_others_go_on() {
    let authority = Arc::new(Authority::new());
    let lists = authority.write("revocations.pem", &authority.revocations(&[]));
    let book = Arc::new(Book::default());
    let setup = nodes(3).secured(&authority).with("trust.revocations", lists.to_str().unwrap());
    let cluster = setup.start(move |node| witness::app(node, &book)).await;
    let homes = [cluster.home("kinds").await, cluster.home("relay").await];
    let gone = cluster.names().into_iter().find(|name| !homes.contains(name)).unwrap();
    let rest: Vec<String> = cluster.names().into_iter().filter(|name| *name != gone).collect();
    let through_gone = async || KindsClient::new(cluster.client(&gone)).unary(Ask::default()).await;
    through_gone().await.unwrap();
    let other = &rest[0];
    let (at, admin) = (cluster.node(other).cluster_address(), cluster.node(other).admin_address().unwrap());
    let [alice, bob] = ["alice", "bob"].map(|name| connection(admin, &authority.credentials(&operator(name))));
    for operator in [&alice, &bob] {
        described(admin, operator.clone()).await.unwrap();
    }
    let folder = cluster.trust_of(&gone);
    let [certificate, key] = ["pem", "key"].map(|end| fs::read(folder.join(format!("{gone}.{end}"))).unwrap());
    let stolen = Credentials::from_pem(&certificate, &key, authority.pem().as_bytes(), wall()).unwrap();
    assert_eq!(hello(connection(at, &stolen)).await.unwrap(), *other);

    let load = Load::start(&cluster, &rest);
    load.more(100).await;
    authority.write("revocations.pem", &authority.revocations(&[node(&gone), operator("alice")]));
    until("the stolen certificate to be refused", async || match hello(connection(at, &stolen)).await {
        Err(refused) if is_of_no_use(&refused) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    until("the operator to be refused", async || match described(admin, alice.clone()).await {
        Err(refused) if is_of_no_use(&refused) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    described(admin, bob).await.unwrap();
    until("the connections of the node to end", async || match through_gone().await {
        Err(_) => Ok(()),
        Ok(answer) => Err(format!("{answer:?}")),
    })
    .await;
    load.more(200).await;
    load.stop().await.assert_all_answered();

    // A certificate that is not in the list brings it back.
    let (certificate, key) = authority.issue(&node(&gone), Kind::Good);
    replace(&folder.join(format!("{gone}.key")), &key);
    replace(&folder.join(format!("{gone}.pem")), &certificate);
    until("the node to be there again", async || through_gone().await.map(drop).map_err(|status| status.to_string()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_of_no_use_are_told_and_not_put_in_force() {
    let authority = Arc::new(Authority::new());
    let (cluster, _) = secured(1, &authority).await;
    let folder = cluster.trust_of("n1");
    replace(&folder.join("n1.pem"), &authority.issue(&node("n1"), Kind::Expired).0);
    let told = |view: &Cluster| {
        let told = view.problems.iter().any(|problem| problem.contains("`n1`") && problem.contains("n1.pem"));
        told.then_some(()).ok_or_else(|| format!("{:?}", view.problems))
    };
    cluster.wait_until_at("n1", "the fault to be told", told).await;
    let at = cluster.node("n1").cluster_address();
    assert_eq!(hello(connection(at, &authority.credentials(&node("n2")))).await.unwrap(), "n1");
    let answer = KindsClient::new(cluster.client("n1")).unary(Ask::default()).await;
    assert!(answer.is_ok(), "{answer:?}");
    let (certificate, key) = authority.issue(&node("n1"), Kind::Good);
    replace(&folder.join("n1.key"), &key);
    replace(&folder.join("n1.pem"), &certificate);
    let mended = |view: &Cluster| match view.problems.is_empty() {
        true => Ok(()),
        false => Err(format!("{:?}", view.problems)),
    };
    cluster.wait_until_at("n1", "the fault to be gone", mended).await;
}

fn cordon(node: &str, cordoned: bool) -> CordonRequest {
    CordonRequest { node: node.to_owned(), cordoned, by: "whoever".to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_may_do_what_their_scope_says() {
    let authority = Arc::new(Authority::new());
    let file = |viewer: &str| {
        let rest = "[tests]\nscope = \"admin\"\n[deploy]\nscope = \"operate\"\nmodules = [\"kinds\"]\n";
        format!("{rest}[viewer]\nscope = \"{viewer}\"\n")
    };
    let operators = authority.write("operators.toml", &file("read"));
    let book = Arc::new(Book::default());
    let setup = nodes(2).secured(&authority).with("admin.operators", operators.to_str().unwrap());
    let cluster = setup.start(move |node| witness::app(node, &book)).await;
    let at = cluster.node("n1").admin_address().unwrap();
    let client = |name: &str| AdminClient::new(connection(at, &authority.credentials(&operator(name))));
    let is_forbidden = |answer: Result<(), Status>, part: &str| match answer {
        Err(status) => {
            assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
            assert!(status.message().contains(part), "{part} in {status:?}");
        }
        Ok(()) => panic!("nobody refused: {part}"),
    };
    let move_of = |module: &str| MoveRequest { module: module.to_owned(), node: "n2".to_owned(), ..Default::default() };

    let mut mallory = client("mallory");
    is_forbidden(mallory.describe(DescribeRequest {}).await.map(drop), "`mallory` is not among");

    let mut viewer = client("viewer");
    viewer.describe(DescribeRequest {}).await.unwrap();
    viewer.audit(AuditRequest {}).await.unwrap();
    is_forbidden(viewer.cordon(cordon("n2", true)).await.map(drop), "has scope `read`, and this needs `operate`");
    is_forbidden(viewer.r#move(move_of("kinds")).await.map(drop), "needs `operate`");

    let mut deploy = client("deploy");
    cluster.home("kinds").await;
    let moved = deploy.r#move(move_of("kinds")).await;
    assert!(moved.is_ok(), "{moved:?}");
    is_forbidden(deploy.r#move(move_of("relay")).await.map(drop), "may not change module `relay`, only kinds");
    is_forbidden(deploy.cordon(cordon("n2", true)).await.map(drop), "only change kinds");
    is_forbidden(deploy.drain(DrainRequest { node: "n2".to_owned(), ..Default::default() }).await.map(drop), "kinds");
    is_forbidden(deploy.apply(ApplyRequest::default()).await.map(drop), "needs `admin`");
    is_forbidden(deploy.forget(ForgetRequest::default()).await.map(drop), "needs `admin`");

    // The file is followed; one that is of no use is not.
    authority.write("operators.toml", &file("root"));
    authority.write("operators.toml", &file("operate"));
    until("the viewer to be more than that", async || {
        viewer.cordon(cordon("n2", true)).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_change_is_in_one_chain() {
    let authority = Arc::new(Authority::new());
    let (cluster, _) = secured(2, &authority).await;
    let names = ["alice", "bob"];
    let client = |node: &str, name: &str| {
        let at = cluster.node(node).admin_address().unwrap();
        AdminClient::new(connection(at, &authority.credentials(&operator(name))))
    };
    let mut index = 0;
    for (node, name) in [("n1", "alice"), ("n2", "bob")] {
        let mut client = client(node, name);
        client.cordon(cordon("n2", true)).await.unwrap();
        index = client.cordon(cordon("n2", false)).await.unwrap().into_inner().index;
    }
    let mut chains = Vec::new();
    for node in ["n1", "n2"] {
        let has_come = |view: &Cluster| (view.index >= index).then_some(()).ok_or_else(|| view.index.to_string());
        cluster.wait_until_at(node, "all changes", has_come).await;
        chains.push(client(node, "alice").audit(AuditRequest {}).await.unwrap().into_inner());
    }
    assert_eq!(chains[0], chains[1], "each node has the same");
    let AuditResponse { previous, entries } = &chains[0];
    assert_eq!(audit::first_break(previous, entries), None);
    let told: Vec<_> = entries.iter().map(|entry| (entry.by.as_str(), entry.kind.as_str())).collect();
    // What the certificate says, whatever the tool said.
    let [alice, bob] = names;
    let (on, off) = ("cordon", "uncordon");
    assert_eq!(told, [(alice, on), (alice, off), (bob, on), (bob, off)]);
    assert!(entries[0].from.starts_with("127.0.0.1:") && entries[0].from.ends_with(" at n1"), "{:?}", entries[0]);
}

fn token(byte: u8) -> Token {
    Token::new([byte; 32])
}

/// A request that shows this as `authorization`.
fn showing<T>(message: T, authorization: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    request
}

fn bearer<T>(message: T, token: &Token) -> Request<T> {
    showing(message, &format!("Bearer {}", token.secret()))
}

/// The message of an answer that has to be a refusal with this code, and without the token that all of them begin like.
fn refused<T>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.map(drop).unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!format!("{status:?}").contains("outpost_token_"), "{status:?}");
    status.message().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_may_show_a_token_in_place_of_a_certificate() {
    let authority = Arc::new(Authority::new());
    let (ci, viewer, unknown) = (token(1), token(2), token(3));
    let without = "[tests]\nscope = \"admin\"\n[alice]\nscope = \"admin\"\n";
    let file = format!(
        "{without}[ci]\nscope = \"operate\"\ntoken_sha256 = [\"{}\"]\n[viewer]\nscope = \"read\"\ntoken_sha256 = [\"{}\"]\n",
        ci.hash(),
        viewer.hash()
    );
    let operators = authority.write("operators.toml", &file);
    let book = Arc::new(Book::default());
    let setup = nodes(2).secured(&authority).with("admin.operators", operators.to_str().unwrap());
    let cluster = setup.start(move |node| witness::app(node, &book)).await;
    let at = |node: &str| cluster.node(node).admin_address().unwrap();
    let client = |node: &str| AdminClient::new(nameless(at(node), &authority));

    // Whichever node is asked, and whoever the tool says that asks.
    for name in ["n1", "n2"] {
        client(name).cordon(bearer(cordon("n2", true), &ci)).await.unwrap();
        client(name).cordon(bearer(cordon("n2", false), &ci)).await.unwrap();
    }
    let audit = client("n1").audit(bearer(AuditRequest {}, &viewer)).await.unwrap().into_inner();
    let told: Vec<_> = audit.entries.iter().map(|entry| entry.by.as_str()).collect();
    assert_eq!(told, ["ci"; 4]);

    let too_small = refused(client("n1").cordon(bearer(cordon("n2", true), &viewer)).await, Code::PermissionDenied);
    assert!(too_small.contains("`viewer` has scope `read`, and this needs `operate`"), "{too_small}");
    let stranger = refused(client("n1").describe(bearer(DescribeRequest {}, &unknown)).await, Code::Unauthenticated);
    assert!(stranger.contains("no operator's here"), "{stranger}");
    let nothing = refused(client("n1").describe(DescribeRequest {}).await, Code::Unauthenticated);
    assert!(nothing.contains("--token-file"), "{nothing}");
    for text in [ci.secret(), format!("Basic {}", ci.secret()), format!("Bearer {}0", ci.secret()), "Bearer".to_owned()]
    {
        let malformed = refused(client("n1").describe(showing(DescribeRequest {}, &text)).await, Code::Unauthenticated);
        assert!(malformed.contains("is not one `Bearer TOKEN`"), "{malformed}");
    }
    let mut twice = bearer(DescribeRequest {}, &ci);
    twice.metadata_mut().append("authorization", format!("Bearer {}", ci.secret()).parse().unwrap());
    refused(client("n1").describe(twice).await, Code::Unauthenticated);

    // Beside a certificate, the token decides; and the certificate has to be good.
    let both = |credentials: &Credentials| AdminClient::new(connection(at("n1"), credentials));
    let alice = authority.credentials(&operator("alice"));
    both(&alice).describe(DescribeRequest {}).await.unwrap();
    refused(both(&alice).describe(bearer(DescribeRequest {}, &unknown)).await, Code::Unauthenticated);
    refused(both(&alice).cordon(bearer(cordon("n2", true), &viewer)).await, Code::PermissionDenied);
    both(&authority.credentials(&operator("mallory"))).describe(bearer(DescribeRequest {}, &ci)).await.unwrap();
    for credentials in [
        shown(&authority, &operator("alice"), Kind::Expired),
        shown(&Authority::new(), &operator("alice"), Kind::Good),
        authority.credentials(&node("n2")),
    ] {
        let refused = both(&credentials).describe(bearer(DescribeRequest {}, &ci)).await.map(drop).unwrap_err();
        assert!(is_of_no_use(&refused), "{refused:?}");
    }

    // A token goes with its hash, also on a connection that is open; and with the last of them, who has no certificate.
    let mut open = client("n1");
    open.describe(bearer(DescribeRequest {}, &ci)).await.unwrap();
    authority.write("operators.toml", without);
    until("the token to be good no more", async || match open.describe(bearer(DescribeRequest {}, &ci)).await {
        Err(status) if status.code() == Code::Unauthenticated => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let closed = client("n1").describe(bearer(DescribeRequest {}, &ci)).await.map(drop).unwrap_err();
    assert!(is_of_no_use(&closed), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_certificates_operators_show_tokens_on_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let operators = folder.path().join("operators.toml");
    let book = Arc::new(Book::default());
    let start = async |sources: &[(&str, &str)]| {
        let sources = sources.iter().fold(Sources::on_free_ports(), |sources, (key, value)| sources.set(key, value));
        witness::app("n1", &book).start(&sources.set("admin.operators", operators.to_str().unwrap())).await
    };
    fs::write(&operators, "[ci]\nscope = \"operate\"").unwrap();
    let useless = start(&[]).await.map(drop).unwrap_err().to_string();
    assert!(useless.contains("admin.operators") && useless.contains("`token_sha256`"), "{useless}");

    let ci = token(1);
    fs::write(&operators, format!("[ci]\nscope = \"operate\"\ntoken_sha256 = [\"{}\"]", ci.hash())).unwrap();
    let open = start(&[("admin.listen", "0.0.0.0:0")]).await.map(drop).unwrap_err().to_string();
    assert!(open.contains("admin.listen") && open.contains("loopback"), "tokens are no certificates: {open}");

    let node = start(&[]).await.unwrap();
    let mut client = AdminClient::new(cluster::connection(node.admin_address().unwrap()));
    refused(client.describe(DescribeRequest {}).await, Code::Unauthenticated);
    refused(client.describe(bearer(DescribeRequest {}, &token(2))).await, Code::Unauthenticated);
    client.describe(bearer(DescribeRequest {}, &ci)).await.unwrap();
    refused(client.forget(bearer(ForgetRequest::default(), &ci)).await, Code::PermissionDenied);
}
