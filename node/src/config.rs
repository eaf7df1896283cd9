//! Settings: one TOML file, then the environment, then flags; each over the one before.
//!
//! ```text
//! file ───────┐
//! OUTPOST_* ──┼─▶ layers: one tree, each value with its origin ─▶ Settings (checked, in units)
//! --set, -… ──┘                                               └─▶ modules.NAME: each module's own type
//! ```

mod layers;
mod secret;
mod units;

use std::{any::Any, collections::BTreeMap, fmt, path::PathBuf};

use layers::{Layers, flatten, join};
pub use layers::{Origin, Sources};
pub use secret::Secret;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{Table, Value};
pub use units::{Listen, Size, Span};
use url::Url;

use crate::{id::NodeId, membership::Seeds};

/// What a node is told from outside. Every key, with its default, is in `docs/configuration.md`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// `[node]`
    pub node: NodeSettings,
    /// `[cluster]`
    pub cluster: ClusterSettings,
    /// `[trust]`
    pub trust: TrustSettings,
    /// `[ingress]`
    pub ingress: IngressSettings,
    /// `[callers]`
    pub callers: CallerSettings,
    /// `[admin]`
    pub admin: AdminSettings,
    /// `[health]`
    pub health: HealthSettings,
    /// `[metrics]`
    pub metrics: MetricsSettings,
    /// `[checkpoints]`
    pub checkpoints: CheckpointSettings,
    /// `[log]`
    pub log: LogSettings,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NodeSettings {
    /// The node's name: stable over restarts, and unique in its cluster.
    pub name: NodeId,
    /// Where the node keeps its identity and the placement log. Without it, both end with the process.
    pub data_dir: Option<PathBuf>,
    /// What placement rules can ask for, such as `zone = "a"`.
    pub labels: BTreeMap<String, String>,
    /// Threads that run modules; 0 is one a core.
    pub worker_threads: usize,
    /// How long the factories of all modules may take together.
    pub start_timeout: Span,
    /// How long calls in flight may go on after the node was told to stop.
    pub stop_timeout: Span,
}

/// The cluster of identical nodes that this one belongs to. A node without seeds is a cluster of its own, which others
/// may join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ClusterSettings {
    /// Nodes of other names do not mix; empty is the application's name.
    pub name: String,
    /// Where other nodes connect, by TCP and UDP.
    pub listen: Listen,
    /// The address that other nodes are told, where it is not the one that is listened on.
    pub advertise: Option<Listen>,
    /// Allows to listen beyond loopback without certificates (`[trust]`): everybody on the network can read and change
    /// calls and placement.
    pub plaintext_beyond_loopback: bool,
    /// Other nodes, `HOST:PORT`. A name is looked up again and again, and may stand for many. With the cargo feature
    /// `kubernetes`, also `kubernetes://SERVICE.NAMESPACE:PORT`: what the Service's EndpointSlices say.
    pub seeds: Vec<String>,
    /// A file with more of them, one a line; read again when it changes.
    pub seeds_file: Option<PathBuf>,
    /// The nodes that a new cluster begins with, by name: each waits for all. Without them, a node without seeds begins
    /// one by itself.
    pub initial_voters: Vec<NodeId>,
    /// The most nodes that decide on placement: 1, 3 or 5.
    pub max_voters: u32,
    /// How often a node gossips.
    pub gossip_interval: Span,
    /// How many usual intervals between signs of life make a node count as dead. Raise it where the interval is short.
    pub gossip_phi: f64,
    /// How long after a node's last word to the leader others may take over what it hosts.
    pub lease: Span,
    /// How long the target of a move may take to start the module.
    pub move_timeout: Span,
    /// How long calls inside the module's old instance may go on after a move.
    pub drain_timeout: Span,
    /// How long a call may wait for a module that is being placed.
    pub call_wait: Span,
    /// How long streams of answers may go on once their module is about to move. Then they end, and can be opened again
    /// where it is.
    pub stream_grace: Span,
    /// How long calls in a module whose state travels may go on once its gate is closed. Callers wait meanwhile; then
    /// those calls are cut off.
    pub seal_timeout: Span,
    /// How long callers may wait for a module whose state is handed over: from the closing of its gate until the target
    /// has the state. Then it stays.
    pub handover_timeout: Span,
    /// How large the state of a module may be that moves.
    pub max_state_size: Size,
    /// How many calls may wait for one module.
    pub max_waiting_calls: usize,
    /// Whether calls of a replicated module stay on this node where it has an instance.
    pub prefer_local: bool,
    /// The label that says where a node is: calls of a replicated module go to hosts with the same value as this node has, where
    /// there are some.
    pub zone_label: String,
    /// What becomes of a node whose version of some module does not fit with that of the nodes that are there.
    pub incompatible_versions: IncompatibleVersions,
    /// How many moves for the sake of balance may be under way; none while nodes run different versions of the program.
    pub max_rebalancing: usize,
    /// How many moves may be under way at all: those of a node that is drained, say.
    pub max_moves: usize,
    /// Whether the process is ended when its threads are all stuck for so long that others have taken over: a module
    /// that blocks them, most likely.
    pub abort_when_stuck: bool,
    /// How many answers an instance of a module keeps, for methods with `(outpost.v1.delivery) = DEDUPE`.
    pub dedupe_entries: usize,
    /// How many bytes of them.
    pub dedupe_bytes: Size,
}

/// What the node shows to other nodes and to operators, and whom it believes: files, read again when they change. With
/// them, nodes and operators need certificates too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrustSettings {
    /// The node's certificate chain, in PEM, for `spiffe://DOMAIN/outpost/CLUSTER/node/NAME`.
    pub certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key: Option<PathBuf>,
    /// The certificates of those who may sign others' certificates, in PEM.
    pub authorities: Option<PathBuf>,
    /// Lists of the certificates that they have revoked (RFC 5280), in PEM: one of each authority that has one.
    pub revocations: Option<PathBuf>,
    /// The keys that gossip is sealed with: a line each, the first seals. `outpost keyring generate` makes one.
    pub gossip_keys: Option<PathBuf>,
    /// What becomes of gossip that is not sealed, while a running cluster goes over to keys.
    pub plain_gossip: PlainGossip,
}

/// What becomes of gossip that is not sealed, where there are keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainGossip {
    /// It is dropped.
    #[default]
    Refuse,
    /// It is read, while sealed gossip is sent: the second step.
    Accept,
    /// It is sent too, while sealed gossip is read: the first step.
    Send,
}

impl TrustSettings {
    /// Whether gossip is sealed, and nothing else is read.
    pub(crate) fn seals(&self) -> bool {
        self.gossip_keys.is_some() && self.plain_gossip == PlainGossip::Refuse
    }

    /// Whether nodes and operators need certificates.
    pub(crate) fn is_set(&self) -> bool {
        self.certificate.is_some() && self.key.is_some() && self.authorities.is_some()
    }
}

/// The listener for outside clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct IngressSettings {
    /// Where to listen.
    pub listen: Listen,
    /// Allows to listen beyond loopback without TLS: everybody on the network can read and change calls.
    pub plaintext_beyond_loopback: bool,
    /// TLS; plain text without it.
    pub tls: Option<TlsSettings>,
    /// Connections at a time. One more is closed at once.
    pub max_connections: usize,
    /// Calls at a time on one connection.
    pub max_concurrent_streams: u32,
    /// The largest message that a module's server decodes, after decompression. Holds for servers that were generated
    /// by `outpost-build` and built in a factory; others keep their own limit, which is 4 MiB unless they set it.
    pub max_message_size: Size,
    /// The largest list of headers of one call.
    pub max_header_list_size: Size,
    /// How often a silent connection is probed.
    pub keepalive_interval: Span,
    /// How long the answer to a probe may take.
    pub keepalive_timeout: Span,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Span,
    /// How long a new connection may take to say that it speaks HTTP.
    pub preface_timeout: Span,
    /// Whether browsers may call by gRPC-Web.
    pub grpc_web: bool,
    /// The origins (`https://shop.example`) whose pages may call by gRPC-Web; `*` is every origin.
    pub grpc_web_origins: Vec<String>,
    /// Whether clients may ask which services there are.
    pub reflection: bool,
    /// What becomes of calls by clients to modules that say neither that they are public nor that they are internal.
    pub unmarked_modules: UnmarkedModules,
}

/// See [`ClusterSettings::incompatible_versions`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncompatibleVersions {
    /// It does not join, and tells the difference: a rollout stops there.
    #[default]
    Refuse,
    /// It joins, and hosts the module when no node with the version before is left.
    Join,
}

/// See [`IngressSettings::unmarked_modules`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnmarkedModules {
    /// They are served.
    #[default]
    Serve,
    /// They are served, and told of in the log: what would be refused.
    Audit,
    /// They are refused: a module has to say that it is public.
    Refuse,
}

/// Who may call what, and how clients say who they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CallerSettings {
    /// A file that says which clients, and which modules, may call what; read again when it changes.
    pub policy: Option<PathBuf>,
    /// What becomes of calls that are refused: by the policy, for a token that is not believed, or since a module does not
    /// declare that it calls another one.
    pub mode: CallersMode,
    /// How tokens of clients are checked. Without it, they are the modules' to read.
    pub tokens: Option<TokenSettings>,
}

/// See [`CallerSettings::mode`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallersMode {
    /// They are refused.
    #[default]
    Enforce,
    /// They are served, and told of in the log: what would be refused.
    Audit,
}

/// How JSON Web Tokens are checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenSettings {
    /// The issuer's keys, a JWK Set; read again when it changes.
    pub keys: PathBuf,
    /// The one whose tokens are believed: their claim `iss`.
    pub issuer: String,
    /// Whom tokens have to be for: one of these has to be in their claim `aud`.
    pub audiences: Vec<String>,
    /// What they may be signed by.
    #[serde(default = "TokenAlgorithm::usual")]
    pub algorithms: Vec<TokenAlgorithm>,
    /// The claim that says what a token is good for: text, its parts separated by spaces, or a list.
    #[serde(default = "scope")]
    pub scopes_claim: String,
    /// How far clocks may be apart.
    #[serde(default = "half_a_minute")]
    pub leeway: Span,
}

/// What tokens may be signed by: the names of RFC 7518 and RFC 8037. What needs a secret that both sides have is not among
/// them: whoever can check it can also make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
#[non_exhaustive]
pub enum TokenAlgorithm {
    ES256,
    ES384,
    EdDSA,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
}

impl TokenAlgorithm {
    fn usual() -> Vec<Self> {
        vec![Self::ES256, Self::EdDSA, Self::RS256]
    }
}

fn scope() -> String {
    "scope".to_owned()
}

fn half_a_minute() -> Span {
    Span::seconds(30)
}

/// Certificates of the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TlsSettings {
    /// The certificate chain, in PEM.
    pub certificate: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// The certificates of those who may sign clients' certificates, in PEM. Without it, none are asked for.
    pub client_authorities: Option<PathBuf>,
    /// Lists of the certificates that they have revoked, in PEM: one of each authority that has one.
    pub client_revocations: Option<PathBuf>,
    /// Whether clients have to show one.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
}

/// See [`TlsSettings::client_certificates`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They may.
    #[default]
    Optional,
    /// They have to: no connection goes on without.
    Required,
}

/// The listener for the operator's tool. Loopback only, unless nodes have certificates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AdminSettings {
    /// Whether to listen at all.
    pub enabled: bool,
    /// Where to listen.
    pub listen: Listen,
    /// A file that says which operators may do what, and the hashes of their tokens; read again when it changes. Without it,
    /// every operator's certificate is good for everything.
    pub operators: Option<PathBuf>,
}

/// What an orchestrator asks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HealthSettings {
    /// Where `/livez` and `/readyz` are answered, by HTTP without TLS: they tell a word each, and change nothing. Nowhere
    /// without it.
    pub listen: Option<Listen>,
}

/// What Prometheus asks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MetricsSettings {
    /// Where `/metrics` is answered, by HTTP without TLS. Nowhere without it.
    pub listen: Option<Listen>,
    /// Allows to listen beyond loopback: everybody on the network can read the names of modules and nodes, and how busy they
    /// are.
    pub plaintext_beyond_loopback: bool,
}

/// Where the state of checkpointed modules is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CheckpointSettings {
    /// `file:///var/lib/shop/checkpoints`, `s3://bucket/prefix` or another store's URL. Every node must reach it; a folder
    /// is one only for nodes of one machine, or on a file system that they share. Without it, `checkpoints` in the node's
    /// `data_dir`.
    pub url: String,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LogSettings {
    /// What is logged: `info`, or `warn,shop=debug`.
    pub filter: String,
    /// How it is written.
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: a JSON object a line.
    Json,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            name: NodeId::parse("node-1").expect("a good name"),
            data_dir: None,
            labels: BTreeMap::new(),
            worker_threads: 0,
            start_timeout: Span::seconds(60),
            stop_timeout: Span::seconds(20),
        }
    }
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            listen: Listen::loopback(7002),
            advertise: None,
            plaintext_beyond_loopback: false,
            seeds: Vec::new(),
            seeds_file: None,
            initial_voters: Vec::new(),
            max_voters: 5,
            gossip_interval: Span::milliseconds(500),
            gossip_phi: 12.0,
            lease: Span::seconds(8),
            move_timeout: Span::seconds(30),
            drain_timeout: Span::seconds(20),
            stream_grace: Span::seconds(2),
            seal_timeout: Span::seconds(2),
            handover_timeout: Span::seconds(5),
            max_state_size: Size::mebibytes(1024),
            call_wait: Span::seconds(5),
            max_waiting_calls: 10_000,
            prefer_local: true,
            zone_label: "zone".to_owned(),
            incompatible_versions: IncompatibleVersions::Refuse,
            max_rebalancing: 2,
            max_moves: 32,
            abort_when_stuck: true,
            dedupe_entries: 10_000,
            dedupe_bytes: Size::mebibytes(16),
        }
    }
}

impl Default for IngressSettings {
    fn default() -> Self {
        Self {
            listen: Listen::loopback(7000),
            plaintext_beyond_loopback: false,
            tls: None,
            max_connections: 10_000,
            max_concurrent_streams: 256,
            max_message_size: Size::mebibytes(4),
            max_header_list_size: Size::kibibytes(16),
            keepalive_interval: Span::seconds(10),
            keepalive_timeout: Span::seconds(5),
            handshake_timeout: Span::seconds(5),
            preface_timeout: Span::seconds(5),
            grpc_web: true,
            grpc_web_origins: Vec::new(),
            reflection: true,
            unmarked_modules: UnmarkedModules::Serve,
        }
    }
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { enabled: true, listen: Listen::loopback(7001), operators: None }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// A setting that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file can't be read.
    #[error("can't read the configuration file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: String,
    },
    /// A file is not TOML.
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// Nothing reads this key.
    #[error("{origin}: there is no setting `{key}`{}", suggested(.suggestion))]
    Unknown {
        /// Where it was set.
        origin: Origin,
        /// The key, with dots.
        key: String,
        /// A known key that looks like it.
        suggestion: Option<String>,
    },
    /// A value does not fit.
    #[error("{origin}: `{key}{}`: {problem}", shown(.value))]
    Value {
        /// Where it was set.
        origin: Origin,
        /// The key, with dots.
        key: String,
        /// The value as TOML, where it may be shown.
        value: Option<String>,
        /// What is wrong, and what to write.
        problem: String,
    },
}

fn suggested(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

fn shown(value: &Option<String>) -> String {
    value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default()
}

type ReadAny = fn(Table) -> Result<Read<Box<dyn Any + Send>>, Fault>;

/// How to read one module's configuration.
#[derive(Debug, Clone, Copy)]
pub struct ModuleConfig {
    read: ReadAny,
}

impl ModuleConfig {
    pub(crate) fn of<T>() -> Self
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        Self {
            read: |table| {
                let Read { value, effective, unknown } = read::<T>(table)?;
                Ok(Read { value: Box::new(value) as Box<dyn Any + Send>, effective, unknown })
            },
        }
    }
}

/// Settings and every module's configuration, read and checked.
#[derive(Debug)]
pub struct Loaded {
    pub(crate) settings: Settings,
    pub(crate) modules: BTreeMap<String, Box<dyn Any + Send>>,
    entries: Vec<Entry>,
}

/// One setting in force, for `APP config`.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// With dots.
    pub key: String,
    /// As TOML.
    pub value: String,
    /// Where it was set.
    pub origin: String,
}

impl Loaded {
    /// Reads all sources. `modules` are the names of all modules, with how to read those that have a configuration.
    ///
    /// # Errors
    /// The faults found; mending them may show more.
    pub fn load(sources: &Sources, modules: &[(&str, Option<ModuleConfig>)]) -> Result<Self, Vec<ConfigError>> {
        let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
        let (mut tree, layers) = Layers::merge(sources, &names)?;
        let mut errors = Vec::new();
        let mut effective = Table::new();

        let module_tables = match tree.remove("modules") {
            None => Table::new(),
            Some(Value::Table(tables)) => tables,
            Some(other) => {
                let problem = format!("expected a table for each module: [modules.NAME], not {}", other.type_str());
                errors.push(layers.value_error("modules", None, problem));
                Table::new()
            }
        };
        let settings = match read_leniently(tree, "", &layers, read::<Settings>) {
            Ok(read) => {
                errors.extend(read.unknown.iter().map(|key| layers.unknown("", key, &read.effective)));
                effective = read.effective;
                Some(read.value)
            }
            Err(fault) => {
                errors.push(layers.fault("", fault));
                None
            }
        };
        if let Some(settings) = &settings {
            errors.extend(settings.faults().into_iter().map(|(key, problem)| {
                let value = flatten(&effective).into_iter().find(|(known, _)| known == key).map(|(_, value)| value);
                layers.value_error(key, value.as_ref(), problem)
            }));
        }

        let (read, tables) = read_modules(module_tables, modules, &layers, &mut errors);
        effective.insert("modules".to_owned(), Value::Table(tables));
        match settings {
            Some(settings) if errors.is_empty() => {
                let entries = flatten(&effective)
                    .into_iter()
                    .map(|(key, value)| Entry {
                        origin: layers.origin(&key).to_string(),
                        value: value.to_string(),
                        key,
                    })
                    .collect();
                Ok(Self { settings, modules: read, entries })
            }
            _ => Err(errors),
        }
    }

    /// Where a setting was set.
    pub(crate) fn origin(&self, key: &str) -> String {
        self.entries.iter().find(|entry| entry.key == key).map_or_else(String::new, |entry| entry.origin.clone())
    }

    /// Every setting in force, with where it came from.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

type ModuleValues = BTreeMap<String, Box<dyn Any + Send>>;

fn read_modules(
    mut tables: Table,
    modules: &[(&str, Option<ModuleConfig>)],
    layers: &Layers,
    errors: &mut Vec<ConfigError>,
) -> (ModuleValues, Table) {
    let mut values = ModuleValues::new();
    let mut effective = Table::new();
    for (name, config) in modules {
        let prefix = join("modules", name);
        let table = match tables.remove(*name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                let problem = format!("expected a table: [modules.{name}], not {}", other.type_str());
                errors.push(layers.value_error(&prefix, None, problem));
                continue;
            }
        };
        let Some(config) = config else {
            if !table.is_empty() {
                let problem = format!("module `{name}` takes no configuration; remove it");
                errors.push(layers.value_error(&prefix, None, problem));
            }
            continue;
        };
        match read_leniently(table, &prefix, layers, config.read) {
            Ok(read) => {
                errors.extend(read.unknown.iter().map(|key| layers.unknown(&prefix, key, &read.effective)));
                values.insert((*name).to_owned(), read.value);
                effective.insert((*name).to_owned(), Value::Table(read.effective));
            }
            Err(fault) => errors.push(layers.fault(&prefix, fault.without_values())),
        }
    }
    let known: Table = modules.iter().map(|(name, _)| ((*name).to_owned(), Value::Boolean(true))).collect();
    errors.extend(tables.keys().map(|name| layers.unknown("modules", name, &known)));
    (values, effective)
}

/// A value that was read, as it is in force, and the keys that nothing asked for.
struct Read<T> {
    value: T,
    effective: Table,
    unknown: Vec<String>,
}

/// What serde said, the key it was at, and what was there.
pub(crate) struct Fault {
    key: String,
    value: Option<Value>,
    problem: String,
}

impl Fault {
    /// The same, without what was found: a module's values may be secret, and serde's messages show them.
    fn without_values(self) -> Self {
        let problem = match (self.problem.strip_prefix("invalid "), self.problem.rsplit_once(", expected ")) {
            (Some(_), Some((_, expected))) => format!("expected {expected}"),
            _ => self.problem,
        };
        Self { value: None, problem, ..self }
    }
}

/// Reads a table, and where a value from the environment or a flag is of the wrong type, reads it as text.
fn read_leniently<T>(
    mut table: Table,
    prefix: &str,
    layers: &Layers,
    read: impl Fn(Table) -> Result<Read<T>, Fault>,
) -> Result<Read<T>, Fault> {
    loop {
        match read(table.clone()) {
            Err(fault) if layers.as_text(prefix, &fault.key, &mut table) => {}
            read => return read,
        }
    }
}

fn read<T: Serialize + DeserializeOwned>(table: Table) -> Result<Read<T>, Fault> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(Value::Table(table.clone()), &mut track);
    let value: Result<T, _> = serde_ignored::deserialize(tracked, |path| unknown.push(key_of(&path.to_string())));
    let value = value.map_err(|error: toml::de::Error| {
        let key = key_of(&track.path().to_string());
        let value = flatten(&table).into_iter().find(|(known, _)| *known == key).map(|(_, value)| value);
        Fault { key, value, problem: error.message().to_owned() }
    })?;
    // What TOML can't print, such as a number above its largest, is in force all the same.
    let effective = Table::try_from(&value).unwrap_or_default();
    Ok(Read { value, effective, unknown })
}

/// serde's trackers write `?` for the inside of an `Option`, and `.` for nothing at all.
fn key_of(path: &str) -> String {
    path.split('.').filter(|part| !matches!(*part, "" | "?")).collect::<Vec<_>>().join(".")
}

impl Settings {
    /// The limits of the listener for other nodes: those of the ingress, but that one connection carries the calls of a
    /// whole node.
    pub(crate) fn for_nodes(&self) -> IngressSettings {
        /// What nodes add to a call: who has begun it, for the most part.
        const OF_NODES: u64 = 8 << 10;
        let max_header_list_size = Size::of_bytes(self.ingress.max_header_list_size.bytes().saturating_add(OF_NODES));
        IngressSettings { max_concurrent_streams: 10_000, tls: None, max_header_list_size, ..self.ingress.clone() }
    }

    /// What the types can't say: bounds, and what must not go together.
    fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let mut fault = |key, problem: &str| faults.push((key, problem.to_owned()));
        let Self { node, cluster, trust, ingress, callers, admin, health: _, metrics, checkpoints, log } = self;
        for (key, span) in [
            ("node.start_timeout", node.start_timeout),
            ("cluster.move_timeout", cluster.move_timeout),
            ("ingress.keepalive_interval", ingress.keepalive_interval),
            ("ingress.keepalive_timeout", ingress.keepalive_timeout),
            ("ingress.handshake_timeout", ingress.handshake_timeout),
            ("ingress.preface_timeout", ingress.preface_timeout),
        ] {
            if span.get().is_zero() {
                fault(key, "must be longer than zero");
            }
        }
        if !checkpoints.url.is_empty() && Url::parse(&checkpoints.url).is_err() {
            fault("checkpoints.url", "is no URL; write \"file:///var/lib/shop/checkpoints\" or \"s3://bucket/prefix\"");
        }
        if node.worker_threads > 1024 {
            fault("node.worker_threads", "must be 1024 at the most; 0 is one thread a core");
        }
        for (key, value) in &node.labels {
            if key.is_empty() || key.len() > 63 || value.len() > 255 {
                fault("node.labels", "a label is a key of 1 to 63 bytes and a value of 255 bytes at the most");
            }
        }
        if node.labels.len() > 64 {
            fault("node.labels", "there may be 64 labels at the most");
        }
        if cluster.name.len() > 63 {
            fault("cluster.name", "must be 63 bytes at the most");
        }
        if !matches!(cluster.max_voters, 1 | 3 | 5) {
            fault("cluster.max_voters", "must be 1, 3 or 5: with an even number, one more can fail no more nodes");
        }
        if !(50..=10_000).contains(&cluster.gossip_interval.get().as_millis()) {
            fault("cluster.gossip_interval", "must be from 50ms to 10s");
        }
        if !(4.0..=100.0).contains(&cluster.gossip_phi) {
            fault("cluster.gossip_phi", "must be from 4.0 to 100.0; 12.0 suits an interval of 500ms");
        }
        if cluster.max_moves == 0 {
            fault("cluster.max_moves", "must be at least 1, or nothing can move");
        }
        if !(1..=300).contains(&cluster.lease.get().as_secs()) {
            fault("cluster.lease", "must be from 1s to 5m");
        }
        for seed in &cluster.seeds {
            if let Err(error) = Seeds::check(seed) {
                fault("cluster.seeds", &format!("`{seed}` is no seed: {error}"));
            }
        }
        if !cluster.initial_voters.is_empty() && !matches!(cluster.initial_voters.len(), 1 | 3 | 5) {
            fault("cluster.initial_voters", "must be the names of 1, 3 or 5 nodes");
        }
        for (key, path) in [
            ("trust.certificate", &trust.certificate),
            ("trust.key", &trust.key),
            ("trust.authorities", &trust.authorities),
        ] {
            if path.is_none() && (trust.certificate.is_some() || trust.key.is_some() || trust.authorities.is_some()) {
                fault(key, "is missing: a certificate, its key and the authorities go together");
            }
        }
        if let Some(tokens) = &callers.tokens {
            if tokens.issuer.is_empty() {
                fault(
                    "callers.tokens.issuer",
                    "must name the one whose tokens are believed, as their claim `iss` does",
                );
            }
            if tokens.audiences.is_empty() || tokens.audiences.iter().any(String::is_empty) {
                fault("callers.tokens.audiences", "must name whom tokens have to be for, as their claim `aud` does");
            }
            if tokens.algorithms.is_empty() {
                fault("callers.tokens.algorithms", "must name one at least, such as \"ES256\"");
            }
            if tokens.leeway.get().as_secs() > 600 {
                fault("callers.tokens.leeway", "must be 10m at the most");
            }
        }
        if let Some(tls) = &ingress.tls
            && tls.client_certificates == ClientCertificates::Required
            && tls.client_authorities.is_none()
        {
            fault("ingress.tls.client_authorities", "is missing: nobody could show a certificate that is believed");
        }
        if let Some(tls) = &ingress.tls
            && tls.client_revocations.is_some()
            && tls.client_authorities.is_none()
        {
            fault("ingress.tls.client_revocations", "is of use only with `ingress.tls.client_authorities`");
        }
        if trust.revocations.is_some() && trust.authorities.is_none() {
            fault("trust.revocations", "is of use only with `trust.authorities`");
        }
        if trust.plain_gossip != PlainGossip::Refuse && trust.gossip_keys.is_none() {
            fault("trust.plain_gossip", "is of use only with `trust.gossip_keys`");
        }
        let open = !cluster.listen.address().ip().is_loopback();
        if open && !cluster.plaintext_beyond_loopback && trust.is_set() && !trust.seals() {
            fault(
                "cluster.listen",
                "is reachable from other machines, and everybody on the way can read and forge gossip; set \
                 `trust.gossip_keys` and leave `trust.plain_gossip` alone, or accept the risk with \
                 `cluster.plaintext_beyond_loopback = true`",
            );
        }
        if open && !cluster.plaintext_beyond_loopback && !trust.is_set() {
            fault(
                "cluster.listen",
                "is reachable from other machines, and everybody on the way can read and change calls and placement; \
                 set `trust.certificate`, `trust.key` and `trust.authorities`, or accept the risk with \
                 `cluster.plaintext_beyond_loopback = true`",
            );
        }
        if let Some(advertise) = cluster.advertise
            && (advertise.address().port() == 0 || advertise.address().ip().is_unspecified())
        {
            fault("cluster.advertise", "must be an address that other nodes can connect to, with its port");
        }
        if cluster.listen.address().ip().is_unspecified() && cluster.advertise.is_none() {
            fault("cluster.listen", "is no address that other nodes can connect to; set `cluster.advertise` to one");
        }
        if ingress.max_connections == 0 {
            fault("ingress.max_connections", "must be at least 1, or no client can connect");
        }
        if ingress.max_concurrent_streams == 0 {
            fault("ingress.max_concurrent_streams", "must be at least 1, or no client can call");
        }
        if !(1..=u64::from(u32::MAX)).contains(&ingress.max_message_size.bytes()) {
            fault("ingress.max_message_size", "must be from 1 byte to 4 GiB, what a gRPC message can announce");
        }
        if !(1024..=16 << 20).contains(&ingress.max_header_list_size.bytes()) {
            fault("ingress.max_header_list_size", "must be from 1 KiB to 16 MiB");
        }
        let open = !ingress.listen.address().ip().is_loopback();
        if open && ingress.tls.is_none() && !ingress.plaintext_beyond_loopback {
            fault(
                "ingress.listen",
                "is reachable from other machines, and without TLS everybody on the way can read and change calls; \
                 set `ingress.tls.certificate` and `ingress.tls.key`, or accept the risk with \
                 `ingress.plaintext_beyond_loopback = true`",
            );
        }
        if !admin.listen.address().ip().is_loopback() && !trust.is_set() {
            fault(
                "admin.listen",
                "must be a loopback address, such as \"127.0.0.1:7001\": without certificates (`trust.certificate`), \
                 whoever reaches it is trusted",
            );
        }
        let open = metrics.listen.is_some_and(|listen| !listen.address().ip().is_loopback());
        if open && !metrics.plaintext_beyond_loopback {
            fault(
                "metrics.listen",
                "is reachable from other machines, and whoever reaches it can read the names of modules and nodes, and how \
                 busy they are; accept that with `metrics.plaintext_beyond_loopback = true`",
            );
        }
        for origin in &ingress.grpc_web_origins {
            let web = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if origin != "*" && !web.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
                fault(
                    "ingress.grpc_web_origins",
                    "an origin is a scheme, a host and perhaps a port, without a path: \"https://shop.example\"; \
                     or \"*\" for every origin",
                );
            }
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log.filter) {
            let problem = format!("{error}; write a level (error, warn, info, debug, trace), or `warn,shop=debug`");
            fault("log.filter", &problem);
        }
        faults
    }
}

/// The file to read when none is named: `APP.toml` in the working directory, if there is one.
pub(crate) fn default_file(application: &str) -> Option<PathBuf> {
    let path = PathBuf::from(format!("{application}.toml"));
    path.is_file().then_some(path)
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key, self.value)
    }
}
