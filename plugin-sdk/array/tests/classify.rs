//! Tables of five vendors, with the words that their arrays use.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails so")]

use array_kit::classify::{Fault, Row, Table};
use array_kit::outcome::Class;

fn fault(status: u16, code: &str, message: &str) -> Fault {
    Fault {
        status: (status != 0).then_some(status),
        code: (!code.is_empty()).then(|| code.to_owned()),
        message: message.to_owned(),
        retry_after: None,
    }
}

/// A refusal and what it means; `None` is done.
type Case = (&'static str, u16, &'static str, &'static str, Option<Class>);

fn check(table: Table, cases: &[Case]) {
    for (operation, status, code, message, expected) in cases {
        let verdict = table.verdict(operation, &fault(*status, code, message));
        assert_eq!(verdict, *expected, "{operation} {status} {code} {message}");
    }
}

#[test]
fn equallogic_says_it_in_a_line_of_text() {
    const TABLE: Table = Table::new(&[
        Row::text("does not exist").is(Class::NotFound),
        Row::text("already exists").is(Class::AlreadyExists),
        Row::text("% Error").is(Class::Invalid),
        Row::text("Error:").is(Class::Invalid),
    ]);
    check(
        TABLE,
        &[
            ("volume_delete", 0, "", "% Error - volume web does not exist.", Some(Class::NotFound)),
            ("volume_create", 0, "", "Error: web already exists", Some(Class::AlreadyExists)),
            ("volume_create", 0, "", "% Error - syntax error", Some(Class::Invalid)),
            // No text of a refusal: the session ended in the middle.
            ("volume_create", 0, "", "", Some(Class::Unknown)),
        ],
    );
}

#[test]
fn truenas_answers_422_for_most() {
    const TABLE: Table = Table::new(&[
        Row::code("-6").is(Class::NotFound),
        Row::text("is in use").is(Class::InUse),
        Row::text("LUN ID is already being used for this target.").is(Class::LimitReached),
        Row::text("Extent is already in this target.").done(),
        Row::text("must be unique").is(Class::AlreadyExists),
        Row::text("already exists").is(Class::AlreadyExists),
        Row::text("does not exist").is(Class::NotFound),
        Row::text("instancenotfound").is(Class::NotFound),
        Row::text("no such").is(Class::NotFound),
        Row::text("enoent").is(Class::NotFound),
        Row::text("not found").is(Class::NotFound),
    ]);
    check(
        TABLE,
        &[
            ("dataset_create", 422, "", "tank/v already exists", Some(Class::AlreadyExists)),
            ("dataset_delete", 422, "", "tank/v does not exist", Some(Class::NotFound)),
            ("snapshot_delete", 422, "", "Snapshot tank/v@s not found", Some(Class::NotFound)),
            ("target_delete", 422, "14", "Target X is in use.", Some(Class::InUse)),
            ("extent_create", 422, "22", "Extent name must be unique", Some(Class::AlreadyExists)),
            ("map", 422, "", "Extent is already in this target.", None),
            (
                "map",
                422,
                "",
                "LUN ID is already being used for this target.",
                Some(Class::LimitReached),
            ),
            ("call", 0, "-6", "[ENOENT] None", Some(Class::NotFound)),
            ("call", 0, "-32602", "InstanceNotFound: x", Some(Class::NotFound)),
            // A proxy gave up while the work goes on.
            ("dataset_create", 504, "", "", Some(Class::Unknown)),
            ("dataset_create", 422, "", "volsize is required", Some(Class::Invalid)),
        ],
    );
}

#[test]
fn powerstores_code_counts_before_its_status() {
    const TABLE: Table = Table::new(&[
        Row::of_status(422).is(Class::Invalid),
        Row::of_status(403).is(Class::Expired),
        Row::code("0xE0A08001000F").on("unmap").done(),
        Row::code("0xE0A08001000E").is(Class::NotFound),
        Row::code("0xE0A040010003").is(Class::LimitReached),
        Row::code("0xE0A0E0010009").on("policy_create").is(Class::AlreadyExists),
        Row::code("0xE02020010004").on("policy_create").is(Class::AlreadyExists),
        Row::text("already in use").is(Class::AlreadyExists),
    ]);
    check(
        TABLE,
        &[
            ("unmap", 422, "0xE0A08001000F", "", None),
            ("delete", 422, "0xE0A08001000F", "", Some(Class::Invalid)),
            (
                "get",
                422,
                "0xE0A08001000E",
                "Could not find the volume with ID: 7",
                Some(Class::NotFound),
            ),
            ("snapshot", 422, "0xE0A040010003", "", Some(Class::LimitReached)),
            ("policy_create", 422, "0xE0A0E0010009", "", Some(Class::AlreadyExists)),
            // A name in use may also be 500, which would leave it open.
            ("create", 500, "", "The name is already in use", Some(Class::AlreadyExists)),
            ("create", 500, "", "", Some(Class::Unknown)),
            ("create", 403, "", "", Some(Class::Expired)),
            ("login", 401, "", "", Some(Class::Expired)),
        ],
    );
}

#[test]
fn pure_answers_400_for_nearly_everything() {
    const TABLE: Table = Table::new(&[
        Row::exactly("Server is busy").status(500).is(Class::Busy),
        Row::text("already exists").on("connect").done(),
        Row::text("already exists").is(Class::AlreadyExists),
        Row::text("does not exist").is(Class::NotFound),
        Row::text("No such volume or snapshot").is(Class::NotFound),
        Row::text("has been destroyed").is(Class::NotFound),
        Row::text("could not be found").is(Class::NotFound),
        Row::text("limit reached").is(Class::LimitReached),
        Row::text("cannot be deleted due to existing connections").is(Class::InUse),
    ]);
    check(
        TABLE,
        &[
            ("create", 400, "", "Volume already exists.", Some(Class::AlreadyExists)),
            ("connect", 400, "", "Connection already exists.", None),
            ("get", 400, "", "Volume does not exist.", Some(Class::NotFound)),
            ("get", 400, "", "No such volume or snapshot.", Some(Class::NotFound)),
            ("destroy", 400, "", "Volume has been destroyed.", Some(Class::NotFound)),
            ("create", 400, "", "Volume limit reached.", Some(Class::LimitReached)),
            (
                "destroy",
                400,
                "",
                "Volume cannot be deleted due to existing connections.",
                Some(Class::InUse),
            ),
            ("create", 500, "", "Server is busy", Some(Class::Busy)),
            ("create", 500, "", "Server is busy with something", Some(Class::Unknown)),
            ("create", 429, "", "", Some(Class::Busy)),
            ("create", 503, "", "", Some(Class::Busy)),
            ("get", 401, "", "", Some(Class::Expired)),
        ],
    );
}

#[test]
fn ontaps_codes_are_texts() {
    const TABLE: Table = Table::new(&[
        Row::code("1260136").is(Class::AlreadyExists),
        Row::code("5374242").is(Class::AlreadyExists),
        // Made, and not complete: look, do not make it again.
        Row::code("5374863").is(Class::Unknown),
        Row::code("5374886").is(Class::Unknown),
        Row::code("1254197").is(Class::InUse),
        Row::code("1254226").on("resize").done(),
        Row::code("1254207").on("map").done(),
        Row::code("5374922").on("unmap").done(),
        Row::code("525059").is(Class::AlreadyExists),
        Row::code("525062").is(Class::LimitReached),
        Row::code("1638543").is(Class::Busy),
        Row::code("1638555").is(Class::Busy),
        Row::code("4").is(Class::NotFound),
        Row::code("6").is(Class::Denied),
    ]);
    check(
        TABLE,
        &[
            ("create", 409, "5374242", "", Some(Class::AlreadyExists)),
            ("create", 500, "5374863", "", Some(Class::Unknown)),
            ("delete", 409, "1254197", "LUN is mapped", Some(Class::InUse)),
            ("resize", 400, "1254226", "New LUN size is the same", None),
            ("map", 409, "1254207", "", None),
            ("unmap", 404, "5374922", "", None),
            ("snapshot", 400, "525062", "", Some(Class::LimitReached)),
            ("snapshot", 500, "1638555", "", Some(Class::Busy)),
            ("get", 404, "4", "entry doesn't exist", Some(Class::NotFound)),
            ("get", 200, "42", "", Some(Class::Unknown)),
        ],
    );
}

#[test]
fn without_a_row_the_status_decides() {
    let table = Table::new(&[]);
    let class = |status| table.verdict("any", &fault(status, "", "")).unwrap();
    let classes = [400, 401, 403, 404, 405, 409, 422, 423, 429, 500, 501, 502, 503, 504, 507];
    assert_eq!(
        classes.map(class),
        [
            Class::Invalid,
            Class::Expired,
            Class::Denied,
            Class::NotFound,
            Class::Unsupported,
            Class::AlreadyExists,
            Class::Invalid,
            Class::InUse,
            Class::Busy,
            Class::Unknown,
            Class::Unsupported,
            Class::Unknown,
            Class::Busy,
            Class::Unknown,
            Class::NoSpace,
        ]
    );
    let failure = table.failure("any", &fault(404, "7", "not here")).unwrap();
    assert_eq!((failure.status, failure.code.as_deref()), (Some(404), Some("7")));
    assert_eq!(failure.to_string(), "the object is not on the array (the array says: not here)");
}
