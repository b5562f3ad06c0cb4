//! What agents answer, and do not.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use serde_json::json;
use sm_model::Kind;
use sm_quiesce::agent::Agent;
use sm_quiesce::{Consistency, Outcome, Quiescer};

use crate::fake::{Fake, Say};

/// Long enough for whatever is answered.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Short, for what is not.
fn now() -> Instant {
    Instant::now() + Duration::from_millis(100)
}

fn guest(mounts: &[&str]) -> (tempfile::TempDir, Fake, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    let mounts: Vec<String> = mounts.iter().map(|mount| (*mount).to_owned()).collect();
    let agent = Agent::new(&fake.socket, &mounts);
    (folder, fake, agent)
}

#[test]
fn a_guest_is_frozen_and_goes_on() {
    let (_folder, fake, mut agent) = guest(&[]);
    let ready = agent.prepare(soon()).unwrap();
    assert_eq!((ready.level, ready.system.as_str()), (Consistency::FileSystem, "Debian 12"));
    assert_eq!(agent.freeze(&[], soon()).unwrap().count, 2);
    assert_eq!(agent.thaw(&Outcome::Taken(Vec::new()), soon()).unwrap().count, 2);
    assert_eq!(
        fake.log(),
        [
            "guest-fsfreeze-status",
            "guest-get-osinfo",
            "guest-fsfreeze-freeze",
            "guest-fsfreeze-thaw"
        ]
    );
}

#[test]
fn what_an_earlier_client_left_is_skipped() {
    let (_folder, fake, mut agent) = guest(&[]);
    // Half a line of a client that died, an answer nobody read, an answer to another's sync.
    fake.guest().greeting =
        b"gar\xffbage {\n{\"return\": \"frozen\"}\n\xff{\"return\": 1}\n".to_vec();
    assert!(agent.prepare(soon()).is_ok());
}

#[test]
fn windows_is_told_apart() {
    let (_folder, fake, mut agent) = guest(&[]);
    let windows = json!({"id": "mswindows", "pretty-name": "Windows Server 2022 Standard"});
    fake.instead("guest-get-osinfo", Say::Return(windows));
    assert_eq!(agent.prepare(soon()).unwrap().level, Consistency::Application);
}

#[test]
fn an_agent_that_is_absent_busy_or_silent_is_told_as_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none");
    let name = socket.display();
    let error = Agent::new(&socket, &[]).prepare(now()).unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert_eq!(error.message, format!("nobody answers at {name}"));
    let hint = "is the guest running, and the guest agent in it?";
    assert_eq!(error.hint.as_deref(), Some(hint));

    // Somebody else is its client: connections are taken, and nothing is answered.
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = Agent::new(&socket, &[]).prepare(now()).unwrap_err();
    assert_eq!(error.kind, Kind::DeadlineExceeded);
    assert_eq!(error.message, format!("the guest agent at {name} does not answer in time"));

    // And then not even that.
    let mut clients = Vec::new();
    loop {
        let made = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
        match rustix::net::connect(&made, &address) {
            Ok(()) => clients.push(UnixStream::from(made)),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let error = Agent::new(&socket, &[]).prepare(now()).unwrap_err();
    assert_eq!(error.kind, Kind::Busy { retry_after_ms: None });
    assert_eq!(error.message, format!("{name} takes no further connection"));
}

#[test]
fn garbage_half_a_line_and_odd_answers_are_errors_and_not_the_end() {
    let (_folder, fake, mut agent) = guest(&[]);
    let name = fake.socket.display().to_string();
    let status = "guest-fsfreeze-status";
    fake.instead(status, Say::Raw(b"HTTP/1.1 400 Bad Request\n"));
    let error = agent.prepare(soon()).unwrap_err();
    assert_eq!(
        error.message,
        format!("what answers {status} at {name} is no guest agent: \"HTTP/1.1 400 Bad Request\"")
    );
    fake.instead(status, Say::Return(json!({"x": 1})));
    let error = agent.prepare(soon()).unwrap_err();
    assert_eq!(
        error.message,
        format!("the guest agent at {name} answers {status} with {{\"x\":1}}")
    );
    fake.instead(status, Say::Raw(b"{\"return\": \"thaw"));
    let error = agent.prepare(now()).unwrap_err();
    assert_eq!(error.message, format!("the guest agent at {name} does not answer in time"));
    // The other half, and an answer to a question of before, are skipped.
    fake.instead(status, Say::HangUp);
    let error = agent.prepare(soon()).unwrap_err();
    assert_eq!(error.message, format!("the guest agent at {name} has gone away"));
}

#[test]
fn after_an_answer_that_was_too_late_the_next_one_is_the_right_one() {
    let (_folder, fake, mut agent) = guest(&[]);
    agent.prepare(soon()).unwrap();
    fake.instead("guest-fsfreeze-freeze", Say::Nothing);
    let error = agent.freeze(&[], now()).unwrap_err();
    assert_eq!(error.kind, Kind::DeadlineExceeded);
    fake.guest().frozen = 2;
    // It may be frozen: it is thawed, whatever was said.
    assert_eq!(agent.thaw(&Outcome::Failed, soon()).unwrap().count, 2);
    assert_eq!(fake.guest().frozen, 0);
}

#[test]
fn nothing_frozen_is_a_failure() {
    let (_folder, fake, mut agent) = guest(&[]);
    let name = fake.socket.display().to_string();
    agent.prepare(soon()).unwrap();
    fake.instead("guest-fsfreeze-freeze", Say::Return(json!(0)));
    let error = agent.freeze(&[], soon()).unwrap_err();
    assert_eq!(error.message, format!("the guest agent at {name} has frozen no file system"));

    // An agent that cannot list its file systems passes over those that it does not have.
    let (_folder, fake, mut agent) = guest(&["/data", "/no/such"]);
    let name = fake.socket.display().to_string();
    fake.instead("guest-get-fsinfo", Say::Error("CommandNotFound", "not found"));
    agent.prepare(soon()).unwrap();
    let error = agent.freeze(&[], soon()).unwrap_err();
    assert_eq!(error.message, format!("the guest agent at {name} has frozen 1 of 2 file systems"));
    assert!(agent.thaw(&Outcome::Failed, soon()).is_ok());
}

#[test]
fn a_file_system_that_the_guest_does_not_have_is_refused_before_anything_is_frozen() {
    let (_folder, fake, mut agent) = guest(&["/data", "/no/such"]);
    let name = fake.socket.display().to_string();
    let error = agent.prepare(soon()).unwrap_err();
    assert_eq!(
        error.message,
        format!("the guest behind {name} has nothing mounted at \"/no/such\"")
    );
    assert_eq!(error.hint.as_deref(), Some("mounted there: /, /data"));
    assert!(!fake.log().iter().any(|command| command.starts_with("guest-fsfreeze-freeze")));
}

#[test]
fn a_guest_that_somebody_else_has_frozen_is_left_alone() {
    let (_folder, fake, mut agent) = guest(&[]);
    fake.guest().frozen = 1;
    let error = agent.prepare(soon()).unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    let name = fake.socket.display().to_string();
    assert_eq!(error.message, format!("the guest behind {name} is frozen by somebody else"));
    assert_eq!(fake.log(), ["guest-fsfreeze-status"]);
}

#[test]
fn a_guest_that_was_thawed_in_between_was_not_at_rest() {
    let words = "couldn't hold writes: fsfreeze is limited up to 10 seconds: ";
    let (_folder, fake, mut agent) = guest(&[]);
    let name = fake.socket.display().to_string();
    agent.prepare(soon()).unwrap();
    agent.freeze(&[], soon()).unwrap();
    fake.instead("guest-fsfreeze-thaw", Say::Error("GenericError", words));
    let error = agent.thaw(&Outcome::Taken(Vec::new()), soon()).unwrap_err();
    assert_eq!(error.kind, Kind::Busy { retry_after_ms: None });
    assert_eq!(error.message, format!("the guest agent at {name} refuses guest-fsfreeze-thaw"));
    assert_eq!(error.backend.as_deref(), Some(words));

    // Windows again, later: no set any more, and no error.
    let (_folder, fake, mut agent) = guest(&[]);
    let name = fake.socket.display().to_string();
    agent.prepare(soon()).unwrap();
    agent.freeze(&[], soon()).unwrap();
    fake.instead("guest-fsfreeze-thaw", Say::Return(json!(0)));
    let error = agent.thaw(&Outcome::Taken(Vec::new()), soon()).unwrap_err();
    assert_eq!(
        error.message,
        format!(
            "of 2 file systems that were frozen 0 still were when the guest behind {name} was let \
             go on"
        )
    );
}

#[test]
fn an_agent_that_must_not_freeze_says_so() {
    let (_folder, fake, mut agent) = guest(&[]);
    agent.prepare(soon()).unwrap();
    let words = "Command guest-fsfreeze-freeze has been disabled";
    fake.instead("guest-fsfreeze-freeze", Say::Error("CommandNotFound", words));
    let error = agent.freeze(&[], soon()).unwrap_err();
    assert_eq!((&error.kind, error.backend.as_deref()), (&Kind::Unsupported, Some(words)));
}
