//! What changed between two images, against an account kept by the test.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd::diff::{Diff, Range, Relation};
use vhd::folder::{Parents, chain, layers};
use vhd::image::{NewImage, ParentLink, create};
use vhd::{Chain, Image, Mode};

use crate::common::Random;

const MIB: u64 = 1 << 20;

fn image(dir: &Path, number: u128, parent: Option<(u128, &str)>, size: u64) -> PathBuf {
    let path = dir.join(format!("{number}.vhd"));
    let parent =
        parent.map(|(uuid, name)| ParentLink { uuid: Uuid::from_u128(uuid), name: name.into() });
    create(&path, &NewImage { uuid: Uuid::from_u128(number), size, parent }).unwrap();
    path
}

fn write(path: &Path, offset: u64, length: usize, byte: u8) {
    let image = Image::open(path, Mode::Write).unwrap();
    image.write_at(offset, &vec![byte; length]).unwrap();
    image.flush().unwrap();
}

fn ranges(diff: &Diff, content: bool) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut each = |range: Range| {
        found.push((range.offset, range.length));
        Ok(())
    };
    if content {
        diff.content(&mut |_, _| Ok(()), &mut each).unwrap();
    } else {
        diff.metadata(&mut each).unwrap();
    }
    found
}

fn open(left: &Path, right: &Path) -> Diff {
    Diff::open(left, right, Parents::default()).unwrap()
}

#[test]
fn an_ancestor_and_its_descendant_differ_where_somebody_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let a = image(dir.path(), 1, None, 64 * MIB);
    let b = image(dir.path(), 2, Some((1, "1.vhd")), 64 * MIB);
    let c = image(dir.path(), 3, Some((2, "2.vhd")), 128 * MIB);
    write(&a, 0, 4096, 1);
    write(&b, 512, 512, 2);
    // Written with what it held already.
    write(&b, 4096, 512, 0);
    write(&c, 1024, 1024, 3);
    write(&c, 100 * MIB, 512, 4);
    let diff = open(&a, &c);
    assert_eq!(
        (diff.relation, diff.left_size, diff.right_size),
        (Relation::Ancestor, 64 * MIB, 128 * MIB)
    );
    assert_eq!(diff.ancestor.as_deref(), Some(&*a));
    assert_eq!(ranges(&diff, false), [(512, 1536), (4096, 512), (100 * MIB, 512)]);
    assert_eq!(ranges(&diff, true), [(512, 1536), (100 * MIB, 512)]);
    let back = open(&c, &a);
    assert_eq!(back.relation, Relation::Descendant);
    assert_eq!(ranges(&back, true), ranges(&diff, true));
    assert_eq!((open(&a, &a).relation, ranges(&open(&a, &a), false)), (Relation::Same, vec![]));
}

#[test]
fn siblings_differ_where_either_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let a = image(dir.path(), 1, None, 64 * MIB);
    let b = image(dir.path(), 2, Some((1, "1.vhd")), 64 * MIB);
    let c = image(dir.path(), 3, Some((1, "1.vhd")), 64 * MIB);
    write(&a, 0, 4096, 1);
    write(&b, 0, 1024, 2);
    write(&c, 512, 1024, 2);
    let diff = open(&b, &c);
    assert_eq!(diff.relation, Relation::Common);
    assert_eq!(ranges(&diff, false), [(0, 1536)]);
    assert_eq!(ranges(&diff, true), [(0, 512), (1024, 512)]);
    let other = image(dir.path(), 9, None, 4 * MIB);
    write(&other, 3 * MIB, 512, 1);
    let diff = open(&a, &other);
    assert_eq!(diff.relation, Relation::Unrelated);
    assert_eq!(ranges(&diff, true), [(0, 4096), (3 * MIB, 512)]);
}

#[test]
fn a_chain_that_is_not_whole_cannot_be_compared() {
    let dir = tempfile::tempdir().unwrap();
    let a = image(dir.path(), 1, None, 64 * MIB);
    let b = image(dir.path(), 2, Some((7, "7.vhd")), 64 * MIB);
    assert!(Diff::open(&a, &b, Parents::default()).is_err());
}

#[test]
fn differences_are_those_of_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new();
    let size = 8 * MIB;
    let mut paths = vec![image(dir.path(), 1, None, size)];
    for number in 2..=5 {
        let parent = number - 1 - u128::from(number > 3);
        let name = format!("{parent}.vhd");
        paths.push(image(dir.path(), number, Some((parent, &name)), size));
    }
    for path in &paths {
        for _ in 0..20 {
            let offset = random.below(size / 512 - 8) * 512;
            write(path, offset, 512 * (1 + random.below(8) as usize), random.below(3) as u8);
        }
    }
    let read = |path: &Path| {
        let (links, findings) = chain(path, Parents::default()).unwrap();
        assert_eq!(findings, []);
        let disk = Chain::open(&layers(&links), Mode::Read).unwrap();
        let mut bytes = Vec::new();
        vhd::copy::export(&disk, &mut bytes, &mut |_| ControlFlow::Continue(())).unwrap();
        bytes
    };
    for left in &paths {
        for right in &paths {
            let diff = open(left, right);
            let (one, other) = (read(left), read(right));
            let mut wanted = vec![false; (size / 512) as usize];
            for (index, (a, b)) in one.chunks(512).zip(other.chunks(512)).enumerate() {
                wanted[index] = a != b;
            }
            let mut content = vec![false; wanted.len()];
            for (offset, length) in ranges(&diff, true) {
                content[(offset / 512) as usize..((offset + length) / 512) as usize].fill(true);
            }
            assert!(content == wanted);
            for (offset, length) in ranges(&diff, false) {
                content[(offset / 512) as usize..((offset + length) / 512) as usize].fill(false);
            }
            assert!(!content.contains(&true), "the tables tell of every difference");
        }
    }
}
