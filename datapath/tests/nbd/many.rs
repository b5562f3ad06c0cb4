//! Many disks behind one socket.

use datapath::nbd::client::Client;

use super::disks::{Disks, GRAIN, Memory, noise};
use super::place::{Place, good, until};

const COUNT: usize = 200;

#[test]
fn two_hundred_exports_of_one_socket_are_listed_and_used_at_once() {
    let name = |number: usize| format!("disk {number:03}");
    let disks = (0..COUNT).fold(Disks::default(), |disks, number| {
        disks.add(&name(number), Memory::new(((number + 1) * GRAIN) as u64))
    });
    let place = Place::new(disks.clone());
    let all = good("nbdinfo", &["--list", "--json", &place.uri("").to_string()]);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let listed = all["exports"].as_array().unwrap();
    let sizes: Vec<u64> =
        listed.iter().map(|export| export["export-size"].as_u64().unwrap()).collect();
    let want: Vec<u64> = (1..=COUNT).map(|number| (number * GRAIN) as u64).collect();
    assert_eq!(sizes, want);

    let clients: Vec<Client> = (0..COUNT).map(|number| place.client(&name(number))).collect();
    assert_eq!(place.server.connections().len(), COUNT);
    let bytes = |number: usize| noise(number as u64 + 1, (number + 1) * GRAIN);
    let pending: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(number, client)| client.start_write(0, &bytes(number), false).unwrap())
        .collect();
    for one in pending {
        one.wait().unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        let mut back = vec![0; (number + 1) * GRAIN];
        client.read(0, &mut back).unwrap();
        assert!(back == bytes(number) && disks.get(&name(number)).bytes() == back, "{number}");
    }
    drop(clients);
    until("all have left", || place.server.connections().is_empty());
}
