//! TLS configurations, from PEM files.

use std::{path::Path, sync::Arc, time::Duration};

use outpost_proto::mutual::{self, Clients, Credentials, Part};
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use super::{TrustError, files::File};
use crate::clock;

/// What clients that connect to a listener are shown.
pub(super) struct ForClients {
    pub(super) config: Arc<ServerConfig>,
    /// Those that are believed, where they are asked for a certificate.
    pub(super) clients: Option<Clients>,
    /// When the certificate expires, since 1970, where that can be told.
    pub(super) expires: Option<Duration>,
}

/// What clients that connect to a listener are shown: a certificate and its key. With a third file, they are asked for one
/// that somebody in it has signed, and `required` to have one; a fourth says which of those are revoked.
pub(super) fn for_clients(files: &[File], contents: &[Vec<u8>], required: bool) -> Result<ForClients, TrustError> {
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&contents[0]).collect();
    let chain = chain.map_err(|error| files[0].unusable(format!("{error}; a chain of certificates is needed")))?;
    if chain.is_empty() {
        return Err(files[0].unusable("there is no certificate in PEM".to_owned()));
    }
    let expires = mutual::shown(&chain).ok().map(|shown| shown.expires);
    let key = PrivateKeyDer::from_pem_slice(&contents[1])
        .map_err(|error| files[1].unusable(format!("{error}; a private key in PEM is needed")))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = contents.get(2).map(|authorities| {
        let revocations = contents.get(3).map(Vec::as_slice);
        Clients::from_pem(authorities, revocations, Arc::clone(&provider), required).map_err(|bad| {
            let file = if bad.part == Part::Revocations { &files[3] } else { &files[2] };
            file.unusable(bad.problem)
        })
    });
    let clients = clients.transpose()?;
    let asked = clients.as_ref().map(|clients| Arc::clone(&clients.verifier));
    let verifier = asked.unwrap_or_else(WebPkiClientVerifier::no_client_auth);
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.and_then(|config| config.with_client_cert_verifier(verifier).with_single_cert(chain, key));
    let mut config = config.map_err(|error| {
        let certificate = files[0].path.display();
        files[1].unusable(format!("it does not go with the certificate {certificate}: {error}"))
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if clients.is_some() {
        // A session that is resumed is one whose certificate is not looked at again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
    }
    Ok(ForClients { config: Arc::new(config), clients, expires })
}

/// What a node shows to others of its cluster: a certificate for it, its key, and those who may sign; perhaps what they have
/// revoked, too.
pub(super) fn for_node(
    files: &[File],
    contents: &[Vec<u8>],
    cluster: &str,
    node: &str,
) -> Result<Credentials, TrustError> {
    let now = Duration::from_millis(clock::wall().0);
    let [certificate, key, authorities] = [0, 1, 2].map(|part| contents[part].as_slice());
    let revocations = contents.get(3).map(Vec::as_slice);
    let credentials = Credentials::with_revocations([certificate, key, authorities], revocations, now);
    let credentials = credentials.map_err(|bad| {
        let file = match bad.part {
            Part::Certificate => &files[0],
            Part::Key => &files[1],
            Part::Authorities => &files[2],
            Part::Revocations => &files[3],
        };
        file.unusable(bad.problem)
    })?;
    let identity = &credentials.identity;
    if identity.cluster != cluster || identity.node() != Some(node) {
        return Err(files[0].unusable(format!(
            "it is for {identity}, and this is node `{node}` of cluster `{cluster}`; make one with `outpost ca issue`"
        )));
    }
    Ok(credentials)
}

/// Whether every user of the machine can read a file that is secret.
pub(super) fn is_open_to_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
