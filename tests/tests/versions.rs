//! Nodes with different versions of a program in one cluster.
#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

use outpost::App;
use outpost_proto::admin::v1::ExplainRequest;
use outpost_tests::{
    Obedient,
    cluster::{Setup, TestCluster, nodes},
    relay,
    v1::kinds_server::KindsServer,
    witness::{self, Book},
};
use prost::Message as _;
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};
use tonic::{Code, server::NamedService};

/// What `Kinds` looks like in a version that has one method left, of which the message is another one, too.
static CHANGED: LazyLock<&'static [u8]> = LazyLock::new(|| {
    let (package, service) = KindsServer::<Obedient>::NAME.rsplit_once('.').unwrap();
    let method = MethodDescriptorProto {
        name: Some("Unary".to_owned()),
        input_type: Some(format!(".{package}.Changed")),
        output_type: Some(format!(".{package}.Changed")),
        ..MethodDescriptorProto::default()
    };
    let service = ServiceDescriptorProto {
        name: Some(service.to_owned()),
        method: vec![method],
        ..ServiceDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("changed.proto".to_owned()),
        package: Some(package.to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![DescriptorProto { name: Some("Changed".to_owned()), ..DescriptorProto::default() }],
        service: vec![service],
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec().leak()
});

/// A cluster of which the nodes that are added once the switch is on have the changed version.
async fn upgraded(setup: Setup) -> (TestCluster, Arc<AtomicBool>) {
    let (book, changed) = (Arc::new(Book::default()), Arc::new(AtomicBool::new(false)));
    let switch = Arc::clone(&changed);
    let app = move |node: &str| {
        let kinds = witness::kinds(node, &book, &Obedient::default());
        match switch.load(Ordering::Relaxed) {
            false => App::new("kinds", "1.0.0").with(kinds).module("relay", relay),
            // Reflection is another story: this descriptor has no other than this service.
            true => App::new("kinds", "2.0.0").with(kinds.descriptors(*CHANGED)).module("relay", relay),
        }
    };
    (setup.start(app).await, changed)
}

async fn why(cluster: &TestCluster, module: &str) -> String {
    let request = ExplainRequest { module: module.to_owned() };
    format!("{:?}", cluster.any_admin().explain(request).await.unwrap().into_inner())
}

#[tokio::test]
async fn a_version_that_does_not_fit_is_not_let_in_and_the_error_names_the_difference() {
    let (mut cluster, changed) = upgraded(nodes(2)).await;
    changed.store(true, Ordering::Relaxed);
    let error = cluster.try_add("n3").await.unwrap_err().to_string();
    let (versions, problem) = ("kinds: its version 2.0.0 does not fit with version 1.0.0 on n", "the field is gone");
    for part in [versions, problem, "outpost check-compat", "cluster.incompatible_versions"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    // One that fits is.
    changed.store(false, Ordering::Relaxed);
    cluster.add("n4").await;
    cluster.move_module("kinds", "n4").await;
}

#[tokio::test]
async fn a_version_that_was_let_in_hosts_what_fits_and_the_rest_when_the_others_are_gone() {
    let setup = nodes(1).with("cluster.incompatible_versions", "join");
    let (mut cluster, changed) = upgraded(setup).await;
    changed.store(true, Ordering::Relaxed);
    cluster.add("n2").await;
    let status = cluster.begin_move("kinds", "n2").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("does not fit with version 1.0.0 on n1"), "{status:?}");
    assert!(why(&cluster, "kinds").await.contains("does not fit"));
    cluster.move_module("relay", "n2").await;
    cluster.stop("n1").await;
    assert_eq!(cluster.home("kinds").await, "n2");
}

#[tokio::test]
async fn a_node_that_was_away_is_compared_with_what_is_there_now() {
    let joins = |setup: Setup, node| setup.with_of(node, "cluster.incompatible_versions", "join");
    let (mut cluster, changed) = upgraded(joins(joins(nodes(3), "n1"), "n2")).await;
    cluster.stop("n3").await;
    changed.store(true, Ordering::Relaxed);
    for node in ["n1", "n2"] {
        cluster.stop(node).await;
        cluster.add(node).await;
    }
    // The last that this one knows is that the others had the version before.
    cluster.add("n3").await;
    let ready = |view: &outpost_proto::admin::v1::Cluster| match view.nodes.iter().find(|node| node.name == "n3") {
        Some(node) if node.state == "ready" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    cluster.wait_until("n3 to be back", ready).await;
    cluster.move_module("kinds", "n3").await;
}
