//! Lists of revoked certificates (RFC 5280, section 5): which of those that an authority has signed are good no more.
//!
//! What is in a list is asked with each certificate, of whoever shows it and of the authorities in its chain. An authority
//! without a list has revoked nothing, and a list that should have been renewed stays in force: see docs/security.md.
//!
//! A list that rustls could not check would make it refuse everybody of that authority, so all that it looks at is looked at
//! here before the list is put in force.

use std::{sync::Arc, time::Duration};

use rustls::{
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, SubjectPublicKeyInfoDer, pem::PemObject as _},
};
use webpki::{CertRevocationList, OwnedCertRevocationList, RawPublicKeyEntity};
use x509_parser::{
    asn1_rs::{Any, BitString, FromDer as _, ParseResult},
    certificate::X509Certificate,
    parse_x509_certificate, parse_x509_crl,
    revocation_list::CertificateRevocationList,
};

use crate::mutual::{certificates, since_1970};

/// Lists that can be put in force, one for each authority that has one.
#[derive(Debug, Clone)]
pub struct Lists {
    pub(crate) der: Vec<CertificateRevocationListDer<'static>>,
    pub(crate) parsed: Arc<[CertRevocationList<'static>]>,
    /// Since 1970; from then on, there should be a newer one of some list.
    pub due: Duration,
}

impl Lists {
    /// Reads them, each of which one of `authorities` has to have signed; both are in PEM.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn from_pem(lists: &[u8], authorities: &[u8]) -> Result<Self, String> {
        Self::signed_by(&certificates(authorities)?, lists)
    }

    pub(crate) fn signed_by(authorities: &[CertificateDer<'_>], pem: &[u8]) -> Result<Self, String> {
        let der = CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let der = der.map_err(|error| format!("{error}; lists of revoked certificates in PEM are needed"))?;
        if der.is_empty() {
            return Err("there is no list of revoked certificates in PEM (`X509 CRL`)".to_owned());
        }
        // One that can't be read has signed none of them.
        let authorities: Vec<_> = authorities.iter().filter_map(|der| parse_x509_certificate(der).ok()).collect();
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let mut parsed: Vec<CertRevocationList<'static>> = Vec::new();
        let mut due = Duration::MAX;
        for list in &der {
            let usable = OwnedCertRevocationList::from_der(list);
            let usable = CertRevocationList::from(usable.map_err(|error| format!("a list can't be used: {error}"))?);
            let (_, read) = parse_x509_crl(list).map_err(|error| format!("a list can't be read: {error}"))?;
            let issuer = read.issuer();
            if parsed.iter().any(|other| other.issuer() == usable.issuer()) {
                return Err(format!("there are two lists of {issuer}; one for each authority, the newer, is needed"));
            }
            let authorities = authorities.iter().map(|(_, authority)| authority);
            let signer = signer(&read, authorities).map_err(|problem| format!("the list of {issuer}: {problem}"))?;
            if !is_signed(list, signer, &algorithms) {
                return Err(format!("the list of {issuer}: its signature is not that of the authority it names"));
            }
            due = due.min(read.next_update().map_or(Duration::MAX, since_1970));
            parsed.push(usable);
        }
        Ok(Self { der, parsed: parsed.into(), due })
    }
}

/// Whether an authority has signed a certificate, whatever that is for and however old; both are in PEM.
///
/// # Errors
/// That one of them is no certificate.
pub fn has_signed(authority: &[u8], certificate: &[u8]) -> Result<bool, String> {
    let (authority, certificate) = (certificates(authority)?.swap_remove(0), certificates(certificate)?.swap_remove(0));
    let read = |der| parse_x509_certificate(der).map(|(_, read)| read).map_err(|error| error.to_string());
    let (signer, signed) = (read(&authority)?, read(&certificate)?);
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    Ok(signed.issuer().as_raw() == signer.subject().as_raw() && is_signed(&certificate, &signer, &algorithms))
}

/// The authority that a list names.
fn signer<'a, 'b: 'a>(
    list: &CertificateRevocationList<'_>,
    authorities: impl Iterator<Item = &'a X509Certificate<'b>>,
) -> Result<&'a X509Certificate<'b>, String> {
    let mut named = authorities.filter(|authority| authority.subject().as_raw() == list.issuer().as_raw());
    let signer = named.next().ok_or("it is of none of the authorities that are trusted")?;
    // What one of them has signed would be compared with the other's list, and refused.
    if named.any(|other| other.public_key().raw != signer.public_key().raw) {
        return Err("two authorities have this name and different keys, so it can't be told whose it is".to_owned());
    }
    let usage = signer.key_usage().map_err(|error| error.to_string())?;
    match usage.is_none_or(|usage| usage.value.crl_sign()) {
        true => Ok(signer),
        false => Err("the authority's certificate is not for signing lists (key usage: cRLSign)".to_owned()),
    }
}

/// Whether a list, or a certificate, has an authority's signature, looked at as it is later with each certificate.
fn is_signed(der: &[u8], signer: &X509Certificate<'_>, algorithms: &WebPkiSupportedAlgorithms) -> bool {
    let check = || {
        // RFC 5280, sections 4.1 and 5.1: what is signed, how it is signed, and the signature.
        let (_, whole) = element(der)?;
        let (rest, _) = element(whole.data)?;
        let signed = &whole.data[..whole.data.len() - rest.len()];
        let (rest, algorithm) = element(rest)?;
        let (_, signature) = element(rest)?;
        let signature = BitString::try_from(signature).ok()?;
        let key = SubjectPublicKeyInfoDer::from(signer.public_key().raw);
        let key = RawPublicKeyEntity::try_from(&key).ok()?;
        let mut fitting = algorithms.all.iter().filter(|one| one.signature_alg_id().as_ref() == algorithm.data);
        Some(fitting.any(|one| key.verify_signature(*one, signed, signature.data.as_ref()).is_ok()))
    };
    check().unwrap_or_default()
}

/// The first element of a text in DER, after what follows it.
fn element(der: &[u8]) -> Option<(&[u8], Any<'_>)> {
    let read: ParseResult<'_, Any<'_>> = Any::from_der(der);
    read.ok()
}

#[cfg(test)]
mod tests;
