//! A connection whose other side is an input.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datapath::nbd::wire::Wire;

/// What the other side says, in portions, then the end; and what is said to it.
pub struct Pipe {
    says: Mutex<(Vec<u8>, usize)>,
    portion: usize,
    hears: Arc<Mutex<Vec<u8>>>,
}

impl Pipe {
    /// `portion`: bytes that one receive brings at most. The second is what was heard.
    pub fn new(says: Vec<u8>, portion: usize) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let hears = Arc::default();
        (Self { says: Mutex::new((says, 0)), portion, hears: Arc::clone(&hears) }, hears)
    }
}

impl Wire for Pipe {
    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "there is no room, and the client waits for ever");
        let mut says = self.says.lock().expect("nobody panics and goes on");
        let (bytes, at) = &mut *says;
        let count = into.len().min(self.portion).min(bytes.len() - *at);
        into[..count].copy_from_slice(&bytes[*at..*at + count]);
        *at += count;
        Ok(count)
    }

    fn send(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let mut hears = self.hears.lock().expect("nobody panics and goes on");
        hears.extend_from_slice(first);
        hears.extend_from_slice(second);
        Ok(())
    }

    fn set_receive_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn set_send_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn close(&self) {}
}
