//! A machine: its clocks, its disk, and the runtime of the process on it, which runs when it has its turn.
//!
//! Time is tokio's, paused, and pushed on by as much as the machine's clock does in a turn: one that runs slow gets fewer
//! milliseconds than others. A machine that is stopped has no turns; whether its clocks went on meanwhile is the
//! difference between a process that was stopped and a machine that was.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use outpost::simulation::{self, Datagrams, Listener, take_turn};
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinHandle, LocalSet},
    time::Instant,
};

use crate::{
    interpose,
    network::{MS, Shared, Stream},
};

/// When simulations begin, since 1970.
const EPOCH: Duration = Duration::from_secs(1_750_000_000);

/// Names and what they stand for.
pub type Names = Arc<Mutex<BTreeMap<String, IpAddr>>>;

/// What the process on a machine sees of it.
#[derive(Debug)]
pub struct Board {
    name: String,
    ip: IpAddr,
    network: Shared,
    names: Names,
    /// How long its clocks have stood still, in nanoseconds.
    suspended: AtomicU64,
    /// What its wall clock is wrong by, in nanoseconds.
    wrong: AtomicI64,
    /// The most that its disk takes, in microseconds.
    disk: AtomicU64,
}

impl Board {
    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects, as a client that is no node.
    ///
    /// # Errors
    /// A peer that refuses.
    pub fn connect_to(&self, address: SocketAddr) -> impl Future<Output = io::Result<Stream>> + Send + use<> {
        self.network.clone().connect(self.ip, address)
    }

    /// The machine's address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }
}

impl simulation::Machine for Board {
    fn wall(&self) -> Duration {
        let wrong = self.wrong.load(Ordering::Relaxed);
        // Set by the network's time all along, whatever the rate of the machine's clocks.
        let right = EPOCH + Duration::from_nanos(RIGHT.get());
        let by = Duration::from_nanos(wrong.unsigned_abs());
        if wrong < 0 { right.saturating_sub(by) } else { right + by }
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(interpose::now().unwrap_or_default())
    }

    fn boottime(&self) -> Duration {
        self.monotonic() + Duration::from_nanos(self.suspended.load(Ordering::Relaxed))
    }

    fn disk(&self) -> Duration {
        let most = self.disk.load(Ordering::Relaxed);
        Duration::from_micros(rand::random_range(0..=most))
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        self.network.listen(self.ip, address)
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn simulation::Stream>>> {
        let connecting = self.network.clone().connect(self.ip, address);
        Box::pin(async move {
            let stream: Box<dyn simulation::Stream> = Box::new(connecting.await?);
            Ok(stream)
        })
    }

    fn datagrams(&self, address: SocketAddr) -> io::Result<Box<dyn Datagrams>> {
        self.network.datagrams(self.ip, address)
    }

    fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = name.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
        let port = port.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let ip = names.get(host).ok_or(io::ErrorKind::NotFound)?;
        Ok(vec![SocketAddr::new(*ip, port)])
    }
}

thread_local! {
    static RIGHT: Cell<u64> = const { Cell::new(0) };
    static TURN: RefCell<Option<Arc<Board>>> = const { RefCell::new(None) };
}

/// The right time, in nanoseconds since the simulation began.
pub fn set_right_time(now: u64) {
    RIGHT.set(now);
}

/// Whose turn it is, for what is told of the simulation.
#[must_use]
pub fn turn() -> Option<Arc<Board>> {
    TURN.with_borrow(Clone::clone)
}

struct Process {
    runtime: Option<Runtime>,
    local: Option<LocalSet>,
    main: Option<JoinHandle<()>>,
    /// What the runtime's clock showed when the machine's showed the other.
    base: (Instant, u64),
}

/// A computer.
pub struct Machine {
    /// What its process sees.
    pub board: Arc<Board>,
    process: Option<Process>,
    /// How fast its clocks run; 1 is right.
    rate: f64,
    /// What its monotonic clock should show, and shows.
    due: f64,
    clock: u64,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("board", &self.board).field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Machine {
    /// One that is on, with nothing on it.
    #[must_use]
    pub fn new(name: &str, ip: IpAddr, network: &Shared, names: &Names, clock: u64) -> Self {
        network.switch_on(ip);
        names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), ip);
        let board = Board {
            name: name.to_owned(),
            ip,
            network: network.clone(),
            names: Arc::clone(names),
            suspended: AtomicU64::new(0),
            wrong: AtomicI64::new(0),
            disk: AtomicU64::new(1000),
        };
        Self { board: Arc::new(board), process: None, rate: 1.0, due: clock as f64, clock }
    }

    /// What its monotonic clock shows, in nanoseconds.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Makes its clocks run faster or slower.
    pub fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
    }

    /// How fast its clocks run.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Makes its wall clock wrong, by so many seconds.
    pub fn set_wrong(&self, seconds: i64) {
        self.board.wrong.store(seconds * 1_000_000_000, Ordering::Relaxed);
    }

    /// Makes its disk slow or fast: how long it takes at the most.
    pub fn set_disk(&self, most: Duration) {
        self.board.disk.store(u64::try_from(most.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether its process is there.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Starts a process.
    pub fn start<F: Future<Output = ()> + 'static>(&mut self, main: impl FnOnce() -> F) {
        interpose::set_now(self.clock);
        interpose::set_base(None);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without threads and sockets can be made");
        let local = LocalSet::new();
        // Timers have a grid of milliseconds: begin on it.
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        let base = {
            let _inside = runtime.enter();
            (Instant::now(), self.clock)
        };
        self.process = Some(Process { runtime: Some(runtime), local: Some(local), main: None, base });
        let handle = self.turn(|runtime, local| {
            let _inside = runtime.enter();
            local.spawn_local(main())
        });
        if let Some(process) = &mut self.process {
            process.main = handle;
        }
    }

    /// Runs a task beside the process's main one.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        self.turn(|runtime, local| {
            let _inside = runtime.enter();
            drop(local.spawn_local(task));
        });
    }

    /// Does something in this machine's turn; none where there is no process.
    pub fn turn<T>(&mut self, act: impl FnOnce(&Runtime, &LocalSet) -> T) -> Option<T> {
        let Self { board, process, clock, .. } = self;
        let process = process.as_ref()?;
        let (runtime, local) = (process.runtime.as_ref()?, process.local.as_ref()?);
        Some(in_turn(board, process.base, *clock, || act(runtime, local)))
    }

    /// Looks at something of the process as it would itself.
    pub fn look<T>(&mut self, look: impl FnOnce() -> T) -> Option<T> {
        self.turn(|runtime, _| {
            let _inside = runtime.enter();
            look()
        })
    }

    /// Lets a millisecond pass, as the machine's clocks have it. Whether the main task has ended.
    pub fn tick(&mut self) -> bool {
        self.due += MS as f64 * self.rate;
        let passes = Duration::from_millis(((self.due - self.clock as f64) / MS as f64).max(0.0) as u64);
        if passes.is_zero() {
            return false;
        }
        self.turn(|runtime, local| runtime.block_on(local.run_until(async { tokio::time::sleep(passes).await })));
        self.clock += u64::try_from(passes.as_nanos()).unwrap_or(u64::MAX);
        let main = self.process.as_ref().and_then(|process| process.main.as_ref());
        main.is_some_and(JoinHandle::is_finished)
    }

    /// A millisecond passes in which the process is stopped.
    pub fn stand(&mut self) {
        self.due += MS as f64 * self.rate;
    }

    /// The process was stopped, and goes on: to it the clocks have jumped.
    pub fn go_on(&mut self) {
        let missed = Duration::from_millis(((self.due - self.clock as f64) / MS as f64).max(0.0) as u64);
        self.turn(|runtime, local| runtime.block_on(local.run_until(async { tokio::time::advance(missed).await })));
        self.clock += u64::try_from(missed.as_nanos()).unwrap_or(u64::MAX);
    }

    /// A millisecond passes in which the machine is suspended, and its monotonic clock with it.
    pub fn sleep(&mut self) {
        let passes = (MS as f64 * self.rate) as u64;
        self.board.suspended.fetch_add(passes, Ordering::Relaxed);
    }

    /// Ends the process: its memory is gone, and the machine closes its connections.
    pub fn end(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let (runtime, local) = (process.runtime.take(), process.local.take());
        in_turn(&self.board, process.base, self.clock, || {
            {
                // Sockets and timers are dropped with the tasks.
                let _inside = runtime.as_ref().map(Runtime::enter);
                drop(local);
            }
            drop(runtime);
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn in_turn<T>(board: &Arc<Board>, base: (Instant, u64), clock: u64, act: impl FnOnce() -> T) -> T {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            take_turn(None);
            TURN.set(None);
            interpose::set_base(None);
        }
    }
    interpose::set_now(clock);
    interpose::set_base(Some(base));
    take_turn(Some(Arc::clone(board) as Arc<dyn simulation::Machine>));
    TURN.set(Some(Arc::clone(board)));
    let _over = Over;
    act()
}
