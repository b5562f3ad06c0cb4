//! The bitmap of changed blocks, as it travels.
#![allow(clippy::unwrap_used, reason = "a test fails so")]

use sm_model::vdi::{CHANGED_BLOCK, VdiChanges};
use sm_model::{Bytes, Kind};

fn changes(size: u64, bits: &[u8]) -> VdiChanges {
    let bitmap = VdiChanges::encode(bits);
    VdiChanges { virtual_size: Bytes(size), known: true, why: None, bitmap }
}

#[test]
fn ranges_are_those_of_the_bits_the_first_block_in_the_most_significant() {
    // Ten blocks, the last one short.
    let size = 10 * CHANGED_BLOCK - 512;
    let of = |bits: [u8; 2]| changes(size, &bits).ranges().unwrap();
    assert_eq!(of([0, 0]), []);
    assert_eq!(of([0x80, 0]), [(0, CHANGED_BLOCK)]);
    assert_eq!(of([0x01, 0x80]), [(7 * CHANGED_BLOCK, 2 * CHANGED_BLOCK)]);
    let last = (9 * CHANGED_BLOCK, CHANGED_BLOCK - 512);
    assert_eq!(of([0x40, 0x40]), [(CHANGED_BLOCK, CHANGED_BLOCK), last]);
    // Bits behind the end of the disk mean nothing.
    assert_eq!(of([0x40, 0x7f]), [(CHANGED_BLOCK, CHANGED_BLOCK), last]);
    assert_eq!(of([0xff, 0xff]), [(0, size)]);
}

#[test]
fn what_is_not_known_has_changed() {
    let size = 9 * CHANGED_BLOCK;
    let why = Some("it was not closed".to_owned());
    let unknown =
        VdiChanges { virtual_size: Bytes(size), known: false, why, bitmap: String::new() };
    assert_eq!(unknown.ranges().unwrap(), [(0, size)]);
    assert_eq!(unknown.bits().unwrap(), [0xff, 0x80]);
    let json = serde_json::to_string(&unknown).unwrap();
    assert!(!json.contains("bitmap"), "{json}");
    assert_eq!(serde_json::from_str::<VdiChanges>(&json).unwrap(), unknown);
}

#[test]
fn a_bitmap_that_does_not_fit_the_disk_is_not_believed() {
    let size = 9 * CHANGED_BLOCK;
    let damaged = "the driver's bitmap of changed blocks is damaged";
    let wrong = |changes: VdiChanges| {
        let error = changes.ranges().unwrap_err();
        assert_eq!((error.kind.clone(), error.message.as_str()), (Kind::Internal, damaged));
    };
    wrong(changes(size, &[0]));
    wrong(changes(size, &[0; 3]));
    wrong(VdiChanges { bitmap: "no base64!".to_owned(), ..changes(size, &[0; 2]) });
    // Of more than any disk has: no memory is taken for it.
    wrong(VdiChanges { known: false, ..changes(u64::MAX, &[]) });
}
