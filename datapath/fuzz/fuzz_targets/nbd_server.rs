//! A client that says anything, against the server.
//!
//! No panic, little memory, and an end. As long as the client speaks NBD, each request has one
//! reply, in the order they came, reads bring what a disk of the same history would, and at the
//! end the disk holds what was written and acknowledged, and nothing else.
#![no_main]

use datapath::nbd::protocol::{
    ContextRequest, Fields, InfoRequest, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    chunk, command, encode_option, option,
};
use datapath::nbd::{Limits, server::serve_wire};
use datapath_fuzz::disk::{BAD, Disks, SIZE};
use datapath_fuzz::input::Input;
use datapath_fuzz::pipe::Pipe;
use datapath_fuzz::{limit_memory, seeds};
use libfuzzer_sys::fuzz_target;

/// Payload that one input may carry, bytes.
const PAYLOAD: usize = 2 << 20;

fuzz_target!(
    init: {
        if let Some(folder) = seeds::wanted() {
            seeds::write(&folder, &examples());
        }
    },
    |data: &[u8]| -> () {
        limit_memory(20 << 20);
        one(&mut Input(data));
    }
);

fn one(input: &mut Input) {
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
    let disks = Disks::new(&content);
    let portion = match input.byte() {
        0 => usize::MAX,
        small => usize::from(small) * usize::from(small),
    };
    let style = input.byte();
    if style == 0 {
        // Not a word of it is as it should be.
        let (pipe, _) = Pipe::new(input.0.to_vec(), portion);
        serve_wire(Box::new(pipe), &disks, &Limits::default());
        return;
    }
    let structured = style & 1 != 0;
    let (mut says, before) = handshake(input, structured);
    let requests = requests(input, &mut says);
    let (pipe, hears) = Pipe::new(says, portion);
    serve_wire(Box::new(pipe), &disks, &Limits::default());
    let hears = std::mem::take(&mut *hears.lock().expect("nobody panics and goes on"));
    let Some(replies) = before.map(|()| skip_options(&hears)) else { return };
    let mut model = Model::new(content);
    judge(&requests, replies, structured, &mut model);
    assert!(model.reads(0, &disks.disk.bytes.lock().expect("nobody panics")), "the disk differs");
}

/// Options, the last of which chooses the disk; none when one before may have ended it.
fn handshake(input: &mut Input, structured: bool) -> (Vec<u8>, Option<()>) {
    let mut says = 3_u32.to_be_bytes().to_vec();
    let mut sound = Some(());
    if structured {
        says.extend(encode_option(option::STRUCTURED_REPLY, &[]));
    }
    for _ in 0..input.byte() % 8 {
        let kind = u32::from(input.byte() % 14);
        let length = usize::from(input.byte());
        let data = input.bytes(length);
        let known = InfoRequest::parse(data).is_some();
        let ends = [option::EXPORT_NAME, option::ABORT].contains(&kind);
        let other = kind == option::STRUCTURED_REPLY || (kind == option::GO && known);
        if ends || other {
            sound = None;
        }
        says.extend(encode_option(kind, data));
    }
    let queries = vec!["base:allocation".to_owned(), "qemu:dirty-bitmap:b".to_owned()];
    let contexts = ContextRequest { name: "disk".to_owned(), queries };
    says.extend(encode_option(option::SET_META_CONTEXT, &contexts.encode()));
    let go = InfoRequest { name: "disk".to_owned(), wanted: vec![0, 1, 2, 3] };
    says.extend(encode_option(option::GO, &go.encode()));
    (says, sound)
}

/// Requests and their payload, one byte repeated.
fn requests(input: &mut Input, says: &mut Vec<u8>) -> Vec<(Request, u8)> {
    let mut requests = Vec::new();
    let mut payload = 0;
    while !input.is_empty() && requests.len() < 64 {
        let control = input.byte();
        let command = u16::from(control % 9);
        let flags = u16::from(input.byte());
        let offset = match control >> 6 {
            0 => u64::from(input.word()),
            1 => u64::from(input.word()) * 512,
            2 => SIZE.wrapping_sub(u64::from(input.word())),
            _ => u64::from(input.long()) << 32 | u64::from(input.long()),
        };
        let length = match control >> 4 & 3 {
            0 => u32::from(input.byte()) * 512,
            1 => u32::from(input.word()),
            2 => u32::from(input.word()) * 16,
            _ => input.long(),
        };
        let cookie = requests.len() as u64;
        let request = Request { flags, command, cookie, offset, length };
        if command == command::DISC {
            says.extend(request.encode());
            break;
        }
        let fill = input.byte();
        if command == command::WRITE {
            payload += length as usize;
            if payload > PAYLOAD {
                break;
            }
            says.extend(request.encode());
            says.resize(says.len() + length as usize, fill);
        } else {
            says.extend(request.encode());
        }
        requests.push((request, fill));
    }
    requests
}

/// What comes after the replies to options; the last of those is the acknowledged GO.
fn skip_options(hears: &[u8]) -> &[u8] {
    let mut fields = Fields(hears.get(18..).unwrap_or_default());
    loop {
        let rest = fields.0;
        let magic = fields.u64();
        let (about, kind, length) = (fields.u32(), fields.u32(), fields.u32());
        let length = length.expect("a whole reply to each option");
        assert_eq!(magic, Some(datapath::nbd::protocol::OPTION_REPLY_MAGIC));
        fields.bytes(length as usize).expect("a whole reply to each option");
        assert!(rest.len() >= 20 + length as usize);
        if about == Some(option::GO) && kind == Some(datapath::nbd::protocol::option_reply::ACK) {
            return fields.0;
        }
    }
}

/// What the disk holds. A long write that has failed on its way has left any part of itself.
struct Model {
    bytes: Vec<u8>,
    /// What each failed write would have filled its place with, and by byte which of these writes
    /// may have been there since: one bit for each, which [`PAYLOAD`] leaves enough of. Empty as
    /// long as none has failed.
    failed: Vec<u8>,
    since: Vec<u32>,
}

impl Model {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, failed: Vec::new(), since: Vec::new() }
    }

    fn fill(&mut self, start: usize, length: usize, fill: u8) {
        self.bytes[start..start + length].fill(fill);
        self.settle(start, length);
    }

    fn settle(&mut self, start: usize, length: usize) {
        if !self.failed.is_empty() {
            self.since[start..start + length].fill(0);
        }
    }

    fn may_fill(&mut self, start: usize, length: usize, fill: u8) {
        let bit = 1 << self.failed.len();
        self.failed.push(fill);
        self.since.resize(self.bytes.len(), 0);
        self.since[start..start + length].iter_mut().for_each(|since| *since |= bit);
    }

    /// Whether this can be read there; from then on it is what is there.
    fn reads(&mut self, start: usize, data: &[u8]) -> bool {
        let place = start..start + data.len();
        if self.failed.is_empty() {
            return self.bytes[place] == *data;
        }
        let failed = &self.failed;
        let may_be = |since: u32, byte: u8| {
            (0..failed.len()).any(|index| since & 1 << index != 0 && failed[index] == byte)
        };
        let mut held = self.bytes[place.clone()].iter().zip(&self.since[place.clone()]);
        let good = data.iter().all(|byte| {
            held.next().is_some_and(|(held, since)| byte == held || may_be(*since, *byte))
        });
        self.bytes[place].copy_from_slice(data);
        self.settle(start, data.len());
        good
    }
}

/// Writes beyond this are done while they come, bytes.
const AT_ONCE: usize = 64 * 1024;

/// Compares replies with a model of the disk.
fn judge(requests: &[(Request, u8)], replies: &[u8], structured: bool, model: &mut Model) {
    let mut fields = Fields(replies);
    for (request, fill) in requests {
        let (error, data) = reply(&mut fields, request, structured);
        let (start, length) = (request.offset as usize, request.length as usize);
        let inside = request.offset.checked_add(length as u64).is_some_and(|end| end <= SIZE);
        if error != 0 {
            let tried = request.command == command::WRITE && request.flags & !1 == 0;
            if tried && inside && length > AT_ONCE {
                let end = (BAD as usize).min(start + length);
                model.may_fill(start, end.saturating_sub(start), *fill);
            }
            continue;
        }
        if matches!(request.command, command::FLUSH) {
            continue;
        }
        assert!(inside && length > 0, "{request:?} went well");
        match request.command {
            command::READ => assert!(model.reads(start, &data), "{request:?}"),
            command::WRITE => model.fill(start, length, *fill),
            command::TRIM | command::WRITE_ZEROES => model.fill(start, length, 0),
            command::CACHE | command::BLOCK_STATUS => {}
            other => panic!("command {other} went well"),
        }
    }
    assert!(fields.is_empty(), "{} bytes beyond the last reply", fields.0.len());
}

/// The next reply, which must be to this request: its error, or the data of a read.
fn reply(fields: &mut Fields, request: &Request, structured: bool) -> (u32, Vec<u8>) {
    let mut data = vec![
        0xee;
        if request.command == command::READ {
            request.length.min(SIZE as u32) as usize
        } else {
            0
        }
    ];
    let mut covered = 0;
    loop {
        match fields.u32().expect("a reply to each request") {
            SIMPLE_REPLY_MAGIC => {
                let error = fields.u32().expect("a whole reply");
                assert_eq!(fields.u64(), Some(request.cookie));
                if request.command == command::READ {
                    assert!(!structured, "a read was answered without chunks");
                    if error == 0 {
                        data.copy_from_slice(fields.bytes(request.length as usize).expect("data"));
                    }
                }
                return (error, data);
            }
            STRUCTURED_REPLY_MAGIC => {
                assert!(structured, "chunks were not agreed on");
                let (flags, kind) = (fields.u16().expect("flags"), fields.u16().expect("kind"));
                assert_eq!(fields.u64(), Some(request.cookie));
                let length = fields.u32().expect("length") as usize;
                let mut body = Fields(fields.bytes(length).expect("a whole chunk"));
                let mut error = 0;
                match kind {
                    chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                        let at = (body.u64().expect("offset") - request.offset) as usize;
                        if kind == chunk::OFFSET_HOLE {
                            let count = body.u32().expect("length") as usize;
                            data[at..at + count].fill(0);
                            covered += count;
                        } else {
                            data[at..at + length - 8].copy_from_slice(body.0);
                            covered += length - 8;
                        }
                    }
                    chunk::BLOCK_STATUS => {
                        assert!([Some(1), Some(2)].contains(&body.u32()));
                        let mut total = 0_u64;
                        while let (Some(length), Some(_)) = (body.u32(), body.u32()) {
                            assert!(length > 0);
                            total += u64::from(length);
                        }
                        assert!(total > 0 && total <= u64::from(request.length));
                    }
                    chunk::ERROR => error = body.u32().expect("a number"),
                    other => panic!("a chunk of type {other}"),
                }
                if flags & chunk::DONE != 0 {
                    assert!(error != 0 || covered == data.len(), "parts are missing");
                    return (error, data);
                }
                assert_eq!(error, 0, "an error that is not the end");
            }
            other => panic!("{other:#x} begins no reply"),
        }
    }
}

fn examples() -> Vec<Vec<u8>> {
    let request = |control: u8, rest: &[u8]| [&[control], rest].concat();
    let mut all = Vec::new();
    for style in [1, 2] {
        for portion in [0, 1, 40] {
            let start = [portion, style, 0];
            let some: Vec<Vec<u8>> = (0..9)
                .map(|command| request(command, &[0, 0, 1, 8, 0x55]))
                .chain((0..9).map(|command| request(command | 0x40, &[1, 0, 1, 8, 0x66])))
                .collect();
            all.push([&start[..], &some.concat()].concat());
            // Long ones, in pieces.
            let long = [0x24, 0x25].map(|c| request(c, &[0, 0, 0, 0xff, 0x7f, 0x77]));
            all.push([&start[..], &long.concat()].concat());
        }
    }
    let go = InfoRequest { name: "disk".to_owned(), wanted: vec![3] };
    let raw = [&3_u32.to_be_bytes()[..], &encode_option(option::GO, &go.encode())].concat();
    all.push([&[0, 0][..], &raw].concat());
    all
}
