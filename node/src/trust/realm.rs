//! An authority, and what nodes have of it: for tests.

use std::{fs, path::PathBuf, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};
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

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// Gives a node a certificate that is good for so long, in place of one that it may have, and its key.
    pub(crate) fn issue(&self, node: &str, good_for: Duration) -> [Option<PathBuf>; 2] {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://example.org/outpost/shop/node/{node}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial(node));
        let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(clock::wall().0);
        params.not_after = (now + good_for).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        [self.write(&format!("{node}.pem"), &certificate), self.write(&format!("{node}.key"), &key.serialize_pem())]
    }

    /// Revokes what these nodes have, and nothing else, in the list that all nodes follow.
    pub(crate) fn revoke(&self, nodes: &[&str], good_for: Duration) {
        let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(clock::wall().0);
        let revoked = |node: &&str| RevokedCertParams {
            serial_number: serial(node),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (now - Duration::from_secs(60)).into(),
            next_update: (now + good_for).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: nodes.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.write("revocations.pem", &list.signed_by(&self.issuer).unwrap().pem().unwrap());
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
        settings.trust.revocations = Some(self.folder.path().join("revocations.pem")).filter(|lists| lists.exists());
        Trust::load(&settings, "shop").unwrap()
    }
}

/// The number of a node's certificate.
fn serial(node: &str) -> SerialNumber {
    SerialNumber::from_slice(&blake3::hash(node.as_bytes()).as_bytes()[..16])
}

/// Puts in force what the files hold now.
pub(crate) fn follow(trust: &Trust) {
    let follows = trust.follows().unwrap();
    for _look in 0..2 {
        follows.follow();
    }
    assert_eq!(follows.fault(), None);
}
