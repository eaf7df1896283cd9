use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::{
    client::danger::ServerCertVerifier as _,
    pki_types::{ServerName, UnixTime},
};

use super::*;
use crate::mutual::{BadCredentials, Clients, Credentials, Part};

/// 2026.
const NOW: Duration = Duration::from_secs(1_780_000_000);

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str, usages: &[KeyUsagePurpose]) -> Self {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        let key = KeyPair::generate().unwrap();
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn named(name: &str) -> Self {
        Self::new(name, &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign])
    }

    /// A certificate with this number, and its key.
    fn issue(&self, number: u64) -> [String; 2] {
        let mut params = params("a");
        let uri = format!("spiffe://example.org/outpost/shop/node/n{number}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(number));
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }

    /// An authority that this one has signed, with this number.
    fn below(&self, number: u64) -> Self {
        let mut params = params("below");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serial_number = Some(SerialNumber::from(number));
        let key = KeyPair::generate().unwrap();
        Self { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn list_until(&self, numbers: &[u64], year: i32) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn list(&self, numbers: &[u64]) -> String {
        self.list_until(numbers, 2100)
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn der(pem: &str) -> Vec<CertificateDer<'static>> {
    certificates(pem.as_bytes()).unwrap()
}

fn credentials(
    pair: &[String; 2],
    authorities: &str,
    lists: impl Into<Option<String>>,
) -> Result<Credentials, BadCredentials> {
    let lists = lists.into();
    let texts = [pair[0].as_bytes(), pair[1].as_bytes(), authorities.as_bytes()];
    Credentials::with_revocations(texts, lists.as_ref().map(String::as_bytes), NOW)
}

/// Whether somebody who has shown this is believed by who connects to it, and by who accepts it; both agree.
fn is_believed(by: &Credentials, authorities: &str, lists: &str, shown: &str) -> bool {
    let shown = der(shown);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = Clients::from_pem(authorities.as_bytes(), Some(lists.as_bytes()), provider, true).unwrap();
    let accepts = clients.believes(&shown, NOW);
    assert_eq!(by.believes(&shown, NOW), accepts);
    let at = UnixTime::since_unix_epoch(NOW);
    let name = ServerName::try_from("any.example").unwrap();
    assert_eq!(by.verifier().verify_server_cert(&shown[0], &shown[1..], &name, &[], at).is_ok(), accepts);
    accepts
}

#[test]
fn what_is_in_a_list_is_refused_on_both_ends_and_nothing_else() {
    let authority = Authority::named("one");
    let [first, second, third] = [1, 2, 300].map(|number| authority.issue(number));
    for (revoked, believed) in [(&[][..], [true, true]), (&[2][..], [false, true]), (&[300, 2][..], [false, false])] {
        let lists = authority.list(revoked);
        let own = credentials(&first, &authority.pem, lists.clone()).unwrap();
        let found = [&second, &third].map(|shown| is_believed(&own, &authority.pem, &lists, &shown[0]));
        assert_eq!(found, believed, "{revoked:?}");
    }
    let own = credentials(&second, &authority.pem, authority.list(&[2])).unwrap_err();
    assert_eq!((own.part, own.problem.as_str()), (Part::Certificate, "it has been revoked"));
}

#[test]
fn an_authority_without_a_list_has_revoked_nothing() {
    let (one, two) = (Authority::named("one"), Authority::named("two"));
    let both = format!("{}{}", one.pem, two.pem);
    let lists = one.list(&[7]);
    let own = credentials(&one.issue(1), &both, lists.clone()).unwrap();
    assert!(is_believed(&own, &both, &lists, &two.issue(7)[0]), "the number is that of another authority");
    let lists = lists + &two.list(&[7]);
    let own = credentials(&one.issue(1), &both, lists.clone()).unwrap();
    assert!(!is_believed(&own, &both, &lists, &two.issue(7)[0]));
    assert!(!is_believed(&own, &both, &lists, &one.issue(7)[0]));
}

/// Not only the last certificate of a chain is looked up.
#[test]
fn who_an_authority_in_between_has_signed_goes_with_it() {
    let root = Authority::named("one");
    let (below, other) = (root.below(8), root.below(9));
    let chain = |of: &Authority| of.issue(1)[0].clone() + &of.pem;
    let lists = root.list(&[8]);
    let own = credentials(&root.issue(1), &root.pem, lists.clone()).unwrap();
    assert!(!is_believed(&own, &root.pem, &lists, &chain(&below)));
    assert!(is_believed(&own, &root.pem, &lists, &chain(&other)));
}

#[test]
fn a_list_that_should_have_been_renewed_stays_in_force() {
    let authority = Authority::named("one");
    let lists = authority.list_until(&[2], 2026);
    let own = credentials(&authority.issue(1), &authority.pem, lists.clone()).unwrap();
    assert!(own.lists_due().unwrap() < NOW);
    assert!(!is_believed(&own, &authority.pem, &lists, &authority.issue(2)[0]));
    assert!(is_believed(&own, &authority.pem, &lists, &authority.issue(3)[0]));
    let none = credentials(&authority.issue(1), &authority.pem, None::<String>).unwrap();
    assert_eq!(none.lists_due(), None);
}

/// In force, they would make everybody of that authority be refused.
#[test]
fn lists_that_are_of_no_use_are_told() {
    let authority = Authority::named("one");
    let own = authority.issue(1);
    let (stranger, twin) = (Authority::named("two"), Authority::named("one"));
    let weak = Authority::new("weak", &[KeyUsagePurpose::KeyCertSign]);
    // Signed all the same, as by an authority that thinks otherwise.
    let of_weak = Authority { pem: String::new(), issuer: unrestricted(&weak) }.list(&[1]);
    let list = authority.list(&[2]);
    let changed = {
        let mut der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        armored(&der)
    };
    let cut = list[..list.len() / 2].to_owned();
    let both = |other: &str| format!("{}{other}", authority.pem);
    for (authorities, lists, part) in [
        (authority.pem.clone(), String::new(), "there is no list"),
        (authority.pem.clone(), "garbage".to_owned(), "there is no list"),
        (authority.pem.clone(), authority.pem.clone(), "there is no list"),
        (authority.pem.clone(), cut, "lists of revoked certificates in PEM are needed"),
        (authority.pem.clone(), armored(b"garbage"), "can't be used"),
        (authority.pem.clone(), armored(&[]), "can't be used"),
        (authority.pem.clone(), changed, "CN=one: its signature is not"),
        (authority.pem.clone(), stranger.list(&[2]), "CN=two: it is of none of the authorities"),
        (authority.pem.clone(), format!("{list}{}", stranger.list(&[])), "CN=two: it is of none of the authorities"),
        (authority.pem.clone(), twin.list(&[2]), "CN=one: its signature is not"),
        (authority.pem.clone(), list.clone() + &list, "two lists of CN=one"),
        (both(&twin.pem), list.clone(), "two authorities have this name"),
        (both(&weak.pem), of_weak, "cRLSign"),
    ] {
        let bad = credentials(&own, &authorities, lists).unwrap_err();
        assert_eq!(bad.part, Part::Revocations, "{bad}");
        assert!(bad.problem.contains(part), "{part} in {bad}");
    }
    // The same authority twice is one.
    credentials(&own, &both(&authority.pem), list).unwrap();
}

fn unrestricted(authority: &Authority) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&authority.issuer.key().serialize_pem()).unwrap();
    Issuer::new(params("weak"), key)
}

fn armored(der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", lines.join("\n"))
}
