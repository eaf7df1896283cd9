//! Certificates of a listener.

use std::{path::PathBuf, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    },
};

use crate::config::TlsSettings;

/// Why a certificate or key can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read, or holds no PEM of the kind asked for.
    #[error("{}: {error}; `{key}` names a PEM file with {expected}", path.display())]
    File {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is expected in it.
        expected: &'static str,
        /// What is wrong.
        error: pem::Error,
    },
    /// Certificate and key do not fit.
    #[error("the certificate {} and the key {} can't be used together: {error}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

/// Reads the files.
pub(crate) fn acceptor(settings: &TlsSettings) -> Result<TlsAcceptor, TlsError> {
    let certificates_fault = |error| TlsError::File {
        key: "ingress.tls.certificate",
        path: settings.certificate.clone(),
        expected: "a chain of certificates",
        error,
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&settings.certificate).and_then(Iterator::collect).map_err(certificates_fault)?;
    if chain.is_empty() {
        return Err(certificates_fault(pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(&settings.key).map_err(|error| TlsError::File {
        key: "ingress.tls.key",
        path: settings.key.clone(),
        expected: "a private key",
        error,
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| TlsError::Pair {
        certificate: settings.certificate.clone(),
        key: settings.key.clone(),
        error,
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
