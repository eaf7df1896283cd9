//! Connections to servers.

use std::{
    error::Error,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use outpost_proto::{
    identity,
    mutual::{self, Credentials, Part},
    token::Token,
};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig,
        pki_types::{CertificateDer, ServerName},
    },
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    address::{Address, node_address},
    args::{NodeArgs, TlsArgs},
    context::{Contexts, Files, Way},
    error::CliError,
    token,
    tunnel::{Place, Tunnel},
};

const USER_AGENT: &str = concat!("outpost/", env!("CARGO_PKG_VERSION"));
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For the requests that the tool makes on its own; how long a user's call may take, the user says.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Nothing that speaks gRPC answers there.
#[derive(Debug, thiserror::Error)]
#[error("can't reach {address}: {cause}; {remedy}")]
pub(crate) struct Unreachable {
    pub(crate) address: Address,
    pub(crate) cause: String,
    pub(crate) remedy: String,
}

/// How the user may have come to an address, for the remedy when nothing answers there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// `--node`, or its default.
    Node,
    /// `--address`.
    Address,
    /// What this node said its ingress is.
    Ingress(Address),
}

/// A node's admin API, and what is shown to it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: Address,
    /// Without it, it is plain text.
    tls: Option<Tls>,
    shows: Shows,
    /// The way into Kubernetes, where it is there.
    tunnel: Option<(Place, Tunnel)>,
}

/// Whom a connection by TLS is for.
#[derive(Debug, Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    whom: Whom,
}

#[derive(Debug, Clone)]
enum Whom {
    /// A node of the cluster that the operator's own certificate names.
    Beside(identity::Identity),
    /// A node of the cluster of this name.
    Of(String),
}

impl Tls {
    fn of(way: &Way) -> Result<Option<Self>, CliError> {
        match way {
            Way::Plain => Ok(None),
            Way::Certificate(files) => {
                let Credentials { client, identity, .. } = credentials(files)?;
                Ok(Some(Self { config: client, whom: Whom::Beside(identity) }))
            }
            Way::Cluster { name, authorities: path } => {
                let authorities = fs::read(path).map_err(|error| CliError::File { path: path.clone(), error })?;
                let config = mutual::without_certificate(&authorities);
                let config = config.map_err(|problem| CliError::Refusal(format!("{}: {problem}", path.display())))?;
                Ok(Some(Self { config, whom: Whom::Of(name.clone()) }))
            }
        }
    }

    /// Whether it is a node of the cluster that is meant; before anything is said to it.
    fn check(&self, shown: Option<&[CertificateDer<'_>]>) -> Result<(), String> {
        let peer = match &self.whom {
            Whom::Beside(own) => mutual::peer(shown, own)?,
            Whom::Of(cluster) => mutual::peer_of(shown, cluster)?,
        };
        match peer.node() {
            Some(_) => Ok(()),
            None => Err(format!("{peer} is there, whose certificate is no node's")),
        }
    }
}

/// What is shown with each request: the operator's token, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Shows(Option<MetadataValue<Ascii>>);

impl Shows {
    fn of(token: Option<&Token>) -> Self {
        Self(token.map(|token| {
            let value = MetadataValue::try_from(format!("Bearer {}", token.secret()));
            let mut value = value.expect("digits and letters can be metadata");
            // Not shown by `Debug`, nor kept in HTTP/2's tables.
            value.set_sensitive(true);
            value
        }))
    }
}

impl Interceptor for Shows {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Target {
    /// What the arguments mean, and the context where they say nothing.
    pub(crate) async fn of(args: &NodeArgs) -> Result<Self, CliError> {
        let contexts = match args.context.as_deref() {
            // Who says all of it needs no contexts, not even a home.
            Some("none") => Contexts::default(),
            _ => Contexts::load()?,
        };
        let context = contexts.choose(args.context.as_deref())?;
        let way = context.map_or(Way::Plain, |context| context.way().expect("a context that is chosen is whole"));
        let tls = Tls::of(&way)?;
        let token = args.token_file.as_ref().or(context.and_then(|context| context.token_file.as_ref()));
        let token = token.map(|path| token::read(path)).transpose()?;
        let (node, place) = (
            context.and_then(|context| context.node.as_ref()),
            context.and_then(|context| context.kubernetes.as_ref()),
        );
        let (address, tunnel) = match (&args.node, node, place) {
            (Some(node), _, _) => (node.clone(), None),
            (None, Some(node), _) => (node_address(node).map_err(|error| CliError::Refusal(error.to_string()))?, None),
            (None, None, Some(place)) => {
                let tunnel = Tunnel::open(place, ADMIN_PORT).await?;
                (tunnel.address.clone(), Some((place.clone(), tunnel)))
            }
            (None, None, None) => (Address::local(ADMIN_PORT), None),
        };
        if token.is_some() && tls.is_none() && !address.is_loopback() {
            return Err(CliError::Refusal(format!(
                "the token is not sent to {address}: in plain text, whoever is on the way could take it; name a context \
                 with authorities (`outpost context set --help`), or forward the port to this machine"
            )));
        }
        Ok(Self { address, tls, shows: Shows::of(token.as_ref()), tunnel })
    }

    pub(crate) fn shows(&self) -> Shows {
        self.shows.clone()
    }

    /// The address of another listener of the node, as seen from here, and what has to be held while it is used.
    pub(crate) async fn reach(&self, address: Address) -> Result<(Address, Option<Tunnel>), CliError> {
        match &self.tunnel {
            None => Ok((address, None)),
            Some((place, _)) => {
                let tunnel = Tunnel::open(place, address.port()).await?;
                Ok((tunnel.address.clone().with_tls(address.tls), Some(tunnel)))
            }
        }
    }

    /// Connects, or finds out why not, within 5 seconds.
    pub(crate) async fn connect(&self) -> Result<Channel, CliError> {
        let Some(tls) = &self.tls else { return connect(&self.address, &From::Node, None).await };
        let unreachable = |cause: String| {
            let remedy = match cause.contains("certificate") {
                true => {
                    "is it the right cluster, and are its nodes' certificates good? `outpost context list` tells which \
                         authorities this tool trusts for it"
                        .to_owned()
                }
                false if cause.contains("TLS") => "--context none speaks to a node without certificates".to_owned(),
                false => remedy(&self.address, &From::Node),
            };
            Unreachable { address: self.address.clone(), cause, remedy }
        };
        let endpoint = Endpoint::from_shared(self.address.uri())
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(|error| unreachable(cause(&error)))?;
        let connector = secured(self.address.clone(), tls.clone());
        let endpoint = endpoint.connect_timeout(CONNECT_LIMIT);
        let connecting = endpoint.connect_with_connector(connector);
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(unreachable(cause(&error)).into()),
            Err(_) => Err(unreachable(too_slow()).into()),
        }
    }
}

/// Of the admin API, unless a node says otherwise.
const ADMIN_PORT: u16 = 7001;

fn credentials(files: &Files) -> Result<Credentials, CliError> {
    let read = |path: &PathBuf| fs::read(path).map_err(|error| CliError::File { path: path.clone(), error });
    let (certificate, key, authorities) = (read(&files.certificate)?, read(&files.key)?, read(&files.authorities)?);
    #[expect(clippy::disallowed_methods, reason = "certificates are of the wall clock's time")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Credentials::from_pem(&certificate, &key, &authorities, now).map_err(|bad| {
        let path = match bad.part {
            Part::Certificate => &files.certificate,
            Part::Key => &files.key,
            // The tool has no list.
            Part::Authorities | Part::Revocations => &files.authorities,
        };
        CliError::Refusal(format!("{}: {}", path.display(), bad.problem))
    })
}

/// Connections by TLS, to a node of the cluster that is meant.
fn secured(
    address: Address,
    tls: Tls,
) -> impl tower::Service<
    tonic::codegen::http::Uri,
    Response = TokioIo<TlsStream<TcpStream>>,
    Error = io::Error,
    Future: Send,
> + Send
+ Clone
+ 'static {
    tower::service_fn(move |_| {
        let (address, tls) = (address.to_string(), tls.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let ip = stream.peer_addr()?.ip();
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            let stream = connector.connect(ServerName::IpAddress(ip.into()), stream).await.map_err(in_words)?;
            tls.check(stream.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
            Ok(TokioIo::new(stream))
        }
    })
}

fn in_words(error: io::Error) -> io::Error {
    mutual::refused(&error).map_or(error, io::Error::other)
}

fn too_slow() -> String {
    format!("no connection within {}", humantime::format_duration(CONNECT_LIMIT))
}

/// Connects, or finds out why not, within 5 seconds.
pub(crate) async fn connect(address: &Address, from: &From, tls: Option<&TlsArgs>) -> Result<Channel, CliError> {
    let unreachable = |cause: String| {
        let remedy = match cause.contains("certificate") {
            true => "trust who signed it with --tls-ca, and if it is for another name, set that with --tls-name".into(),
            false => remedy(address, from),
        };
        Unreachable { address: address.clone(), cause, remedy }
    };
    let endpoint = Endpoint::from_shared(address.uri())
        .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
        .map_err(|error| unreachable(cause(&error)))?;
    let mut endpoint = endpoint.connect_timeout(CONNECT_LIMIT);
    if address.tls {
        let config = client_tls(tls)?;
        endpoint = endpoint.tls_config(config).map_err(|error| unreachable(cause(&error)))?;
    }
    match tokio::time::timeout(CONNECT_LIMIT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(unreachable(cause(&error)).into()),
        Err(_) => Err(unreachable(too_slow()).into()),
    }
}

fn client_tls(args: Option<&TlsArgs>) -> Result<ClientTlsConfig, CliError> {
    let read = |path: &PathBuf| fs::read(path).map_err(|error| CliError::File { path: path.clone(), error });
    let mut config = ClientTlsConfig::new();
    config = match args.and_then(|args| args.tls_ca.as_ref()) {
        None => config.with_native_roots(),
        Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
    };
    if let Some(args) = args
        && let (Some(certificate), Some(key)) = (&args.tls_certificate, &args.tls_key)
    {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = args.and_then(|args| args.tls_name.as_ref()) {
        config = config.domain_name(name);
    }
    Ok(config)
}

fn remedy(address: &Address, from: &From) -> String {
    let scheme = match address.tls {
        true => "and does it speak TLS?",
        false => "and does it speak gRPC without TLS (else use --tls)?",
    };
    match from {
        From::Node if !address.is_loopback() => "an admin API without certificates listens on loopback only: name \
             yours with `outpost context set`, or run this on the node's machine, or forward the port"
            .to_owned(),
        From::Node => {
            "is the application running, and is its admin.listen this address? set another with --node; one that asks for \
             certificates needs a context with one, or with a token that it knows: see `outpost context --help`"
                .to_owned()
        }
        From::Address => format!("is this the --address of a gRPC server, {scheme}"),
        From::Ingress(node) => format!(
            "node {node} says that its ingress is there; if it has another address from here, set it with --address"
        ),
    }
}

/// If the status was not answered but made up here because the connection is of no use, says so.
pub(crate) fn not_grpc(address: &Address, from: &From, status: &Status) -> Option<Unreachable> {
    status.source().map(|error| Unreachable {
        address: address.clone(),
        cause: format!("it does not answer as a gRPC server ({})", cause(error)),
        remedy: remedy(address, from),
    })
}

/// The root of an error, on one line. The system's own words are what says most: "connection refused".
pub(crate) fn cause(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        if deepest.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error().is_some()) {
            break;
        }
        deepest = source;
    }
    let deepest = deepest.to_string();
    let text = match deepest.rsplit_once(" (os error ") {
        Some((text, _)) => text,
        None => &deepest,
    };
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if characters.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_what_the_system_said() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(cause(&refused), "connection refused");
        assert_eq!(cause(&io::Error::other("DNS is down")), "DNS is down");
    }

    #[test]
    fn a_remedy_fits_where_the_address_came_from() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        assert!(remedy(&address("127.0.0.1:1"), &From::Node).contains("admin.listen"));
        assert!(remedy(&address("10.0.0.1:1"), &From::Node).contains("loopback only"));
        assert!(remedy(&address("10.0.0.1:1"), &From::Ingress(address("127.0.0.1:1"))).contains("--address"));
    }
}
