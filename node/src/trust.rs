//! Who a node is to others, and whom it believes.
//!
//! ```text
//! PEM files ─▶ files: read, checked, read again when they change ─▶ tls: configurations ─┬─▶ connect: to the node meant
//!                                                                                        └─▶ accept: from whom it may be
//! key file ─▶ the same ─▶ sealed: gossip, for who has a key of the cluster
//! ```
//!
//! A certificate names its node (see `outpost_proto::identity`), and the two ends of a connection compare it with what they
//! know: who connects, with the node that it means; who accepts, with its own cluster.
//!
//! **Invariant:** with certificates, nothing is said to, or heard from, somebody whose certificate an authority of the
//! cluster has not signed for a role in it.

mod bounded;
pub(crate) mod callers;
mod client;
mod files;
pub(crate) mod operators;
pub(crate) mod policy;
#[cfg(test)]
pub(crate) mod realm;
#[cfg_attr(feature = "simulation", expect(dead_code, reason = "a simulated machine hands on messages as they are"))]
pub(crate) mod sealed;
mod tls;
pub(crate) mod tokens;
mod until;

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bounded::Bounded;
use callers::Certified;
pub use client::{Client, Token};
pub(crate) use files::Follows;
use files::{File, FromFiles};
use hyper_util::rt::TokioIo;
use operators::{Forbidden, Operator, Operators};
use outpost_proto::{
    identity::{Identity, Role},
    keyring::{self, GossipKey},
    mutual::{self, Credentials},
};
use sealed::{Datagrams, Ring};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream, rustls::pki_types::ServerName, server};
use tokio_util::either::Either;
use tonic::{Request, Status, transport::Uri};
pub(crate) use until::{Passes, Until};

use crate::{
    clock,
    config::{AdminSettings, ClientCertificates, PlainGossip, Settings, TlsSettings, TrustSettings},
    disk,
    id::{NodeId, Timestamp},
    net::TcpStream,
};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why a certificate, a key or the like can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file can't be read.
    #[error("can't read {}, which `{key}` names: {error}", path.display())]
    Unreadable {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What a file holds is of no use.
    #[error("{} (`{key}`): {problem}", path.display())]
    Unusable {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A connection that this node has made, with TLS or without.
pub(crate) type Stream = Either<TcpStream, Bounded<TlsStream<TcpStream>>>;

/// What a node shows to others of its cluster and believes of them: certificates, or, without them, everything. Cheap to
/// clone.
#[derive(Clone, Default)]
pub(crate) struct Trust(Option<Arc<FromFiles<Credentials>>>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trust").field(&self.identity().map(|identity| identity.to_string())).finish()
    }
}

impl Trust {
    /// Reads the files, where there are some.
    ///
    /// # Errors
    /// A file that can't be used, or that is another node's.
    pub(crate) fn load(settings: &Settings, cluster: &str) -> Result<Self, TrustError> {
        let trust = &settings.trust;
        let (Some(certificate), Some(key), Some(authorities)) = (&trust.certificate, &trust.key, &trust.authorities)
        else {
            return Ok(Self::default());
        };
        let mut files = vec![
            File::new("trust.certificate", certificate),
            File::new("trust.key", key),
            File::new("trust.authorities", authorities),
        ];
        files.extend(trust.revocations.as_ref().map(|path| File::new("trust.revocations", path)));
        warn_if_open(&files[1]);
        let (cluster, node) = (cluster.to_owned(), settings.node.name.clone());
        let build = move |files: &[File], contents: &[Vec<u8>]| tls::for_node(files, contents, &cluster, node.as_str());
        let credentials = FromFiles::load(files, build)?.due(3, Credentials::lists_due);
        Ok(Self(Some(Arc::new(credentials))))
    }

    /// What this node calls itself, if it has a certificate.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.0.as_ref().map(|credentials| credentials.current().identity.clone())
    }

    /// What follows the files, if there are some.
    pub(crate) fn follows(&self) -> Option<Arc<dyn Follows>> {
        self.0.clone().map(|credentials| credentials as Arc<dyn Follows>)
    }

    /// Connects to a node. Where its name is not known, any of the cluster will do. Once a certificate is not good any more that
    /// was shown, and calls that are under way had their time, the connection ends by itself.
    ///
    /// # Errors
    /// What the system or TLS said, or that somebody else is there.
    pub(crate) async fn connect(&self, address: SocketAddr, node: Option<&NodeId>) -> io::Result<(Stream, Until)> {
        let stream = TcpStream::connect(address).await?;
        // A small request must not wait for the next one to fill a packet.
        stream.set_nodelay(true)?;
        let Some(files) = &self.0 else { return Ok((Either::Left(stream), Until::default())) };
        let (changes, credentials) = (files.changes(), files.current());
        let connector = TlsConnector::from(Arc::clone(&credentials.client));
        let stream = connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.map_err(in_words)?;
        let shown = stream.get_ref().1.peer_certificates();
        let peer = mutual::peer(shown, &credentials.identity).map_err(refused)?;
        if let Some(node) = node
            && peer.node() != Some(node.as_str())
        {
            return Err(refused(format!("{peer} is there, and not node `{node}`")));
        }
        if peer.node().is_none() {
            return Err(refused(format!("{peer} is there, which is no node")));
        }
        let until = Until::between(files, changes, &credentials, shown);
        Ok((Either::Right(Bounded::new(stream, until.clone())), until))
    }

    /// How often what this node shows or believes has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.0.as_ref().map_or(0, |credentials| credentials.version())
    }

    /// The same as what tonic's endpoints connect by.
    pub(crate) fn connector(
        &self,
        address: SocketAddr,
        node: Option<NodeId>,
    ) -> impl tower::Service<Uri, Response = TokioIo<Stream>, Error = io::Error, Future: Send> + Send + Clone + 'static
    {
        let trust = self.clone();
        tower::service_fn(move |_: Uri| {
            let (trust, node) = (trust.clone(), node.clone());
            async move { trust.connect(address, node.as_ref()).await.map(|(stream, _)| TokioIo::new(stream)) }
        })
    }
}

/// The keys that gossip is sealed with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Seal {
    keys: Arc<FromFiles<Keys>>,
    pub(crate) plain: PlainGossip,
    pub(crate) datagrams: Arc<Datagrams>,
}

/// The keys of a file, and the ciphers made of them.
struct Keys {
    keys: Vec<GossipKey>,
    ring: Arc<Ring>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("keys", &self.keys.current().keys).field("plain", &self.plain).finish()
    }
}

impl Seal {
    /// Reads the file, where there is one.
    ///
    /// # Errors
    /// A file that is no keyring.
    pub(crate) fn load(settings: &TrustSettings) -> Result<Option<Self>, TrustError> {
        let Some(path) = &settings.gossip_keys else { return Ok(None) };
        let files = vec![File::new("trust.gossip_keys", path)];
        warn_if_open(&files[0]);
        let keys = FromFiles::load(files, |files, contents| {
            let text = String::from_utf8_lossy(&contents[0]);
            let keys = keyring::parse(&text).map_err(|error| files[0].unusable(error.to_string()))?;
            let ring = Arc::new(Ring::new(&keys));
            Ok(Keys { keys, ring })
        })?;
        let (plain, datagrams) = (settings.plain_gossip, Arc::default());
        Ok(Some(Self { keys: Arc::new(keys), plain, datagrams }))
    }

    /// The keys now.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.keys.current().ring)
    }

    /// What follows the file.
    pub(crate) fn follows(&self) -> Arc<dyn Follows> {
        Arc::clone(&self.keys) as Arc<dyn Follows>
    }
}

/// Who may ask the operator's API what. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admission {
    /// Whether it has to be known who asks.
    named: bool,
    known: Option<Arc<FromFiles<Operators>>>,
}

impl Admission {
    /// Reads the file, where there is one.
    ///
    /// # Errors
    /// A file that names no operators, or none who could say who it is.
    pub(crate) fn load(settings: &AdminSettings, trust: &Trust) -> Result<Self, TrustError> {
        let certificates = trust.0.is_some();
        let build = move |files: &[File], contents: &[Vec<u8>]| {
            let operators = Operators::parse(&String::from_utf8_lossy(&contents[0]));
            let operators = operators.map_err(|problem| files[0].unusable(problem))?;
            match certificates || operators.take_tokens() {
                true => Ok(operators),
                false => Err(files[0].unusable(
                    "without certificates (`trust.certificate`), operators say who they are by tokens, and none has one; \
                     give one a `token_sha256`, which `outpost token generate` prints"
                        .to_owned(),
                )),
            }
        };
        let load = |path: &PathBuf| FromFiles::load(vec![File::new("admin.operators", path)], build);
        let known = settings.operators.as_ref().map(load).transpose()?.map(Arc::new);
        Ok(Self { named: certificates || known.is_some(), known })
    }

    /// Who asks, by what is shown.
    ///
    /// # Errors
    /// Somebody who may not.
    pub(crate) fn admit(&self, shown: operators::Shown<'_>) -> Result<Operator, Forbidden> {
        match (self.named, shown.token) {
            (false, None) => Ok(Operator::anyone(shown.from)),
            _ => Operator::of(shown, self.known.as_ref().map(|known| known.current()).as_deref(), clock::wall()),
        }
    }

    /// Whether some operator may show a token in place of a certificate.
    fn takes_tokens(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.now().take_tokens())
    }

    /// What follows the file, if there is one.
    pub(crate) fn follows(&self) -> Option<Arc<dyn Follows>> {
        self.known.clone().map(|known| known as Arc<dyn Follows>)
    }
}

/// What others are told of what a node shows. Nothing where it shows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Shown {
    /// When its certificate ends ...
    pub(crate) expires: Timestamp,
    /// ... and when it should have another.
    pub(crate) renew: Timestamp,
    /// Why changed files are not in force, or what else is not as it should be.
    pub(crate) problem: Option<String>,
    /// The ids of its keys of gossip.
    pub(crate) keys: Vec<String>,
}

impl Shown {
    pub(crate) fn of(trust: &Trust, seal: Option<&Seal>, followed: &[Arc<dyn Follows>]) -> Self {
        /// How much of a problem others are told. The rest is in the node's own log.
        const MOST: usize = 300;
        let since = |time: Duration| Timestamp(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let current = trust.0.as_ref().map(|credentials| credentials.current());
        let problem = followed.iter().find_map(|files| files.fault());
        let half = |seal: &Seal| match seal.plain {
            PlainGossip::Refuse => None,
            PlainGossip::Accept => Some("gossip that is not sealed is read too (`trust.plain_gossip`)".to_owned()),
            PlainGossip::Send => Some("gossip is sent as it is, not sealed (`trust.plain_gossip`)".to_owned()),
        };
        let problem = problem.map(|problem| format!("can't use changed files: {problem}"));
        let problem = problem.or_else(|| followed.iter().find_map(|files| files.overdue()));
        let problem = problem.or_else(|| seal.and_then(half)).map(|problem| problem.chars().take(MOST).collect());
        Self {
            expires: current.as_ref().map(|current| since(current.expires)).unwrap_or_default(),
            renew: current.as_ref().map(|current| since(current.renew)).unwrap_or_default(),
            problem,
            keys: seal.map(|seal| seal.ring().ids().map(|id| id.to_string()).collect()).unwrap_or_default(),
        }
    }

    /// What an operator should see to, at a moment.
    pub(crate) fn problems(&self, node: &NodeId, now: Timestamp) -> Vec<String> {
        let mut problems = Vec::new();
        let left = Duration::from_secs(self.expires.0.saturating_sub(now.0) / 1000);
        if self.expires != Timestamp(0) && now >= self.expires {
            problems.push(format!("node `{node}`: its certificate has expired, and no node connects to it any more"));
        } else if self.expires != Timestamp(0) && now >= self.renew {
            let left = humantime::format_duration(left);
            problems.push(format!("node `{node}`: its certificate expires in {left}; put a new one in its place"));
        }
        problems.extend(self.problem.iter().map(|problem| format!("node `{node}`: {problem}")));
        problems
    }
}

/// Looks at files again and again.
pub(crate) async fn follow(followed: Vec<Arc<dyn Follows>>) {
    if followed.is_empty() {
        return;
    }
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let followed = followed.clone();
        let looked = disk::blocking(move || followed.iter().for_each(|files| files.follow())).await;
        if let Err(error) = looked {
            tracing::error!(%error, "can't look at files any more");
            return;
        }
    }
}

fn warn_if_open(key: &File) {
    if tls::is_open_to_all(&key.path) {
        tracing::warn!(
            file = %key.path.display(),
            "every user of this machine can read the private key; take that right away (chmod o-r)"
        );
    }
}

fn refused(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
}

fn in_words(error: io::Error) -> io::Error {
    mutual::refused(&error).map_or(error, refused)
}

/// Who is at the other end of a connection, as its certificate says. An extension of the requests that come over it.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub(crate) Identity);

/// Whom a connection is with.
#[derive(Debug, Clone)]
pub(crate) enum Accepted {
    /// A node or an operator.
    Peer(Peer),
    Client(Certified),
}

/// Lets a node speak for itself, and for nobody else.
///
/// # Errors
/// `PERMISSION_DENIED` where the connection is another node's.
pub(crate) fn speaks_for<T>(request: &Request<T>, node: &str) -> Result<(), Status> {
    may_speak_for(request.extensions().get::<Peer>(), node)
}

/// The same, where only the peer is left of the request.
///
/// # Errors
/// As [`speaks_for`].
pub(crate) fn may_speak_for(peer: Option<&Peer>, node: &str) -> Result<(), Status> {
    match peer {
        Some(Peer(identity)) if identity.node() != Some(node) => {
            Err(Status::permission_denied(format!("{identity} can't speak for node `{node}`")))
        }
        _ => Ok(()),
    }
}

/// How a listener takes its connections.
#[derive(Clone)]
pub(crate) struct Acceptor(Kind);

#[derive(Clone)]
enum Kind {
    Clients(Arc<FromFiles<tls::ForClients>>),
    Nodes(Arc<FromFiles<Credentials>>),
    Operators(Arc<FromFiles<Credentials>>, Admission),
}

impl Acceptor {
    /// For clients, who may or have to show a certificate where there are those who sign theirs.
    ///
    /// # Errors
    /// A file that can't be used.
    pub(crate) fn for_clients(settings: &TlsSettings) -> Result<Self, TrustError> {
        let mut files = vec![
            File::new("ingress.tls.certificate", &settings.certificate),
            File::new("ingress.tls.key", &settings.key),
        ];
        warn_if_open(&files[1]);
        if let Some(authorities) = &settings.client_authorities {
            files.push(File::new("ingress.tls.client_authorities", authorities));
            let revocations = settings.client_revocations.as_ref();
            files.extend(revocations.map(|path| File::new("ingress.tls.client_revocations", path)));
        }
        let required = settings.client_certificates == ClientCertificates::Required;
        let build = move |files: &[File], contents: &[Vec<u8>]| tls::for_clients(files, contents, required);
        let config = FromFiles::load(files, build)?.due(3, |config| config.clients.as_ref()?.lists_due);
        Ok(Self(Kind::Clients(Arc::new(config))))
    }

    /// For other nodes; none where everything is believed.
    pub(crate) fn for_nodes(trust: &Trust) -> Option<Self> {
        trust.0.clone().map(|credentials| Self(Kind::Nodes(credentials)))
    }

    /// For operators; none where there are no certificates.
    pub(crate) fn for_operators(trust: &Trust, admission: &Admission) -> Option<Self> {
        trust.0.clone().map(|credentials| Self(Kind::Operators(credentials, admission.clone())))
    }

    /// When the certificate expires that clients are shown, since 1970, where that can be told.
    pub(crate) fn expires(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Clients(config) => config.now().expires,
            Kind::Nodes(_) | Kind::Operators(..) => None,
        }
    }

    /// What follows files that nothing else does.
    pub(crate) fn follows(&self) -> Option<Arc<dyn Follows>> {
        match &self.0 {
            Kind::Clients(config) => Some(Arc::clone(config) as Arc<dyn Follows>),
            Kind::Nodes(_) | Kind::Operators(..) => None,
        }
    }

    /// Shakes hands. Who it is, where that was asked.
    ///
    /// # Errors
    /// What TLS said, or that it is somebody who may not.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(server::TlsStream<TcpStream>, Option<Accepted>, Until)> {
        let (files, tokens) = match &self.0 {
            Kind::Clients(config) => {
                let (changes, now) = (config.changes(), Arc::clone(&config.now().config));
                let stream = TlsAcceptor::from(now).accept(stream).await?;
                let Some(shown) = stream.get_ref().1.peer_certificates() else {
                    return Ok((stream, None, Until::default()));
                };
                let mutual::Shown { name, expires } = mutual::shown(shown).map_err(refused)?;
                let until = Until::client(config, changes, shown, expires);
                let client = Certified { client: Arc::new(Client::new(Some(name), None)), expires };
                return Ok((stream, Some(Accepted::Client(client)), until));
            }
            Kind::Nodes(files) => (files, false),
            Kind::Operators(files, admission) => (files, admission.takes_tokens()),
        };
        let (changes, credentials) = (files.changes(), files.current());
        let config = if tokens { &credentials.lenient } else { &credentials.server };
        let stream = TlsAcceptor::from(Arc::clone(config)).accept(stream).await.map_err(in_words)?;
        let shown = stream.get_ref().1.peer_certificates();
        if tokens && shown.is_none() {
            // Each call has to show one.
            return Ok((stream, None, Until::default()));
        }
        let peer = mutual::peer(shown, &credentials.identity).map_err(refused)?;
        let until = match &self.0 {
            Kind::Operators(..) => Until::shown(files, changes, shown),
            _ => Until::between(files, changes, &credentials, shown),
        };
        let may =
            matches!((&self.0, &peer.role), (Kind::Nodes(_), Role::Node(_)) | (Kind::Operators(..), Role::Operator(_)));
        if !may {
            return Err(refused(format!("{peer} may not connect here")));
        }
        Ok((stream, Some(Accepted::Peer(Peer(peer))), until))
    }
}

#[cfg(test)]
mod tests;
