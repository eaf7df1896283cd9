//! What is shown to a node is in none of its logs. Alone in its process, which has one log.

use std::{fs, sync::Arc};

use outpost::Sources;
use outpost_proto::{
    admin::v1::{DescribeRequest, ForgetRequest, admin_client::AdminClient},
    token::{PREFIX, Token},
};
use outpost_tests::{
    cluster::connection,
    witness::{self, Book},
};
use tonic::{Code, Request};
use tracing_subscriber::filter::LevelFilter;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_shown_is_in_no_log() {
    // All that the node says, and all that the libraries under it do.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let log = Arc::new(fs::File::create(path("log")).unwrap());
    tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG).with_writer(log).init();

    let [known, unknown] = [1, 2].map(|byte| Token::new([byte; 32]));
    let operators = format!("[ci]\nscope = \"operate\"\ntoken_sha256 = [\"{}\"]", known.hash());
    fs::write(path("operators.toml"), operators).unwrap();
    let sources = Sources::on_free_ports().set("admin.operators", path("operators.toml").to_str().unwrap());
    let node = witness::app("n1", &Arc::new(Book::default())).start(&sources).await.unwrap();
    let client = AdminClient::new(connection(node.admin_address().unwrap()));

    let shown = [
        (format!("Bearer {}", known.secret()), Code::Ok),
        (format!("Bearer {}", unknown.secret()), Code::Unauthenticated),
        (format!("Bearer {}0", known.secret()), Code::Unauthenticated),
        (format!("Basic {}", known.secret()), Code::Unauthenticated),
    ];
    for (authorization, code) in shown {
        let mut request = Request::new(DescribeRequest {});
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        let answer = client.clone().describe(request).await;
        assert_eq!(answer.map_or_else(|status| status.code(), |_| Code::Ok), code);
    }
    let mut request = Request::new(ForgetRequest::default());
    request.metadata_mut().insert("authorization", format!("Bearer {}", known.secret()).parse().unwrap());
    assert_eq!(client.clone().forget(request).await.unwrap_err().code(), Code::PermissionDenied);

    let log = fs::read_to_string(path("log")).unwrap();
    assert!(log.contains("is no operator's here") && log.contains("`ci` has scope `operate`"), "{log}");
    let digits = |token: &Token| token.secret().split_off(PREFIX.len());
    for secret in [PREFIX, &digits(&known), &digits(&unknown)] {
        assert!(!log.contains(secret), "a token is in the log: {log}");
    }
}
