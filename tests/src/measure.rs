//! What the benchmarks share: a module that does next to nothing, processes that are watched, and stock clients.

use std::{
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use outpost::{App, BoxError, Config};
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::v1::{
    Answer, Ask,
    relay_client::RelayClient,
    relay_server::{Relay, RelayServer},
};

/// Answers with what it is sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo {
    /// `Answer.number`: tells instances apart.
    pub number: i64,
    /// How long it waits before it answers.
    pub delay: Duration,
}

/// Under `[modules.echo]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EchoConfig {
    /// See [`Echo::delay`], in milliseconds.
    pub delay_ms: u64,
}

#[tonic::async_trait]
impl Relay for Echo {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        if !self.delay.is_zero() {
            // Boxed, so that calls of one that is not slow do not carry its size.
            Box::pin(sleep(self.delay)).await;
        }
        let answer = Answer { payload: request.into_inner().payload, number: self.number, ..Answer::default() };
        Ok(Response::new(answer))
    }
}

/// An application with one module, `echo`, which is stateless and has one host at a time unless the placement says
/// otherwise.
#[must_use]
pub fn echo_app(echo: Echo) -> App {
    App::new("echo", "1").module("echo", move |config: Config<EchoConfig>| async move {
        let delay = Duration::from_millis(config.delay_ms);
        Ok::<_, BoxError>(RelayServer::new(Echo { delay, ..echo }))
    })
}

/// A request that carries so many bytes.
#[must_use]
pub fn ask(bytes: usize) -> Ask {
    Ask { payload: vec![7; bytes], ..Ask::default() }
}

/// A runtime of one thread, or of one a core.
///
/// # Panics
/// When the system gives no threads.
#[must_use]
pub fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build().expect("a runtime")
}

/// The value in the middle; NaN when there is none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value that this part of all are below; NaN when there is none.
#[must_use]
pub fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// A stock client's connection, made at once.
///
/// # Panics
/// When nobody listens there.
pub async fn connect(address: impl std::fmt::Display) -> Channel {
    let endpoint = Endpoint::try_from(format!("http://{address}")).expect("a URI");
    endpoint.tcp_nodelay(true).connect().await.unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// What clients that called for a while have seen.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// How many calls were made.
    pub calls: u32,
    /// How many of them a second.
    pub rate: f64,
    /// How long half of them took at the most, in microseconds.
    pub p50: f64,
    /// The same for 99 of 100.
    pub p99: f64,
}

/// Calls [`Relay`] for a while, with so many calls in flight over these connections together.
///
/// # Panics
/// When a call fails.
pub async fn load(channels: &[Channel], in_flight: usize, bytes: usize, time: Duration) -> Loaded {
    let channels = channels.to_vec();
    let call = move |which: usize| {
        let mut client = RelayClient::new(channels[which % channels.len()].clone());
        async move {
            client.unary(ask(bytes)).await.expect("an answer");
        }
    };
    drive(in_flight, time, call).await
}

/// Makes calls for a while, so many at a time, each by a task, as modules make theirs. A call is told which of those it is.
///
/// # Panics
/// When a call does.
pub async fn drive<F>(in_flight: usize, time: Duration, make: impl Fn(usize) -> F + Send + Sync + 'static) -> Loaded
where
    F: Future<Output = ()> + Send + 'static,
{
    let (make, began) = (Arc::new(make), Instant::now());
    let calling = |which: usize| {
        let make = Arc::clone(&make);
        async move {
            let mut took = Vec::new();
            while began.elapsed() < time {
                let sent = Instant::now();
                make(which).await;
                took.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            took
        }
    };
    let calls: JoinSet<Vec<f64>> = (0..in_flight).map(calling).collect();
    let took: Vec<f64> = calls.join_all().await.concat();
    let (elapsed, calls) = (began.elapsed(), took.len() as u32);
    let rate = f64::from(calls) / elapsed.as_secs_f64();
    let p50 = median(took.iter().copied());
    Loaded { calls, rate, p50, p99: quantile(took, 0.99) }
}

/// A process that ends with the benchmark.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// See [`cpu_of`].
    #[must_use]
    pub fn cpu(&self) -> Duration {
        cpu_of(self.0.id())
    }

    /// Memory in use.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        resident_kib_of(self.0.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of all threads of a process.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn cpu_of(pid: u32) -> Duration {
    let stat = proc(pid, "stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10) // Linux has 100 ticks a second here, whatever the kernel's own rate
}

/// Memory in use by a process.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn resident_kib_of(pid: u32) -> u64 {
    let status = proc(pid, "status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

fn proc(pid: u32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_else(|error| panic!("process {pid}: {error}"))
}
