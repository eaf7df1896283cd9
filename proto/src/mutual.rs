//! How the two ends of a connection of the cluster prove who they are: TLS 1.3, with a certificate on both sides that names
//! an [`Identity`].
//!
//! rustls looks at names of hosts, and an identity is in a URI. So its verifiers are asked whether an authority has signed
//! a certificate, for this use and this time; and [`peer`] reads the name once the handshake is over, before anything else
//! is said.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, parse_x509_certificate, time::ASN1Time};

use crate::identity::Identity;

/// What one end shows, and what it asks of the other.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Whom the certificate is for.
    pub identity: Identity,
    /// Since 1970; from then on nobody believes it any more.
    pub expires: Duration,
    /// Since 1970; from then on there should be a new one: two thirds of its time are over.
    pub renew: Duration,
    /// For who accepts connections.
    pub server: Arc<ServerConfig>,
    /// The same where the other end may show something else in place of a certificate; one that it does show has to be good.
    pub lenient: Arc<ServerConfig>,
    /// For who makes them.
    pub client: Arc<ClientConfig>,
    signed: Signed,
}

/// Which of the three texts that credentials are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The chain of certificates, its own first.
    Certificate,
    /// The private key.
    Key,
    /// The certificates of those who may sign.
    Authorities,
}

/// Why a part is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCredentials {
    /// Which part.
    pub part: Part,
    /// What is wrong, in words.
    pub problem: String,
}

impl fmt::Display for BadCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Certificate => "the certificate",
            Part::Key => "the private key",
            Part::Authorities => "the authorities",
        };
        write!(f, "{part}: {}", self.problem)
    }
}

impl std::error::Error for BadCredentials {}

impl Credentials {
    /// From three texts of PEM. What others would refuse `now` (since 1970) is refused.
    ///
    /// # Errors
    /// [`BadCredentials`] with the part.
    pub fn from_pem(certificate: &[u8], key: &[u8], authorities: &[u8], now: Duration) -> Result<Self, BadCredentials> {
        let bad = |part, problem: String| BadCredentials { part, problem };
        let chain = certificates(certificate).map_err(|problem| bad(Part::Certificate, problem))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| bad(Part::Key, format!("{error}; a private key in PEM is needed")))?;
        let roots = roots(authorities).map_err(|problem| bad(Part::Authorities, problem))?;
        let named = read(&chain[0]).map_err(|problem| bad(Part::Certificate, problem))?;

        let roots = Arc::new(roots);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let signed = Signed { roots: Arc::clone(&roots), algorithms: provider.signature_verification_algorithms };
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let lenient = clients.clone().allow_unauthenticated().build();
        let built = clients.build().and_then(|clients| Ok((clients, lenient?)));
        let (clients, lenient) = built.map_err(|error| bad(Part::Authorities, error.to_string()))?;
        let at = UnixTime::since_unix_epoch(now);
        let as_server = signed.verify(&chain[0], &chain[1..], at);
        let as_client = clients.verify_client_cert(&chain[0], &chain[1..], at).map(drop);
        as_server.and(as_client).map_err(|error| bad(Part::Certificate, told(&error)))?;

        Self::configured(named, (chain, key), &provider, signed, [clients, lenient])
            .map_err(|error| bad(Part::Key, format!("it does not go with the certificate: {error}")))
    }

    fn configured(
        Named { identity, from, expires }: Named,
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        provider: &Arc<CryptoProvider>,
        signed: Signed,
        verifiers: [Arc<dyn ClientCertVerifier>; 2],
    ) -> Result<Self, rustls::Error> {
        let server = |clients| {
            let server = ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(&[&TLS13])?;
            let server = server.with_client_cert_verifier(clients);
            let mut server = server.with_single_cert(chain.clone(), key.clone_key())?;
            server.alpn_protocols = vec![b"h2".to_vec()];
            // A session that is resumed is one whose certificates are not looked at again.
            server.send_tls13_tickets = 0;
            Ok::<_, rustls::Error>(Arc::new(server))
        };
        let [clients, lenient] = verifiers;
        let (server, lenient) = (server(clients)?, server(lenient)?);
        let client = client(provider, signed.clone())?.with_client_auth_cert(chain, key)?;
        let renew = from + expires.saturating_sub(from) * 2 / 3;
        Ok(Self { identity, expires, renew, server, lenient, client: finished(client), signed })
    }

    /// Whether who has shown these certificates before would be believed `now` (since 1970), too.
    #[must_use]
    pub fn believes(&self, shown: &[CertificateDer<'_>], now: Duration) -> bool {
        let [certificate, intermediates @ ..] = shown else { return false };
        self.signed.verify(certificate, intermediates, UnixTime::since_unix_epoch(now)).is_ok()
    }
}

/// For who makes connections and shows no certificate on them: it believes whom one of `authorities` (in PEM) has signed.
///
/// # Errors
/// What is wrong with the authorities, in words.
pub fn without_certificate(authorities: &[u8]) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = Arc::new(roots(authorities)?);
    let signed = Signed { roots, algorithms: provider.signature_verification_algorithms };
    let client = client(&provider, signed).map_err(|error| told(&error))?;
    Ok(finished(client.with_no_client_auth()))
}

fn client(
    provider: &Arc<CryptoProvider>,
    signed: Signed,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let client = ClientConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(&[&TLS13])?;
    Ok(client.dangerous().with_custom_certificate_verifier(Arc::new(signed)))
}

fn finished(mut client: ClientConfig) -> Arc<ClientConfig> {
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.resumption = Resumption::disabled();
    // Nothing to say in clear: the certificate tells the name, and only to who may know it.
    client.enable_sni = false;
    Arc::new(client)
}

fn roots(authorities: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authorities)? {
        roots.add(authority).map_err(|error| told(&error))?;
    }
    Ok(roots)
}

/// Who is at the other end, from what it has shown; it has to be of the same cluster as `own`.
///
/// # Errors
/// Why it is not believed, in words.
pub fn peer(shown: Option<&[CertificateDer<'_>]>, own: &Identity) -> Result<Identity, String> {
    let identity = identity(shown)?;
    if !identity.is_of_cluster(own) {
        return Err(format!("{identity} is there, which is not of cluster `{}` of {}", own.cluster, own.domain));
    }
    Ok(identity)
}

/// The same for who has no identity: it knows the cluster's name, and leaves the realm to the authorities.
///
/// # Errors
/// As [`peer`].
pub fn peer_of(shown: Option<&[CertificateDer<'_>]>, cluster: &str) -> Result<Identity, String> {
    let identity = identity(shown)?;
    if identity.cluster != cluster {
        return Err(format!("{identity} is there, which is not of cluster `{cluster}`"));
    }
    Ok(identity)
}

fn identity(shown: Option<&[CertificateDer<'_>]>) -> Result<Identity, String> {
    let certificate = shown.and_then(<[_]>::first).ok_or("it shows no certificate")?;
    let Named { identity, .. } = read(certificate).map_err(|problem| format!("its certificate: {problem}"))?;
    Ok(identity)
}

/// When what the other end has shown expires, since 1970.
#[must_use]
pub fn expires(shown: Option<&[CertificateDer<'_>]>) -> Option<Duration> {
    read(shown?.first()?).ok().map(|named| named.expires)
}

/// What a client's certificate says, which any authority may have signed that is trusted for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its first URI, or else its first DNS name, or else its common name.
    pub name: String,
    /// When it expires, since 1970.
    pub expires: Duration,
}

/// What the first of the certificates says that a client has shown.
///
/// # Errors
/// Why it names nobody, in words.
pub fn shown(certificates: &[CertificateDer<'_>]) -> Result<Shown, String> {
    /// A name travels with each call.
    const LONGEST: usize = 1024;
    let certificate = certificates.first().ok_or("it shows no certificate")?;
    let (_, certificate) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let names = names(&certificate)?;
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = || {
        names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
    };
    // One that reads like a URI is none: who signs may look at URIs, and let common names pass.
    let common = || certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let common = || common().filter(|name| !name.contains([':', '/']));
    let name = uri.or_else(dns).or_else(common).filter(|name| !name.is_empty() && name.len() <= LONGEST);
    let name = name.ok_or("its certificate has no URI, DNS name or common name of 1 to 1024 bytes")?.to_owned();
    Ok(Shown { name, expires: since_1970(certificate.validity().not_after) })
}

/// What asks clients for a certificate that one of `authorities` (in PEM) has signed; those that have none are let in too,
/// unless it is `required`.
///
/// # Errors
/// What is wrong with the authorities, in words.
pub fn clients_verifier(
    authorities: &[u8],
    provider: Arc<CryptoProvider>,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider);
    let clients = if required { clients } else { clients.allow_unauthenticated() };
    clients.build().map_err(|error| error.to_string())
}

/// The alternative names of a certificate's subject.
fn names<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a [GeneralName<'a>], String> {
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    Ok(names.map(|extension| &extension.value.general_names[..]).unwrap_or_default())
}

fn since_1970(time: ASN1Time) -> Duration {
    Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
}

/// What a certificate says.
struct Named {
    identity: Identity,
    /// Both since 1970.
    from: Duration,
    expires: Duration,
}

fn read(certificate: &CertificateDer<'_>) -> Result<Named, String> {
    let (_, certificate) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let names = names(&certificate)?;
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    // X509-SVID.md, section 2: exactly one.
    let [uri] = uris.collect::<Vec<_>>()[..] else {
        return Err("it names no URI that says whom it is for, or more than one".to_owned());
    };
    let identity = uri.parse::<Identity>().map_err(|error| error.to_string())?;
    let validity = certificate.validity();
    Ok(Named { identity, from: since_1970(validity.not_before), expires: since_1970(validity.not_after) })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("there is no certificate in PEM".to_owned());
    }
    Ok(found)
}

/// An error of TLS, in words for who has to mend it.
#[must_use]
pub fn told(error: &rustls::Error) -> String {
    use CertificateError as Bad;
    let rustls::Error::InvalidCertificate(problem) = error else { return error.to_string() };
    match problem {
        Bad::Expired | Bad::ExpiredContext { .. } => "it has expired".to_owned(),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => "it is not valid yet; are the clocks right?".to_owned(),
        Bad::UnknownIssuer => "none of the authorities that are trusted has signed it".to_owned(),
        Bad::BadSignature => "its signature is not that of the authority it names".to_owned(),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            "it is not for both ends of a connection (extended key usage: serverAuth and clientAuth)".to_owned()
        }
        _ => problem.to_string(),
    }
}

/// The same of a handshake that failed, if that is the other end's doing or what it has shown.
#[must_use]
pub fn refused(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        bad @ rustls::Error::InvalidCertificate(_) => Some(format!("its certificate: {}", told(bad))),
        rustls::Error::AlertReceived(alert) => Some(format!("it refuses the certificate that was shown ({alert:?})")),
        rustls::Error::InvalidMessage(_) => Some("it does not speak TLS".to_owned()),
        rustls::Error::NoCertificatesPresented => Some("it shows no certificate".to_owned()),
        _ => None,
    }
}

/// Believes servers that an authority has signed, whatever their name.
#[derive(Debug, Clone)]
struct Signed {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Signed {
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for Signed {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(certificate, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
