//! Serving an image for people: without a control plane.

use std::process::Command;

use super::place::{PROGRAM, Site, until};

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

/// In the background, by the parents that lie beside it; until a signal.
#[test]
fn an_image_is_served_with_its_parents_until_a_signal() {
    let site = Site::new();
    {
        let disk = site.tree.open_disk(site.disk, vhd::Mode::Write).unwrap();
        vhd::Disk::write_at(&disk, 0, &[7; 4096]).unwrap();
        vhd::Disk::flush(&disk).unwrap();
    }
    site.snapshot();
    let socket = site.folder.path().join("s").display().to_string();
    let leaf = site.leaf().display().to_string();
    let (done, uri) = run(PROGRAM, &["serve", "--image", &leaf, "--socket", &socket]);
    assert!(done, "{uri}");
    assert_eq!(uri.trim(), format!("nbd+unix:///?socket={socket}"));
    let reads = ["-f", "raw", "-c", "read -P 7 0 4096", "-c", "read -P 0 4096 4096", uri.trim()];
    let (done, text) = run("qemu-io", &reads);
    assert!(done && !text.contains("failed"), "{text}");

    let stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let pid = rustix::net::sockopt::socket_peercred(&stream).unwrap().pid;
    assert!(run("kill", &[&pid.as_raw_nonzero().to_string()]).0);
    until("the socket to go", || !std::path::Path::new(&socket).exists());
}

#[test]
fn what_cannot_be_served_is_said() {
    let site = Site::new();
    let socket = site.folder.path().join("s").display().to_string();
    let (done, text) = run(PROGRAM, &["serve", "--image", "/nowhere.vhd", "--socket", &socket]);
    assert!(!done && text.contains("/nowhere.vhd"), "{text}");
    let (done, text) = run(PROGRAM, &["serve", "--image", "x"]);
    assert!(!done && text.contains("--image and --socket are needed"), "{text}");
    let leaf = site.leaf().display().to_string();
    let long = format!("/tmp/{}", "x".repeat(120));
    let (done, text) = run(PROGRAM, &["serve", "--image", &leaf, "--socket", &long]);
    assert!(!done && text.contains("125 bytes of path; a socket's may have 107"), "{text}");
}
