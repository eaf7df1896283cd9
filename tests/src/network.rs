//! A network of its own for each node, and one for the test, joined by a bridge.
//!
//! ```text
//! test, in PREFIX-hub: 10.77.0.254 ── bridge ─┬─ PREFIX-0: 10.77.0.1, node-1
//!                                             ├─ PREFIX-1: 10.77.0.2, node-2
//!                                             └─ PREFIX-2: 10.77.0.3, node-3
//! ```
//! The test reaches every node at any time: what is cut is only between nodes.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use crate::processes::Fleet;

const NODES: u8 = 3;
const PREFIX: &str = "FLEET_NETWORK";
const PORTS: [u16; 3] = [7000, 7001, 7002];

fn ip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, index + 1)
}

/// Runs a command; what it complains of, if it fails.
fn run(line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Runs one of the tests that need a network in one, or says that it can't.
pub async fn inside(test: &str) {
    let made = match Network::make() {
        Ok(made) => made,
        Err(problem) => {
            eprintln!("SKIPPED: {test} needs root, `ip netns` and `iptables`: {problem}");
            return;
        }
    };
    let program = std::env::current_exe().expect("a test is a program");
    let hub = format!("{}-hub", made.prefix);
    let mut command = tokio::process::Command::new("ip");
    command.args(["netns", "exec", &hub]).arg(program).args(["--exact", test, "--ignored", "--nocapture"]);
    let status = command.env(PREFIX, &made.prefix).kill_on_drop(true).status().await;
    assert!(status.expect("`ip` runs").success(), "{test} failed, see above");
}

/// Networks of nodes; they go with it, where it made them.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    made: bool,
}

impl Network {
    fn make() -> Result<Self, String> {
        let network = Self { prefix: format!("fleet-{}", std::process::id()), made: true };
        let hub = format!("{}-hub", network.prefix);
        run("iptables --version")?;
        run(&format!("ip netns add {hub}"))?;
        run(&format!("ip -n {hub} link set lo up"))?;
        run(&format!("ip -n {hub} link add hub type bridge"))?;
        run(&format!("ip -n {hub} addr add 10.77.0.254/24 dev hub"))?;
        run(&format!("ip -n {hub} link set hub up"))?;
        for index in 0..NODES {
            let here = format!("{}-{index}", network.prefix);
            run(&format!("ip netns add {here}"))?;
            run(&format!("ip -n {hub} link add to-{index} type veth peer name eth0 netns {here}"))?;
            run(&format!("ip -n {hub} link set to-{index} master hub up"))?;
            run(&format!("ip -n {here} addr add {}/24 dev eth0", ip(index)))?;
            run(&format!("ip -n {here} link set eth0 up"))?;
            run(&format!("ip -n {here} link set lo up"))?;
            // Operators reach a node from its own machine only: the test stands for them.
            run(&format!("ip netns exec {here} sysctl -qw net.ipv4.conf.eth0.route_localnet=1"))?;
            run(&format!(
                "ip netns exec {here} iptables -t nat -A PREROUTING -s 10.77.0.254 -p tcp --dport {} -j DNAT \
                 --to-destination 127.0.0.1",
                PORTS[1]
            ))?;
        }
        Ok(network)
    }

    /// The one that this process was put into.
    pub fn of_this_process() -> Self {
        let prefix = std::env::var(PREFIX).expect("run by the test of the same name");
        Self { prefix, made: false }
    }

    /// Nodes of which each is in a network of its own.
    pub fn fleet(&self, program: &str, settings: &[&str]) -> Fleet {
        let open = ["ingress.plaintext_beyond_loopback=true", "cluster.plaintext_beyond_loopback=true"];
        let places = (0..NODES).map(|index| (IpAddr::V4(ip(index)), PORTS)).collect();
        let mut fleet = Fleet::at(program, places, &[&open, settings].concat());
        for index in 0..NODES {
            let wrapper = ["ip", "netns", "exec", &format!("{}-{index}", self.prefix)].map(ToOwned::to_owned);
            fleet.node_mut(usize::from(index)).wrapper = wrapper.to_vec();
        }
        fleet
    }

    fn filter(&self, index: u8, rule: &str) {
        run(&format!("ip netns exec {}-{index} iptables {rule}", self.prefix))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Cuts one node off from the others: nothing comes or goes.
    pub fn cut_off(&self, lost: usize) {
        for index in (0..NODES).filter(|index| usize::from(*index) != lost) {
            let lost = u8::try_from(lost).expect("few nodes");
            self.filter(lost, &format!("-A INPUT -s {} -j DROP", ip(index)));
            self.filter(lost, &format!("-A OUTPUT -d {} -j DROP", ip(index)));
        }
    }

    /// Cuts two nodes off from each other; both still reach the third one.
    pub fn cut_between(&self, one: usize, other: usize) {
        let [one, other] = [one, other].map(|index| u8::try_from(index).expect("few nodes"));
        self.filter(one, &format!("-A INPUT -s {} -j DROP", ip(other)));
        self.filter(one, &format!("-A OUTPUT -d {} -j DROP", ip(other)));
    }

    /// Drops all datagrams between nodes.
    pub fn mute_gossip(&self) {
        for index in 0..NODES {
            self.filter(index, "-A INPUT -i eth0 -p udp -j DROP");
        }
    }

    /// Makes the network whole again.
    pub fn heal(&self) {
        (0..NODES).for_each(|index| self.filter(index, "-F"));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        let names = (0..NODES).map(|index| index.to_string()).chain(["hub".to_owned()]);
        for name in names {
            // One that was never made can't be removed.
            let _ = run(&format!("ip netns del {}-{name}", self.prefix));
        }
    }
}
