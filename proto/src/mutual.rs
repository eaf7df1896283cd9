//! How the two ends of a connection of the cluster prove who they are: TLS 1.3, with a certificate on both sides that names
//! an [`Identity`].
//!
//! rustls looks at names of hosts, and an identity is in a URI. So its verifiers are asked whether an authority has signed
//! a certificate, for this use and this time, and has not revoked it; and [`peer`] reads the name once the handshake is over,
//! before anything else is said.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ClientCertVerifierBuilder, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    version::TLS13,
};
use webpki::{EndEntityCert, KeyUsage, RevocationOptionsBuilder, UnknownStatusPolicy};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, parse_x509_certificate, time::ASN1Time};

use crate::{identity::Identity, revocation::Lists};

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

/// Which of the texts that credentials are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The chain of certificates, its own first.
    Certificate,
    /// The private key.
    Key,
    /// The certificates of those who may sign.
    Authorities,
    /// The lists of what they have revoked.
    Revocations,
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
            Part::Revocations => "the lists of revoked certificates",
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
        Self::with_revocations([certificate, key, authorities], None, now)
    }

    /// The same, of certificate, key and authorities, with lists of what those have revoked (see [`Lists`]).
    ///
    /// # Errors
    /// [`BadCredentials`] with the part.
    pub fn with_revocations(
        [certificate, key, authorities]: [&[u8]; 3],
        revocations: Option<&[u8]>,
        now: Duration,
    ) -> Result<Self, BadCredentials> {
        let bad = |part, problem: String| BadCredentials { part, problem };
        let chain = certificates(certificate).map_err(|problem| bad(Part::Certificate, problem))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| bad(Part::Key, format!("{error}; a private key in PEM is needed")))?;
        let named = read(&chain[0]).map_err(|problem| bad(Part::Certificate, problem))?;
        let trusted = Trusted::from_pem(authorities, revocations)?;

        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = trusted.clients(Arc::clone(&provider));
        let lenient = clients.clone().allow_unauthenticated().build();
        let built = clients.build().and_then(|clients| Ok((clients, lenient?)));
        let (clients, lenient) = built.map_err(|error| bad(Part::Authorities, error.to_string()))?;
        let signed = Signed { trusted, algorithms: provider.signature_verification_algorithms };
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

    /// From when on there should be newer lists of revoked certificates, since 1970, where there are some.
    #[must_use]
    pub fn lists_due(&self) -> Option<Duration> {
        self.signed.trusted.lists.as_ref().map(|lists| lists.due)
    }

    #[cfg(test)]
    pub(crate) fn verifier(&self) -> &impl ServerCertVerifier {
        &self.signed
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
    let trusted = Trusted::from_pem(authorities, None).map_err(|bad| bad.problem)?;
    let signed = Signed { trusted, algorithms: provider.signature_verification_algorithms };
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

/// Those who may sign, and what they have revoked.
#[derive(Debug, Clone)]
struct Trusted {
    roots: Arc<RootCertStore>,
    lists: Option<Lists>,
}

impl Trusted {
    fn from_pem(authorities: &[u8], revocations: Option<&[u8]>) -> Result<Self, BadCredentials> {
        let bad = |part| move |problem| BadCredentials { part, problem };
        let authorities = certificates(authorities).map_err(bad(Part::Authorities))?;
        let lists = revocations.map(|lists| Lists::signed_by(&authorities, lists)).transpose();
        let lists = lists.map_err(bad(Part::Revocations))?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| bad(Part::Authorities)(told(&error)))?;
        }
        Ok(Self { roots: Arc::new(roots), lists })
    }

    /// What asks those who connect for a certificate.
    fn clients(&self, provider: Arc<CryptoProvider>) -> ClientCertVerifierBuilder {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider);
        match &self.lists {
            // All of a chain is looked up, and what is in no list passes: so it is in `Signed::verify`.
            Some(lists) => clients.with_crls(lists.der.clone()).allow_unknown_revocation_status(),
            None => clients,
        }
    }
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

/// What asks clients for a certificate that one of `authorities` (in PEM) has signed and not revoked; those that have none
/// are let in too, unless it is `required`.
#[derive(Debug, Clone)]
pub struct Clients {
    /// What a listener asks.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// As [`Credentials::lists_due`].
    pub lists_due: Option<Duration>,
}

impl Clients {
    /// From texts of PEM.
    ///
    /// # Errors
    /// [`BadCredentials`] with the part.
    pub fn from_pem(
        authorities: &[u8],
        revocations: Option<&[u8]>,
        provider: Arc<CryptoProvider>,
        required: bool,
    ) -> Result<Self, BadCredentials> {
        let trusted = Trusted::from_pem(authorities, revocations)?;
        let clients = trusted.clients(provider);
        let clients = if required { clients } else { clients.allow_unauthenticated() };
        let bad = |error: VerifierBuilderError| BadCredentials { part: Part::Authorities, problem: error.to_string() };
        Ok(Self { verifier: clients.build().map_err(bad)?, lists_due: trusted.lists.map(|lists| lists.due) })
    }

    /// As [`Credentials::believes`].
    #[must_use]
    pub fn believes(&self, shown: &[CertificateDer<'_>], now: Duration) -> bool {
        let [certificate, intermediates @ ..] = shown else { return false };
        self.verifier.verify_client_cert(certificate, intermediates, UnixTime::since_unix_epoch(now)).is_ok()
    }
}

/// The alternative names of a certificate's subject.
fn names<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a [GeneralName<'a>], String> {
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    Ok(names.map(|extension| &extension.value.general_names[..]).unwrap_or_default())
}

pub(crate) fn since_1970(time: ASN1Time) -> Duration {
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

pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
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
        Bad::Revoked => "it has been revoked".to_owned(),
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

/// Believes servers that an authority has signed and not revoked, whatever their name.
#[derive(Debug, Clone)]
struct Signed {
    trusted: Trusted,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Signed {
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let Trusted { roots, lists } = &self.trusted;
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        match lists {
            Some(lists) => self.look_up(lists, certificate, intermediates, now),
            None => Ok(()),
        }
    }

    /// Whether nothing of a chain has been revoked. rustls asks that of who connects, and has no way to ask it of a server
    /// whose name is not one of a host.
    fn look_up(
        &self,
        lists: &Lists,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let other = |error: webpki::Error| CertificateError::Other(OtherError(Arc::new(error)));
        let certificate = EndEntityCert::try_from(certificate).map_err(other)?;
        let lists: Vec<_> = lists.parsed.iter().collect();
        let revoked = RevocationOptionsBuilder::new(&lists).ok();
        let revoked = revoked.map(|revoked| revoked.with_status_policy(UnknownStatusPolicy::Allow).build());
        let (all, roots, usage) = (self.algorithms.all, &self.trusted.roots.roots, KeyUsage::server_auth());
        let looked = certificate.verify_for_usage(all, roots, intermediates, now, usage, revoked, None);
        looked.map(drop).map_err(|error| match error {
            webpki::Error::CertRevoked => CertificateError::Revoked.into(),
            error => other(error).into(),
        })
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
