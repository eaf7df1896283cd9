//! Nodes that find each other by the name of a headless Service, through the system's resolver.

#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use outpost_tests::{
    nameserver::{NAME, NameServer},
    processes::{Fleet, START},
    wait::within,
};
use tokio::net::UdpSocket;

const FLEET: &str = env!("CARGO_BIN_EXE_fleet");
/// All pods of a Service listen on one port.
const PORTS: [u16; 3] = [7000, 7001, 7002];

/// A name server, and nodes whose `/etc/resolv.conf` names it.
struct Pods {
    server: NameServer,
    fleet: Fleet,
}

/// The address of a pod: one of loopback, in a network of this process.
fn pod(number: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 100 + number, high, low).into()
}

impl Pods {
    /// Or none, and says why.
    async fn of(test: &str, count: u8) -> Option<Self> {
        let skipped =
            |problem: &str| eprintln!("SKIPPED: {test} needs root, to listen on port 53 and to mount: {problem}");
        let server = match NameServer::start().await {
            Ok(server) => server,
            Err(error) => {
                skipped(&error.to_string());
                return None;
            }
        };
        let places = (1..=count).map(|number| (pod(number), PORTS)).collect();
        let mut fleet = Fleet::at(FLEET, places, &[&format!(r#"cluster.seeds=["{NAME}:{}"]"#, PORTS[2])]);
        let resolv_conf = fleet.folder().join("resolv.conf");
        fs::write(&resolv_conf, server.resolv_conf()).unwrap();
        let mounted = format!(r#"mount --bind {} /etc/resolv.conf && exec "$@""#, resolv_conf.display());
        let wrapper = ["unshare", "--mount", "sh", "-c", &mounted, "sh"].map(str::to_owned).to_vec();
        let problem = match Command::new(&wrapper[0]).args(&wrapper[1..]).arg("true").output() {
            Ok(tried) if tried.status.success() => None,
            Ok(tried) => Some(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
            Err(error) => Some(format!("`{}`: {error}", wrapper[0])),
        };
        if let Some(problem) = problem {
            skipped(&problem);
            return None;
        }
        for index in 0..count.into() {
            fleet.node_mut(index).wrapper.clone_from(&wrapper);
        }
        Some(Self { server, fleet })
    }
}

#[tokio::test]
async fn pods_that_come_and_go_are_found_by_name() {
    let Some(Pods { server, mut fleet }) = Pods::of("pods_that_come_and_go_are_found_by_name", 4).await else { return };
    // A Service is there before its pods are.
    fleet.start(0);
    server.told_nobody().await;
    fleet.logs(0, "can't look up seed", START).await;
    server.publish([pod(1)]);
    for index in [1, 2] {
        fleet.start(index);
    }
    // They find the first one, and the first one nobody.
    for index in 0..3 {
        fleet.settled(index, 3, START).await;
    }

    // The second comes back at another address, and looks for nobody itself.
    fleet.kill(1).await;
    let elsewhere = fleet.node(3).cluster;
    let node_2 = fleet.node_mut(1);
    node_2.cluster = elsewhere;
    node_2.settings.push("cluster.seeds=[]".to_owned());
    fleet.start(1);
    server.publish([pod(1), pod(3), pod(4)]);
    for index in 0..3 {
        fleet.settled(index, 3, START).await;
    }
    let line = fleet.logs(0, &elsewhere.to_string(), START).await;
    assert!(line.contains("seeds resolved"), "{line}");
}

/// Their addresses do not fit into a datagram, so the resolver asks again by TCP.
#[tokio::test]
async fn a_service_with_many_pods_is_looked_up() {
    let Some(Pods { server, mut fleet }) = Pods::of("a_service_with_many_pods_is_looked_up", 1).await else { return };
    let last = pod(90);
    let socket = UdpSocket::bind((last, PORTS[2])).await.unwrap();
    server.publish((10..=90).map(pod));
    fleet.start(0);
    within("a greeting", socket.recv_from(&mut [0; 2048])).await.unwrap();
    server.asked_by_tcp().await;
    let line = fleet.logs(0, "seeds resolved", START).await;
    assert_eq!(line.matches(":7002").count(), 81, "{line}");
}
