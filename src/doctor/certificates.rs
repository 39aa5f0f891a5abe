//! The certificates that a role or a client shows: whether they can be used, and for how long.

use std::path::Path;

use anyhow::Result;
use cairn_host::tls::Tls;
use cairn_host::tls::files::{CA, CERTIFICATE, REVOKED};
use cairn_ops::code::Code;

use super::finding::Findings;
use crate::ca::{Certificate, revoked_serials};

/// What is over sooner is told: long enough for a holiday.
const SOON_DAYS: i64 = 30;

/// The area of commands and mounts, whose user need not be the one who looks.
pub const CLIENT: &str = "client";

/// Looks at the directory that turns TLS on for `area`, if there is one.
pub fn judge(area: &'static str, dir: Option<&Path>, found: &mut Findings) {
    let Some(dir) = dir else { return };
    match look(dir) {
        Ok(seen) => judge_seen(area, &seen, found),
        // A service's user looks at a machine whose commands are root's, say.
        Err(error) if area == CLIENT && is_anothers(&error) => {
            found.fine(area, format!("{}: for another user, not looked at", dir.display()));
        }
        Err(error) => found.fail(area, Code::CertificateUnusable, format!("{error:#}")),
    }
}

/// Whether a certificate is for another user than the one who looks.
pub fn is_for_another(dir: &Path) -> bool {
    look(dir).is_err_and(|error| is_anothers(&error))
}

fn is_anothers(error: &anyhow::Error) -> bool {
    let causes = || error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes().any(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
}

/// A certificate, as far as it matters here.
struct Seen {
    what: String,
    days_left: i64,
    revoked: bool,
}

/// The own certificate and the authority's; an error if they cannot be used.
fn look(dir: &Path) -> Result<Vec<Seen>> {
    let revoked = revoked_serials(&dir.join(REVOKED))?;
    let mut seen = Vec::new();
    for name in [CERTIFICATE, CA] {
        let path = dir.join(name);
        let certificate = Certificate::read(&path)?;
        seen.push(Seen {
            what: format!("{} ({})", path.display(), certificate.holder()),
            days_left: certificate.days_left(),
            revoked: revoked.contains(&certificate.serial),
        });
    }
    if seen.iter().all(|one| one.days_left >= 0 && !one.revoked) {
        // The key, and that all three belong together.
        Tls::load(dir)?;
    }
    Ok(seen)
}

fn judge_seen(area: &'static str, seen: &[Seen], found: &mut Findings) {
    for Seen { what, days_left, revoked } in seen {
        if *revoked {
            found.fail(area, Code::CertificateUnusable, format!("{what} was revoked"));
        } else if *days_left < 0 {
            found.fail(area, Code::CertificateUnusable, format!("{what} is over"));
        } else if *days_left < SOON_DAYS {
            found.warn(area, Code::CertificateEnds, format!("{what}: {days_left} days left"));
        } else {
            found.fine(area, format!("{what}: {days_left} days left"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    #[test]
    fn what_is_over_soon_is_told_and_what_is_over_fails() {
        let seen = [(400, false), (29, false), (-1, false), (400, true)].map(|(days_left, revoked)| Seen {
            what: "a".into(),
            days_left,
            revoked,
        });
        let mut found = Findings::default();
        judge_seen("client", &seen, &mut found);
        let unusable = (Level::Failure, Code::CertificateUnusable);
        assert_eq!(found.codes(), [(Level::Warning, Code::CertificateEnds), unusable, unusable]);
        let mut found = Findings::default();
        judge("client", Some(Path::new("/nowhere")), &mut found);
        assert_eq!(found.codes(), [unusable]);
        judge("client", None, &mut found);
        assert_eq!(found.codes().len(), 1);
    }

    #[test]
    fn what_another_user_alone_may_read_is_known_as_such() {
        let refused = |kind| anyhow::Error::from(std::io::Error::from(kind)).context("cannot read cert.pem");
        assert!(is_anothers(&refused(std::io::ErrorKind::PermissionDenied)));
        assert!(!is_anothers(&refused(std::io::ErrorKind::NotFound)));
    }
}
