//! Connections into a Kubernetes cluster: by `kubectl port-forward`, which has the user's rights, and whatever its kubeconfig
//! needs to log in. A tunnel leads to one pod, and ends with it.

use std::{
    io,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStderr, Command},
    task::JoinSet,
    time::timeout,
};

use crate::address::Address;

/// How long `kubectl` may take: a plugin of the kubeconfig may have to log in.
const LIMIT: Duration = Duration::from_secs(30);
/// Of what `kubectl` said.
const MOST_SAID: u64 = 4 << 10;

/// Where nodes are in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    /// What `kubectl port-forward` takes: `statefulset/shop`, `pod/shop-0`.
    pub(crate) target: String,
    /// None is that of the kubeconfig's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// The context of the kubeconfig; none is the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) context: Option<String>,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoTunnel {
    #[error("can't run kubectl, which leads to {place}: {error}; install it, or set an address with --node")]
    NotThere { place: String, error: io::Error },
    #[error("kubectl port-forward {place} {status}: {said}")]
    Ended { place: String, status: ExitStatus, said: String },
    #[error(
        "kubectl port-forward {place} did not begin within {}; does `kubectl get pods` work?",
        humantime::format_duration(LIMIT)
    )]
    TooSlow { place: String },
    #[error("kubectl port-forward {place} said `{said}`, which is no address")]
    Unknown { place: String, said: String },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.target)?;
        if let Some(namespace) = &self.namespace {
            write!(f, " of namespace {namespace}")?;
        }
        Ok(())
    }
}

/// A process that forwards a port of this machine, for as long as it is held.
#[derive(Debug, Clone)]
pub(crate) struct Tunnel {
    /// Of this machine.
    pub(crate) address: Address,
    _open: Arc<Open>,
}

/// Both end with it.
#[derive(Debug)]
struct Open {
    _child: Child,
    _drain: JoinSet<()>,
}

impl Tunnel {
    /// Opens one to a port of the pods there.
    ///
    /// # Errors
    /// What `kubectl` said.
    /// # Cancel safety
    /// Dropping the future ends the process.
    pub(crate) async fn open(place: &Place, port: u16) -> Result<Self, NoTunnel> {
        let mut command = Command::new("kubectl");
        let named = |flag: &str, value: &Option<String>| value.as_ref().map(|value| format!("{flag}={value}"));
        command.args(named("--context", &place.context)).args(named("--namespace", &place.namespace));
        command.args(["port-forward", "--address", "127.0.0.1", &place.target, &format!(":{port}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let told = place.to_string();
        let mut child = command.spawn().map_err(|error| NoTunnel::NotThere { place: told.clone(), error })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut lines = BufReader::new(stdout.expect("it is piped").take(MOST_SAID)).lines();
        let Ok(line) = timeout(LIMIT, lines.next_line()).await else {
            return Err(NoTunnel::TooSlow { place: told });
        };
        let Ok(Some(line)) = line else { return Err(ended(told, child, stderr.expect("it is piped")).await) };
        // "Forwarding from 127.0.0.1:40123 -> 7001"
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let address = address.ok_or(NoTunnel::Unknown { place: told, said: line })?;
        // What it says of each connection must not fill the pipe.
        let (mut rest, mut errors) = (lines.into_inner().into_inner().into_inner(), stderr.expect("it is piped"));
        let mut drain = JoinSet::new();
        drain.spawn(async move { drop(tokio::io::copy(&mut rest, &mut tokio::io::sink()).await) });
        drain.spawn(async move { drop(tokio::io::copy(&mut errors, &mut tokio::io::sink()).await) });
        Ok(Self { address, _open: Arc::new(Open { _child: child, _drain: drain }) })
    }
}

async fn ended(place: String, mut child: Child, stderr: ChildStderr) -> NoTunnel {
    let mut said = String::new();
    let _ = timeout(LIMIT, stderr.take(MOST_SAID).read_to_string(&mut said)).await;
    match child.wait().await {
        Ok(status) => NoTunnel::Ended { place, status, said: said.trim().to_owned() },
        Err(error) => NoTunnel::NotThere { place, error },
    }
}
