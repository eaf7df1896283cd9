//! A small authority, for local clusters and for those who have none: `ca`.

mod revoke;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use outpost_proto::{
    identity::{Identity, Role},
    keyring::{self, GossipKey},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use revoke::Revocations;
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

use crate::{
    args::{CaInitArgs, CaIssueArgs, CaVerb},
    error::CliError,
    files,
    output::Output,
};

/// Clocks differ: a certificate is good from so long ago.
const BEFORE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why an authority is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadAuthority {
    #[error("{} exists; take another folder with --dir, or remove it: what it has signed is then believed no more", .0.display())]
    Exists(PathBuf),
    #[error("there is no authority in {}; make one with `outpost ca init --dir {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("{0}")]
    Name(String),
    #[error("can't make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

fn bad(path: &Path) -> impl Fn(io::Error) -> BadAuthority + '_ {
    |error| BadAuthority::File { path: path.to_owned(), problem: error.to_string() }
}

/// An authority in a folder.
#[derive(Debug)]
pub(crate) struct Authority {
    folder: PathBuf,
    domain: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The certificates of those who may sign.
    pub(crate) fn authorities(folder: &Path) -> PathBuf {
        folder.join("ca.pem")
    }

    /// The keys of gossip.
    pub(crate) fn gossip_keys(folder: &Path) -> PathBuf {
        folder.join("gossip.keys")
    }

    fn key(folder: &Path) -> PathBuf {
        folder.join("ca.key")
    }

    /// Makes one, and a key for gossip.
    pub(crate) fn init(folder: &Path, domain: &str, days: u32) -> Result<(), BadAuthority> {
        // Whether the domain can be one, the names that it gives tell.
        let name = format!("spiffe://{domain}/outpost/a/node/a");
        name.parse::<Identity>().map_err(|_| {
            BadAuthority::Name(format!(
                "`{domain}` can't be a trust domain: use lower-case letters, digits, dashes, dots and underscores"
            ))
        })?;
        files::folder(folder).map_err(bad(folder))?;
        let (certificate, key, gossip) = (Self::authorities(folder), Self::key(folder), Self::gossip_keys(folder));
        for path in [&certificate, &key, &gossip] {
            if path.exists() {
                return Err(BadAuthority::Exists(path.clone()));
            }
        }
        let mut params = CertificateParams::default();
        // Two authorities of one domain have names of their own, or one would be taken for the other.
        let number = rand::random::<u32>();
        params.distinguished_name = common_name(&format!("Outpost authority {number:08x} of {domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into()?)];
        good_for(&mut params, days);
        let signing = KeyPair::generate()?;
        let made = params.self_signed(&signing)?;
        let secret = GossipKey::new(rand::random());
        // The certificate last: it is what tells that there is an authority.
        create(&gossip, keyring::render(&[secret]).as_bytes())?;
        create(&key, signing.serialize_pem().as_bytes())?;
        create(&certificate, made.pem().as_bytes())
    }

    pub(crate) fn open(folder: &Path) -> Result<Self, BadAuthority> {
        let (certificate, key) = (Self::authorities(folder), Self::key(folder));
        if !certificate.exists() {
            return Err(BadAuthority::Missing(folder.to_owned()));
        }
        let pem = fs::read_to_string(&certificate).map_err(bad(&certificate))?;
        let domain = domain(&pem).map_err(|problem| BadAuthority::File { path: certificate.clone(), problem })?;
        let secret = fs::read_to_string(&key).map_err(bad(&key))?;
        let signing = KeyPair::from_pem(&secret)
            .map_err(|error| BadAuthority::File { path: key.clone(), problem: error.to_string() })?;
        let issuer = Issuer::from_ca_cert_pem(&pem, signing)
            .map_err(|error| BadAuthority::File { path: certificate, problem: error.to_string() })?;
        Ok(Self { folder: folder.to_owned(), domain, issuer })
    }

    /// Makes a certificate. The key stays, if there is one: then only one file changes, at one moment. Unless that key's
    /// certificates are revoked: all that are made for it have one number, which is made of it, so that a key that was stolen
    /// takes each of them with it when it is revoked.
    ///
    /// # Errors
    /// A name that can't be one, or a file.
    pub(crate) fn issue(&self, cluster: &str, role: Role, days: u32) -> Result<Issued, BadAuthority> {
        let name = match &role {
            Role::Node(name) | Role::Operator(name) => name.clone(),
        };
        let identity = Identity { domain: self.domain.clone(), cluster: cluster.to_owned(), role };
        let uri = identity.to_string();
        // What is read as something else is no name, nor is that of a file of the authority's own.
        let taken = ["ca", "revocations"].iter().any(|own| name.eq_ignore_ascii_case(own));
        if uri.parse() != Ok(identity) || taken {
            return Err(BadAuthority::Name(format!("{uri} can't be a certificate's name; choose another")));
        }
        let issued = Issued {
            certificate: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
            name: uri.clone(),
        };
        // A name that is somebody else's here: of another cluster, or a node's that is an operator's now.
        if let Ok(pem) = fs::read_to_string(&issued.certificate)
            && let Some(other) = uri_of(&pem).filter(|other| *other != issued.name)
        {
            let path = issued.certificate.display();
            return Err(BadAuthority::Name(format!(
                "{path} is {other}; take another name, or another folder with --dir"
            )));
        }
        let revoked = Revocations::read(&self.folder)?;
        let mut pair = match fs::read_to_string(&issued.key) {
            Ok(pem) => KeyPair::from_pem(&pem)
                .map_err(|error| BadAuthority::File { path: issued.key.clone(), problem: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = KeyPair::generate()?;
                create(&issued.key, pair.serialize_pem().as_bytes())?;
                pair
            }
            Err(error) => return Err(bad(&issued.key)(error)),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.use_authority_key_identifier_extension = true;
        good_for(&mut params, days);
        let mut made = params.signed_by(&pair, &self.issuer)?;
        let number = revoke::serial(&made.pem());
        let number = number.map_err(|problem| BadAuthority::File { path: issued.certificate.clone(), problem })?;
        if revoked.has(&number) {
            pair = KeyPair::generate()?;
            made = params.signed_by(&pair, &self.issuer)?;
            files::replace(&issued.key, pair.serialize_pem().as_bytes()).map_err(bad(&issued.key))?;
        }
        files::replace(&issued.certificate, made.pem().as_bytes()).map_err(bad(&issued.certificate))?;
        Ok(issued)
    }
}

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) name: String,
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn good_for(params: &mut CertificateParams, days: u32) {
    #[expect(clippy::disallowed_methods, reason = "certificates are of the wall clock's time")]
    let now = SystemTime::now();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + DAY * days).into();
}

/// The realm of an authority: the URI in its certificate (X509-SVID.md, section 3.2).
fn domain(pem: &str) -> Result<String, String> {
    let uri = uri_of(pem);
    let domain = uri.as_deref().and_then(|uri| uri.strip_prefix("spiffe://"));
    domain.map(str::to_owned).ok_or_else(|| "it names no trust domain; was it made by `outpost ca init`?".to_owned())
}

/// The first URI that a certificate names.
fn uri_of(pem: &str) -> Option<String> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok().flatten()?;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

/// A file that is new, and its owner's alone.
fn create(path: &Path, content: &[u8]) -> Result<(), BadAuthority> {
    files::create(path, content).map_err(bad(path))
}

pub(crate) async fn run(verb: &CaVerb, out: &mut Output) -> Result<(), CliError> {
    match verb {
        CaVerb::Init(CaInitArgs { dir, domain, days }) => {
            Authority::init(dir, domain, *days)?;
            let made = [Authority::authorities(dir), Authority::key(dir), Authority::gossip_keys(dir)];
            for (path, what) in made.iter().zip(["whom to trust", "who signs: keep it secret", "seals gossip: secret"])
            {
                out.print(&format!("{}  {what}", path.display())).await?;
            }
        }
        CaVerb::Issue(CaIssueArgs { nodes, operator, cluster, dir, days }) => {
            let authority = Authority::open(dir)?;
            let roles = nodes.iter().cloned().map(Role::Node).chain(operator.iter().cloned().map(Role::Operator));
            for role in roles {
                let issued = authority.issue(cluster, role, *days)?;
                let (certificate, key) = (issued.certificate.display(), issued.key.display());
                out.print(&format!("{certificate}  {key}  {}", issued.name)).await?;
            }
        }
        CaVerb::Revoke(args) => revoke::run(args, out).await?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use outpost_proto::mutual::{BadCredentials, Credentials};

    use super::*;

    fn now() -> Duration {
        #[expect(clippy::disallowed_methods, reason = "certificates are of the wall clock's time")]
        let now = SystemTime::now();
        now.duration_since(SystemTime::UNIX_EPOCH).unwrap()
    }

    fn read(issued: &Issued, folder: &Path, at: Duration) -> Result<Credentials, BadCredentials> {
        let [certificate, key, authorities] =
            [issued.certificate.clone(), issued.key.clone(), Authority::authorities(folder)]
                .map(|path| fs::read(path).unwrap());
        Credentials::from_pem(&certificate, &key, &authorities, at)
    }

    #[test]
    fn what_it_issues_is_believed_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("trust");
        Authority::init(&dir, "example.org", 2).unwrap();
        let authority = Authority::open(&dir).unwrap();
        let issued = authority.issue("shop", Role::Node("node-1".to_owned()), 1).unwrap();
        let credentials = read(&issued, &dir, now()).unwrap();
        assert_eq!(credentials.identity.to_string(), "spiffe://example.org/outpost/shop/node/node-1");
        assert!(credentials.expires > now() && credentials.renew < credentials.expires);
        let expired = read(&issued, &dir, now() + 2 * DAY).unwrap_err();
        assert!(expired.problem.contains("expired"), "{expired}");
        let keys = fs::read_to_string(Authority::gossip_keys(&dir)).unwrap();
        assert_eq!(keyring::parse(&keys).unwrap().len(), 1);
        for path in [issued.key, Authority::key(&dir), Authority::gossip_keys(&dir)] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
    }

    #[test]
    fn a_new_certificate_is_for_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        Authority::init(folder.path(), "example.org", 2).unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let role = || Role::Operator("alice".to_owned());
        let first = authority.issue("shop", role(), 1).unwrap();
        let before = [&first.certificate, &first.key].map(|path| fs::read(path).unwrap());
        let again = authority.issue("shop", role(), 1).unwrap();
        assert_ne!(fs::read(&again.certificate).unwrap(), before[0]);
        assert_eq!(fs::read(&again.key).unwrap(), before[1]);
        read(&again, folder.path(), now()).unwrap();
    }

    #[test]
    fn another_authority_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
        for dir in [&ours, &theirs] {
            Authority::init(dir, "example.org", 2).unwrap();
        }
        let issued = Authority::open(&theirs).unwrap().issue("shop", Role::Node("node-1".to_owned()), 1).unwrap();
        let stranger = read(&issued, &ours, now()).unwrap_err();
        assert!(stranger.problem.contains("none of the authorities"), "{stranger}");
    }

    #[test]
    fn a_list_grows_and_what_is_in_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        Authority::init(dir, "example.org", 2).unwrap();
        let authority = Authority::open(dir).unwrap();
        let [first, second, third] =
            ["node-1", "node-2", "node-3"].map(|name| authority.issue("shop", Role::Node(name.to_owned()), 1).unwrap());
        let read = |issued: &Issued| {
            let [certificate, key, authorities, lists] =
                [issued.certificate.clone(), issued.key.clone(), Authority::authorities(dir), Revocations::path(dir)]
                    .map(|path| fs::read(path).unwrap());
            Credentials::with_revocations([&certificate, &key, &authorities], Some(&lists), now())
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();

        // Before somebody has to be revoked, nodes can be told where the list is.
        let empty = authority.revoke(&[], 30).unwrap();
        assert_eq!((empty.number, empty.entries), (1, 0));
        for issued in [&first, &second, &third] {
            read(issued).unwrap();
        }
        authority.revoke(&names(&["node-1"]), 30).unwrap();
        // By its file, and what was in it stays.
        let file = second.certificate.display().to_string();
        let list = authority.revoke(&names(&[&file, "node-1"]), 60).unwrap();
        assert_eq!((list.number, list.entries), (3, 2));
        assert_eq!(list.named.iter().map(|named| named.before).collect::<Vec<_>>(), [false, true]);
        for issued in [&first, &second] {
            assert!(read(issued).unwrap_err().problem.contains("revoked"));
        }
        let due = read(&third).unwrap().lists_due().unwrap();
        assert!(due > now() + 59 * DAY && due < now() + 61 * DAY);

        // A certificate that is made again has another key; that of the old one is of no use any more.
        let before = fs::read(&first.key).unwrap();
        let again = authority.issue("shop", Role::Node("node-1".to_owned()), 1).unwrap();
        assert_ne!(fs::read(&again.key).unwrap(), before);
        read(&again).unwrap();
        fs::write(&again.key, &before).unwrap();
        fs::remove_file(&again.certificate).unwrap();
        read(&authority.issue("shop", Role::Node("node-1".to_owned()), 1).unwrap()).unwrap();
    }

    /// It was stolen, perhaps, before the certificate that is there was made.
    #[test]
    fn all_certificates_of_a_key_are_revoked_together() {
        let folder = tempfile::tempdir().unwrap();
        Authority::init(folder.path(), "example.org", 2).unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let [first, second] = [1, 2].map(|days| {
            let issued = authority.issue("shop", Role::Node("node-1".to_owned()), days).unwrap();
            fs::read_to_string(issued.certificate).unwrap()
        });
        assert_ne!(first, second);
        assert_eq!(revoke::serial(&first), revoke::serial(&second));
    }

    #[test]
    fn what_is_not_its_own_or_cannot_be_read_is_not_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
        for dir in [&ours, &theirs] {
            Authority::init(dir, "example.org", 2).unwrap();
        }
        let (own, other) = (Authority::open(&ours).unwrap(), Authority::open(&theirs).unwrap());
        own.issue("shop", Role::Node("node-1".to_owned()), 1).unwrap();
        let stranger = other.issue("shop", Role::Node("node-2".to_owned()), 1).unwrap();
        let garbage = ours.join("garbage.pem");
        fs::write(&garbage, "garbage").unwrap();
        for (name, part) in [
            (stranger.certificate.display().to_string(), "has not signed it"),
            ("node-2".to_owned(), "there is no certificate for `node-2`"),
            ("garbage".to_owned(), "no certificate in PEM"),
            ("ca".to_owned(), "the authority itself"),
        ] {
            // Nothing of what is named with it is half done.
            let error = own.revoke(&["node-1".to_owned(), name], 30).unwrap_err().to_string();
            assert!(error.contains(part), "{part} in {error}");
            assert!(!Revocations::path(&ours).exists());
        }
        other.revoke(&[], 30).unwrap();
        fs::copy(Revocations::path(&theirs), Revocations::path(&ours)).unwrap();
        let error = own.revoke(&["node-1".to_owned()], 30).unwrap_err().to_string();
        assert!(error.contains("revocations.pem") && error.contains("none of the authorities"), "{error}");
    }

    #[test]
    fn what_cannot_be_named_or_is_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Authority::open(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("outpost ca init"), "{missing}");
        assert!(matches!(Authority::init(folder.path(), "Example Org", 2), Err(BadAuthority::Name(_))));
        Authority::init(folder.path(), "example.org", 2).unwrap();
        assert!(matches!(Authority::init(folder.path(), "example.org", 2), Err(BadAuthority::Exists(_))));
        let authority = Authority::open(folder.path()).unwrap();
        for role in [
            Role::Node("Node 1".to_owned()),
            Role::Operator("../a".to_owned()),
            Role::Operator("ca".to_owned()),
            Role::Node("revocations".to_owned()),
        ] {
            assert!(matches!(authority.issue("shop", role, 1), Err(BadAuthority::Name(_))));
        }
        authority.issue("shop", Role::Node("a".to_owned()), 1).unwrap();
        let taken = authority.issue("bank", Role::Node("a".to_owned()), 1).unwrap_err().to_string();
        assert!(taken.contains("outpost/shop/node/a"), "{taken}");
        assert!(matches!(authority.issue("a/b", Role::Node("a".to_owned()), 1), Err(BadAuthority::Name(_))));
    }
}
