//! The list of what an authority has revoked: `ca revoke`.
//!
//! It is beside the authority, and goes to every node as `trust.revocations`. What is in it stays there: a certificate is
//! listed by its number, and all that were made for one key have the same one (see [`Authority::issue`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use data_encoding::HEXLOWER;
use outpost_proto::{
    identity,
    revocation::{self, Lists},
};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};
use serde_json::{Value, json};
use x509_parser::{pem::Pem, x509::ReasonCode};

use super::{Authority, BadAuthority, DAY, bad, uri_of};
use crate::{
    args::{CaRevokeArgs, DataOutput},
    error::CliError,
    files,
    output::Output,
};

/// A list as it is on the disk, or nothing where there is none.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    number: u64,
    entries: Vec<RevokedCertParams>,
}

impl Revocations {
    pub(super) fn path(folder: &Path) -> PathBuf {
        folder.join("revocations.pem")
    }

    /// Reads the list of an authority, which has to have signed it: what somebody else has written is not carried on.
    pub(super) fn read(folder: &Path) -> Result<Self, BadAuthority> {
        let (path, authority) = (Self::path(folder), Authority::authorities(folder));
        let list = match fs::read(&path) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(bad(&path)(error)),
        };
        let authority = fs::read(&authority).map_err(bad(&authority))?;
        let read = Lists::from_pem(&list, &authority).and_then(|_| Self::parse(&list));
        read.map_err(|problem| BadAuthority::File { path, problem })
    }

    fn parse(list: &[u8]) -> Result<Self, String> {
        let blocks: Vec<Pem> =
            Pem::iter_from_buffer(list).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let [block] = &blocks[..] else {
            return Err("there is something else than one list in it, which would be lost".to_owned());
        };
        let (_, list) = x509_parser::parse_x509_crl(&block.contents).map_err(|error| error.to_string())?;
        let number = list.crl_number().map_or(Ok(0), u64::try_from);
        let number = number.map_err(|_| "its number is too large to be followed by another".to_owned())?;
        let entries = list.iter_revoked_certificates().map(|entry| RevokedCertParams {
            serial_number: entry.serial().to_bytes_be().into(),
            revocation_time: entry.revocation_date.to_datetime(),
            reason_code: entry.reason_code().and_then(|(_, reason)| known(reason)),
            invalidity_date: entry.invalidity_date().map(|(_, date)| date.to_datetime()),
        });
        Ok(Self { number, entries: entries.collect() })
    }

    /// Whether it has a number in it, which is written without zeros before it.
    pub(super) fn has(&self, serial: &[u8]) -> bool {
        self.entries.iter().any(|entry| entry.serial_number.as_ref() == serial)
    }
}

fn known(reason: ReasonCode) -> Option<RevocationReason> {
    Some(match reason {
        ReasonCode::KeyCompromise => RevocationReason::KeyCompromise,
        ReasonCode::CACompromise => RevocationReason::CaCompromise,
        ReasonCode::AffiliationChanged => RevocationReason::AffiliationChanged,
        ReasonCode::Superseded => RevocationReason::Superseded,
        ReasonCode::CessationOfOperation => RevocationReason::CessationOfOperation,
        ReasonCode::CertificateHold => RevocationReason::CertificateHold,
        ReasonCode::PrivilegeWithdrawn => RevocationReason::PrivilegeWithdrawn,
        ReasonCode::AACompromise => RevocationReason::AaCompromise,
        _ => return None,
    })
}

/// A certificate that is to be revoked.
#[derive(Debug)]
pub(super) struct Named {
    file: PathBuf,
    /// What it is for, where it says so as ours do.
    name: Option<String>,
    serial: Vec<u8>,
    /// Whether it was in the list before.
    pub(super) before: bool,
}

/// A list that was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) number: u64,
    pub(super) entries: usize,
    next_update: SystemTime,
    pub(super) named: Vec<Named>,
}

impl Authority {
    /// Revokes certificates that this authority has signed, by the names that it has issued them for, or by their files. The
    /// list is written once, with all of them, or not at all.
    ///
    /// # Errors
    /// A certificate that is not this authority's, or a file.
    pub(super) fn revoke(&self, names: &[String], days: u32) -> Result<Written, BadAuthority> {
        let mut list = Revocations::read(&self.folder)?;
        #[expect(clippy::disallowed_methods, reason = "lists are of the wall clock's time")]
        let now = SystemTime::now();
        let mut named = Vec::new();
        for name in names {
            let (file, certificate, serial) = self.own(name)?;
            let before = list.has(&serial);
            if !before {
                list.entries.push(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&serial),
                    revocation_time: now.into(),
                    reason_code: None,
                    invalidity_date: None,
                });
            }
            named.push(Named { file, name: uri_of(&certificate), serial, before });
        }
        let path = Revocations::path(&self.folder);
        let number = list.number.checked_add(1).ok_or_else(|| BadAuthority::File {
            path: path.clone(),
            problem: "its number is too large to be followed by another".to_owned(),
        })?;
        let entries = list.entries.len();
        let next_update = now + DAY * days;
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: list.entries,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer)?.pem()?;
        files::replace(&path, list.as_bytes()).map_err(bad(&path))?;
        Ok(Written { number, entries, next_update, named })
    }

    /// The file, text and number of a certificate that this authority has signed.
    fn own(&self, name: &str) -> Result<(PathBuf, String, Vec<u8>), BadAuthority> {
        let here = self.folder.join(format!("{name}.pem"));
        let path = match identity::is_segment(name) && here.exists() {
            true => here,
            false => PathBuf::from(name),
        };
        if !path.exists() {
            let folder = self.folder.display();
            return Err(BadAuthority::Name(format!(
                "there is no certificate for `{name}` in {folder}, and no file of this name"
            )));
        }
        let file = |problem: &str| BadAuthority::File { path: path.clone(), problem: problem.to_owned() };
        let certificate = fs::read_to_string(&path).map_err(bad(&path))?;
        let authority = Self::authorities(&self.folder);
        let authority = fs::read_to_string(&authority).map_err(bad(&authority))?;
        let signed = revocation::has_signed(authority.as_bytes(), certificate.as_bytes());
        if !signed.map_err(|problem| file(&problem))? {
            let folder = self.folder.display();
            return Err(file(&format!("the authority in {folder} has not signed it, so it can't revoke it")));
        }
        let serial = serial(&certificate).map_err(|problem| file(&problem))?;
        if serial == self::serial(&authority).map_err(|problem| file(&problem))? {
            return Err(file("it is the authority itself; take it out of `trust.authorities`, on every node"));
        }
        Ok((path, certificate, serial))
    }
}

/// The number of a certificate, without zeros before it.
pub(super) fn serial(pem: &str) -> Result<Vec<u8>, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    Ok(certificate.serial.to_bytes_be())
}

pub(super) async fn run(args: &CaRevokeArgs, out: &mut Output) -> Result<(), CliError> {
    let CaRevokeArgs { names, dir, days, output } = args;
    let written = Authority::open(dir)?.revoke(names, *days)?;
    let (path, until) = (Revocations::path(dir), humantime::format_rfc3339_seconds(written.next_update).to_string());
    if *output == DataOutput::Json {
        let revoked = written.named.iter().map(|Named { file, name, serial, before }| {
            json!({ "file": file, "name": name, "serial": HEXLOWER.encode(serial), "was_revoked": before })
        });
        let (number, entries) = (written.number, written.entries);
        let revoked: Vec<Value> = revoked.collect();
        let list =
            json!({ "list": path, "number": number, "entries": entries, "next_update": until, "revoked": revoked });
        return out.print_json(&list).await;
    }
    for Named { file, name, before, .. } in &written.named {
        let name = name.as_deref().unwrap_or_default();
        let what = if *before { "was revoked before" } else { "revoked" };
        out.print(&format!("{}  {name}  {what}", file.display())).await?;
    }
    let Written { number, entries, .. } = written;
    out.print(&format!("{}  number {number}, {entries} revoked, to be renewed by {until}", path.display())).await
}
