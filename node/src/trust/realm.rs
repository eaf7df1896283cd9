//! An authority, and what nodes have of it: for tests.

use std::{fs, path::PathBuf, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;

use super::Trust;
use crate::{clock, config::Settings, id::NodeId};

pub(crate) struct Realm {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

impl Realm {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("{:x}", rand::random::<u64>()));
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Option<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        Some(path)
    }

    /// Gives a node a certificate that is good for so long, in place of one that it may have, and its key.
    pub(crate) fn issue(&self, node: &str, good_for: Duration) -> [Option<PathBuf>; 2] {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://example.org/outpost/shop/node/{node}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(clock::wall().0);
        params.not_after = (now + good_for).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        [self.write(&format!("{node}.pem"), &certificate), self.write(&format!("{node}.key"), &key.serialize_pem())]
    }

    /// What a node has that believes this realm.
    pub(crate) fn trust(&self, node: &str) -> Trust {
        self.trust_for(node, Duration::from_secs(86_400))
    }

    /// The same, with a certificate that is good for so long.
    pub(crate) fn trust_for(&self, node: &str, good_for: Duration) -> Trust {
        let mut settings = Settings::default();
        settings.node.name = NodeId::parse(node).unwrap();
        [settings.trust.certificate, settings.trust.key] = self.issue(node, good_for);
        settings.trust.authorities = self.write("ca.pem", &self.pem);
        Trust::load(&settings, "shop").unwrap()
    }
}

/// Puts in force what the files hold now.
pub(crate) fn follow(trust: &Trust) {
    let follows = trust.follows().unwrap();
    for _look in 0..2 {
        follows.follow();
    }
    assert_eq!(follows.fault(), None);
}
