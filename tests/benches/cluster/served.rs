//! Processes of this program that serve something for a part of the benchmark.

use std::{
    env,
    future::pending,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use outpost::Node;
use outpost_tests::measure::Process;
use tokio::net::TcpListener;
use tonic::transport::server::{Router, TcpIncoming};

/// Starts one that serves `what`, and reads the addresses that it prints.
pub(crate) fn start(what: &str) -> (Process, Vec<SocketAddr>) {
    let program = env::current_exe().expect("this program");
    let mut process = Process::start(Command::new(program).args(["--serve", what]).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("addresses");
    (process, line.split_whitespace().map(|address| address.parse().expect("an address")).collect())
}

/// Lets a node serve, and tells where on standard output: its ingress, the cluster's address and that of operators.
pub(crate) async fn announce(node: Node) {
    let admin = node.admin_address().expect("it is on");
    println!("{} {} {admin}", node.ingress_address(), node.cluster_address());
    pending::<()>().await;
}

/// Serves as tonic's own examples do, and tells where on standard output.
pub(crate) async fn listen(services: Router) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    services.serve_with_incoming(incoming).await.expect("it serves");
}
