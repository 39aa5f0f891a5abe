//! What certificates say.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use cairn_host::tls::files::{CA, CERTIFICATE, REVOKED};
use cairn_host::tls::peer::{Kind, Peer};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::is_authority;
use crate::output::{self, Table};

/// A certificate, as far as people want to know it.
pub struct Certificate {
    der: Vec<u8>,
    /// Its number.
    pub serial: Vec<u8>,
    subject: String,
    issuer: String,
    addresses: Vec<String>,
    until: ASN1Time,
    peer: Option<Peer>,
}

impl Certificate {
    /// Reads the first certificate of a file.
    pub fn read(path: &Path) -> Result<Certificate> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let der = CertificateDer::from_pem_slice(&text)
            .map_err(|error| anyhow!("{}: no certificate in PEM format: {error}", path.display()))?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| anyhow!("{}: not a certificate: {error}", path.display()))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        Ok(Certificate {
            serial: parsed.raw_serial().to_vec(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            addresses: names.iter().filter_map(address).collect(),
            until: parsed.validity().not_after,
            peer: Peer::of(&der),
            der: der.to_vec(),
        })
    }

    /// Whether the authority of this certificate signed it.
    pub fn is_of(&self, authority: &Path) -> Result<bool> {
        let authority = Certificate::read(authority)?;
        Ok(authority.subject == self.issuer)
    }

    /// Whole days until it is over; negative when it is.
    pub fn days_left(&self) -> i64 {
        (self.until.timestamp() - ASN1Time::now().timestamp()).div_euclid(86_400)
    }

    fn state(&self, revoked: &[Vec<u8>]) -> &'static str {
        if revoked.contains(&self.serial) {
            "revoked"
        } else if self.until < ASN1Time::now() {
            "expired"
        } else {
            "good"
        }
    }

    /// Whose it is.
    pub fn holder(&self) -> String {
        match &self.peer {
            Some(peer) => peer.to_string(),
            None => self.subject.clone(),
        }
    }

    fn rights(&self) -> String {
        match self.peer.as_ref().map(|peer| &peer.kind) {
            None => "authority".into(),
            Some(Kind::Node(roles)) => {
                let has = [("namenode", roles.namenode), ("datanode", roles.datanode)];
                let roles: Vec<&str> = has.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
                roles.join(", ")
            }
            Some(Kind::User(user)) => {
                let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
                let groups =
                    if groups.is_empty() { String::new() } else { format!(" groups {}", groups.join(",")) };
                let proxy = if user.proxy { ", acts for all" } else { "" };
                format!("uid {} gid {}{groups}{proxy}", user.uid, user.gid)
            }
        }
    }
}

fn address(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(bytes) => Some(std::net::Ipv4Addr::from(bytes).to_string()),
            Err(_) => {
                <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
            }
        },
        _ => None,
    }
}

/// Numbers of the certificates that a list takes back; none if there is no list.
pub fn revoked_serials(list: &Path) -> Result<Vec<Vec<u8>>> {
    let text = match fs::read(list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", list.display())),
    };
    let damaged = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", list.display());
    let der = CertificateRevocationListDer::from_pem_slice(&text).map_err(|error| damaged(&error))?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|error| damaged(&error))?;
    Ok(list.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect())
}

/// Prints what is in directories of certificates, and below those of an authority.
pub fn show(dirs: &[PathBuf], as_json: bool) -> Result<()> {
    let mut found = Vec::new();
    for dir in dirs {
        for file in files_of(dir)? {
            let beside = revoked_serials(&dir.join(REVOKED))?;
            let certificate = Certificate::read(&file)?;
            let state = certificate.state(&beside);
            found.push((file, certificate, state));
        }
    }
    if as_json {
        return output::print_json(&Value::from(found.iter().map(described).collect::<Vec<_>>()));
    }
    let mut table = Table::new(&["holder", "rights", "addresses", "state", ">days left", "file"]);
    for (file, certificate, state) in &found {
        table.row(vec![
            certificate.holder(),
            certificate.rights(),
            certificate.addresses.join(", "),
            (*state).into(),
            certificate.days_left().to_string(),
            file.display().to_string(),
        ]);
    }
    let mut out = output::stdout();
    write!(out, "{}", table.render(0))?;
    out.flush()?;
    Ok(())
}

fn described((file, certificate, state): &(PathBuf, Certificate, &str)) -> Value {
    let serial: String = certificate.serial.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = blake3::hash(&certificate.der).to_hex();
    json!({
        "file": file.to_string_lossy(), "holder": certificate.holder(), "rights": certificate.rights(), "state": state,
        "addresses": certificate.addresses, "not_after_unix": certificate.until.timestamp(),
        "days_left": certificate.days_left(), "serial": serial, "blake3": digest.as_str(),
    })
}

/// The files of certificates in a directory; of an authority, all that it gave and that are still there.
fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    if !is_authority(dir) {
        return Ok([CA, CERTIFICATE].map(|name| dir.join(name)).into());
    }
    let mut found = vec![dir.join(CA)];
    for kind in ["nodes", "users"] {
        let Ok(entries) = fs::read_dir(dir.join(kind)) else { continue };
        let files =
            entries.flatten().map(|entry| entry.path().join(CERTIFICATE)).filter(|path| path.exists());
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        found.append(&mut files);
    }
    Ok(found)
}
