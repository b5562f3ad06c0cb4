//! A server that says anything, against the client: no panic, little memory, an end, and no data
//! that was not all of what was asked for.
#![no_main]

use std::time::Duration;

use datapath::export::Zeroes;
use datapath::nbd::Limits;
use datapath::nbd::client::{Client, Options};
use datapath::nbd::protocol::{
    ContextRequest, InfoRequest, Request, command, encode_option, option,
};
use datapath::nbd::server::serve_wire;
use datapath_fuzz::disk::{Disks, SIZE};
use datapath_fuzz::input::Input;
use datapath_fuzz::pipe::Pipe;
use datapath_fuzz::{limit_memory, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        if let Some(folder) = seeds::wanted() {
            seeds::write(&folder, &examples());
        }
    },
    |data: &[u8]| -> () {
        // A chunk of extents may claim 16 MiB.
        limit_memory(64 << 20);
        let mut input = Input(data);
        let portion = usize::from(input.byte()) * 16 + 1;
        let (pipe, _) = Pipe::new(input.0.to_vec(), portion);
        let options = Options { timeout: Duration::from_secs(5), ..Options::default() };
        let Ok(client) = Client::over_wire(Box::new(pipe), "disk", &options) else { return };
        let mut buffer = vec![0; 4096];
        let _ = client.read(0, &mut buffer);
        let _ = client.write(512, &buffer[..512], true);
        if let Ok(extents) = client.extents(0, client.size().min(1 << 20)) {
            let total: u64 = extents.iter().map(|extent| extent.length).sum();
            assert_eq!(total, client.size().min(1 << 20), "extents have gaps");
        }
        let _ = client.write_zeroes(0, 512, Zeroes::default());
        let _ = client.trim(0, 512);
        let _ = client.flush();
    }
);

/// What our server says to the requests that the target makes.
fn examples() -> Vec<Vec<u8>> {
    let request = |command, cookie, offset, length| {
        Request { flags: 0, command, cookie, offset, length }.encode()
    };
    let contexts =
        ContextRequest { name: "disk".to_owned(), queries: vec!["base:allocation".to_owned()] };
    let go = InfoRequest { name: "disk".to_owned(), wanted: vec![3] };
    let mut all = Vec::new();
    for structured in [true, false] {
        let mut says = 3_u32.to_be_bytes().to_vec();
        if structured {
            says.extend(encode_option(option::STRUCTURED_REPLY, &[]));
            says.extend(encode_option(option::SET_META_CONTEXT, &contexts.encode()));
        } else {
            // Not known: the client goes on without.
            says.extend(encode_option(option::STRUCTURED_REPLY, &[0]));
        }
        says.extend(encode_option(option::GO, &go.encode()));
        says.extend(request(command::READ, 1, 0, 4096));
        says.extend(request(command::WRITE, 2, 512, 512));
        says.extend([0; 512]);
        says.extend(request(command::BLOCK_STATUS, 3, 0, SIZE as u32));
        says.extend(request(command::WRITE_ZEROES, 4, 0, 512));
        says.extend(request(command::TRIM, 5, 0, 512));
        says.extend(request(command::FLUSH, 6, 0, 0));
        let (pipe, hears) = Pipe::new(says, usize::MAX);
        serve_wire(Box::new(pipe), &Disks::new(&vec![7; SIZE as usize]), &Limits::default());
        let hears = hears.lock().expect("nobody panics").clone();
        all.push([&[255][..], &hears].concat());
        all.push([&[0][..], &hears].concat());
    }
    all
}
