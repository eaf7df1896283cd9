//! An authority of a test: it signs whatever it is asked to.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use outpost_proto::{
    keyring::{self, GossipKey},
    mutual::{self, Credentials},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tonic::transport::{Channel, Endpoint};

use crate::wall_clock_us;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// See the module. Its files are deleted with it.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
    /// The numbers of certificates for URIs.
    issued: Mutex<Vec<(String, SerialNumber)>>,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What is in a certificate beside the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All is well.
    Good,
    /// All is well, for ten days.
    Lasting,
    /// It has ended yesterday.
    Expired,
    /// It begins tomorrow.
    Early,
    /// It is for one end of a connection only.
    OneSided,
    /// It ends in two seconds.
    Brief,
}

/// The URI of a node of the tests' cluster.
#[must_use]
pub fn node(name: &str) -> String {
    format!("spiffe://example.org/outpost/test/node/{name}")
}

/// The URI of an operator of the tests' cluster.
#[must_use]
pub fn operator(name: &str) -> String {
    format!("spiffe://example.org/outpost/test/operator/{name}")
}

impl Authority {
    /// Makes one.
    ///
    /// # Panics
    /// When there is no place for its files.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority {:x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let folder = tempfile::tempdir().expect("a folder");
        Self { pem, issuer: Issuer::new(params, key), folder, issued: Mutex::default() }
    }

    /// What who believes it is told.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate for a server on this machine.
    ///
    /// # Panics
    /// When there is no place for its files.
    #[must_use]
    pub fn server_files(&self) -> Files {
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let name = format!("{:x}", rand::random::<u64>());
        Files {
            certificate: self.write(&format!("{name}.pem"), &certificate.pem()),
            key: self.write(&format!("{name}.key"), &key.serialize_pem()),
        }
    }

    /// Signs a certificate for this URI.
    ///
    /// # Panics
    /// When the URI is none.
    #[must_use]
    pub fn issue(&self, uri: &str, kind: Kind) -> (String, String) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("a URI"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if kind != Kind::OneSided {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let number = SerialNumber::from(rand::random::<u64>());
        params.serial_number = Some(number.clone());
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).push((uri.to_owned(), number));
        let now = SystemTime::UNIX_EPOCH + wall();
        let (from, until) = match kind {
            Kind::Good | Kind::OneSided => (now - DAY, now + DAY),
            Kind::Lasting => (now - DAY, now + 10 * DAY),
            Kind::Expired => (now - 2 * DAY, now - DAY),
            Kind::Early => (now + DAY, now + 2 * DAY),
            Kind::Brief => (now - DAY, now + Duration::from_secs(2)),
        };
        (params.not_before, params.not_after) = (from.into(), until.into());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// The same, as files.
    ///
    /// # Panics
    /// When the URI is none, or there is no place for the files.
    #[must_use]
    pub fn issue_files(&self, uri: &str, kind: Kind) -> Files {
        let (certificate, key) = self.issue(uri, kind);
        let name = format!("{:x}", rand::random::<u64>());
        Files {
            certificate: self.write(&format!("{name}.pem"), &certificate),
            key: self.write(&format!("{name}.key"), &key),
        }
    }

    /// A list of what is revoked: all certificates that were issued for these URIs until now.
    ///
    /// # Panics
    /// Never: it may sign lists.
    #[must_use]
    pub fn revocations(&self, uris: &[String]) -> String {
        let now = SystemTime::UNIX_EPOCH + wall();
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let revoked = issued.iter().filter(|(uri, _)| uris.contains(uri)).map(|(_, number)| RevokedCertParams {
            serial_number: number.clone(),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + DAY).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).and_then(|list| list.pem()).expect("a list")
    }

    /// Writes a file, and gives its path.
    ///
    /// # Panics
    /// When there is no place for it.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        replace(&path, content);
        path
    }

    /// What an operator of the tests' cluster shows.
    ///
    /// # Panics
    /// When the URI is none.
    #[must_use]
    pub fn credentials(&self, uri: &str) -> Credentials {
        let (certificate, key) = self.issue(uri, Kind::Good);
        Credentials::from_pem(certificate.as_bytes(), key.as_bytes(), self.pem.as_bytes(), wall()).expect("good ones")
    }
}

/// Since 1970.
#[must_use]
pub fn wall() -> Duration {
    Duration::from_micros(u64::try_from(wall_clock_us()).unwrap_or_default())
}

/// Puts a file in the place of another, at one moment.
///
/// # Panics
/// When there is no place for it.
pub fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).and_then(|()| fs::rename(&new, path)).expect("a place for a file");
}

/// A key of gossip, all of whose bytes are the same.
#[must_use]
pub fn gossip_key(byte: u8) -> GossipKey {
    GossipKey::new([byte; 32])
}

/// A file of such keys.
#[must_use]
pub fn gossip_keys(bytes: &[u8]) -> String {
    keyring::render(&bytes.iter().copied().map(gossip_key).collect::<Vec<_>>())
}

/// A connection that shows these credentials, and believes whom they believe, made when it is used.
///
/// # Panics
/// Never: an address is a URI.
#[must_use]
pub fn connection(address: SocketAddr, credentials: &Credentials) -> Channel {
    by(address, &credentials.client)
}

/// A connection that shows nothing, and believes whom the authority has signed, made when it is used.
///
/// # Panics
/// Never: an address is a URI, and the authority is one.
#[must_use]
pub fn nameless(address: SocketAddr, authority: &Authority) -> Channel {
    by(address, &mutual::without_certificate(authority.pem().as_bytes()).expect("an authority"))
}

fn by(address: SocketAddr, client: &Arc<ClientConfig>) -> Channel {
    let client = Arc::clone(client);
    let connector = tower::service_fn(move |_| {
        let connector = TlsConnector::from(Arc::clone(&client));
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::IpAddress(address.ip().into());
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::try_from(format!("http://{address}")).expect("an address is a URI").connect_with_connector_lazy(connector)
}
