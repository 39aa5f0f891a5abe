//! Making certificates.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use cairn_host::tls::files::{CA, CERTIFICATE, KEY, REVOKED};
use cairn_host::tls::peer::{Kind, Peer};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::files::{PUBLIC, SECRET, check_free, make_dir, write};
use super::show;

/// The authority's key.
pub const CA_KEY: &str = "ca.key";
/// Clocks differ: a new certificate is good for those that are behind, too.
const SLACK: Duration = Duration::hours(1);

/// Whoever gives certificates.
pub struct Authority {
    dir: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that is wanted.
pub struct Order<'a> {
    /// For whom.
    pub peer: Peer,
    /// Names and addresses of its machine.
    pub addresses: &'a [String],
    /// For how long.
    pub days: u32,
}

impl Authority {
    /// Makes a new one in `dir`.
    pub fn create(dir: &Path, name: &str, days: u32, force: bool) -> Result<Authority> {
        make_dir(dir)?;
        check_free(dir, &[CA_KEY, CA], force)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let serial = serial();
        // Two authorities of one name must not be mistaken for each other.
        params.distinguished_name = named(&format!("{name} authority {}", &serial.to_string()[..11]));
        params.serial_number = Some(serial);
        (params.not_before, params.not_after) = term(days);
        let certificate = params.self_signed(&key)?;
        if force {
            // It is of the authority that goes.
            let _ = fs::remove_file(dir.join(REVOKED));
        }
        write(&dir.join(CA_KEY), SECRET, &key.serialize_pem())?;
        write(&dir.join(CA), PUBLIC, &certificate.pem())?;
        Authority::open(dir)
    }

    /// The one that is in `dir`.
    pub fn open(dir: &Path) -> Result<Authority> {
        let read = |name: &str| {
            fs::read_to_string(dir.join(name)).with_context(|| {
                let dir = dir.display();
                format!("there is no authority in {dir}; name its directory with --ca, or make one: cairn ca init DIR")
            })
        };
        let (key, certificate) = (read(CA_KEY)?, read(CA)?);
        let damaged = |name: &str, error: rcgen::Error| anyhow!("{}: {error}", dir.join(name).display());
        let key = KeyPair::from_pem(&key).map_err(|error| damaged(CA_KEY, error))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| damaged(CA, error))?;
        Ok(Authority { dir: dir.to_owned(), certificate, issuer })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a key and a certificate, and puts them into `out` with the authority's own certificate.
    pub fn issue(&self, order: &Order<'_>, out: &Path, force: bool) -> Result<()> {
        make_dir(out)?;
        check_free(out, &[KEY, CERTIFICATE], force)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(order.addresses).context("an address is not one")?;
        let uri = order.peer.uri();
        params.subject_alt_names.push(SanType::URI(uri.try_into().context("the name does not fit")?));
        params.distinguished_name = named(&order.peer.to_string());
        params.serial_number = Some(serial());
        (params.not_before, params.not_after) = term(order.days);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // Nobody can take a user's for a server's, whatever else is checked.
        if matches!(order.peer.kind, Kind::Node(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&out.join(KEY), SECRET, &key.serialize_pem())?;
        write(&out.join(CA), PUBLIC, &self.certificate)?;
        if let Ok(list) = fs::read_to_string(self.dir.join(REVOKED)) {
            write(&out.join(REVOKED), PUBLIC, &list)?;
        }
        // Last: a directory without it is refused as unfinished.
        write(&out.join(CERTIFICATE), PUBLIC, &certificate.pem())
    }

    /// Takes certificates back; returns the list of all that were.
    pub fn revoke(&self, paths: &[PathBuf]) -> Result<PathBuf> {
        let list = self.dir.join(REVOKED);
        let mut revoked = show::revoked_serials(&list)?;
        for path in paths {
            let file = if path.is_dir() { path.join(CERTIFICATE) } else { path.clone() };
            let found = show::Certificate::read(&file)?;
            if !found.is_of(&self.dir.join(CA))? {
                bail!("{} is not of this authority", file.display());
            }
            if !revoked.contains(&found.serial) {
                revoked.push(found.serial);
            }
        }
        let now = OffsetDateTime::now_utc();
        let entry = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - SLACK,
            next_update: now + Duration::days(36_500),
            crl_number: SerialNumber::from(now.unix_timestamp().max(0) as u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        write(&list, PUBLIC, &params.signed_by(&self.issuer)?.pem()?)?;
        Ok(list)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::OrganizationName, "CairnFS");
    full.push(DnType::CommonName, name);
    full
}

/// A number that no other certificate has, positive as DER sees it.
fn serial() -> SerialNumber {
    let mut bytes = *uuid::Uuid::new_v4().as_bytes();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn term(days: u32) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - SLACK, now + Duration::days(days.into()))
}
