//! A place for a node: its machine, its data, and the process that runs there, ends, and is started again.

use std::{
    cell::RefCell,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use outpost::{Sources, simulation::Observer};
use outpost_proto::admin::v1::{MoveRequest, admin_client::AdminClient};
use tokio::sync::Notify;

use crate::{
    app, book, clients,
    machine::{Machine, Names},
    network::{MS, Shared},
};

/// The port for clients.
pub const INGRESS: u16 = 7000;
const ADMIN: u16 = 7001;
const CLUSTER: u16 = 7002;

/// Why a process does not run just now, although its machine goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was stopped, as by SIGSTOP.
    Stopped,
    /// The whole machine is suspended; its monotonic clock stands still.
    Suspended,
}

/// How a process ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and did.
    Stopped,
    /// It could not start.
    NotStarted(String),
    /// It said that it can't go on.
    Failed(String),
}

/// What is checked each millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether a call of each of the services would be let in.
    pub admits: [bool; app::SERVICES.len()],
    /// The term that the node leads in.
    pub leads_in: Option<u64>,
}

#[derive(Debug, Default)]
struct Running {
    observer: RefCell<Option<Observer>>,
    ended: RefCell<Option<Ended>>,
    stop: Notify,
}

/// See the module.
pub struct Site {
    /// The node's name.
    pub name: String,
    /// Its place among the sites.
    pub index: usize,
    /// What it is on now.
    pub machine: Machine,
    /// When it is started again.
    pub restart_at: Option<u64>,
    /// It was told to stop.
    pub stops: bool,
    /// It is started again under another address.
    pub moves_house: bool,
    /// Its data are gone when it is started again.
    pub loses_data: bool,
    /// It does not run until then.
    pub standing: Option<(u64, Standing)>,
    running: Rc<Running>,
    data_dir: PathBuf,
    houses: u8,
    settings: Vec<(String, String)>,
    /// The newest entry that was looked at.
    seen: u64,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("name", &self.name).field("machine", &self.machine).finish_non_exhaustive()
    }
}

fn address(index: usize, house: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, house, u8::try_from(index + 1).unwrap_or(u8::MAX)).into()
}

impl Site {
    /// A place for node number `index`, with the settings that all nodes share.
    #[must_use]
    pub fn new(
        index: usize,
        network: &Shared,
        names: &Names,
        data: &std::path::Path,
        settings: &[(String, String)],
    ) -> Self {
        let name = format!("n{}", index + 1);
        // Machines were not switched on at the same time.
        let clock = (1 + rand::random_range(0..1_000_000_u64)) * MS;
        Self {
            machine: Machine::new(&name, address(index, 0), network, names, clock),
            data_dir: data.join(&name),
            name,
            index,
            restart_at: Some(0),
            stops: false,
            moves_house: false,
            loses_data: false,
            standing: None,
            running: Rc::default(),
            houses: 0,
            settings: settings.to_vec(),
            seen: 0,
        }
    }

    /// Its address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.machine.board.ip()
    }

    /// Where clients connect.
    #[must_use]
    pub fn ingress(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), INGRESS)
    }

    /// Starts the process, if it is time to.
    pub fn start_when_due(&mut self, now: u64, network: &Shared, names: &Names) -> bool {
        if self.machine.runs() || self.restart_at.is_none_or(|at| now < at) {
            return false;
        }
        self.restart_at = None;
        self.stops = false;
        if std::mem::take(&mut self.loses_data)
            && let Err(error) = std::fs::remove_dir_all(&self.data_dir)
        {
            tracing::warn!("{} had no data to lose: {error}", self.name);
        }
        if std::mem::take(&mut self.moves_house) {
            network.switch_off(self.ip());
            self.houses = self.houses.wrapping_add(1);
            let clock = (1 + rand::random_range(0..1_000_000_u64)) * MS;
            let rate = self.machine.rate();
            self.machine = Machine::new(&self.name, address(self.index, self.houses), network, names, clock);
            self.machine.set_rate(rate);
        }
        network.switch_on(self.ip());
        self.running = Rc::default();
        self.seen = 0;
        book::begins(&self.name);
        let (running, sources) = (Rc::clone(&self.running), self.sources());
        let app = app::app(&self.data_dir);
        self.machine.start(move || async move {
            let node = match app.start(&sources).await {
                Ok(node) => node,
                Err(error) => {
                    running.ended.replace(Some(Ended::NotStarted(error.to_string())));
                    return;
                }
            };
            running.observer.replace(Some(node.observer()));
            let failure = tokio::select! {
                failure = node.failed() => Some(failure),
                () = running.stop.notified() => None,
            };
            match failure {
                None => {
                    node.stop().await;
                    running.observer.take();
                    running.ended.replace(Some(Ended::Stopped));
                }
                Some(failure) => {
                    running.observer.take();
                    running.ended.replace(Some(Ended::Failed(failure.to_string())));
                }
            }
        });
        true
    }

    fn sources(&self) -> Sources {
        let ip = self.ip();
        let sources = Sources::default()
            .set("node.name", &self.name)
            .set("node.data_dir", &self.data_dir.display().to_string())
            .set("ingress.listen", &format!("{ip}:{INGRESS}"))
            .set("ingress.plaintext_beyond_loopback", "true")
            .set("admin.listen", &format!("127.0.0.1:{ADMIN}"))
            .set("cluster.listen", &format!("{ip}:{CLUSTER}"))
            .set("cluster.plaintext_beyond_loopback", "true");
        self.settings.iter().fold(sources, |sources, (key, value)| sources.set(key, value))
    }

    /// Where all nodes of a cluster are to be found.
    #[must_use]
    pub fn seeds(nodes: usize) -> String {
        let seeds: Vec<String> = (1..=nodes).map(|index| format!("\"n{index}:{CLUSTER}\"")).collect();
        format!("[{}]", seeds.join(", "))
    }

    /// Whether the process runs, and has joined.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.machine.runs() && self.running.observer.borrow().is_some()
    }

    /// Lets a millisecond pass. How the process ended, if it did.
    pub fn tick(&mut self, now: u64) -> Option<Ended> {
        match self.standing {
            Some((until, standing)) if now < until => {
                match standing {
                    Standing::Stopped => self.machine.stand(),
                    Standing::Suspended => self.machine.sleep(),
                }
                return None;
            }
            Some((_, Standing::Stopped)) => {
                self.standing = None;
                self.machine.go_on();
            }
            Some((_, Standing::Suspended)) => self.standing = None,
            None => {}
        }
        if !self.machine.tick() {
            return None;
        }
        let ended = self.running.ended.take();
        self.kill();
        Some(ended.unwrap_or_else(|| Ended::Failed("its main task panicked".to_owned())))
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.standing = None;
        // What looks into the process keeps its files.
        let observer = self.running.observer.take();
        self.machine.look(|| drop(observer));
        self.machine.end();
    }

    /// Tells the process to stop.
    pub fn stop(&mut self) {
        self.stops = true;
        self.running.stop.notify_one();
    }

    /// Looks into the process.
    pub fn look<T>(&mut self, look: impl FnOnce(&Observer) -> T) -> Option<T> {
        let running = Rc::clone(&self.running);
        let observer = running.observer.borrow();
        let observer = observer.as_ref()?;
        self.machine.look(|| look(observer))
    }

    /// Looks at all that is checked each millisecond, and writes down what the node has applied since the last time.
    pub fn see(&mut self) -> Option<Seen> {
        let before = self.seen;
        let (seen, news) = self.look(|observer| {
            let news = (observer.index() != before).then(|| observer.placement());
            let admits = app::SERVICES.map(|service| observer.admits(service));
            (Seen { admits, leads_in: observer.leads().then(|| observer.term()) }, news)
        })?;
        if let Some(placement) = news {
            if placement.index < before {
                let text = format!("{} went from index {before} back to {}", self.name, placement.index);
                book::violation("one log", text);
            }
            self.seen = placement.index;
            book::applied(&self.name, &placement);
        }
        Some(seen)
    }

    /// Has an operator at this node ask for a move.
    pub fn ask_to_move(&mut self, module: &str, to: &str, asked: impl FnOnce(Result<(), String>) + 'static) {
        let board = std::sync::Arc::clone(&self.machine.board);
        let request = MoveRequest { module: module.to_owned(), node: to.to_owned(), ..MoveRequest::default() };
        self.machine.spawn(async move {
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ADMIN);
            let mut client = AdminClient::new(clients::channel(&board, address));
            let answer = tokio::time::timeout(Duration::from_secs(15), client.r#move(request)).await;
            asked(match answer {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(status)) => Err(status.message().to_owned()),
                Err(_) => Err("no answer in time".to_owned()),
            });
        });
    }
}
