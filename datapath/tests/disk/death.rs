//! A process that is killed while it writes.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use datapath::disk::{Drive, Options};
use datapath::export::{Export, Zeroes};

use crate::files::{Rng, new_image, notes, options, plan, sound};

const SIZE: u64 = 64 << 20;
const PIECE: u64 = 4096;
/// Pieces that the child writes to.
const PIECES: u64 = 400;

fn piece(index: u64) -> u64 {
    // Over all blocks, some of them beside each other.
    (index * 7919) % (SIZE / PIECE) * PIECE
}

fn content(index: u64, generation: u64) -> Vec<u8> {
    if generation.is_multiple_of(5) {
        return vec![0; PIECE as usize];
    }
    let mut bytes = vec![generation as u8 | 1; PIECE as usize];
    for part in bytes.chunks_mut(512) {
        part[..8].copy_from_slice(&index.to_be_bytes());
        part[8..16].copy_from_slice(&generation.to_be_bytes());
    }
    bytes
}

/// Is killed, whatever becomes of the test.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn paths(dir: &std::path::Path) -> [PathBuf; 2] {
    [dir.join("2.vhd"), dir.join("1.vhd")]
}

#[test]
#[ignore = "the process that is killed, started by the test below"]
fn writer() {
    let Ok(dir) = std::env::var("DISK_DIR") else { return };
    let start: u64 = std::env::var("DISK_GENERATION").unwrap().parse().unwrap();
    let dir = PathBuf::from(dir);
    let drive = Drive::open(&plan(&paths(&dir)), options(&dir)).unwrap();
    let out = std::sync::Mutex::new(std::io::stdout());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (drive, out) = (&drive, &out);
            scope.spawn(move || {
                let mut rng = Rng::new(start * 10 + thread);
                for generation in start.. {
                    let index = rng.below(PIECES / 4) * 4 + thread;
                    let bytes = content(index, generation);
                    let say = |word: &str| {
                        let line = format!("{word} {index} {generation}\n");
                        out.lock().unwrap().write_all(line.as_bytes()).unwrap();
                    };
                    say("begin");
                    if generation.is_multiple_of(5) {
                        drive.write_zeroes(piece(index), PIECE, Zeroes::default()).unwrap();
                    } else {
                        drive.write(piece(index), &bytes, false).unwrap();
                    }
                    say("end");
                    if generation % 97 == 3 {
                        drive.flush().unwrap();
                    }
                }
            });
        }
    });
}

/// Killed at any moment, again and again: what was answered is there, flushed or not.
#[test]
fn what_was_answered_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let base = new_image(dir.path(), 1, SIZE, None);
    let below = Drive::open(&plan(std::slice::from_ref(&base)), Options::default()).unwrap();
    for index in 0..PIECES {
        below.write(piece(index), &content(index, 1), false).unwrap();
    }
    below.close(crate::files::soon()).unwrap();
    new_image(dir.path(), 2, SIZE, Some((1, &base)));
    let mut rng = Rng::any();
    let mut generation = 2;
    // What each piece holds, or one of two things: answered, or begun and not answered.
    let mut held: Vec<Vec<u64>> = vec![vec![1]; PIECES as usize];
    for _ in 0..8 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "death::writer", "--ignored", "--nocapture", "-q"])
            .env("DISK_DIR", dir.path())
            .env("DISK_GENERATION", generation.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut child = Victim(child);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let most = 20 + rng.below(3000);
        let mut seen = 0;
        let mut take = |line: String| {
            let mut words = line.split(' ');
            let word = words.next().unwrap();
            if word != "begin" && word != "end" {
                return;
            }
            let index: usize = words.next().unwrap().parse().unwrap();
            let of: u64 = words.next().unwrap().parse().unwrap();
            generation = generation.max(of + 1);
            if word == "end" {
                held[index] = vec![of];
            } else {
                held[index].push(of);
            }
        };
        for line in lines.by_ref() {
            take(line.unwrap());
            seen += 1;
            if seen >= most {
                break;
            }
        }
        assert_eq!(seen, most, "the writer ended by itself");
        drop(child);
        // What it still said before it died.
        lines.for_each(|line| take(line.unwrap()));
        assert_eq!(notes(dir.path()).len(), 1);
        sound(&paths(dir.path())[0]);
        let drive = Drive::open(&plan(&paths(dir.path())), options(dir.path())).unwrap();
        for (index, held) in held.iter_mut().enumerate() {
            let index = index as u64;
            let mut buf = vec![0; PIECE as usize];
            drive.read(piece(index), &mut buf).unwrap();
            for (part, bytes) in buf.chunks(512).enumerate() {
                let may = held.iter().any(|of| content(index, *of)[part * 512..][..512] == *bytes);
                assert!(may, "piece {index} sector {part}: none of {held:?}: {:?}", &bytes[..20]);
            }
            if held.len() > 1 {
                // Settled, so that the next round can tell.
                let last = *held.last().unwrap();
                drive.write(piece(index), &content(index, last), false).unwrap();
                *held = vec![last];
            }
        }
        // Killed once more, in effect, with the next round beginning where this one ended.
        drop(drive);
    }
}
