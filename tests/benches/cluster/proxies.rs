//! What else could stand between a client and a node: nginx and haproxy, found on the PATH.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use outpost_tests::measure::Process;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

/// A proxy at work.
#[derive(Debug)]
pub(crate) struct Proxy {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Proxy {
    /// The process, and those that it has started.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let own = self.process.0.id();
        let processes = fs::read_dir("/proc").expect("a Linux system");
        let others = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        others.filter(|pid| *pid == own || parent(*pid) == Some(own)).collect()
    }

    async fn start(mut command: Command, address: SocketAddr) -> Self {
        let process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let began = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "{command:?} does not serve: run it to see why");
            sleep(Duration::from_millis(20)).await;
        }
        Self { process, address }
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// A program on the PATH, or where systems keep those of administrators.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// nginx with `grpc_pass` and connections that stay open. Its limits on calls of one connection are lifted: they would
/// have it connect anew again and again.
pub(crate) async fn nginx(program: &Path, folder: &Path, workers: usize, to: SocketAddr) -> Proxy {
    let address = free_address();
    let folder = folder.join(format!("nginx-{workers}"));
    fs::create_dir(&folder).expect("a folder");
    let here = folder.display();
    let text = format!(
        "daemon off;
worker_processes {workers};
pid {here}/pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {here}/client;
  proxy_temp_path {here}/proxy;
  fastcgi_temp_path {here}/fastcgi;
  uwsgi_temp_path {here}/uwsgi;
  scgi_temp_path {here}/scgi;
  client_max_body_size 0;
  upstream node {{
    server {to};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen {address} http2;
    http2_max_concurrent_streams 256;
    keepalive_requests 1000000000;
    location / {{ grpc_pass grpc://node; }}
  }}
}}
"
    );
    let config = folder.join("nginx.conf");
    fs::write(&config, text).expect("a file");
    let mut command = Command::new(program);
    command.arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c").arg(config);
    Proxy::start(command, address).await
}

/// haproxy with HTTP/2 on both sides, and calls of all clients on the connections that there are.
pub(crate) async fn haproxy(program: &Path, folder: &Path, threads: usize, to: SocketAddr) -> Proxy {
    let address = free_address();
    let text = format!(
        "global
  nbthread {threads}
  maxconn 4096
  tune.h2.max-concurrent-streams 256
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend clients
  bind {address} proto h2
  default_backend node
backend node
  http-reuse always
  server node {to} proto h2
"
    );
    let config = folder.join(format!("haproxy-{threads}.cfg"));
    fs::write(&config, text).expect("a file");
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(config);
    Proxy::start(command, address).await
}
