//! Errors of the image library, in the form of all our errors: object, fact, next step.

use std::path::Path;

use sm_model::{Error, Kind};
use vhd::check::{Finding, Severity};

use crate::errors::Failure;

/// An error of the image library.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it on")]
pub(super) fn failure(error: vhd::Error) -> Failure {
    use vhd::Error as Vhd;
    let reason = error.reason();
    let file = |path: &Path| crate::shell::quote(&path.to_string_lossy());
    let (kind, hint) = match &error {
        Vhd::Io { path, source, .. } if is_link(source) => {
            let message = format!("{} is a symbolic link, which is not followed", path.display());
            return Error::unsupported(message).hint("name the file that it points to").into();
        }
        Vhd::Io { path, source, action } if !error.is_no_space() => {
            let message = format!("{}: {action} failed: {source}", path.display());
            let mut failed = Error::from(std::io::Error::from(source.kind()));
            failed.message = message;
            return failed.into();
        }
        Vhd::Format { path, .. } | Vhd::ParentLarger { child: path, .. } => {
            (Kind::Corrupt, Some(format!("smctl vhd check {} says all of it", file(path))))
        }
        Vhd::NeedsRepair { path, .. } => {
            (Kind::Corrupt, Some(format!("smctl vhd repair {}", file(path))))
        }
        Vhd::Busy { .. } => (Kind::InUse, Some("end what uses it, and try again".to_owned())),
        Vhd::TooLarge { .. } | Vhd::FileFull { .. } => (Kind::Limit, None),
        Vhd::Stopped { .. } => (Kind::Cancelled, None),
        Vhd::WrongType { .. } => (Kind::Unsupported, None),
        _ if error.is_no_space() => (Kind::NoSpace, None),
        _ if error.is_corrupt() => (Kind::Corrupt, None),
        _ => (Kind::Internal, None),
    };
    let message = match &error {
        Vhd::Busy { path, holder, .. } => {
            format!("{} is in use: {holder} locks it", path.display())
        }
        _ => reason,
    };
    let error = Error::new(kind, message);
    match hint {
        Some(hint) => error.hint(hint).into(),
        None => error.into(),
    }
}

fn is_link(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// The first finding that makes an image useless, as an error.
pub(super) fn damage(findings: &[Finding]) -> Option<Failure> {
    let finding = findings.iter().find(|finding| finding.severity == Severity::Error)?;
    let message = format!("{}: {}", finding.path.display(), finding.text);
    let hint = match finding.code {
        vhd::check::Code::ParentRaw => "name the raw file with --raw-parent FILE".to_owned(),
        vhd::check::Code::ParentMissing
        | vhd::check::Code::ParentOutside
        | vhd::check::Code::ParentAmbiguous => {
            "name the directory that holds the parents with --parents DIR".to_owned()
        }
        _ => {
            let file = crate::shell::quote(&finding.path.to_string_lossy());
            format!("smctl vhd check {file} says all of it")
        }
    };
    Some(Error::new(Kind::Corrupt, message).hint(hint).into())
}
