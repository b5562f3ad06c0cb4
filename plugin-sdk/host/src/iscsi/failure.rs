//! Why `iscsiadm` failed, by its exit status.

use plugin_sdk::Error;
use plugin_sdk::model::Kind;

/// A reason, by the numbers of open-iscsi's `iscsi_err.h`, which iscsiadm(8) lists as exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 2, 32: there is no such session.
    NoSession,
    /// 4: nobody there, or the connection was closed.
    Transport,
    /// 5, 19: the target refused the login for another reason than the password.
    Login,
    /// 8: it took too long. A target that does not know the name that was asked for closes the
    /// connection, so that it ends like this, too.
    Timeout,
    /// 11: an answer took too long.
    PduTimeout,
    /// 13: not root.
    Access,
    /// 15: there is a session already.
    Exists,
    /// 20: `iscsid` does not run.
    Daemon,
    /// 21: no record, no session, no target.
    NoRecords,
    /// 24: name or password are not right, or there should be some.
    Auth,
    /// 28: somebody uses a disk of the session.
    Busy,
    /// Another number.
    Other(i32),
}

impl Failure {
    /// By the exit status.
    pub fn of(status: i32) -> Self {
        match status {
            2 | 32 => Self::NoSession,
            4 => Self::Transport,
            5 | 19 => Self::Login,
            8 => Self::Timeout,
            11 => Self::PduTimeout,
            13 => Self::Access,
            15 => Self::Exists,
            20 => Self::Daemon,
            21 => Self::NoRecords,
            24 => Self::Auth,
            28 => Self::Busy,
            other => Self::Other(other),
        }
    }

    /// As an error about a target or portal; `legacy` is SMAPI's number for what was done.
    pub fn error(self, what: &str, legacy: u16) -> Error {
        let (kind, fact, hint) = match self {
            Self::Auth => (
                Kind::Auth,
                "the target does not accept name and password".to_owned(),
                "chapuser and chappassword must be those that the target has for this initiator, \
                 and with mutual CHAP incoming_chapuser and incoming_chappassword those of the target",
            ),
            Self::Login => (
                Kind::Auth,
                "the target refuses the login".to_owned(),
                "is the name of this host's initiator (/etc/iscsi/initiatorname.iscsi) allowed there?",
            ),
            Self::Timeout | Self::PduTimeout | Self::Transport => (
                Kind::Unreachable,
                "the target does not answer".to_owned(),
                "is the target up, does it have that name, and is this host's initiator allowed there?",
            ),
            Self::Daemon => (
                Kind::Unreachable,
                "iscsid does not run on this host".to_owned(),
                "start the service iscsid (open-iscsi)",
            ),
            Self::NoRecords | Self::NoSession => {
                (Kind::NotFound, "there is none".to_owned(), "smctl sr probe shows what there is")
            }
            Self::Exists => (
                Kind::Exists,
                "there is a session already".to_owned(),
                "iscsiadm -m session shows it",
            ),
            Self::Busy => (
                Kind::InUse,
                "a disk of the session is in use".to_owned(),
                "lsblk shows what is on top of it",
            ),
            Self::Access => {
                (Kind::Internal, "iscsiadm may not do it".to_owned(), "sessions are for root")
            }
            Self::Other(status) => (
                Kind::Internal,
                format!("iscsiadm failed with status {status}"),
                "iscsiadm(8), EXIT STATUS, says what it means",
            ),
        };
        Error::new(kind, format!("{what}: {fact}")).legacy(legacy).hint(hint)
    }
}

/// What `iscsiadm` said, without its name and what it says of every failure.
pub(super) fn last_words(errors: &str) -> String {
    let lines = errors.lines().map(|line| line.trim().trim_start_matches("iscsiadm: "));
    let mut kept: Vec<&str> = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        if kept.last() != Some(&line) {
            kept.push(line);
        }
    }
    kept.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_kind() {
        for (status, kind) in [
            (24, Kind::Auth),
            (19, Kind::Auth),
            (8, Kind::Unreachable),
            (11, Kind::Unreachable),
            (4, Kind::Unreachable),
            (20, Kind::Unreachable),
            (21, Kind::NotFound),
            (15, Kind::Exists),
            (28, Kind::InUse),
            (1, Kind::Internal),
            (99, Kind::Internal),
        ] {
            let error = Failure::of(status).error("iqn.x at 192.0.2.1:3260", 68);
            assert_eq!((error.kind.clone(), error.legacy_code()), (kind, 68), "{status}");
            assert!(error.message.starts_with("iqn.x at 192.0.2.1:3260: "), "{error}");
            assert!(error.hint.is_some());
        }
    }

    /// open-iscsi 2.1.8, in its own words.
    #[test]
    fn its_words_are_kept_once() {
        let refused = "iscsiadm: cannot make connection to 10.9.0.1: Connection refused\n\
                       iscsiadm: cannot make connection to 10.9.0.1: Connection refused\n\
                       iscsiadm: connection login retries (reopen_max) 5 exceeded\n\
                       iscsiadm: Could not perform SendTargets discovery: iSCSI PDU timed out\n";
        assert_eq!(
            last_words(refused),
            "cannot make connection to 10.9.0.1: Connection refused; connection login retries \
             (reopen_max) 5 exceeded; Could not perform SendTargets discovery: iSCSI PDU timed out"
        );
        assert_eq!(last_words("iscsiadm: No active sessions.\n"), "No active sessions.");
        assert_eq!(last_words(""), "");
    }
}
